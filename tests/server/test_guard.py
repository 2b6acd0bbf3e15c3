"""The gate and the private files, by themselves."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgekit.errors import BadInputError
from edgekit.local.guard import Bearer, Cookie, Guard, Rules
from edgekit.local.listen import bind
from edgekit.local.private import new_token, private_directory, token_in, write_private

TOKEN = "t" * 40
HOST = "127.0.0.1:8000"
RIGHT = {"authorization": f"Bearer {TOKEN}"}


async def echo(request: Request) -> Response:
    body = await request.body()
    return JSONResponse({"bytes": len(body)}, headers={"Access-Control-Allow-Origin": "*"})


def application() -> Starlette:
    methods = ["GET", "POST", "DELETE"]
    return Starlette(routes=[Route("/{path:path}", echo, methods=methods)])


def client(**changes: Any) -> httpx.AsyncClient:
    rules = Rules(
        **{
            "hosts": frozenset({HOST, "localhost:8000", "[::1]:8000"}),
            "origins": frozenset({f"http://{HOST}"}),
            "check": Bearer([TOKEN]),
            "public": lambda path: path == "/health",
            "body_limit": 100,
            **changes,
        }
    )
    transport = httpx.ASGITransport(Guard(application(), rules))
    return httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (RIGHT, 200),
        ({"x-api-key": TOKEN}, 200),
        ({"authorization": f"bearer {TOKEN}"}, 200),
        ({"authorization": "Bearer wrong", "x-api-key": TOKEN}, 200),
        ({}, 401),
        ({"authorization": TOKEN}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": f"Basic {TOKEN}"}, 401),
        ({"x-api-key": TOKEN[:-1]}, 401),
        ({"x-api-key": ""}, 401),
        ({**RIGHT, "host": "evil.example:8000"}, 421),
        ({**RIGHT, "host": "127.0.0.1"}, 421),
        ({**RIGHT, "host": "127.0.0.1:8001"}, 421),
        ({**RIGHT, "host": "127.0.0.1.evil.example:8000"}, 421),
        ({**RIGHT, "host": "LOCALHOST:8000"}, 200),
        ({**RIGHT, "host": "[::1]:8000"}, 200),
        ({**RIGHT, "origin": "https://evil.example"}, 403),
        ({**RIGHT, "origin": "null"}, 403),
        ({**RIGHT, "origin": f"https://{HOST}"}, 403),
        ({**RIGHT, "origin": "http://127.0.0.1:9000"}, 403),
        ({**RIGHT, "origin": f"http://{HOST}"}, 200),
        ({**RIGHT, "sec-fetch-site": "cross-site"}, 403),
        ({**RIGHT, "sec-fetch-site": "same-site"}, 403),
        ({**RIGHT, "sec-fetch-site": "same-origin"}, 200),
        ({**RIGHT, "content-type": "text/plain"}, 415),
        ({**RIGHT, "content-type": "application/json; charset=utf-8"}, 200),
        ({**RIGHT, "content-encoding": "gzip"}, 415),
    ],
)
async def test_a_request_passes_only_with_the_right_headers(
    headers: dict[str, str], status: int
) -> None:
    async with client() as http:
        sent = {"content-type": "application/json", **headers}
        answer = await http.post("/v1/x", content=b"{}", headers=sent)
        assert answer.status_code == status
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.anyio
async def test_a_body_over_the_limit_is_refused_with_and_without_a_length() -> None:
    async def chunks() -> Any:
        for _ in range(11):
            yield b"x" * 10

    async with client() as http:
        head = {**RIGHT, "content-type": "application/json"}
        assert (await http.post("/x", content=b"x" * 101, headers=head)).status_code == 413
        assert (await http.post("/x", content=chunks(), headers=head)).status_code == 413
        whole = await http.post("/x", content=b"x" * 100, headers=head)
        assert whole.json() == {"bytes": 100}


@pytest.mark.anyio
async def test_a_raw_path_takes_bytes_up_to_its_own_limit_and_no_form() -> None:
    async with client(raw_paths={"/upload": 200}) as http:
        raw = {**RIGHT, "content-type": "application/octet-stream"}
        assert (await http.post("/upload", content=b"x" * 200, headers=raw)).status_code == 200
        assert (await http.post("/upload", content=b"x" * 201, headers=raw)).status_code == 413
        form = {**RIGHT, "content-type": "multipart/form-data; boundary=x"}
        assert (await http.post("/upload", content=b"x", headers=form)).status_code == 415


@pytest.mark.anyio
async def test_only_a_cookie_that_was_issued_opens_a_page() -> None:
    cookie = Cookie("edgekit-8000")
    async with client(check=cookie) as http:
        assert (await http.get("/x", headers={"cookie": "edgekit-8000=guess"})).status_code == 401
        line = cookie.issue(TOKEN)
        assert "HttpOnly" in line and "SameSite=Strict" in line
        right = {"cookie": f"other=1; edgekit-8000={TOKEN}"}
        assert (await http.get("/x", headers=right)).status_code == 200
        assert (await http.get("/x", headers={"cookie": "edgekit-8000="})).status_code == 401


@pytest.mark.anyio
async def test_admin_paths_take_the_admin_token_alone_and_public_ones_none() -> None:
    async with client(admin=("/admin/",), admin_check=Bearer(["a" * 40])) as http:
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/admin/x", headers=RIGHT)).status_code == 401
        right = {"x-api-key": "a" * 40}
        assert (await http.get("/admin/x", headers=right)).status_code == 200
        assert (await http.get("/v1/x", headers=right)).status_code == 401


def test_an_empty_token_opens_nothing() -> None:
    assert not Bearer([""])([(b"x-api-key", b"")])
    assert not Bearer([])([(b"authorization", b"Bearer ")])


def test_a_taken_port_is_named_and_port_zero_takes_a_free_one() -> None:
    first = bind(port=0)
    try:
        assert first.port > 0 and first.url == f"http://127.0.0.1:{first.port}"
        with pytest.raises(BadInputError, match=f"port {first.port} of 127.0.0.1 is taken"):
            bind(port=first.port)
    finally:
        first.socket.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_an_address_that_others_can_reach_needs_a_certificate(host: str) -> None:
    with pytest.raises(BadInputError, match="--tls-cert"):
        bind(host)


def test_a_token_file_is_private_kept_and_never_shared(tmp_path: Path) -> None:
    path = tmp_path / "own" / "token"
    token = token_in(path)
    assert token_in(path) == token and len(token) >= 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["token"]
    path.chmod(0o640)
    with pytest.raises(BadInputError, match="chmod 600"):
        token_in(path)
    path.chmod(0o600)
    path.write_text("password1")
    with pytest.raises(BadInputError, match="no token"):
        token_in(path)


def test_a_private_file_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "state.json"
    write_private(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(Exception, match="no space left"):
            write_private(path, "new")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_directory_that_others_could_enter_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.mkdir(mode=0o755)
    assert stat.S_IMODE(private_directory(path).stat().st_mode) == 0o700


def test_tokens_are_256_bits_that_never_repeat() -> None:
    assert len({new_token() for _ in range(100)}) == 100
