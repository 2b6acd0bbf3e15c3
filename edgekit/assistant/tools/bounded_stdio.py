"""A tool server as a child process: JSON lines over its stdin and stdout, every part bounded.

The MCP package has a transport of its own, which adds to the environment, has no limit to the
length of a line and lets stderr through. This one is given the environment exactly, ends the
connection when a line or an answer grows too large, keeps the last of stderr in memory, and at
the end closes stdin, waits, and kills the whole process group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

CHUNK = 64 << 10  # bytes read at once
POLL = 0.01  # seconds between two looks at a process that is to end


@dataclass(frozen=True)
class Limits:
    """What a server may take: seconds, and bytes of its output."""

    start_seconds: float = 20.0
    answer_seconds: float = 60.0
    exit_seconds: float = 2.0  # from the end of stdin to the first signal, and between signals
    line_bytes: int = 4 << 20
    answer_bytes: int = 16 << 20  # of all lines between two of our messages
    log_bytes: int = 64 << 10  # of stderr, the last of it


class ServerLog:
    """The last of what a server wrote to stderr, and our own remarks on it."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._bytes = b""

    def write(self, data: bytes) -> None:
        """Append, forgetting the oldest."""
        self._bytes = (self._bytes + data)[-self._largest :]

    def text(self) -> str:
        """The log; bytes that are not UTF-8 are shown as such."""
        return self._bytes.decode("utf-8", "backslashreplace")

    def last_line(self) -> str:
        """The last line with something in it, at most 200 characters; "" when there is none."""
        lines = [line.strip() for line in self.text().splitlines() if line.strip()]
        return lines[-1][:200] if lines else ""


@contextlib.asynccontextmanager
async def bounded_stdio(
    command: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    log: ServerLog,
    limits: Limits,
    ended: Callable[[], None],
) -> AsyncIterator[tuple[Any, Any]]:
    """Start ``command`` and yield the streams that an MCP client reads and writes.

    ``ended`` is called when the server's output ends, for whatever reason.

    Raises:
        OSError: the process cannot be started.
    """
    process = await _start(command, env, cwd)
    to_client, read_stream = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write_stream, from_client = anyio.create_memory_object_stream[SessionMessage](0)
    pipes = _Pipes(process, log, limits)
    async with anyio.create_task_group() as group:
        group.start_soon(pipes.read_messages, to_client, ended)
        group.start_soon(pipes.write_messages, from_client)
        group.start_soon(pipes.read_log)
        try:
            yield read_stream, write_stream
        finally:
            with anyio.CancelScope(shield=True):
                read_stream.close()
                write_stream.close()
                await _stop(process, limits.exit_seconds)
            group.cancel_scope.cancel()


async def _start(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> Process:
    options: dict[str, Any] = {}
    if sys.platform == "win32":
        options["creationflags"] = subprocess.CREATE_NO_WINDOW
    return await anyio.open_process(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(env),
        cwd=cwd,
        start_new_session=os.name == "posix",
        **options,
    )


class _Pipes:
    """The three pipes of a running server."""

    def __init__(self, process: Process, log: ServerLog, limits: Limits) -> None:
        self._process, self._log, self._limits = process, log, limits
        self._since_request = 0  # bytes of output since our last message

    async def read_messages(self, to_client: Any, ended: Callable[[], None]) -> None:
        """Lines of stdout to the client until the output ends or grows too large."""
        try:
            async with to_client:
                async for line in self._lines():
                    try:
                        message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                    except ValueError:  # such as a log line printed in the wrong place
                        self._log.write(b"(not a message on stdout) " + line[:200] + b"\n")
                        continue
                    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                        await to_client.send(SessionMessage(message))
        finally:
            ended()

    async def _lines(self) -> AsyncIterator[bytes]:
        """Whole lines; ends at the end of output or at a limit."""
        stdout = self._process.stdout
        assert stdout is not None
        begun: list[bytes] = []  # the pieces of a line that has not ended
        size = 0
        with contextlib.suppress(anyio.EndOfStream, anyio.ClosedResourceError, OSError):
            while True:
                chunk = await stdout.receive(CHUNK)
                self._since_request += len(chunk)
                if self._since_request > self._limits.answer_bytes:
                    self._too_large("an answer", self._limits.answer_bytes)
                    return
                *whole, rest = chunk.split(b"\n")
                for line in whole:
                    yield b"".join([*begun, line])
                    begun, size = [], 0
                if rest:
                    begun.append(rest)
                    size += len(rest)
                if size > self._limits.line_bytes:
                    self._too_large("a line", self._limits.line_bytes)
                    return

    def _too_large(self, what: str, limit: int) -> None:
        self._log.write(f"(stopped: {what} of its output is larger than {limit} bytes)\n".encode())

    async def write_messages(self, from_client: Any) -> None:
        """Messages of the client to stdin, one a line."""
        stdin = self._process.stdin
        assert stdin is not None
        broken = (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)
        with contextlib.suppress(*broken):
            async with from_client:
                async for item in from_client:
                    text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                    self._since_request = 0
                    await stdin.send(text.encode() + b"\n")

    async def read_log(self) -> None:
        """stderr into the log."""
        stderr = self._process.stderr
        assert stderr is not None
        with contextlib.suppress(anyio.EndOfStream, anyio.ClosedResourceError, OSError):
            while True:
                self._log.write(await stderr.receive(CHUNK))


async def _stop(process: Process, patience: float) -> None:
    """End the server and everything it started; nothing of it stays behind as a zombie."""
    assert process.stdin is not None
    family = _descendants(process.pid)
    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
        await process.stdin.aclose()
    await _exited(process, patience)
    if process.returncode is None:
        family = _descendants(process.pid)
        _signal(process, getattr(signal, "SIGTERM", None))
        await _exited(process, patience)
    _signal(process, getattr(signal, "SIGKILL", None))  # the group, which may outlive its leader
    await _exited(process, patience)
    for child in family:
        with contextlib.suppress(Exception):  # gone by now, or not ours any more
            child.kill()
    # A grandchild that left the group may still hold our pipes; asyncio would wait for it.
    transport = getattr(getattr(process, "_process", None), "_transport", None)
    if transport is not None:
        transport.close()


async def _exited(process: Process, seconds: float) -> None:
    """Wait until the process is gone and reaped, at most so long."""
    with anyio.move_on_after(seconds):
        while process.returncode is None:
            await anyio.sleep(POLL)


def _descendants(pid: int) -> list[Any]:
    """Processes below ``pid``, while it can still be asked for them."""
    import psutil

    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return []


def _signal(process: Process, number: int | None) -> None:
    """A signal to the server's process group; on Windows the end of the server."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "posix" and number is not None:
            os.killpg(process.pid, number)
        elif process.returncode is None:
            process.kill()
