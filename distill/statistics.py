"""What every expert of a model does on the calibration text: sums that all criteria read.

One pass writes them, per layer, half of the text, domain and expert; every pruning criterion
``N^-b Σ g^α |f|^β`` (:mod:`edgekit.distill.criteria`) is then a line of arithmetic. Here f is an
expert's output before the gate, and g what really multiplies it. The file is safetensors; its
metadata says which checkpoint and text it is of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from edgekit.errors import BadInputError
from edgekit.tensorfile import TensorFile, TensorFileWriter, TensorInfo

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
INTEGERS = ("tokens", "seen", "coactivation")
MAXIMA = ("output_max",)
INFO = "edgekit_statistics"


class StatisticsInfo(BaseModel):
    """What the sums are of. ``checkpoint`` and ``sequences`` are digests."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str
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

    def unreached(self) -> dict[int, list[int]]:
        """The experts of each layer that no token was routed to."""
        never = self.total("tokens") == 0
        return {
            layer: np.flatnonzero(row).tolist()
            for layer, row in zip(self.layers, never, strict=True)
            if row.any()
        }

    def save(self, path: Path) -> None:
        """Write the file; see :func:`load`."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        kinds = {name: "I64" if name in INTEGERS else "F64" for name in ARRAYS}
        layout = [TensorInfo(name, kinds[name], array.shape) for name, array in arrays.items()]
        metadata = {INFO: self.info.model_dump_json()}
        with TensorFileWriter(path, layout, metadata) as writer:
            for name, array in arrays.items():
                writer.write(name, np.ascontiguousarray(array))

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


def add_up(parts: Sequence[Statistics]) -> Statistics:
    """The sums over several chunks of one text, added in the order of the chunks.

    So the result does not depend on who computed which chunk.
    """
    ordered = sorted(parts, key=lambda part: part.info.chunks)
    arrays: dict[str, Any] = {}
    for name in ARRAYS:
        total = getattr(ordered[0], name).copy()
        for part in ordered[1:]:
            value = getattr(part, name)
            total = np.maximum(total, value) if name in MAXIMA else total + value
        arrays[name] = total
    chunks = tuple(number for part in ordered for number in part.info.chunks)
    return Statistics(ordered[0].info.model_copy(update={"chunks": chunks}), **arrays)


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


def require_same(info: StatisticsInfo, checkpoint: str, sequences: str, source: str) -> None:
    """Refuse statistics of something else.

    Raises:
        BadInputError: says what they are not of.
    """
    wanted: Mapping[str, tuple[str, str]] = {
        "checkpoint": (info.checkpoint, checkpoint),
        "text": (info.sequences, sequences),
    }
    for name, (found, expected) in wanted.items():
        if found != expected:
            raise BadInputError(
                f"{source}: statistics of another {name}; make them again with edgekit shrink stats"
            )
