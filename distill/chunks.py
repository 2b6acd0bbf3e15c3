"""The calibration text of a pass: cut into chunks, its tokens sorted into classes.

Chunks depend on the text alone, not on who runs them or how, so their sums always add up to the
same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.distill.accumulate import HALVES
from edgekit.distill.statistics import ARRAYS, INTEGERS, Statistics, StatisticsInfo
from edgekit.errors import BadInputError
from edgekit.sequences import TokenSequence, equal_length_runs, sequences_digest, stacked

BATCH_TOKENS = 1024
PER_LAYER = tuple(name for name in ARRAYS if name not in ("seen", "block_cosine_sum"))


@dataclass(frozen=True)
class Text:
    """Sequences and the ranges [begin, end) of them that are chunks.

    The class of a sequence int64 [n] is its half times the domains plus its domain; every second
    sequence of a domain is in the other half.
    """

    sequences: Sequence[TokenSequence]
    chunks: Sequence[tuple[int, int]]
    domains: tuple[str, ...]
    classes: NDArray[np.int64]

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence], chunks: Sequence[tuple[int, int]]) -> Text:
        """The text of ``sequences``; domains in alphabetical order."""
        domains = tuple(sorted({s.domain for s in sequences}))
        counts = dict.fromkeys(domains, 0)
        classes = np.empty(len(sequences), np.int64)
        for number, sequence in enumerate(sequences):
            half = counts[sequence.domain] % HALVES
            counts[sequence.domain] += 1
            classes[number] = half * len(domains) + domains.index(sequence.domain)
        return cls(sequences, chunks, domains, classes)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(s.tokens) for s in self.sequences)

    def size(self, chunk: int) -> int:
        """Tokens of a chunk."""
        return sum(len(s.tokens) for s in self.sequences[slice(*self.chunks[chunk])])

    def batches(self, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Token ids int64 [B, T] and the classes int64 [B * T] of their tokens."""
        first, last = self.chunks[chunk]
        for begin, end in equal_length_runs(self.sequences[first:last], BATCH_TOKENS):
            rows = slice(first + begin, first + end)
            ids = torch.from_numpy(stacked(self.sequences[rows]))
            yield ids, torch.from_numpy(np.repeat(self.classes[rows], ids.shape[1]))

    def seen(self, chunk: int) -> NDArray[np.int64]:
        """Tokens of a chunk by half and domain [S, D]."""
        begin, end = self.chunks[chunk]
        lengths = [len(s.tokens) for s in self.sequences[begin:end]]
        counts = np.zeros(HALVES * len(self.domains), np.int64)
        np.add.at(counts, self.classes[begin:end], lengths)
        return counts.reshape(HALVES, -1)

    def info(self, chunk: int, checkpoint: str, model_type: str, layers: tuple[int, ...]
             ) -> StatisticsInfo:  # fmt: skip
        """What the statistics of one chunk say of themselves."""
        return StatisticsInfo(
            checkpoint=checkpoint,
            sequences=sequences_digest(self.sequences),
            model_type=model_type,
            layers=layers,
            domains=self.domains,
            chunks=(chunk,),
            total_chunks=len(self.chunks),
        )


def assembled(
    info: StatisticsInfo,
    seen: NDArray[np.int64],
    layers: Sequence[Mapping[str, NDArray[np.float64]]],
    cosines: NDArray[np.float64],
) -> Statistics:
    """Statistics from the sums of each sparse layer, named as in :class:`Statistics`."""
    arrays: dict[str, Any] = {name: np.stack([sums[name] for sums in layers]) for name in PER_LAYER}
    for name in INTEGERS:
        if name in arrays:
            arrays[name] = arrays[name].astype(np.int64)
    return Statistics(info, seen=seen, block_cosine_sum=cosines, **arrays)


def require_finite(
    sums: Mapping[int, Mapping[str, NDArray[np.float64]]],
    cosines: NDArray[np.float64],
    number: int,
    source: str,
) -> None:
    """Refuse a decoder layer that gives anything but numbers.

    ``sums`` are those of its mixtures by layer, ``cosines`` [D] its own.

    Raises:
        BadInputError: names the layer, and the expert if it is one.
    """
    for layer, found in sums.items():
        norms = found["norm_sum"] + found["output_max"]
        bad = np.flatnonzero(~np.isfinite(norms).all((0, 1)))
        if len(bad):
            raise not_finite(source, f"expert {bad[0]} of layer {layer}")
        if not np.isfinite(found["logit_gram"]).all():
            raise not_finite(source, f"the router of layer {layer}, or what it reads,")
    if not np.isfinite(cosines).all():
        raise not_finite(source, f"layer {number}")


def not_finite(source: str, part: str) -> BadInputError:
    """The error for a ``part`` of the model in ``source`` that gives anything but numbers."""
    return BadInputError(
        f"{source}: {part} gives values that are not finite; the weights are damaged, download "
        "them again"
    )
