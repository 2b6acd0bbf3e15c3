"""What every expert of a model does on the calibration text: sums that all criteria read.

One pass writes them, per layer, half of the text, domain and expert; every pruning criterion
``N^-b Σ g^α |f|^β`` (:mod:`edgekit.distill.criteria`) is then a line of arithmetic. Here f is an
expert's output before the gate, and g what really multiplies it. The file is safetensors; its
metadata says which checkpoint and text it is of.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from edgekit.atomic import PARTIAL, disk_errors
from edgekit.errors import BadInputError
from edgekit.tensorfile import TensorFile, TensorFileWriter, TensorInfo

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
INTEGERS = ("tokens", "seen", "coactivation")
MAXIMA = ("output_max",)
KINDS = {"int64": "I64", "float64": "F64"}
INFO = "edgekit_statistics"


class StatisticsInfo(BaseModel):
    """What the sums are of. ``checkpoint``, ``tokenizer`` and ``sequences`` are digests; the
    checkpoint need not have a tokenizer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str
    tokenizer: str = ""
    sequences: str
    model_type: str
    layers: tuple[int, ...]
    domains: tuple[str, ...]
    chunks: tuple[int, ...]  # of the text, that are in the sums
    total_chunks: int


@dataclass(frozen=True)
class Statistics:
    """Sums over the calibration text.

    L sparse layers, S = 2 halves of the text (every second sequence of each domain), D domains, E
    experts, C choices of the router (identity experts too), H ``hidden_size``, I neurons of an
    expert, M decoder layers of transformers.
    """

    info: StatisticsInfo
    tokens: Integers  # [L, S, D, E], tokens routed to the expert
    gate_sum: Floats  # [L, S, D, E], Σ g
    norm_sum: Floats  # [L, S, D, E], Σ |f|
    norm_sq_sum: Floats  # [L, S, D, E], Σ |f|²
    gated_sum: Floats  # [L, S, D, E], Σ g |f|
    gated_sq_sum: Floats  # [L, S, D, E], Σ (g |f|)²
    output_max: Floats  # [L, S, D, E], the largest absolute element of f
    seen: Integers  # [S, D], tokens of the text
    probability_sum: Floats  # [L, D, C], Σ of the router's shares
    entropy_sum: Floats  # [L, D], Σ of their entropy, nats
    coactivation: Integers  # [L, E, E], tokens that chose both
    logit_gram: Floats  # [L, C, C], Σ of logits times logits
    gated_output_sum: Floats  # [L, E, H], Σ g f
    neuron_gated_sum: Floats  # [L, E, I], Σ g |neuron|
    neuron_sq_sum: Floats  # [L, E, I], Σ neuron²
    block_cosine_sum: Floats  # [M, D], Σ cos(a layer's input, its output)

    @property
    def layers(self) -> tuple[int, ...]:
        """The sparse layers, by number."""
        return self.info.layers

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains."""
        return self.info.domains

    def total(self, name: str) -> Floats:
        """One of the sums [L, S, D, E] over halves and domains: [L, E]; the largest of maxima."""
        values: Floats = getattr(self, name).astype(np.float64)
        return values.max((1, 2)) if name in MAXIMA else values.sum((1, 2))

    def half(self, number: int) -> Statistics:
        """What half 0 or 1 of the text alone says of the experts; the other sums stay whole."""
        return self._part((slice(None), slice(number, number + 1)))

    def domain(self, name: str) -> Statistics:
        """What one domain alone says of the experts; the other sums stay whole."""
        number = self.domains.index(name)
        return self._part((slice(None), slice(None), slice(number, number + 1)))

    def _part(self, index: tuple[slice, ...]) -> Statistics:
        fields = [f.name for f in dataclasses.fields(self) if f.name.endswith("_max")]
        fields += ["tokens", "gate_sum", "norm_sum", "norm_sq_sum", "gated_sum", "gated_sq_sum"]
        changed = {name: getattr(self, name)[index] for name in fields}
        return dataclasses.replace(self, seen=self.seen[index[1:]], **changed)

    @property
    def frequency(self) -> Floats:
        """Share of routed tokens [L, E]; each row sums to 1."""
        tokens = self.total("tokens")
        return tokens / np.maximum(tokens.sum(1, keepdims=True), 1)

    @property
    def block_influence(self) -> Floats:
        """How much each decoder layer changes its input [M]: 1 - the mean cosine of input and
        output (arXiv 2403.03853, equation 1). Of the whole text."""
        return 1 - self.block_cosine_sum.sum(1) / self.seen.sum()

    @property
    def router_entropy(self) -> Floats:
        """How undecided each router is about a token [L]: the mean entropy of its shares, as a
        share of the maximum. Of the whole text."""
        choices = self.probability_sum.shape[-1]
        return self.entropy_sum.sum(1) / self.seen.sum() / np.log(max(choices, 2))

    def unreached(self) -> dict[int, list[int]]:
        """The experts of each layer that no token was routed to."""
        never = self.total("tokens") == 0
        return {
            layer: np.flatnonzero(row).tolist()
            for layer, row in zip(self.layers, never, strict=True)
            if row.any()
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The sums by name."""
        return {name: getattr(self, name) for name in ARRAYS}

    def save(self, path: Path) -> None:
        """Write the file; see :func:`load`."""
        _write(path, self.arrays(), {INFO: self.info.model_dump_json()})

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read a file of :meth:`save`.

        Raises:
            BadInputError: the file is damaged or of another kind.
        """
        with TensorFile(path) as file:
            try:
                info = StatisticsInfo.model_validate_json(file.metadata[INFO])
                arrays: dict[str, Any] = {name: file.array(name).copy() for name in ARRAYS}
            except (KeyError, ValidationError) as error:
                raise BadInputError(
                    f"{path}: not a file of expert statistics; make it with edgekit shrink stats"
                ) from error
        return cls(info, **arrays)


ARRAYS = tuple(field.name for field in dataclasses.fields(Statistics) if field.name != "info")


def add_up(parts: Iterable[Statistics]) -> Statistics:
    """The sums over several chunks of one text, added in the order given: that of the chunks.

    So the result does not depend on who computed which chunk. One part is held at a time beside
    the sum, if ``parts`` makes them one by one.
    """
    iterator = iter(parts)
    first = next(iterator)
    totals = {name: values.copy() for name, values in first.arrays().items()}
    chunks = first.info.chunks
    for part in iterator:
        for name, values in part.arrays().items():
            (np.maximum if name in MAXIMA else np.add)(totals[name], values, out=totals[name])
        chunks += part.info.chunks
    arrays: dict[str, Any] = {**totals}
    return Statistics(first.info.model_copy(update={"chunks": chunks}), **arrays)


def save_whole(statistics: Statistics, path: Path) -> None:
    """Write a file of statistics whole or not at all.

    Raises:
        OutOfResourcesError: the disk is full.
    """
    write_arrays(path, statistics.arrays(), {INFO: statistics.info.model_dump_json()})


def write_arrays(
    path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write int64 and float64 arrays as a safetensors file, whole or not at all."""
    partial = path.with_suffix(PARTIAL)
    with disk_errors(path):
        _write(partial, arrays, metadata)
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        partial.replace(path)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Copies of the arrays of a safetensors file."""
    with TensorFile(path) as file:
        return {name: file.array(name).copy() for name in file.tensors}


def _write(
    path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None
) -> None:
    layout = [TensorInfo(name, KINDS[str(a.dtype)], a.shape) for name, a in arrays.items()]
    with TensorFileWriter(path, layout, metadata) as writer:
        for name, array in arrays.items():
            writer.write(name, np.ascontiguousarray(array))


def require_whole(statistics: Statistics, source: str) -> None:
    """Refuse sums in which a worker's share of the text is missing.

    Raises:
        BadInputError: names the chunks.
    """
    missing = sorted(set(range(statistics.info.total_chunks)) - set(statistics.info.chunks))
    if missing:
        raise BadInputError(
            f"{source}: chunks {', '.join(map(str, missing))} of {statistics.info.total_chunks} "
            "are missing; run the workers that had them again"
        )
