"""The run directory: one lock, one log, and steps that are whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from edgekit.atomic import disk_errors
from edgekit.errors import BadInputError

LOCK = ".lock"
LOG = "run.jsonl"
SCRATCH = ".scratch"
STEP_FILE = "step.json"
RECIPE = "recipe.toml"
INPUTS = "inputs.json"


class RunDirectory:
    """A directory that one build at a time may use.

    Raises:
        BadInputError: the directory holds something else, cannot be written, or is in use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise BadInputError(f"{path} is a file; choose a directory for --out")
        if path.is_dir() and any(path.iterdir()) and not self._is_run():
            raise BadInputError(
                f"{path} holds other files than a run; choose an empty or new directory for --out"
            )
        self._lock: IO[str] | None = None

    def _is_run(self) -> bool:
        return (self.path / LOCK).is_file()

    def __enter__(self) -> RunDirectory:
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / LOCK).open("a+")
        try:
            _lock(self._lock)
        except OSError:
            self._lock.close()
            raise BadInputError(
                f"{self.path}: another build is using it; wait for it or choose another --out"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock:
            self._lock.close()  # the system releases the lock, also when we are killed

    def log(self, event: str, **values: Any) -> None:
        """Append one line to the run log."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **values})
        with disk_errors(self.path), (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def scratch(self, step: str, digest: str) -> Path:
        """Where an unfinished step keeps what it can continue from; other leftovers go."""
        root = self.path / SCRATCH
        mine = root / f"{step}-{digest[:16]}"
        if root.is_dir():
            for other in root.iterdir():
                if other.name.startswith(step + "-") and other != mine:
                    shutil.rmtree(other, ignore_errors=True)
        mine.mkdir(parents=True, exist_ok=True)
        return mine

    def finish(self, step: str, digest: str) -> None:
        """Drop a finished step's scratch."""
        shutil.rmtree(self.path / SCRATCH / f"{step}-{digest[:16]}", ignore_errors=True)

    def drop_scratch(self) -> None:
        """Nothing is left to continue; a build killed before ``finish`` may have left some."""
        shutil.rmtree(self.path / SCRATCH, ignore_errors=True)


def _lock(file: IO[str]) -> None:
    if os.name == "nt":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def stopwatch() -> Iterator[list[float]]:
    """A list that holds the seconds of the block once it ended."""
    start = time.perf_counter()
    result: list[float] = []
    yield result
    result.append(time.perf_counter() - start)
