"""A file that cannot be understood is kept under another name before a new one is written."""

from __future__ import annotations

from pathlib import Path


def set_aside(path: Path) -> Path | None:
    """Rename a damaged file to the first free name beside it; ``None`` when it is not there."""
    if not path.exists():
        return None
    number = 0
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return path.replace(aside)
