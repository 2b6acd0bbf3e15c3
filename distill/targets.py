"""What a teacher says about the next token, small enough to keep.

Two forms. The ``top_k`` most probable tokens and the mass of all others: exact where most of the
mass is, a lower bound of every divergence. Or draws from the whole distribution (random sampling
knowledge distillation, arXiv 2503.16870): each token's share is on average its probability, so the
gradient of the cross-entropy is that of the whole distribution, on average.

Which tokens: those of probability 1 / N and more are kept, each with its own share; of the others,
whose mass is m, ⌊m N⌋ are drawn (one, where that is none), and have equal shares of what the kept
ones leave. That is close to threshold sampling, which of all ways to give each token a chance has
the least variance for an expected number of tokens (Duffield, Lund, Thorup, IEEE Trans. Inf. Theory
51(5), 2005, section III). A position's sum of variances is about m / N, and one token more takes
1 / N² from it wherever it is, so N is one number for many positions: as large as the bytes allow
that they may take together. A position where few tokens matter takes few, and leaves room to those
where many do. N depends on the teacher's distributions and not on what is drawn, so the mean stays
right.

How: shares of kept tokens are 255ths, a byte. With one uniform number u they are the steps of
⌊255 c + u⌋ over the cumulated probabilities c, which is right on average and less than 1 / 255 off.
With another, v, the drawn tokens are those in which the points (v + j) m / k lie, j < k = ⌊m N⌋, of
the others' cumulated mass: their chances are k p / m, and as p < 1 / N <= m / k none comes twice.
Where m is less than 1 / 255, one comes with a chance of 255 m: when the kept ones leave a 255th.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

LOWEST = -60.0  # log-probability of a tail that rounds to nothing; finite in float16
WHOLE = 255  # what the shares of a position add up to; those of kept tokens are bytes
MOST = 255  # of N, so that a kept token has a share, and a position's tokens are a byte's number


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
    """Tokens that stand for the distribution at each of T positions, at most U: their ``shares``
    add up to 1 and are on average the probabilities. The rest of a row has none."""

    ids: torch.Tensor  # int64 [T, U]
    shares: torch.Tensor  # float32 [T, U]
    kept: torch.Tensor  # bool [T, U], tokens with a share of their own; the others' are equal
    entropy: torch.Tensor  # float32 [T], of the whole distribution, nats
    logprobs: torch.Tensor | None = None  # float32 [T, U], the teacher's, where they were kept

    @classmethod
    def equal(cls, ids: torch.Tensor, entropy: torch.Tensor) -> SampledTargets:
        """Independent draws ``ids`` [T, U]."""
        shares = torch.full(ids.shape, 1 / ids.shape[1], device=ids.device)
        return cls(ids, shares, torch.zeros_like(ids, dtype=torch.bool), entropy)

    def to(self, device: torch.device) -> SampledTargets:
        """The same on a device."""
        return self._each(lambda values: values.to(device))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> SampledTargets:
        return self._each(lambda values: values[rows])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> SampledTargets:
        logprobs = None if self.logprobs is None else change(self.logprobs)
        return SampledTargets(
            change(self.ids), change(self.shares), change(self.kept), change(self.entropy), logprobs
        )


@dataclass(frozen=True)
class Room:
    """Bytes that the tokens of a position take on ``average`` at most, those of one that is
    ``kept`` with its share, and of one that is ``drawn``."""

    average: float
    kept: int
    drawn: int


TeacherTargets = TopTargets | SampledTargets


def top_k_targets(logits: torch.Tensor, top_k: int) -> TopTargets:
    """Reduce logits [T, V] to the ``top_k`` most probable tokens and the mass of the rest."""
    logits = logits.float()
    whole = logits.logsumexp(-1, keepdim=True)
    values, ids = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    rest = logits.scatter(-1, ids, -torch.inf).logsumexp(-1) - whole[..., 0]
    return TopTargets(ids, values - whole, rest.clamp(min=LOWEST))


def sampled_targets(
    logits: torch.Tensor, room: Room, uniform: torch.Tensor, temperature: float = 1.0
) -> SampledTargets:
    """Keep and draw tokens of logits [T, V], as many as there is ``room`` for.

    ``uniform`` float64 [T, 2], in [0, 1), decides which. Kept ones come first; both sorted by id.
    """
    logprobs = (logits.float() / temperature).log_softmax(-1)
    probabilities = logprobs.double().exp()
    entropy = torch.special.entr(probabilities).sum(-1).float()
    draws = largest_draws(probabilities, room)
    likely = probabilities >= 1 / draws
    ids = _places(likely)
    taken = torch.arange(ids.shape[1], device=ids.device) < likely.sum(-1, keepdim=True)
    edges = torch.where(taken, probabilities.gather(-1, ids), 0.0).cumsum(-1)
    others = torch.where(likely, 0.0, probabilities).cumsum_(-1)
    whole = edges[:, -1:] + others[:, -1:]  # rounding leaves it a little off 1
    shares = _rounded(edges / whole, uniform[:, :1])
    left = WHOLE - shares.sum(-1, keepdim=True)
    count = (others[:, -1:] / whole * draws).floor().clamp(min=1) * (left > 0)
    drawn, valid = _systematic(others, count, uniform[:, 1:])
    ids = torch.cat([ids, drawn], -1)
    shares = torch.cat([shares, torch.where(valid, left / count, 0.0)], -1) / WHOLE
    kept = torch.cat([taken, torch.zeros_like(valid)], -1) & (shares > 0)
    found = torch.where(shares > 0, logprobs.gather(-1, ids), 0.0)
    return SampledTargets(ids, shares.float(), kept, entropy, found)


def largest_draws(probabilities: torch.Tensor, room: Room) -> int:
    """The largest N, 1 to 255, with which positions [T, V] take no more than ``room`` allows.

    float64, so that sums over the vocabulary are good for it.
    """
    row, token = (probabilities >= 1 / MOST).nonzero(as_tuple=True)
    likely = probabilities[row, token]
    level = (1 / likely).ceil().long().clamp(max=MOST)  # the smallest N that keeps the token
    table = probabilities.new_zeros(2, len(probabilities), MOST + 1)
    table[0].index_put_((row, level), torch.ones_like(likely), accumulate=True)
    table[1].index_put_((row, level), likely, accumulate=True)
    kept, mass = table.cumsum(-1)
    rest = (1 - mass / probabilities.sum(-1, keepdim=True)).clamp(min=0.0)
    numbers = torch.arange(MOST + 1, device=probabilities.device)
    drawn = (rest * numbers).floor()
    # of fewer than one, one comes where rounding leaves it a share
    drawn = torch.where(drawn < 1, (WHOLE * rest).clamp(max=1.0), drawn)
    taken = (room.kept * kept + room.drawn * drawn).mean(0)
    fits = (taken[1:] <= room.average).nonzero()
    return int(fits[-1]) + 1 if len(fits) else 1


def _places(mask: torch.Tensor) -> torch.Tensor:
    """Where rows [T, V] are true, in order: int64 [T, at least 1], padded by 0."""
    row, column = mask.nonzero(as_tuple=True)
    size = mask.sum(-1)
    place = torch.arange(len(row), device=row.device) - (size.cumsum(0) - size)[row]
    found = column.new_zeros(len(mask), max(1, int(size.max())))
    found[row, place] = column
    return found


def _rounded(edges: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """How many 255ths lie between ``edges`` [T, K] of cumulated probabilities, on average as many
    as there are: float64 whole numbers [T, K]."""
    points = (WHOLE * edges + uniform).floor().clamp(max=WHOLE)
    return points.diff(dim=-1, prepend=torch.zeros_like(points[:, :1]))


def _systematic(
    edges: torch.Tensor, count: torch.Tensor, uniform: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Places in cumulated masses [T, V] of ``count`` [T, 1] points at equal distances: int64
    [T, at least 1], and which of them count."""
    steps = torch.arange(max(1, int(count.max())), device=edges.device)
    points = (uniform + steps) / count.clamp(min=1) * edges[:, -1:]
    below = torch.nextafter(edges[:, -1:], torch.zeros_like(edges[:, -1:]))  # may round up to it
    found = torch.searchsorted(edges, torch.minimum(points, below), right=True)
    valid = steps < count
    return torch.where(valid, found, 0), valid


def uniform_numbers(seed: int, key: str, *shape: int) -> torch.Tensor:
    """Float64 [shape] in [0, 1), the same for one seed and key whoever asks and in what order."""
    words = np.frombuffer(bytes.fromhex(key), np.uint32).tolist()
    return torch.from_numpy(np.random.default_rng((seed, *words)).random(shape))


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
        _below_another([t.shares for t in drawn], width),
        _below_another([t.kept for t in drawn], width),
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
