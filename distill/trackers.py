"""Trackers of accelerate, such as TensorBoard, that show a training while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.errors import BadInputError, MissingRuntimeError

PROJECT = "edgekit-distill"


class Trackers:
    """Those that were asked for; of the main process.

    Args:
        names: as accelerate calls them.
        directory: for those that write files.
        config: what they show as the run's options.

    Raises:
        BadInputError: accelerate knows no such tracker.
        MissingRuntimeError: its package is not installed.
    """

    def __init__(self, names: Sequence[str], directory: Path, config: Mapping[str, Any]) -> None:
        self._accelerator: Any = None
        if not names:
            return
        from accelerate import Accelerator

        require_trackers(names)
        directory.mkdir(parents=True, exist_ok=True)
        self._accelerator = Accelerator(log_with=list(names), project_dir=str(directory))
        shown = {key: _plain(value) for key, value in config.items()}
        self._accelerator.init_trackers(PROJECT, config=shown)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show ``values`` of a step."""
        if self._accelerator is not None:
            self._accelerator.log(dict(values), step=step)

    def close(self) -> None:
        """Write what is left."""
        if self._accelerator is not None:
            for tracker in self._accelerator.trackers:
                tracker.finish()


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not there; see :class:`Trackers`."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise BadInputError(
                f"[distill] trackers: accelerate has no tracker {name!r}; choose from "
                + ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            )
        if name not in [str(found) for found in get_available_trackers()]:
            raise MissingRuntimeError(
                f"[distill] trackers: {name} is not installed; run `pip install {name}` and train "
                "again, or leave it out"
            )


def _plain(value: Any) -> Any:
    """Trackers show numbers and words."""
    return value if isinstance(value, int | float | str | bool) else str(value)
