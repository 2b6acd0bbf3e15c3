"""KL(teacher || model) on held-out text, by domain, and how much the teacher would accept of it.

The teacher's distributions come from a logit cache, or are remembered in memory when they are
needed for one run only. The same sequences measured twice can be compared in pairs, which is much
finer than the intervals of each: what makes a sequence hard is hard for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgekit.bootstrap import FEWEST, Interval, mean_interval
from edgekit.distill.acceptance import Acceptance, acceptance
from edgekit.distill.loading import Model
from edgekit.distill.losses import Loss
from edgekit.distill.targets import TeacherTargets, TopTargets, top_k_targets
from edgekit.errors import BadInputError
from edgekit.progress import Progress
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
    model: Model, sequences: Sequence[TokenSequence], progress: Progress
) -> RememberedTargets:
    """What ``model`` says about ``sequences``, kept in memory."""
    positions = sum(len(s.tokens) for s in sequences)
    vocabulary = int(model.config.get_text_config().vocab_size)
    fits = positions * vocabulary * BYTES_PER_TARGET <= EXACT_BYTES
    top_k = vocabulary if fits else min(REMEMBERED, vocabulary)
    held: list[TopTargets] = []
    with progress.task("remember the teacher's answers", positions) as task:
        for begin, end in equal_length_runs(sequences, FORWARD_TOKENS):
            group = sequences[begin:end]
            for rows, sequence in zip(_logits(model, group), group, strict=True):
                counted = top_k_targets(_counted(rows, sequence), top_k)
                held.append(counted.to(torch.device("cpu")))
                task.advance(len(rows))
    return RememberedTargets(list(sequences), held, top_k, vocabulary)


@torch.no_grad()
def measure(
    model: Model,
    targets: Targets,
    progress: Progress,
    name: str = "model",
    numbers: Sequence[int] | None = None,
    loss: Loss = FORWARD_KL,
) -> Measured:
    """KL, or another divergence, at every position of the sequences ``numbers`` of ``targets``, by
    default of those that are held out."""
    if numbers is None:
        numbers = held_out_numbers(targets)
    values: dict[int, NDArray[np.float64]] = {}
    accepted: dict[int, NDArray[np.float64]] = {}
    total = sum(targets.sequences[n].positions for n in numbers)
    with progress.task(f"measure {name} on held-out text", total) as task:
        for group in equal_length_groups(targets, numbers):
            for number, rows in zip(group, _rows(model, targets, group), strict=True):
                taught = targets.targets(number).to(rows.device)
                values[number] = loss.of_targets(rows, taught).double().cpu().numpy()
                if isinstance(taught, TopTargets):
                    accepted[number] = acceptance(rows, taught).double().cpu().numpy()
                task.advance(len(rows))
    domains = tuple(targets.sequences[n].domain for n in numbers)
    kept = tuple(accepted[n] for n in numbers if n in accepted)
    return Measured(domains, tuple(values[n] for n in numbers), kept)


def held_out_numbers(targets: Targets) -> list[int]:
    """Which of the sequences are held out."""
    return [i for i, s in enumerate(targets.sequences) if s.held_out]


def equal_length_groups(targets: Targets, numbers: Sequence[int]) -> list[list[int]]:
    """Neighbours of one length together: they need no padding."""
    chosen = [targets.sequences[n] for n in numbers]
    runs = equal_length_runs(chosen, FORWARD_TOKENS)
    return [list(numbers[begin:end]) for begin, end in runs]


def _rows(model: Model, targets: Targets, group: Sequence[int]) -> Iterator[torch.Tensor]:
    """Logits [positions, tokens] of each of the sequences ``group``, which have one length."""
    sequences = [targets.sequences[n] for n in group]
    for rows, sequence in zip(_logits(model, sequences), sequences, strict=True):
        if sequence.counted is not None:
            rows = rows[torch.from_numpy(sequence.counted)]
        yield rows[:, : targets.vocab_size]


def _counted(rows: torch.Tensor, sequence: TokenSequence) -> torch.Tensor:
    """The rows of [T, ...] whose positions count."""
    return rows if sequence.counted is None else rows[torch.from_numpy(sequence.counted)]


def _logits(model: Model, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """[B, T, V] of sequences of one length."""
    device = next(model.parameters()).device
    ids = torch.from_numpy(stacked(sequences)).to(device)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits
