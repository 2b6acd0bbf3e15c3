"""The tensors of a weights file as the graph writers look them up."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from edgekit.architecture import Architecture, TensorTable
from edgekit.errors import EdgekitError
from edgekit.nested import rows_of
from edgekit.tensorfile import TensorInfo, read_header


class StoredTensors:
    """Names to places in the file at ``path``; the model ``table`` may be a size nested in it."""

    def __init__(self, path: Path, table: TensorTable) -> None:
        self.path = path
        self.tensors, _ = read_header(path)
        self._table = table

    def info(self, name: str) -> TensorInfo:
        """A tensor of the weights file."""
        try:
            return self.tensors[name]
        except KeyError:
            raise EdgekitError(f"{self.path}: tensor {name!r} is missing; quantize again") from None

    def parts(self, name: str) -> list[TensorInfo]:
        """The runs of rows of a tensor that the model has, to be put one behind the other."""
        stored, spec = self.info(name), self._table.by_name[name]
        if spec.role != "router" or not isinstance(self._table, Architecture):
            return [stored]
        each = stored.nbytes // stored.shape[0]
        return [
            dataclasses.replace(
                stored,
                shape=(rows.stop - rows.start, *stored.shape[1:]),
                offset=stored.offset + rows.start * each,
            )
            for rows in rows_of(stored.shape[0], spec, self._table)
        ]

    def adjacent(self, names: Sequence[str]) -> TensorInfo:
        """The first of tensors that lie side by side in the file."""
        infos = [self.info(name) for name in names]
        for before, after in itertools.pairwise(infos):
            if after.offset != before.offset + before.nbytes:
                raise EdgekitError(
                    f"{self.path}: {after.name} does not follow {before.name}; quantize again"
                )
        return infos[0]
