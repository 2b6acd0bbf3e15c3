"""The tensors of a weights file as the graph writers look them up."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.tensorfile import TensorInfo, read_header


class StoredTensors:
    """Names to places in the file at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors, _ = read_header(path)

    def info(self, name: str) -> TensorInfo:
        """A tensor of the weights file."""
        try:
            return self.tensors[name]
        except KeyError:
            raise EdgekitError(f"{self.path}: tensor {name!r} is missing; quantize again") from None

    def adjacent(self, names: Sequence[str]) -> TensorInfo:
        """The first of tensors that lie side by side in the file."""
        infos = [self.info(name) for name in names]
        for before, after in itertools.pairwise(infos):
            if after.offset != before.offset + before.nbytes:
                raise EdgekitError(
                    f"{self.path}: {after.name} does not follow {before.name}; quantize again"
                )
        return infos[0]
