"""Tiny checkpoints that promise nested sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from edgekit.nested import NESTED

SIZES = [8, 6, 3]


def nested_source(model: Path, out: Path, sizes: object = SIZES) -> Path:
    """A copy of ``model`` in ``out`` whose config promises ``sizes``."""
    shutil.copytree(model, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, NESTED: sizes}))
    return out
