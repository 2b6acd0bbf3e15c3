"""The model behind the assistant: loads it in a child process, keeps it alive, switches it.

* A switch keeps the old child until the new one is ready, where both fit into memory, and until
  the answers that read from it are done; otherwise the old one ends first. When the new one cannot
  be loaded the old one goes on, and ``error`` says why.
* A child that ends by itself is started again, at most :data:`CRASHES` times in
  :data:`CRASH_WINDOW` seconds and each time a little later; then the state is "failed".
* The interface needs none of this: without a model there is still the history and the documents.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgekit.assistant.model_process import Endpoint, ModelProcess, engine_failed
from edgekit.assistant.packs import KnownPack, describe_pack
from edgekit.assistant.refusals import RefusalError
from edgekit.local.private import private_directory
from edgekit.memory import available_memory

CRASHES = 3
CRASH_WINDOW = 300.0  # seconds
BACKOFF = 0.5  # seconds before the first restart; doubles
WATCH = 5.0  # seconds between looks at the health of a loaded model
DRAIN = 600.0  # seconds that answers may still read from a replaced child

ServeCommand = Callable[[KnownPack, str, Path], Sequence[str]]


@dataclass(frozen=True)
class EngineStatus:
    """What the interface is told.

    ``error`` beside state "ready" says why a switch did not happen; beside "loading" that the
    model had ended and is started again.
    """

    state: Literal["none", "loading", "ready", "failed"] = "none"
    pack: KnownPack | None = None
    target: str = ""  # as asked for; "" is the best one
    device: str = ""
    runtime: str = ""
    context_length: int = 0
    error: str = ""
    failed_target: str = ""  # the one that could not be used, where that was asked for


def serve_command(pack: KnownPack, target: str, state_file: Path) -> list[str]:
    """The child: edgekit's own server, on a free port."""
    command = [
        sys.executable, "-m", "edgekit", "serve", str(pack.path), "--port", "0",
        "--state-file", str(state_file), "--exit-with-parent", "--json",
    ]  # fmt: skip
    return [*command, "--device", target] if target else command


class EngineHost:
    """Owner of the child process.

    Args:
        folder: a private folder for the children's state files.
        command: makes a child's command of pack, target and state file, or refuses.
        changed: called whenever :attr:`status` has changed.
    """

    def __init__(
        self, folder: Path, command: ServeCommand, changed: Callable[[], None] = lambda: None
    ) -> None:
        self._folder = private_directory(folder)
        for left in self._folder.glob("*engine-*"):
            left.unlink(missing_ok=True)  # of a process that was killed
        self._command, self._changed = command, changed
        self._serving: ModelProcess | None = None
        self._task: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._children: set[ModelProcess] = set()  # started, and not ended to the last file
        self._crashes: deque[float] = deque(maxlen=CRASHES + 1)
        self.status = self._ready_status = EngineStatus()

    @property
    def endpoint(self) -> Endpoint | None:
        """Where the loaded model answers."""
        return self._serving.endpoint if self._serving else None

    def load(self, pack: Path, target: str = "") -> None:
        """Begin to load or switch; what was being loaded is given up."""
        if self._task is not None:
            self._task.cancel()
        self._crashes.clear()
        known = describe_pack(pack)
        self._set(EngineStatus("loading", known, target))
        self._task = asyncio.create_task(self._load(known, target, self._task))

    async def settled(self) -> EngineStatus:
        """Wait while a model is being loaded."""
        while self.status.state == "loading" and self._task is not None:
            await asyncio.wait([self._task])
            await asyncio.sleep(0)
        return self.status

    @contextlib.asynccontextmanager
    async def lease(self) -> AsyncIterator[Endpoint]:
        """The loaded model for one answer; waits while it is being loaded.

        Raises:
            RefusalError: there is no model, or it failed.
        """
        status = await self.settled()
        if self._serving is None:
            if status.state == "failed":
                raise engine_failed(status.error)
            raise RefusalError(409, "no_engine", "no model is loaded; choose a pack first")
        child = self._serving
        child.leases += 1
        try:
            yield child.endpoint
        finally:
            child.leases -= 1

    async def close(self) -> None:
        """End every child."""
        for task in (self._task, self._watcher, *self._background):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._serving = None
        for child in list(self._children):  # also those whose end was begun by a cancelled task
            await self._end(child)
        self._set(EngineStatus())

    async def _load(
        self, pack: KnownPack, target: str, before: asyncio.Task[None] | None = None
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        old, old_status = self._serving, self._ready_status
        try:
            if pack.problem:
                raise engine_failed(pack.problem)
            if old is not None and pack.memory_bytes > available_memory():
                self._serving = None
                await self._end(old)
                old = None
            child, health = await self._started(pack, target)
        except RefusalError as refusal:
            failed = EngineStatus("failed", pack, target) if old is None else old_status
            self._set(replace(failed, error=str(refusal), failed_target=target))
            return
        self._serving = child
        self._ready_status = EngineStatus(
            "ready", pack, target,
            device=str(health.get("device", "")),
            runtime=str(health.get("runtime", "")),
            context_length=int(health.get("context_length") or pack.context_length),
        )  # fmt: skip
        if self._watcher is not None:
            self._watcher.cancel()
        self._watcher = asyncio.create_task(self._watch(child))
        if old is not None:
            self._in_background(self._retire(old))
        self._set(self._ready_status)

    async def _started(self, pack: KnownPack, target: str) -> tuple[ModelProcess, dict[str, Any]]:
        state_file = self._folder / f"engine-{secrets.token_hex(8)}.json"
        child = ModelProcess(self._command(pack, target, state_file), state_file)
        self._children.add(child)
        try:
            await child.start()
            return child, await child.wait_loaded()
        except BaseException:  # also when another load takes its place
            await asyncio.shield(self._end(child))
            raise

    async def _watch(self, child: ModelProcess) -> None:
        """Notice the end of the child, or that its engine is of no use any more."""
        ended = asyncio.create_task(child.ended())
        health: dict[str, Any] = {}
        try:
            while not ended.done() and health.get("status") != "failed":
                await asyncio.wait([ended], timeout=WATCH)
                health = {} if ended.done() else await child.health()
        finally:
            ended.cancel()
        why = str(health.get("error") or await child.last_words())
        if self._serving is not child or child.stopping:
            return
        self._serving = None
        await self._end(child)
        self._restart(why)

    def _restart(self, why: str) -> None:
        pack, target = self._ready_status.pack, self._ready_status.target
        now = time.monotonic()
        self._crashes.append(now)
        recent = sum(now - t < CRASH_WINDOW for t in self._crashes)
        if self.status.state == "loading":  # another one is on its way
            return
        if pack is None or recent > CRASHES:
            why = f"{why}; try another device"
            self._set(EngineStatus("failed", pack, target, error=why, failed_target=target))
            return
        self._set(EngineStatus("loading", pack, target, error=why))
        self._task = asyncio.create_task(
            self._load_later(pack, target, BACKOFF * 2 ** (recent - 1))
        )

    async def _load_later(self, pack: KnownPack, target: str, delay: float) -> None:
        await asyncio.sleep(delay)
        await self._load(pack, target)

    async def _retire(self, child: ModelProcess) -> None:
        """End a replaced child once nobody reads from it."""
        deadline = time.monotonic() + DRAIN
        try:
            while child.leases and time.monotonic() < deadline:
                await asyncio.sleep(0.1)
        finally:
            await asyncio.shield(self._end(child))

    async def _end(self, child: ModelProcess) -> None:
        await child.stop()
        self._children.discard(child)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _set(self, status: EngineStatus) -> None:
        self.status = status
        self._changed()
