"""The whole assistant for tests: its web application, its data, and a model's process.

Browser tests use it so::

    from harness import running            # tests/assistant must be on sys.path

    def test_something(tmp_path, page):
        with running(tmp_path) as assistant:
            assistant.script({"when": "weather", "text": "Sunny **all day**.", "pause": 0.02})
            page.goto(assistant.address())          # a fresh one-time address each time
            ...
            assistant.wait_ready()                  # the (fake) model is loaded
            assistant.requests()                    # what the model was asked, newest last

* ``running(tmp_path)`` uses the scripted model of ``fake_model.py``; its docstring lists what a
  reply can do (thoughts, pauses, holding until a file exists, tool calls, dying, refusing).
* ``running(tmp_path, pack=None)`` is a first start without any pack.
* ``running(tmp_path, pack=PATH, real=True)`` runs ``edgekit serve`` on a real pack;
  ``make_pack(variant("llama"), tmp_path / "pack")`` makes one of a compiled variant.
* ``policy=Policy(cloud="forbidden")`` and ``window=`` (for file dialogs) can be given.
* ``assistant.http`` is an httpx client with a session, for what a test does behind the page.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from edgekit.assistant.engine_host import ServeCommand, serve_command
from edgekit.assistant.folders import Folders
from edgekit.assistant.host import Host, Options, hosted
from edgekit.assistant.packs import KnownPack
from edgekit.assistant.policy import Policy
from edgekit.assistant.window import Window
from edgekit.make_pack import pack_variant, student_of
from edgekit.manifest import Lineage, Manifest, Student, TargetResult, Teacher, Variant
from edgekit.pack import copy_variant, write_manifest
from edgekit.progress import Silent

FAKE_MODEL = Path(__file__).with_name("fake_model.py")
DEADLINE = 30.0  # seconds until what a test waits for must have happened
FAKE = object()


class Running:
    """An assistant that runs in this process, with its model in another one."""

    def __init__(self, host: Host, script: Path) -> None:
        self.host = host
        self.assistant = host.assistant
        self.url = host.assistant.url
        self.data = host.options.folders.data
        self._script = script
        self.http = self.session()

    def address(self) -> str:
        """A fresh address that opens the page, once."""
        return self.assistant.address()

    def session(self) -> httpx.Client:
        """A client that has exchanged a one-time token for a cookie."""
        http = httpx.Client(base_url=self.url, trust_env=False, timeout=DEADLINE)
        http.post("/api/session", json={"token": self.assistant.sessions.ticket()})
        return http

    def script(self, *replies: dict[str, Any], **settings: Any) -> None:
        """What the fake model answers from now on; see ``fake_model.py``."""
        write_script(self._script, *replies, **settings)

    def requests(self) -> list[dict[str, Any]]:
        """What the fake model was asked so far."""
        path = self._script.with_name("requests.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def state(self) -> dict[str, Any]:
        """``GET /api/state``."""
        return dict(self.http.get("/api/state").json())

    def wait_ready(self) -> dict[str, Any]:
        """Wait until the model is loaded."""

        def ready() -> dict[str, Any] | None:
            state = self.state()
            assert state["engine"]["state"] != "failed", state["engine"]["error"]
            return state if state["engine"]["state"] == "ready" else None

        return dict(wait(ready))

    def kill_model(self) -> None:
        """Kill the model's process, as a crash of its runtime does."""
        child = self.assistant.engine._serving
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)

    def conversation(self) -> str:
        """A new conversation's id."""
        return str(self.http.post("/api/conversations", json={}).json()["id"])

    def ask(self, conversation: str, text: str, **body: Any) -> list[tuple[str, Any]]:
        """Ask and return every event of the answer."""
        path = f"/api/conversations/{conversation}/turns"
        with self.http.stream("POST", path, json={"text": text, **body}) as answer:
            if answer.status_code != 200:
                answer.read()
                raise AssertionError(answer.text)
            return list(events(answer))

    def begin(
        self, conversation: str, text: str, **body: Any
    ) -> tuple[Any, list[tuple[str, Any]], threading.Thread]:
        """Ask in a thread; returns the first event, the list that grows, and the thread."""
        found: list[tuple[str, Any]] = []
        path = f"/api/conversations/{conversation}/turns"

        def work() -> None:
            with (
                contextlib.closing(self.session()) as http,
                http.stream("POST", path, json={"text": text, **body}) as answer,
            ):
                for event in events(answer):
                    found.append(event)

        thread = threading.Thread(target=work)
        thread.start()
        wait(lambda: found)
        return found[0][1], found, thread

    def messages(self, conversation: str) -> list[dict[str, Any]]:
        """Every message of a conversation."""
        return list(self.http.get(f"/api/conversations/{conversation}").json()["messages"])


