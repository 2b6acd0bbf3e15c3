"""One child process that serves a model: started, watched while it loads, stopped.

The child is ``edgekit serve``. It writes its address and token into a private file, answers
``/health`` while the model loads, and ends when its standard input is closed, which the end of
this process does however it comes. What it prints last is kept, to say why it failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from edgekit.assistant.refusals import RefusalError
from edgekit.errors import BadInputError
from edgekit.local.private import read_private

START_SECONDS = 60.0  # until it listens; imports on a cold, slow disk
LOAD_SECONDS = 900.0  # until the model is loaded; NPU compilers take minutes
END_SECONDS = 6.0  # until it ends by itself
POLL = 0.05
TAIL_LINES = 40


@dataclass(frozen=True)
class Endpoint:
    """Where the child answers, and its bearer token."""

    url: str
    token: str
    model: str


def engine_failed(sentence: str) -> RefusalError:
    """The refusal for a model that cannot be run."""
    return RefusalError(503, "engine_failed", sentence)


class ModelProcess:
    """A child and what is known of it.

    Attributes:
        endpoint: where it answers, after :meth:`start`.
        leases: answers that read from it now.
    """

    def __init__(self, command: Sequence[str], state_file: Path) -> None:
        self._command = list(command)
        self._state_file = state_file
        self._process: asyncio.subprocess.Process | None = None
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._reader: asyncio.Task[None] | None = None
        self._http: httpx.AsyncClient | None = None
        self.endpoint = Endpoint("", "", "")
        self.leases = 0
        self.stopping = False

    @property
    def pid(self) -> int:
        """Its process id, 0 before the start."""
        return self._process.pid if self._process else 0

    async def start(self) -> None:
        """Start it and wait until it listens.

        Raises:
            RefusalError: it cannot be started, or ends, or does not say where it listens.
        """
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                **_apart(),
            )
        except OSError as error:
            raise engine_failed(
                f"the model's process cannot be started ({error.strerror}); install edgekit again"
            ) from error
        self._reader = asyncio.create_task(self._read_tail())
        deadline = time.monotonic() + START_SECONDS
        while not self._read_state():
            if self._process.returncode is not None:
                raise engine_failed(await self.last_words())
            if time.monotonic() > deadline:
                raise engine_failed("the model's process does not answer; try another device")
            await asyncio.sleep(POLL)
        headers = {"Authorization": f"Bearer {self.endpoint.token}"}
        # proxies of the environment have no place between two processes of one machine
        self._http = httpx.AsyncClient(
            base_url=self.endpoint.url, headers=headers, trust_env=False, timeout=5
        )

    async def wait_loaded(self) -> dict[str, Any]:
        """Wait until the model is loaded; returns what ``/health`` says then.

        Raises:
            RefusalError: it could not be loaded, with the reason.
        """
        deadline = time.monotonic() + LOAD_SECONDS
        while True:
            health = await self.health()
            if health.get("status") == "ok":
                return health
            if health.get("status") == "failed":
                raise engine_failed(str(health.get("error") or await self.last_words()))
            if self._process is None or self._process.returncode is not None:
                raise engine_failed(await self.last_words())
            if time.monotonic() > deadline:
                raise engine_failed("the model does not finish loading; try another device")
            await asyncio.sleep(2 * POLL)

    async def health(self) -> dict[str, Any]:
        """What ``/health`` says; empty where there is no answer."""
        if self._http is None:
            return {}
        try:
            answer = await self._http.get("/health")
            value = answer.json()
        except (httpx.HTTPError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    async def ended(self) -> None:
        """Wait until the process is no more."""
        if self._process is not None:
            await self._process.wait()

    async def last_words(self) -> str:
        """Why it ended, in a sentence."""
        if self._reader is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._reader), 2)
        for line in reversed(self._tail):
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict) and isinstance(value.get("error"), str):
                    return str(value["error"])
        code = self._process.returncode if self._process else None
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        last = next((line for line in reversed(self._tail) if line.strip()), "")
        return f"the model's process ended ({how}){': ' + last[:300] if last else ''}"

    async def stop(self) -> None:
        """End it: by closing its input, else by force."""
        self.stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            if process.stdin is not None:
                process.stdin.close()
            for end in (lambda: None, process.terminate, process.kill):
                with contextlib.suppress(ProcessLookupError):
                    end()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), END_SECONDS)
                    break
        if self._http is not None:
            await self._http.aclose()
        if self._reader is not None:
            self._reader.cancel()
        for left in self._state_file.parent.glob(f"*{self._state_file.name}*"):
            left.unlink(missing_ok=True)  # also what a killed process had not finished

    def _read_state(self) -> bool:
        """Take the address from the file once it is there; it is written whole."""
        if not self._state_file.exists():
            return False
        try:
            value = json.loads(read_private(self._state_file))
            self.endpoint = Endpoint(
                str(value["url"]).rstrip("/"), str(value["token"]), str(value.get("model", ""))
            )
        except (BadInputError, ValueError, KeyError, TypeError):
            return False
        return True

    async def _read_tail(self) -> None:
        assert self._process is not None and self._process.stderr is not None
        while chunk := await self._process.stderr.read(4096):  # lines may be longer than a limit
            text = chunk.decode("utf-8", "replace")
            self._tail.extend(line[:2000] for line in text.splitlines())


def _apart() -> dict[str, Any]:
    """A terminal's Ctrl-C is for this process, which then ends the child in order."""
    if sys.platform == "win32":
        flags = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
        return {"creationflags": flags}
    return {"start_new_session": True}
