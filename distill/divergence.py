"""KL(teacher || model) on held-out text, by domain, and how much the teacher would accept of it.

The teacher's distributions come from a logit cache, or are remembered in memory when they are
needed for one run only. The same sequences measured twice can be compared in pairs, which is much
finer than the intervals of each: what makes a sequence hard is hard for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgekit.bootstrap import FEWEST, Interval, mean_interval
from edgekit.distill.acceptance import Acceptance, acceptance
from edgekit.distill.head import Head, require_finite
from edgekit.distill.loading import Model
from edgekit.distill.losses import Loss
from edgekit.distill.open_model import OpenModel
from edgekit.distill.resident import head_inputs
from edgekit.distill.targets import TeacherTargets, TopTargets, joined, top_k_targets
from edgekit.errors import BadInputError
from edgekit.progress import Progress, Task
from edgekit.sequences import TokenSequence, equal_length_runs, stacked

FORWARD_TOKENS = 512  # of one forward pass; bounds the memory of the logits
EXACT_BYTES = 1 << 28  # whole distributions up to this size, then the largest REMEMBERED and a tail
REMEMBERED = 256
BYTES_PER_TARGET = 12  # an int64 and a float32
FORWARD_KL = Loss()


class Targets(Protocol):
    """Sequences and what the teacher said about them; :class:`edgekit.distill.cache.LogitCache`
    is one. Distributions are over the first ``vocab_size`` tokens; further rows of a head only pad
    it."""

    @property
    def sequences(self) -> list[TokenSequence]:
        """What the teacher read."""

    @property
    def vocab_size(self) -> int:
        """Tokens that the distributions are over."""

    def targets(self, number: int) -> TeacherTargets:
        """The teacher's distributions at the positions of sequence ``number``."""


@dataclass(frozen=True)
class RememberedTargets:
    """Targets in memory; ``top_k`` tokens of each position, which may be the whole vocabulary."""

    sequences: list[TokenSequence]
    held: list[TopTargets]
    top_k: int
    vocab_size: int

    def targets(self, number: int) -> TeacherTargets:
        """The teacher's distributions at the positions of sequence ``number``."""
        return self.held[number]