@contextlib.contextmanager
def running(
    folder: Path,
    pack: Path | object | None = FAKE,
    real: bool = False,
    policy: Policy | None = None,
    window: Window | None = None,
    port: int = 0,
) -> Iterator[Running]:
    """A whole assistant below ``folder``; ends with the block."""
    script = folder / "script" / "script.json"
    if not script.exists():
        write_script(script)
    if pack is FAKE:
        pack = fake_pack(folder / "data" / "packs" / "fake")
    assert pack is None or isinstance(pack, Path)
    options = Options(
        folders=Folders(folder / "data", folder / "data" / "packs"),
        pack=pack,
        window="none",
        port=port,
        serve=serve_command if real else fake_serve(script),
        policy=policy or Policy(),
    )
    with hosted(options, window or Window()) as host:
        assert host is not None, "another assistant has this folder"
        yield Running(host, script)


def fake_serve(script: Path) -> ServeCommand:
    """The command of a scripted model's process."""

    def command(pack: KnownPack, target: str, state_file: Path) -> list[str]:
        return [sys.executable, str(FAKE_MODEL), str(state_file), str(script)]

    return command


def write_script(path: Path, *replies: dict[str, Any], **settings: Any) -> None:
    """Replace the script whole, because it may be read at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({**settings, "replies": list(replies)}))
    temporary.replace(path)


def fake_pack(
    out: Path, name: str = "fake", targets: tuple[str, ...] = ("openvino-cpu", "onnx-cpu")
) -> Path:
    """A pack whose manifest is right and whose weights are not."""
    if (out / "pack.json").exists():
        return out
    variant = out.parent / f".{name}-variant"
    variant.mkdir(parents=True, exist_ok=True)
    (variant / "weights.safetensors").write_bytes(b"w" * 1000)
    out.mkdir(parents=True)
    files = copy_variant(variant, out, "dense", Silent())
    student = Student(architecture="llama", parameters=1000, active_parameters=1000,
                      context_length=4096, scheme="int8")  # fmt: skip
    packed = Variant(
        id="dense", weights_file="weights.safetensors",
        targets=[TargetResult(target=t) for t in targets],
        memory_estimate_bytes=1000, files=files,
    )  # fmt: skip
    manifest = Manifest(
        name=name, version="1.0.0", license="Apache-2.0", student=student, variants=[packed],
        teacher=Teacher(name="t", digest="d"), lineage=Lineage(recipe_digest="0" * 64),
    )  # fmt: skip
    write_manifest(out, manifest)
    return out


def make_pack(variant: Path, out: Path, context: int = 512) -> Path:
    """A real pack of a compiled variant."""
    out.mkdir(parents=True)
    targets = [TargetResult(target=f"{runtime}-cpu") for runtime in ("openvino", "onnx")]
    manifest = Manifest(
        name="tiny", version="1.0.0", license="Apache-2.0", student=student_of(variant),
        teacher=Teacher(name="t", digest="d"), lineage=Lineage(recipe_digest="0" * 64),
        variants=[pack_variant(variant, targets, context, out, Silent())],
    )  # fmt: skip
    write_manifest(out, manifest)
    return out


def events(answer: httpx.Response) -> Iterator[tuple[str, Any]]:
    """The server-sent events of an answer, as name and data."""
    name = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


def named(found: list[tuple[str, Any]], name: str) -> list[Any]:
    """The data of the events with this name."""
    return [data for event, data in found if event == name]


def wait(condition: Callable[[], Any], seconds: float = DEADLINE) -> Any:
    """Wait until ``condition`` gives something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found
