"""Who may talk to the assistant: every route, from every wrong direction."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from harness import Running, running
from starlette.routing import Route

from edgekit.assistant.app import MODULES
from edgekit.assistant.peer import is_same_user
from edgekit.assistant.static import static_files

JSON = {"content-type": "application/json"}
UNKNOWN = "0123456789abcdef"


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("assistant"), pack=None) as started:
        yield started


@pytest.fixture
def stranger(assistant: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=assistant.url, trust_env=False, timeout=30) as http:
        yield http


def api_routes(assistant: Running) -> list[tuple[str, str]]:
    """Every method and path of the API, with an id in place of a parameter."""
    found = []
    for module in MODULES:
        for route in module.routes(assistant.assistant):
            assert isinstance(route, Route)
            path = re.sub(r"\{\w+\}", UNKNOWN, route.path)
            methods = (route.methods or set()) - {"HEAD"}
            found += [(method, path) for method in methods if path.startswith("/api/")]
    return found


def content(path: str, method: str) -> dict[str, str]:
    if method in ("GET", "DELETE") and path != "/api/packs":
        return {}
    raw = path == "/api/documents/upload"
    return {"content-type": "application/octet-stream"} if raw else JSON


def test_every_route_of_the_api_needs_the_cookie(
    assistant: Running, stranger: httpx.Client
) -> None:
    routes = api_routes(assistant)
    assert len(routes) > 50
    for method, path in routes:
        if path == "/api/session":
            continue
        for headers in ({}, {"cookie": "edgekit=guess"}, {"authorization": "Bearer guess"}):
            head = {**content(path, method), **headers}
            body = b"{}" if head.get("content-type") else None
            answer = stranger.request(method, path, headers=head, content=body)
            assert answer.status_code == 401, (method, path)
            assert answer.json()["error"]["code"] == "unauthorised"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "evil.example:80"}, 421),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_every_route_refuses_other_hosts_and_origins_even_with_the_cookie(
    assistant: Running, headers: dict[str, str], status: int
) -> None:
    for method, path in [*api_routes(assistant), ("GET", "/"), ("GET", "/index.html")]:
        head = {**content(path, method), **headers}
        body = b"{}" if head.get("content-type") else None
        answer = assistant.http.request(method, path, headers=head, content=body)
        assert answer.status_code == status, (method, path)


def test_a_form_can_change_nothing(assistant: Running) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        for method, path in api_routes(assistant):
            if method in ("POST", "PUT", "PATCH"):
                head = {"content-type": kind} if kind else {}
                answer = assistant.http.request(method, path, headers=head, content=b"{}")
                assert answer.status_code in (401, 415), (method, path)


def test_every_answer_carries_the_headers_that_keep_pages_apart(assistant: Running) -> None:
    for path in ("/", "/api/state", "/api/nothing", "/nothing"):
        headers = assistant.http.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert not [name for name in headers if name.startswith("access-control")]
    assert assistant.http.get("/api/state").headers["cache-control"] == "no-store"


def test_ids_that_name_nothing_are_not_found(assistant: Running) -> None:
    bodies = {"PUT": {}, "PATCH": {"name": "x"}, "POST": {"text": "x", "allow": "once"}}
    for method, path in api_routes(assistant):
        if UNKNOWN not in path and "/mcp/" not in path:
            continue
        for number in (UNKNOWN, "x", "..%2f..%2fetc", "'; DROP TABLE messages"):
            answer = assistant.http.request(
                method, path.replace(UNKNOWN, number), json=bodies.get(method)
            )
            assert answer.status_code in (400, 404, 405, 409, 503), (method, path, number)
            assert answer.json()["error"]["message"]


def test_a_one_time_token_opens_one_session(assistant: Running, stranger: httpx.Client) -> None:
    token = assistant.address().partition("#t=")[2]
    assert len(token) >= 43
    opened = stranger.post("/api/session", json={"token": token})
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path=/" in cookie
    assert token not in cookie
    assert stranger.get("/api/state").status_code == 200
    again = httpx.post(f"{assistant.url}/api/session", json={"token": token}, trust_env=False)
    assert again.status_code == 401 and "set-cookie" not in again.headers
    wrong = httpx.post(f"{assistant.url}/api/session", json={"token": "x" * 43}, trust_env=False)
    assert wrong.status_code == 401


def test_an_old_token_opens_nothing(
    assistant: Running, stranger: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.assistant.sessions.LIFETIME", -1.0)
    token = assistant.assistant.sessions.ticket()
    assert stranger.post("/api/session", json={"token": token}).status_code == 401


def test_a_connection_of_another_user_may_not_use_a_token(tmp_path: Path) -> None:
    row = "   0: 0100007F:{:04X} 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  {}  0 1\n"
    table = tmp_path / "tcp"
    table.write_text("  sl  local_address rem_address\n" + row.format(4000, os.getuid() + 1)
                     + row.format(4001, os.getuid()))  # fmt: skip
    server = ("127.0.0.1", 8080)
    assert not is_same_user(("127.0.0.1", 4000), server, table)
    assert is_same_user(("127.0.0.1", 4001), server, table)
    assert is_same_user(("127.0.0.1", 4002), server, table)  # not in the table: not known
    assert is_same_user(("127.0.0.1", 4000), server, tmp_path / "none")


def test_the_instance_route_needs_its_own_token_and_not_the_cookie(assistant: Running) -> None:
    assert assistant.http.post("/api/instance/raise", json={}).status_code == 401
    wrong = {"authorization": "Bearer wrong"}
    assert assistant.http.post("/api/instance/raise", json={}, headers=wrong).status_code == 401


def test_the_interface_is_public_whole_and_typed(
    assistant: Running, stranger: httpx.Client
) -> None:
    assert "/" in static_files() and len(static_files()) > 10
    kinds = {"js": "text/javascript", "css": "text/css", "html": "text/html",
             "json": "application/json", "svg": "image/svg+xml"}  # fmt: skip
    for path in static_files():
        answer = stranger.get(path)
        assert answer.status_code == 200
        if path != "/":
            assert answer.headers["content-type"].startswith(kinds[path.rpartition(".")[2]])
    for path in ("/__init__.py", "/../state.py", "/%2e%2e/state.py", "/js/../../state.py"):
        assert stranger.get(path).status_code in (401, 404)


def test_a_page_that_leaves_is_forgotten(assistant: Running) -> None:
    with assistant.http.stream("GET", "/api/events") as answer:
        lines = answer.iter_lines()  # kept: a lost iterator closes the connection
        assert next(lines) == "event: state" and assistant.assistant.bus.pages == 1
    from harness import wait

    def gone() -> bool:
        assistant.assistant.changed()
        return assistant.assistant.bus.pages == 0

    wait(gone)