class Divergence(BaseModel):
    """KL in nats per token, over ``all`` held-out text and by domain; ``acceptance`` of the model
    as a draft over all of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    all: Interval
    domains: dict[str, Interval]
    acceptance: Acceptance | None = None

    @property
    def worst_domain(self) -> str:
        """The domain with the largest KL."""
        return max(self.domains, key=lambda domain: self.domains[domain].value)

    @property
    def worst(self) -> float:
        """The KL of that domain."""
        return self.domains[self.worst_domain].value


@dataclass(frozen=True)
class Measured:
    """KL of every position of each sequence, ``values`` float64 [T] each, and the bounds of the
    acceptance there, ``accepted`` float64 [T, 2] each."""

    domains: tuple[str, ...]
    values: tuple[NDArray[np.float64], ...]
    accepted: tuple[NDArray[np.float64], ...] = ()

    def divergence(self) -> Divergence:
        """Means with intervals."""
        return Divergence(
            all=mean_interval(self.values),
            domains={d: mean_interval(v) for d, v in self._by_domain().items()},
            acceptance=self._acceptance(),
        )

    def worse_than(self, other: Measured) -> bool:
        """Whether it is worse than ``other`` in the domain where it is worst, beyond chance.

        Whole sequences are resampled, each with its difference between the two; with too few of
        them for that, the worst domains' values are compared.
        """
        mine, others = self.divergence(), other.divergence()
        domain = mine.worst_domain
        pairs = [
            own - foreign
            for name, own, foreign in zip(self.domains, self.values, other.values, strict=True)
            if name == domain
        ]
        if len(pairs) < FEWEST:
            return mine.worst > others.worst
        low = mean_interval(pairs).low
        return low is not None and low > 0

    def _acceptance(self) -> Acceptance | None:
        if not self.accepted:
            return None
        at_least, at_most = np.concatenate(self.accepted).mean(0).tolist()
        return Acceptance(at_least=at_least, at_most=at_most)

    def _by_domain(self) -> dict[str, list[NDArray[np.float64]]]:
        result: dict[str, list[NDArray[np.float64]]] = {d: [] for d in sorted(set(self.domains))}
        for domain, values in zip(self.domains, self.values, strict=True):
            result[domain].append(values)
        return result


def held_out_sequences(
    sequences: Sequence[TokenSequence], per_domain: int = 0
) -> list[TokenSequence]:
    """The held-out ones, at most ``per_domain`` of each domain (0: all).

    Raises:
        BadInputError: a domain of the text, or all of it, has none.
    """
    chosen: dict[str, list[TokenSequence]] = {s.domain: [] for s in sequences}
    for sequence in sequences:
        found = chosen[sequence.domain]
        if sequence.held_out and (not per_domain or len(found) < per_domain):
            found.append(sequence)
    for domain, found in chosen.items():
        if not found:
            raise BadInputError(
                f"[data] held_out_tokens: the domain {domain!r} has no held-out sequence to "
                "measure on; raise it"
            )
    if not chosen:
        raise BadInputError("[data] held_out_tokens: there is no text to measure on; raise it")
    return [sequence for found in chosen.values() for sequence in found]


@torch.no_grad()
def remember(
    model: Model | OpenModel, sequences: Sequence[TokenSequence], progress: Progress
) -> RememberedTargets:
    """What ``model`` says about ``sequences``, kept in memory; it runs as :func:`measure` says.

    Raises:
        BadInputError: it gives logits that are not finite.
    """
    positions = sum(len(s.tokens) for s in sequences)
    config = (model.model if isinstance(model, OpenModel) else model).config
    source = str(model.path) if isinstance(model, OpenModel) else "the teacher"
    vocabulary = int(config.get_text_config().vocab_size)
    fits = positions * vocabulary * BYTES_PER_TARGET <= EXACT_BYTES
    top_k = vocabulary if fits else min(REMEMBERED, vocabulary)
    held: list[TopTargets] = []
    with progress.task("remember the teacher's answers", positions) as task:
        for parts in _answers(model, sequences, vocabulary, task):
            kept = []
            for rows in parts:
                require_finite(rows, source)
                kept.append(top_k_targets(rows, top_k).to(torch.device("cpu")))
            held.append(cast(TopTargets, joined(kept)))
    return RememberedTargets(list(sequences), held, top_k, vocabulary)


@torch.no_grad()
def measure(
    model: Model | OpenModel,
    targets: Targets,
    progress: Progress,
    name: str = "model",
    numbers: Sequence[int] | None = None,
    loss: Loss = FORWARD_KL,
) -> Measured:
    """KL, or another divergence, at every position of the sequences ``numbers`` of ``targets``, by
    default of those that are held out.

    Of an opened model that is read a layer at a time (:mod:`edgekit.distill.resident`) all
    sequences go through a layer before the next is read, and its head reads them in parts.
    """
    if numbers is None:
        numbers = held_out_numbers(targets)
    sequences = [targets.sequences[n] for n in numbers]
    values: list[NDArray[np.float64]] = []
    accepted: list[NDArray[np.float64]] = []
    total = sum(len(s.tokens) for s in sequences)
    with progress.task(f"measure {name} on held-out text", total) as task:
        answers = _answers(model, sequences, targets.vocab_size, task)
        for number, parts in zip(numbers, answers, strict=True):
            taught, begin = targets.targets(number), 0
            found, bounds = [], []
            for rows in parts:
                part = taught[begin : begin + len(rows)].to(rows.device)
                begin += len(rows)
                found.append(loss.of_targets(rows, part).double().cpu().numpy())
                if isinstance(part, TopTargets):
                    bounds.append(acceptance(rows, part).double().cpu().numpy())
            values.append(np.concatenate(found))
            if bounds:
                accepted.append(np.concatenate(bounds))
    return Measured(tuple(s.domain for s in sequences), tuple(values), tuple(accepted))


def held_out_numbers(targets: Targets) -> list[int]:
    """Which of the sequences are held out."""
    return [i for i, s in enumerate(targets.sequences) if s.held_out]


def _answers(
    model: Model | OpenModel, sequences: Sequence[TokenSequence], vocab_size: int, task: Task
) -> Iterator[Iterable[torch.Tensor]]:
    """For each sequence its logits [positions, ``vocab_size``] where it counts, in parts."""
    runs = equal_length_runs(sequences, FORWARD_TOKENS)
    groups = [sequences[begin:end] for begin, end in runs]
    if not isinstance(model, OpenModel):
        for group in groups:
            for rows, sequence in zip(_logits(model, group), group, strict=True):
                yield [_counted(rows, sequence)[:, :vocab_size]]
                task.advance(len(rows))
        return
    head = Head(model, vocab_size)
    for group, read in zip(groups, head_inputs(model, groups, task), strict=True):
        for hidden, sequence in zip(read, group, strict=True):
            counted = _counted(hidden, sequence)
            parts = head.chunks(len(counted)) or [slice(0)]  # where nothing counts
            yield (head.logits(counted[rows]) for rows in parts)


def _counted(rows: torch.Tensor, sequence: TokenSequence) -> torch.Tensor:
    """The rows of [T, ...] whose positions count."""
    return rows if sequence.counted is None else rows[torch.from_numpy(sequence.counted)]


def _logits(model: Model, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """[B, T, V] of sequences of one length."""
    device = next(model.parameters()).device
    ids = torch.from_numpy(stacked(sequences)).to(device)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits
