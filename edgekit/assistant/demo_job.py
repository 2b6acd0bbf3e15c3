"""The demo pack, made in a child process while the interface tells how far it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgekit.assistant.refusals import RefusalError
from edgekit.local.private import private_directory
from edgekit.manifest import MANIFEST

NAME = "smollm2-135m"
COMMAND = (sys.executable, "-m", "edgekit.assistant.demo_child")


class DemoJob:
    """Makes the pack once.

    Args:
        folder: the person's folder of packs.
        changed: called with the pack's path when it is ready, and with None at every other change.
    """

    def __init__(
        self,
        folder: Path,
        changed: Callable[[Path | None], None],
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.path = folder / NAME
        self._changed, self._command = changed, tuple(command)
        self._task: asyncio.Task[None] | None = None
        self._state: dict[str, Any] = {"state": "none", "fraction": 0.0, "detail": "", "error": ""}

    def state(self) -> dict[str, Any]:
        """What the interface shows; ``available`` is false once the pack is there."""
        there = (self.path / MANIFEST).is_file()
        return {"available": not there, **self._state}

    def start(self) -> None:
        """Begin, or begin again after a failure.

        Raises:
            RefusalError: it is being made, or is there already.
        """
        if self._task is not None and not self._task.done():
            raise RefusalError(409, "demo_running", "the demo pack is being made; wait for it")
        if not self.state()["available"]:
            raise RefusalError(409, "demo_there", f"the demo pack is at {self.path}; choose it")
        private_directory(self.path.parent)
        self._tell("downloading", 0.0, "download")
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Give up; the half-made pack is removed by the child."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        process = await asyncio.create_subprocess_exec(
            *self._command, str(self.path),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        error = ""
        try:
            assert process.stdout is not None
            async for line in process.stdout:
                error = self._read(line) or error
            code = await process.wait()
        finally:
            if process.returncode is None:
                assert process.stdin is not None
                process.stdin.close()  # the child ends by itself and clears up
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), 5)
            if process.returncode is None:
                process.kill()
                await process.wait()
        if code == 0:
            self._tell("ready", 1.0, "")
            self._changed(self.path)
        else:
            self._tell("failed", 0.0, "", error or f"the demo pack was not made (exit code {code})")

    def _read(self, line: bytes) -> str:
        """Take a line of the child; returns the error it tells, if it does."""
        try:
            value = json.loads(line)
        except ValueError:
            return ""
        if "error" in value:
            return str(value["error"])
        detail = str(value.get("detail", ""))
        state = "downloading" if detail == "download" else "building"
        self._tell(state, float(value.get("fraction", 0)), detail)
        return ""

    def _tell(self, state: str, fraction: float, detail: str, error: str = "") -> None:
        self._state = {"state": state, "fraction": fraction, "detail": detail, "error": error}
        self._changed(None)
