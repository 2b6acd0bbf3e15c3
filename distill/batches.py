"""Which sequences a step trains on, and who computes them.

A step takes whole sequences until they have ``batch_tokens``, from epochs shuffled by the seed. Its
sequences are dealt out to the processes, and each computes its own in micro-batches. Only the step
decides what is learnt: the loss is divided by the counted positions of the whole step, so how it is
dealt out changes no more than the rounding of a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from edgekit.distill.divergence import Targets
from edgekit.distill.targets import TeacherTargets
from edgekit.errors import BadInputError
from edgekit.recipe import DistillSection
from edgekit.sequences import TokenSequence

# logits [T, V], targets at T positions and next tokens int64 [T] to float32 [T]
LossFunction = Callable[[Tensor, TeacherTargets, Tensor], Tensor]


@dataclass(frozen=True)
class Lesson:
    """What is learnt from ``targets``: the mean of ``loss`` over their positions, ``weight`` times
    which is a part of what a step minimises."""

    targets: Targets
    loss: LossFunction
    weight: float = 1.0


@dataclass(frozen=True)
class Batch:
    """The sequences ``numbers`` of a lesson."""

    lesson: Lesson
    numbers: list[int]

    @property
    def sequences(self) -> list[TokenSequence]:
        """All of the lesson's, to which ``numbers`` refer."""
        return self.lesson.targets.sequences

    @property
    def tokens(self) -> int:
        """How many there are in the sequences."""
        return sum(len(self.sequences[n].tokens) for n in self.numbers)

    @property
    def positions(self) -> int:
        """How many of them count."""
        return sum(self.sequences[n].positions for n in self.numbers)


def batches(
    sequences: Sequence[TokenSequence], params: DistillSection, begin: int = 0
) -> Iterator[list[int]]:
    """Sequence numbers of each step from ``begin`` on, endlessly.

    Training that begins at another step sees another order. Held-out sequences, and those of which
    no position counts, are left out.

    Raises:
        BadInputError: nothing is left.
    """
    numbers = [i for i, s in enumerate(sequences) if not s.held_out and s.positions]
    if not numbers:
        raise BadInputError("[data] tokens: there are no sequences to train on; raise it")
    batch: list[int] = []
    tokens = 0
    for epoch in range(1 << 31):
        order = np.random.default_rng((params.seed, begin, epoch)).permutation(numbers)
        for number in order.tolist():
            batch.append(number)
            tokens += len(sequences[number].tokens)
            if tokens >= params.batch_tokens:
                yield batch
                batch, tokens = [], 0


def dealt(batch: Batch, rank: int, processes: int) -> Batch:
    """The sequences of ``batch`` that process ``rank`` computes: about as many tokens as every
    other's, the longest dealt first, each to whom has least."""
    lengths = {n: len(batch.sequences[n].tokens) for n in batch.numbers}
    hands: list[list[int]] = [[] for _ in range(processes)]
    held = [0] * processes
    for number in sorted(batch.numbers, key=lambda n: -lengths[n]):
        least = held.index(min(held))
        hands[least].append(number)
        held[least] += lengths[number]
    return replace(batch, numbers=hands[rank])
