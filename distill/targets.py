"""What a teacher says about the next token, small enough to keep.

Two forms. The ``top_k`` most probable tokens and the mass of all others: exact where most of the
mass is, a lower bound of every divergence. Or draws from the whole distribution (random sampling
knowledge distillation, arXiv 2503.16870): each token's share of the draws is on average its
probability, so the gradient of the cross-entropy is that of the whole distribution, on average.

The draws of a position are systematic: one uniform number u, and the tokens in which the points
(u + j) / N of the cumulated distribution lie, j < N. The expected share of a token is its
probability, as with independent draws, but it differs from it by less than 1 / N, so the variance
is smaller, and tokens of probability 1 / N and more are always there. The expected number of
different tokens is Σ min(1, N p). Each position gets the largest N for which that is at most what
it may take on disk: N depends on the teacher's distribution and not on what is drawn, so the mean
stays right, and a position where few tokens matter is drawn exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

LOWEST = -60.0  # log-probability of a tail that rounds to nothing; finite in float16
MAX_DRAWS = 255  # of a position; counts are bytes


@dataclass(frozen=True)
class TopTargets:
    """The most probable tokens at each of T positions, and the logarithm of all others' mass."""

    ids: torch.Tensor  # int64 [T, K]
    logprobs: torch.Tensor  # float32 [T, K]
    tail: torch.Tensor  # float32 [T]

    def to(self, device: torch.device) -> TopTargets:
        """The same on a device."""
        return TopTargets(self.ids.to(device), self.logprobs.to(device), self.tail.to(device))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> TopTargets:
        return TopTargets(self.ids[rows], self.logprobs[rows], self.tail[rows])


@dataclass(frozen=True)
class SampledTargets:
    """Draws at each of T positions: at most U different tokens, the rest of a row counts 0."""

    ids: torch.Tensor  # int64 [T, U]
    counts: torch.Tensor  # float32 [T, U], how often each was drawn
    entropy: torch.Tensor  # float32 [T], of the whole distribution, nats
    logprobs: torch.Tensor | None = None  # float32 [T, U], the teacher's, where they were kept

    def to(self, device: torch.device) -> SampledTargets:
        """The same on a device."""
        kept = None if self.logprobs is None else self.logprobs.to(device)
        return SampledTargets(
            self.ids.to(device), self.counts.to(device), self.entropy.to(device), kept
        )

    @property
    def shares(self) -> torch.Tensor:
        """Of the draws, float32 [T, U]: on average the probabilities."""
        return self.counts / self.counts.sum(-1, keepdim=True)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> SampledTargets:
        kept = None if self.logprobs is None else self.logprobs[rows]
        return SampledTargets(self.ids[rows], self.counts[rows], self.entropy[rows], kept)


TeacherTargets = TopTargets | SampledTargets


def top_k_targets(logits: torch.Tensor, top_k: int) -> TopTargets:
    """Reduce logits [T, V] to the ``top_k`` most probable tokens and the mass of the rest."""
    logits = logits.float()
    whole = logits.logsumexp(-1, keepdim=True)
    values, ids = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    rest = logits.scatter(-1, ids, -torch.inf).logsumexp(-1) - whole[..., 0]
    return TopTargets(ids, values - whole, rest.clamp(min=LOWEST))


def sampled_targets(
    logits: torch.Tensor, entries: float, uniform: torch.Tensor, temperature: float = 1.0
) -> SampledTargets:
    """Draw from each position of logits [T, V], on average at most ``entries`` different tokens.

    ``uniform`` float64 [T], in [0, 1), decides which. Tokens come out sorted by id.
    """
    logprobs = (logits.float() / temperature).log_softmax(-1)
    probabilities = logprobs.double().exp()
    entropy = torch.special.entr(probabilities).sum(-1).float()
    draws = most_draws(probabilities, entries)
    edges = probabilities.cumsum(-1)
    steps = torch.arange(int(draws.max()), device=logits.device)
    # scaled by the whole mass, which rounding leaves a little off 1
    points = (uniform[:, None] + steps) / draws[:, None] * edges[:, -1:]
    below = torch.nextafter(edges[:, -1:], torch.zeros_like(edges[:, -1:]))  # may round up to it
    found = torch.searchsorted(edges, torch.minimum(points, below), right=True)
    ids, counts = _counted(found, steps < draws[:, None])
    return SampledTargets(ids, counts, entropy, logprobs.gather(-1, ids))


def most_draws(probabilities: torch.Tensor, entries: float) -> torch.Tensor:
    """The largest N of each row [T, V] with Σ min(1, N p) <= ``entries``: int64 [T] in 1..255."""
    low = torch.ones(len(probabilities), dtype=torch.int64, device=probabilities.device)
    high = torch.full_like(low, MAX_DRAWS)
    while bool((low < high).any()):
        middle = (low + high + 1) // 2
        expected = (probabilities * middle[:, None]).clamp_(max=1.0).sum(-1)
        low = torch.where(expected <= entries, middle, low)
        high = torch.where(expected <= entries, high, middle - 1)
    return low


def _counted(found: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Different values of the ``valid`` first ones of sorted rows [T, N], and how often each comes:
    both [T, U], padded by 0."""
    first = valid.clone()
    first[:, 1:] &= found[:, 1:] != found[:, :-1]
    place = first.cumsum(-1) - 1
    shape = len(found), int(place.max()) + 1
    counts = torch.zeros(shape, device=found.device).scatter_add_(-1, place, valid.float())
    ids = found.new_zeros(shape).scatter_add_(-1, place, torch.where(first, found, 0))
    return ids, counts


def uniform_numbers(seed: int, key: str, count: int) -> torch.Tensor:
    """Float64 [count] in [0, 1), the same for one seed and key whoever asks and in what order."""
    words = np.frombuffer(bytes.fromhex(key), np.uint32).tolist()
    return torch.from_numpy(np.random.default_rng((seed, *words)).random(count))


def joined(parts: Sequence[TeacherTargets]) -> TeacherTargets:
    """The positions of several targets of one kind, one after another."""
    drawn = [part for part in parts if isinstance(part, SampledTargets)]
    if not drawn:
        tops = [part for part in parts if isinstance(part, TopTargets)]
        return TopTargets(
            torch.cat([t.ids for t in tops]),
            torch.cat([t.logprobs for t in tops]),
            torch.cat([t.tail for t in tops]),
        )
    width = max(part.ids.shape[1] for part in drawn)
    kept = [part.logprobs for part in drawn if part.logprobs is not None]
    return SampledTargets(
        _below_another([t.ids for t in drawn], width),
        _below_another([t.counts for t in drawn], width),
        torch.cat([t.entropy for t in drawn]),
        _below_another(kept, width) if kept else None,
    )


def _below_another(parts: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """[Σ T, ``width``] of parts [T, at most ``width``], padded by 0."""
    whole = parts[0].new_zeros(sum(map(len, parts)), width)
    begin = 0
    for part in parts:
        whole[begin : begin + len(part), : part.shape[1]] = part
        begin += len(part)
    return whole
