"""The child process that makes the demo pack: ``python -m edgekit.assistant.demo_child OUT``.

It tells its progress in lines of JSON, ``{"detail": stage, "fraction": 0 to 1}``, and a failure as
``{"error": sentence}``. It gives up when its standard input is closed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from edgekit.demo_pack import make_demo_pack
from edgekit.errors import EdgekitError
from edgekit.local.listen import stop_with_parent
from edgekit.progress import Task

# stages in order, the first words by which they are known, and the part of the whole of each
STAGES: tuple[tuple[str, tuple[str, ...], float, float], ...] = (
    ("download", ("fetch", "download"), 0.0, 0.6),
    ("convert", ("read", "convert"), 0.6, 0.7),
    ("quantize", ("round", "quantize"), 0.7, 0.85),
    ("compile", ("write", "copy"), 0.85, 0.92),
    ("check", ("measure",), 0.92, 1.0),
)
PAUSE = 0.2  # seconds between two lines


class LineProgress:
    """Progress as lines of JSON on standard output."""

    def __init__(self) -> None:
        self._stage = STAGES[0]
        self._told = 0.0

    def notify(self, text: str) -> None:
        """A stage begins."""
        self._begin(text)
        self.tell(0.0)

    @contextlib.contextmanager
    def task(self, description: str, total: float) -> Iterator[Task]:
        """A part of a stage, or one that has a stage of its own."""
        self._begin(description)
        progress, done = self, 0.0

        class _Task:
            def advance(self, amount: float = 1) -> None:
                nonlocal done
                done += amount
                if time.monotonic() - progress._told > PAUSE:
                    progress.tell(min(done / total, 1.0) if total else 1.0)

            def note(self, text: str) -> None:
                pass

        yield _Task()

    def _begin(self, words: str) -> None:
        """Stages only go forward: a second target is compiled before the first is measured."""
        known = next((s for s in STAGES if words.startswith(s[1])), self._stage)
        self._stage = max(self._stage, known, key=STAGES.index)

    def tell(self, part: float) -> None:
        """Print how far the whole is, ``part`` of this stage being done."""
        self._told = time.monotonic()
        name, _, begin, end = self._stage
        _print({"detail": name, "fraction": round(begin + part * (end - begin), 3)})


def main(out: Path) -> int:
    """Make the pack; returns the exit code."""
    # an interrupt lets the work clear up behind itself; a wait that hears none is ended
    stop_with_parent(_interrupt)
    progress = LineProgress()
    try:
        make_demo_pack(out, progress, progress.notify)
    except EdgekitError as error:
        _print({"error": str(error)})
        return error.exit_code
    except ModuleNotFoundError as error:
        _print({"error": f'{error.name} is missing: pip install "edgekit[assistant]"'})
        return 4
    except KeyboardInterrupt:
        return 130
    return 0


def _interrupt() -> None:
    threading.Timer(3.0, lambda: os._exit(130)).start()
    signal.raise_signal(signal.SIGINT)


def _print(value: dict[str, object]) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
