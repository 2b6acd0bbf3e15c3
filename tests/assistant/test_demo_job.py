"""Making the demo pack behind the interface."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import fake_pack

from edgekit.assistant import demo_child
from edgekit.assistant.demo_job import NAME, DemoJob
from edgekit.assistant.refusals import RefusalError
from edgekit.errors import BadInputError
from edgekit.progress import Progress


def play(folder: Path, code: str) -> tuple[list[dict[str, Any]], list[Path | None], DemoJob]:
    """Run a job whose child is ``code``; returns the states told and the packs made."""
    states: list[dict[str, Any]] = []
    ready: list[Path | None] = []

    def changed(path: Path | None) -> None:
        states.append(job.state())
        ready.append(path)

    job = DemoJob(folder, changed, [sys.executable, "-c", code])

    async def work() -> None:
        job.start()
        with pytest.raises(RefusalError, match="being made"):
            job.start()
        assert job._task is not None
        await job._task

    asyncio.run(work())
    return states, [path for path in ready if path], job


def test_progress_is_told_and_the_pack_is_announced(tmp_path: Path) -> None:
    fake_pack(tmp_path / "made", "made")
    code = (
        "import json, sys, shutil\n"
        "print(json.dumps({'detail': 'download', 'fraction': 0.3}), flush=True)\n"
        "print('what a library prints', flush=True)\n"
        "print(json.dumps({'detail': 'quantize', 'fraction': 0.8}), flush=True)\n"
        f"shutil.copytree({str(tmp_path / 'made')!r}, sys.argv[1])\n"
    )
    states, ready, job = play(tmp_path / "packs", code)
    assert [(s["state"], s["detail"], s["fraction"]) for s in states[:4]] == [
        ("downloading", "download", 0.0), ("downloading", "download", 0.3),
        ("building", "quantize", 0.8), ("ready", "", 1.0),
    ]  # fmt: skip
    assert ready == [tmp_path / "packs" / NAME] and job.state()["available"] is False
    with pytest.raises(RefusalError) as refused:
        job.start()
    assert refused.value.code == "demo_there"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ('print(\'{"error": "no connection"}\'); raise SystemExit(2)', "no connection"),
        ("raise SystemExit(5)", "exit code 5"),
        ("import os; os._exit(9)", "exit code 9"),
    ],
)
def test_a_failure_is_told_and_can_be_tried_again(tmp_path: Path, code: str, words: str) -> None:
    states, ready, _ = play(tmp_path, code)
    assert states[-1]["state"] == "failed" and words in states[-1]["error"]
    assert ready == [] and states[-1]["available"] is True
    play(tmp_path, code)


def test_giving_up_ends_the_child(tmp_path: Path) -> None:
    code = "import sys; print('{}', flush=True); sys.stdin.read()"
    job = DemoJob(tmp_path, lambda _: None, [sys.executable, "-c", code])

    async def work() -> None:
        job.start()
        while job.state()["detail"] == "download":
            await asyncio.sleep(0.01)
        await job.close()
        assert job._task is not None and job._task.cancelled()

    asyncio.run(work())


def test_the_child_tells_stages_in_order_and_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(out: Path, progress: Progress, notify: Any) -> None:
        notify("fetch the model")
        with progress.task("read GGUF", 4) as task:
            task.advance(2)
        notify("round the weights to int8")
        notify("write the graphs")
        with progress.task("measure the speed of a", 1) as task:
            task.advance()
        notify("write the graphs")  # a stage that comes again does not go back
        raise BadInputError(f"{out}: cannot be fetched")

    monkeypatch.setattr(demo_child, "make_demo_pack", make)
    monkeypatch.setattr(demo_child, "stop_with_parent", lambda stop: None)
    monkeypatch.setattr(demo_child, "PAUSE", 0.0)
    assert demo_child.main(tmp_path / "x") == 2
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told[-1] == {"error": f"{tmp_path / 'x'}: cannot be fetched"}
    assert [t["detail"] for t in told[:-1]] == [
        "download", "convert", "quantize", "compile", "check", "check",
    ]  # fmt: skip
    fractions = [t["fraction"] for t in told[:4]]
    assert fractions == sorted(fractions) and fractions[1] == pytest.approx(0.65)


def test_a_child_that_watches_its_parent_ends_cleanly_by_itself_and_with_the_parent() -> None:
    code = "import {0}; from edgekit.local.listen import stop_with_parent; stop_with_parent({1})"
    by_itself = [sys.executable, "-c", code.format("os", "lambda: None") + "; print('done')"]
    with subprocess.Popen(by_itself, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.wait(30) == 0  # its input is still open
    told = code.format("os, time", "lambda: os._exit(7)") + "; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", told], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 7
