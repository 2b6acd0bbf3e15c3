"""The process: one at a time, what a second start does, and what is left when it is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from harness import events, running, wait, write_script

from edgekit.assistant.history import History
from edgekit.assistant.instance import (
    FILE,
    Instance,
    announce,
    only_instance,
    raise_window,
)  # fmt: skip
from edgekit.assistant.instance import (
    running as running_instance,
)
from edgekit.errors import BadInputError

RUN_HOST = Path(__file__).with_name("run_host.py")


class Process:
    """An assistant in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.data, script = folder / "data", folder / "script" / "script.json"
        if not script.exists():
            write_script(script)
        self.process = subprocess.Popen(
            [sys.executable, str(RUN_HOST), str(self.data), str(script), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.told: dict[str, Any] = json.loads(self.process.stdout.readline() or "{}")

    def client(self) -> httpx.Client:
        """A session, opened with the address that was printed."""
        url, _, token = self.told["url"].partition("/#t=")
        http = httpx.Client(base_url=url, trust_env=False, timeout=30)
        assert http.post("/api/session", json={"token": token}).status_code == 200
        return http

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path)
    yield made
    made.process.kill()
    made.process.communicate()


def ready(http: httpx.Client) -> bool:
    return bool(http.get("/api/state").json()["engine"]["state"] == "ready")


def held_answer(http: httpx.Client, folder: Path) -> str:
    """Begin an answer that does not end; returns its conversation."""
    write_script(
        folder / "script" / "script.json", {"text": "abcdefghijkl", "hold": str(folder / "no")}
    )
    wait(lambda: ready(http))
    conversation = http.post("/api/conversations", json={}).json()["id"]
    path = f"/api/conversations/{conversation}/turns"
    with http.stream("POST", path, json={"text": "go"}) as answer:
        next(e for e in events(answer) if e[0] == "block")
    return str(conversation)


def test_killing_the_host_leaves_no_process_and_a_whole_history(
    started: Process, tmp_path: Path
) -> None:
    with contextlib.closing(started.client()) as http:
        conversation = held_answer(http, tmp_path)
        saved = f"/api/conversations/{conversation}"
        wait(lambda: http.get(saved).json()["messages"][-1]["content"] == "abcdefgh")
        children = started.children()
        assert children
        started.process.send_signal(signal.SIGKILL)
        started.process.wait()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive and gone
    history = History(started.data / "history.sqlite")
    try:
        question, answer = history.messages(conversation)
    finally:
        history.close()
    assert question.content == "go" and question.state == "complete"
    assert answer.content == "abcdefgh" and answer.state == "partial"
    # what it left is taken over: the lock ended with it, its instance file is replaced
    assert (started.data / FILE).exists()
    write_script(tmp_path / "script" / "script.json")
    again = Process(tmp_path)
    try:
        assert again.told["state"] == "running"
        with contextlib.closing(again.client()) as http:
            assert http.get(f"/api/conversations/{conversation}").status_code == 200
    finally:
        again.process.terminate()
        again.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_end_stores_the_answer_as_stopped_and_ends_the_children(
    started: Process, tmp_path: Path, number: signal.Signals
) -> None:
    with contextlib.closing(started.client()) as http:
        conversation = held_answer(http, tmp_path)
        children = started.children()
        started.process.send_signal(number)
        _, errors = started.process.communicate(timeout=30)
    assert started.process.returncode == 0, errors
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert not (started.data / FILE).exists()
    assert not list((started.data / "run").iterdir())
    history = History(started.data / "history.sqlite")
    try:
        assert history.messages(conversation)[-1].state == "stopped"
        assert history.messages(conversation)[-1].content == "abcdefgh"
    finally:
        history.close()


def test_the_page_can_end_the_program(started: Process) -> None:
    with contextlib.closing(started.client()) as http:
        assert http.post("/api/quit", json={}).status_code == 202
    assert started.process.wait(30) == 0


def test_a_second_start_raises_the_first_and_gives_a_fresh_address(
    started: Process, tmp_path: Path
) -> None:
    second = Process(tmp_path)
    assert second.process.wait(30) == 0
    assert second.told["state"] == "raised" and second.told["window"] == "none"
    assert second.told["url"].partition("#")[0] == started.told["url"].partition("#")[0]
    assert second.told["url"] != started.told["url"]
    second.client().close()  # it opens a session of the first


def test_a_taken_port_is_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = pytest.raises(BadInputError, match=f"port {port} of 127.0.0.1 is taken")
        with refused, running(tmp_path, pack=None, port=port):
            pass
    with running(tmp_path, pack=None, port=port) as assistant:  # nothing of the attempt is left
        assert assistant.url.endswith(f":{port}")


def test_the_window_is_raised_through_the_api(tmp_path: Path) -> None:
    from edgekit.assistant.window import Window

    class Seen(Window):
        kind = "browser"
        urls: list[str] = []  # noqa: RUF012

        def bring_forward(self, make_url: Any) -> None:
            self.urls.append(make_url())

    with running(tmp_path, pack=None, window=Seen()) as assistant:
        first = running_instance(assistant.data)
        assert first.pid == os.getpid() and first.url == assistant.url
        with assistant.http.stream("GET", "/api/events") as page:
            lines = page.iter_lines()
            assert next(lines) == "event: state"
            answer = raise_window(first, {})
            assert next(line for line in lines if line == "event: raise")
        assert answer["window"] == "browser" and len(Seen.urls) == 1
        raise_window(first, {"show": False})
        assert len(Seen.urls) == 1
        wrong = Instance(first.url, "x" * 43, first.pid)
        with pytest.raises(BadInputError, match="does not answer"):
            raise_window(wrong, {})


def test_the_lock_is_held_once_and_the_file_is_private(tmp_path: Path) -> None:
    with only_instance(tmp_path / "data") as first:
        assert first
        announce(tmp_path / "data", Instance("http://127.0.0.1:1", "t", 1))
        assert (tmp_path / "data" / FILE).stat().st_mode & 0o777 == 0o600
        code = (
            "import sys; from pathlib import Path\n"
            "from edgekit.assistant.instance import only_instance\n"
            "with only_instance(Path(sys.argv[1])) as first: print(first)"
        )
        second = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "data")], capture_output=True, text=True
        )
        assert second.stdout.strip() == "False"
        assert (tmp_path / "data" / FILE).exists()
    assert not (tmp_path / "data" / FILE).exists()


def test_a_first_start_that_says_nothing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.assistant.instance.PATIENCE", 0.05)
    (tmp_path / FILE).write_text("{}")
    (tmp_path / FILE).chmod(0o600)
    with pytest.raises(BadInputError, match="another assistant uses this folder"):
        running_instance(tmp_path)


def test_a_data_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BadInputError, match="cannot be written"),
        only_instance(tmp_path / "file" / "x"),
    ):
        pass
