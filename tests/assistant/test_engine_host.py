"""The model's process: loading, switching, crashing, ending."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import FAKE_MODEL, fake_pack, write_script

from edgekit.assistant import engine_host, model_process
from edgekit.assistant.engine_host import EngineHost, EngineStatus, serve_command
from edgekit.assistant.model_client import ModelClient
from edgekit.assistant.packs import KnownPack, describe_pack
from edgekit.assistant.refusals import RefusalError
from edgekit.errors import EdgekitError


class Bench:
    """An engine host, its packs and their scripts; a script belongs to a pack's name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.states = folder, list[EngineStatus]()
        self.commands: list[tuple[str, str]] = []
        self.host: EngineHost

    def pack(self, name: str, **script: Any) -> Path:
        write_script(self.folder / name / "script.json", **script)
        return fake_pack(self.folder / "packs" / name, name)

    def command(self, pack: KnownPack, target: str, state_file: Path) -> list[str]:
        self.commands.append((pack.name, target))
        script = self.folder / pack.name / "script.json"
        return [sys.executable, str(FAKE_MODEL), str(state_file), str(script)]

    def pids(self) -> list[int]:
        found = psutil.Process().children()
        return [p.pid for p in found if str(FAKE_MODEL) in p.cmdline()]

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.01)


def on_bench(folder: Path, work: Callable[[Bench], Awaitable[None]]) -> Bench:
    """Run ``work`` with a host whose end leaves no process and no file."""
    bench = Bench(folder)

    async def run() -> None:
        bench.host = EngineHost(
            folder / "run", bench.command, lambda: bench.states.append(bench.host.status)
        )
        try:
            await work(bench)
        finally:
            await bench.host.close()
        assert bench.pids() == [] and list((folder / "run").iterdir()) == []

    asyncio.run(run())
    return bench


def test_a_model_is_loading_then_ready_and_says_where_it_runs(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        with pytest.raises(RefusalError) as refused:
            async with bench.host.lease():
                pass
        assert refused.value.code == "no_engine"
        bench.host.load(bench.pack("a", context_length=777), "openvino-cpu")
        assert bench.host.status.state == "loading" and bench.host.status.pack.name == "a"
        status = await bench.host.settled()
        assert (status.state, status.device, status.runtime) == ("ready", "CPU", "openvino")
        assert status.context_length == 777 and status.target == "openvino-cpu"
        async with bench.host.lease() as endpoint, ModelClient(endpoint) as client:
            said = await client.complete({"messages": [{"role": "user", "content": "echo"}]})
        assert said == "echo"

    bench = on_bench(tmp_path, work)
    assert [s.state for s in bench.states] == ["loading", "ready", "none"]


@pytest.mark.parametrize(
    ("script", "words"),
    [({"load_error": "the NPU driver is missing"}, "NPU driver is missing"), (None, "exit code")],
)
def test_a_model_that_cannot_be_loaded_says_why(
    tmp_path: Path, script: dict[str, Any] | None, words: str
) -> None:
    async def work(bench: Bench) -> None:
        pack = bench.pack("a", **(script or {}))
        if script is None:
            bench.command = lambda pack, target, file: [sys.executable, "-c", "raise SystemExit(3)"]  # type: ignore[method-assign]
            bench.host._command = bench.command
        bench.host.load(pack, "openvino-npu")
        status = await bench.host.settled()
        assert status.state == "failed" and words in status.error
        assert status.failed_target == "openvino-npu"
        with pytest.raises(EdgekitError, match=words):
            async with bench.host.lease():
                pass

    on_bench(tmp_path, work)


def test_a_missing_or_damaged_pack_fails_with_its_sentence_and_starts_nothing(
    tmp_path: Path,
) -> None:
    async def work(bench: Bench) -> None:
        bench.host.load(tmp_path / "nowhere")
        assert "not a pack" in (await bench.host.settled()).error
        damaged = bench.pack("a")
        (damaged / "pack.json").write_text("{}")
        bench.host.load(damaged)
        status = await bench.host.settled()
        assert status.state == "failed" and "damaged" in status.error
        assert bench.commands == []

    on_bench(tmp_path, work)


def test_a_crash_is_followed_by_a_restart_and_too_many_by_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_host, "BACKOFF", 0.0)

    async def work(bench: Bench) -> None:
        bench.host.load(bench.pack("a"))
        for _ in range(engine_host.CRASHES):
            await bench.host.settled()
            (pid,) = bench.pids()
            os.kill(pid, signal.SIGKILL)
            await bench.until(lambda: bench.host.status.state != "ready")
            assert bench.host.status.state == "loading" and "signal 9" in bench.host.status.error
        await bench.host.settled()
        (pid,) = bench.pids()
        os.kill(pid, signal.SIGKILL)
        await bench.until(lambda: bench.host.status.state != "ready")
        assert bench.host.status.state == "failed"
        assert "try another device" in bench.host.status.error
        bench.host.load(tmp_path / "packs" / "a")  # a person's wish begins anew
        assert (await bench.host.settled()).state == "ready"

    on_bench(tmp_path, work)


