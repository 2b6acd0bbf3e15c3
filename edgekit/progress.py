"""Progress of long work: a bar with ETA in a terminal, nothing elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol


class Task(Protocol):
    """One running piece of work."""

    def advance(self, amount: float = 1) -> None:
        """Add ``amount`` of the task's unit."""

    def note(self, text: str) -> None:
        """Show a short live figure beside the bar, such as a loss."""


class Progress(Protocol):
    """What long functions report to."""

    def task(self, description: str, total: float) -> contextlib.AbstractContextManager[Task]:
        """Begin a task of ``total`` units."""


class _SilentTask:
    def advance(self, amount: float = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class Silent:
    """Reports nowhere."""

    @contextlib.contextmanager
    def task(self, description: str, total: float) -> Iterator[Task]:
        yield _SilentTask()


class Bars:
    """rich progress bars on standard error."""

    @contextlib.contextmanager
    def task(self, description: str, total: float) -> Iterator[Task]:
        from rich import progress as bars
        from rich.console import Console

        with bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(bar_width=28),
            bars.TaskProgressColumn(),
            bars.TimeRemainingColumn(),
            bars.TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        ) as display:
            handle = display.add_task(description, total=total, note="")

            class _BarTask:
                def advance(self, amount: float = 1) -> None:
                    display.advance(handle, amount)

                def note(self, text: str) -> None:
                    display.update(handle, note=text)

            yield _BarTask()


def default_progress() -> Progress:
    """Bars when standard error is a terminal, silence otherwise."""
    return Bars() if sys.stderr.isatty() else Silent()
