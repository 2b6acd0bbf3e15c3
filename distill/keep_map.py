"""The file beside a shrunk model that says which experts it kept; a later shrink may follow it."""

from __future__ import annotations

from pathlib import Path

from edgekit.checkpoint import read_json
from edgekit.distill.keep import Kept
from edgekit.errors import BadInputError

KEEP_MAP = "experts.json"


def keep_map_file(path: Path) -> Path:
    """The file of an earlier shrink that is named by its directory or by the file itself."""
    return path / KEEP_MAP if path.is_dir() else path


def read_keep_map(path: Path) -> Kept:
    """The experts that an earlier shrink kept; ``path`` is its directory or its experts.json.

    Raises:
        BadInputError: there is none.
    """
    values = read_json(keep_map_file(path))
    try:
        return {int(layer): [int(e) for e in kept] for layer, kept in values["kept"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadInputError(
            f"{path}: no keep-map of an earlier shrink; give its directory or its {KEEP_MAP}"
        ) from None
