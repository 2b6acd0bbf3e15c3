"""What left this machine: one line for every sending, on this machine alone, without the text.

A line is written and on the disk before the first byte leaves; if it cannot be written, nothing is
sent. A second line with the same id tells the outcome. The file has mode 0600 and a bounded size:
when it is full it becomes ``….1`` and the one before that is dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.assistant.redaction import Redaction
from edgekit.atomic import disk_errors

LARGEST = 1 << 20  # bytes of one file; about 3000 sendings
UNKNOWN = "unknown: the program ended before the answer did"


@dataclass(frozen=True)
class LogEntry:
    """One sending.

    Attributes:
        id: the preview that was sent.
        time: UTC, ISO 8601.
        host: whom it was sent to.
        model: the model asked for.
        bytes: size of the body that left.
        sha256: of that body, hex.
        redactions: what was replaced, counted.
        outcome: "answered", "stopped", or one sentence about what went wrong.
        answer_bytes: of the text that came back.
    """

    id: str
    time: str
    host: str
    model: str
    bytes: int
    sha256: str
    redactions: tuple[Redaction, ...] = ()
    outcome: str = UNKNOWN
    answer_bytes: int = 0


class CloudLog:
    """The log file. Safe to use from several threads of one process."""

    def __init__(self, path: Path, largest: int = LARGEST) -> None:
        self._path, self._largest = path, largest
        self._old = path.with_name(path.name + ".1")
        self._lock = threading.Lock()

    def begin(self, entry: LogEntry) -> None:
        """Record a sending that is about to happen.

        Raises:
            BadInputError: the log cannot be written; nothing may be sent then.
            OutOfResourcesError: the disk is full; likewise.
        """
        unknown_yet = ("outcome", "answer_bytes")
        self._append({key: v for key, v in asdict(entry).items() if key not in unknown_yet})

    def end(self, entry_id: str, outcome: str, answer_bytes: int) -> None:
        """Record what became of it."""
        self._append({"id": entry_id, "outcome": outcome, "answer_bytes": answer_bytes})

    def entries(self) -> list[LogEntry]:
        """Every sending that is still in the log, the newest first. Broken lines are skipped."""
        found: dict[str, LogEntry] = {}
        for value in self._lines():
            entry = _entry(value)
            if entry is not None:
                found[entry.id] = entry
                continue
            match value:
                case {"id": str(known), "outcome": str(outcome), "answer_bytes": int(size)}:
                    if known in found:
                        found[known] = replace(found[known], outcome=outcome, answer_bytes=size)
        return list(reversed(found.values()))

    def _append(self, value: dict[str, Any]) -> None:
        line = json.dumps(value, ensure_ascii=False).encode() + b"\n"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        with self._lock, disk_errors(self._path):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._rotate(len(line))
            handle = os.open(self._path, flags, 0o600)
            try:
                if _lacks_newline(self._path):  # a line that a crash cut off
                    line = b"\n" + line
                os.write(handle, line)
                os.fsync(handle)
            finally:
                os.close(handle)

    def _rotate(self, coming: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_size + coming > self._largest:
                self._path.replace(self._old)

    def _lines(self) -> Iterator[dict[str, Any]]:
        for path in (self._old, self._path):
            try:
                data = path.read_bytes()
            except OSError:
                continue
            for line in data.splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    value = json.loads(line)
                    if isinstance(value, dict):
                        yield value


def _entry(value: dict[str, Any]) -> LogEntry | None:
    """The first line of a sending; ``None`` for any other."""
    try:
        counts = tuple(Redaction(str(r["kind"]), int(r["count"])) for r in value["redactions"])
        return LogEntry(
            id=str(value["id"]),
            time=str(value["time"]),
            host=str(value["host"]),
            model=str(value["model"]),
            bytes=int(value["bytes"]),
            sha256=str(value["sha256"]),
            redactions=counts,
        )
    except (TypeError, KeyError, ValueError):
        return None


def _lacks_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
