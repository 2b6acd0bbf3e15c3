"""A worker process that answers one frame with one frame, and is killed when it misbehaves.

A frame is a length of eight bytes and that many bytes. The worker reads its standard input until
it is closed, so it ends with the process that started it. Time on the clock, resident memory and
the size of an answer are watched here on every system; a worker may limit itself further
(`reader.py` does).
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO

import psutil

from edgekit.assistant.documents.limits import MB

_LENGTH = struct.Struct("<Q")
_WATCH_EVERY = 0.05  # seconds between looks at the memory of a working child


class ChildFailedError(Exception):
    """The worker died or was killed; the message says why, as part of a sentence."""


def module_command(module: str, *arguments: str) -> list[str]:
    """How to run a module of edgekit in a process of its own.

    ``-P`` keeps the current folder, which may hold anything, off the import path.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def write_frame(stream: IO[bytes], data: bytes) -> None:
    """Send one message."""
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def read_frame(stream: IO[bytes], most: int) -> bytes | None:
    """Receive one message, or None at the end of the stream.

    Raises:
        ChildFailedError: it is longer than ``most`` or ends early.
    """
    head = stream.read(_LENGTH.size)
    if not head:
        return None
    if len(head) < _LENGTH.size:
        raise ChildFailedError("stopped in the middle of an answer")
    (length,) = _LENGTH.unpack(head)
    if length > most:
        raise ChildFailedError("gave an answer that is too long")
    data = stream.read(length)
    if len(data) < length:
        raise ChildFailedError("stopped in the middle of an answer")
    return data


def serve_frames(answer: Callable[[bytes], bytes], most: int) -> None:
    """The worker's side: answer frames of standard input on standard output until it closes.

    A thread reads, so that the process ends when its parent does, even during a long answer.
    Anything that a library prints goes to standard error instead.
    """
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    # not sys.stdin: a thread that waits in it would keep the interpreter from ending
    source = open(0, "rb", closefd=False)  # noqa: SIM115 - read for as long as the process lives

    def read() -> None:
        with contextlib.suppress(Exception):
            while (request := read_frame(source, most)) is not None:
                requests.put(request)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        write_frame(output, answer(requests.get()))


class Child:
    """Starts the worker at the first question and again after it had to be killed."""

    def __init__(self, command: Sequence[str], most_answer: int) -> None:
        self._command = list(command)
        self._most = most_answer
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[bytes | ChildFailedError | None] = queue.SimpleQueue()

    def ask(self, request: bytes, seconds: float, memory_bytes: int | None = None) -> bytes:
        """The worker's answer.

        Raises:
            ChildFailedError: it crashed, took longer than ``seconds`` or used more than
                ``memory_bytes``; it is no longer running then.
        """
        process = self._running()
        try:
            assert process.stdin is not None
            write_frame(process.stdin, request)
            answer = self._wait(process, seconds, memory_bytes)
        except (ChildFailedError, OSError) as error:
            self.close()
            if isinstance(error, ChildFailedError):
                raise
            raise ChildFailedError(_crash(process)) from error
        return answer

    def close(self) -> None:
        """Kill the worker if it runs."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
            self._answers = queue.SimpleQueue()
            threading.Thread(
                target=self._receive, args=(self._process, self._answers), daemon=True
            ).start()
        return self._process

    def _receive(
        self,
        process: subprocess.Popen[bytes],
        answers: queue.SimpleQueue[bytes | ChildFailedError | None],
    ) -> None:
        assert process.stdout is not None
        while True:
            try:
                answer = read_frame(process.stdout, self._most)
            except ChildFailedError as error:
                answers.put(error)
                return
            except (OSError, ValueError):  # closed by ``close``
                answer = None
            answers.put(answer)
            if answer is None:
                return

    def _wait(
        self, process: subprocess.Popen[bytes], seconds: float, memory_bytes: int | None
    ) -> bytes:
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(queue.Empty):
                answer = self._answers.get(timeout=_WATCH_EVERY)
                if isinstance(answer, ChildFailedError):
                    raise answer
                if answer is None:
                    process.wait()
                    raise ChildFailedError(_crash(process))
                return answer
            if time.monotonic() > deadline:
                raise ChildFailedError(f"took longer than {seconds:g} s")
            if memory_bytes is not None and _resident(process.pid) > memory_bytes:
                raise ChildFailedError(f"used more than {memory_bytes // MB} MB of memory")


def _resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _crash(process: subprocess.Popen[bytes]) -> str:
    code = process.poll() or 0
    if code < 0 and -code == getattr(signal, "SIGXCPU", 0):
        return "used more processor time than one file may"
    return f"crashed (signal {-code})" if code < 0 else f"crashed (exit code {code})"
