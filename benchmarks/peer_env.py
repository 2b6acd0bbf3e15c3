"""Environments of their own for peers that want other versions than edgekit does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def make_peer_env(directory: Path, packages: Sequence[str]) -> None:
    """A virtual environment with ``packages``, unless it is there.

    They are installed one by one: torch first, so that this build of it is kept.
    """
    if (directory / "bin" / "python").is_file():
        return
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    for package in packages:
        subprocess.run([str(directory / "bin" / "pip"), "install", "--quiet", package], check=True)
