"""``edgekit serve`` as a process: what it prints and writes, how it ends."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from lab import USER
from serving import DEADLINE, until

from edgekit.errors import BadInputError
from edgekit.local.listen import Tls, bind
from edgekit.server.serve import Options, describe, serve

CHAT = "/v1/chat/completions"


@contextmanager
def edgekit_serve(pack: Path, *options: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The process, and the facts that it prints once it listens."""
    command = [sys.executable, "-m", "edgekit", "serve", str(pack), "--json", *options]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline() or "{}")
        finally:
            process.kill()


def test_a_pack_answers_until_it_is_told_to_stop(
    variant: Callable[..., Path], tmp_path: Path
) -> None:
    state, token = tmp_path / "state.json", tmp_path / "token"
    files = ("--state-file", str(state), "--token-file", str(token))
    with edgekit_serve(variant("llama"), *files) as (process, told):
        facts = json.loads(state.read_text())
        assert set(facts) == {"url", "token", "admin_token", "pid", "model"}
        assert facts["url"] == told["url"] and facts["pid"] == process.pid == told["pid"]
        assert facts["token"] == token.read_text().strip()
        headers = {"authorization": f"Bearer {facts['token']}"}
        with httpx.Client(base_url=facts["url"], headers=headers, timeout=DEADLINE) as http:
            until(lambda: http.get("/health").json()["status"] == "ok", "the model")
            body = {"model": facts["model"], "messages": USER, "max_tokens": 4}
            answer = http.post(CHAT, json=body).json()
        assert answer["usage"]["completion_tokens"] <= 4
        assert answer["edgekit"]["runtime"] == "openvino" and answer["edgekit"]["device"] == "CPU"
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
        assert process.stderr is not None and process.stderr.read() == ""
    assert not state.exists() and token.exists()


def test_a_child_ends_with_its_parent_and_its_token_is_in_the_state_file_alone(
    variant: Callable[..., Path], tmp_path: Path
) -> None:
    state = tmp_path / "state.json"
    options = ("--state-file", str(state), "--exit-with-parent")
    with edgekit_serve(variant("llama"), *options) as (process, told):
        assert told["token_file"] is None and len(json.loads(state.read_text())["token"]) >= 43
        process.stdin.close()
        assert process.wait(DEADLINE) == 0
    assert not state.exists()


def test_a_model_that_cannot_be_loaded_ends_the_server_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "config.json").write_text("{}")
    options = ("--token-file", str(tmp_path / "token"))
    with edgekit_serve(tmp_path / "pack", *options) as (process, _):
        _, errors = process.communicate(timeout=DEADLINE)
        assert process.returncode == 2
        assert "openvino_model.xml is missing" in json.loads(errors.splitlines()[-1])["error"]


def test_what_cannot_be_served_is_one_sentence(
    variant: Callable[..., Path], tmp_path: Path
) -> None:
    token = tmp_path / "token"
    with pytest.raises(BadInputError, match="not a pack"):
        serve(Options(tmp_path, token_file=token))
    listener = bind()
    try:
        with pytest.raises(BadInputError, match="is taken"):
            serve(Options(variant("llama"), port=listener.port, token_file=token))
    finally:
        listener.socket.close()
    token.write_text("short")
    token.chmod(0o600)
    with pytest.raises(BadInputError, match="no token"):
        serve(Options(variant("llama"), token_file=token))
    tls = Tls(token, token)
    with pytest.raises(BadInputError, match="no certificate"):
        serve(Options(variant("llama"), token_file=tmp_path / "other", tls=tls))


def test_a_bare_variant_has_a_name_that_is_an_identifier(
    variant: Callable[..., Path], tmp_path: Path
) -> None:
    model = describe(variant("llama"))
    assert model.architecture == "llama" and model.context_length == 512 and model.size > 0
    (tmp_path / "Ein Modell!").mkdir()
    (tmp_path / "Ein Modell!" / "config.json").write_text("{}")
    assert describe(tmp_path / "Ein Modell!").id == "ein-modell"


@pytest.mark.skipif(os.system("openssl version >/dev/null 2>&1") != 0, reason="needs openssl")
def test_with_a_certificate_the_server_speaks_tls_and_keeps_its_guard(
    variant: Callable[..., Path], tmp_path: Path
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    options = ("--host", "0.0.0.0", "--tls-cert", str(certificate), "--tls-key", str(key),
               "--token-file", str(tmp_path / "token"))  # fmt: skip
    with edgekit_serve(variant("llama"), *options) as (process, told):
        port = told["url"].rsplit(":", 1)[1]
        context = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context) as http:
            assert http.get("/health").status_code in (200, 503)
            assert http.get("/v1/models").status_code == 401
            evil = http.get("/health", headers={"host": f"evil.example:{port}"})
            assert evil.status_code == 421
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/health")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0