def test_an_engine_that_fails_in_a_living_process_is_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_host, "BACKOFF", 0.0)
    monkeypatch.setattr(engine_host, "WATCH", 0.05)

    async def work(bench: Bench) -> None:
        bench.host.load(bench.pack("a"))
        await bench.host.settled()
        (pid,) = bench.pids()
        bench.pack("a", load_error="the device was lost")
        await bench.until(lambda: bench.host.status.state == "failed")
        assert "the device was lost" in bench.host.status.error
        bench.pack("a")
        bench.host.load(tmp_path / "packs" / "a")
        await bench.host.settled()
        assert bench.pids() != [pid]

    on_bench(tmp_path, work)


def test_a_switch_keeps_the_old_model_until_the_new_one_answers_and_its_readers_are_done(
    tmp_path: Path,
) -> None:
    async def work(bench: Bench) -> None:
        bench.host.load(bench.pack("a"))
        await bench.host.settled()
        (old,) = bench.pids()
        async with bench.host.lease():
            bench.host.load(bench.pack("b"), "onnx-cpu")
            assert bench.pids() == [old]
            assert (await bench.host.settled()).pack.name == "b"
            assert len(bench.pids()) == 2  # somebody still reads from the old one
        await bench.until(lambda: len(bench.pids()) == 1)
        assert bench.pids() != [old]
        assert bench.commands == [("a", ""), ("b", "onnx-cpu")]

    on_bench(tmp_path, work)


def test_a_switch_that_fails_leaves_the_old_model_and_says_so(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        bench.host.load(bench.pack("a"))
        await bench.host.settled()
        bench.host.load(bench.pack("b", load_error="no such device"), "openvino-gpu")
        status = await bench.host.settled()
        assert status.state == "ready" and status.pack.name == "a"
        assert status.error == "no such device" and status.failed_target == "openvino-gpu"
        async with bench.host.lease():
            pass

    on_bench(tmp_path, work)


def test_without_memory_for_two_the_old_model_ends_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_host, "available_memory", lambda: 0)
    seen: list[int] = []

    async def work(bench: Bench) -> None:
        bench.host.load(bench.pack("a"))
        await bench.host.settled()
        command = bench.command

        def counting(pack: KnownPack, target: str, state_file: Path) -> list[str]:
            seen.append(len(bench.pids()))
            return command(pack, target, state_file)

        bench.host._command = counting
        bench.host.load(bench.pack("b"))
        assert (await bench.host.settled()).pack.name == "b"

    on_bench(tmp_path, work)
    assert seen == [0]


def test_a_new_wish_takes_the_place_of_one_that_is_loading(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        bench.host.load(bench.pack("slow", load_seconds=600))
        await bench.until(bench.pids)
        bench.host.load(bench.pack("b"))
        assert (await bench.host.settled()).pack.name == "b"
        assert len(bench.pids()) == 1

    on_bench(tmp_path, work)


def test_closing_while_a_model_loads_leaves_nothing(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        bench.host.load(bench.pack("slow", load_seconds=600))
        await bench.until(bench.pids)

    on_bench(tmp_path, work)


def test_closing_while_a_replaced_model_is_slow_to_end_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_process, "END_SECONDS", 0.3)

    async def work(bench: Bench) -> None:
        bench.host.load(bench.pack("a"))
        await bench.host.settled()
        (old,) = bench.pids()
        os.kill(old, signal.SIGSTOP)
        bench.host.load(bench.pack("b"))
        await bench.host.settled()

    on_bench(tmp_path, work)


def test_state_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "engine-0123.json").write_text('{"token": "secret"}')
    (run / ".engine-4567.json.89ab.partial").write_text('{"token": "secret"}')
    EngineHost(run, lambda *_: [])
    assert list(run.iterdir()) == []


def test_the_command_names_the_device_only_when_one_is_wanted(tmp_path: Path) -> None:
    pack = describe_pack(fake_pack(tmp_path / "a"))
    command = serve_command(pack, "", tmp_path / "s.json")
    assert command[1:5] == ["-m", "edgekit", "serve", str(pack.path)]
    assert "--exit-with-parent" in command and "--device" not in command
    assert serve_command(pack, "onnx-cpu", tmp_path / "s.json")[-2:] == ["--device", "onnx-cpu"]
