"""Which experts stay.

The same number in every layer, because no runtime loads another form. Super-experts stay whatever
the criterion says (arXiv 2507.23279: pruning three of them destroys a 30 B model). Of a router that
chooses groups first, every group loses the same number. With an earlier choice given, an expert is
exchanged only for one that is worth clearly more: the next checkpoint of a teacher is a small
update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgekit.architecture import Mixture
from edgekit.distill.criteria import scores
from edgekit.distill.statistics import Statistics
from edgekit.errors import BadInputError

Kept = dict[int, list[int]]  # sparse layer -> the experts that stay, as they are stored
SUPER_PERCENTILE, SUPER_FRACTION = 99.5, 0.1  # of all outputs; of the largest
SUPER_DEPTH = 0.75  # of the layers; what stands out behind is common and harmless
ENOUGH, NOISE = 0.95, 0.90  # overlap of the choices of two halves of the text
ALIKE = 1e-6  # of the largest worth: what rounding makes of equal ones


@dataclass(frozen=True)
class Choice:
    """``kept`` in the original order. ``overlap`` [layers]: the share of the experts that both
    halves of the text would keep; empty where that says nothing, because all experts stay, chance
    decides, or a half has no tokens. ``tied``: layers where the criterion rates all alike, so
    numbers decide. ``exchanged``: experts per layer that an earlier choice did not have."""

    criterion: str
    kept: Kept
    protected: dict[int, list[int]]
    overlap: list[float]
    tied: tuple[int, ...] = ()
    exchanged: dict[int, list[int]] = field(default_factory=dict)


def choose(
    statistics: Statistics,
    mixture: Mixture,
    keep: int,
    criterion: str,
    seed: int = 0,
    previous: Mapping[int, Sequence[int]] | None = None,
    margin: float = 0.05,
) -> Choice:
    """The ``keep`` experts of every layer that are worth most; ties by number.

    ``previous`` is an earlier choice for another checkpoint of the model: an expert of it goes only
    if another is worth more by the share ``margin``.

    Raises:
        BadInputError: ``keep`` does not fit the router's top-k or groups, or ``previous`` is of
            another model.
    """
    require_count(mixture, keep)
    require_same_layers(previous, statistics.layers, mixture.num_experts)
    worth = scores(statistics, criterion, seed)
    protected = super_experts(statistics)
    favoured = _favoured(worth, statistics.layers, protected, previous, margin)
    kept = _best(favoured, statistics.layers, mixture, keep)
    overlap: list[float] = []
    if criterion != "random" and keep < mixture.num_experts and _has_halves(statistics):
        halves = [scores(statistics.half(h), criterion, seed) for h in (0, 1)]
        one, other = (
            _best(_favoured(w, statistics.layers, protected), statistics.layers, mixture, keep)
            for w in halves
        )
        overlap = [len(set(one[n]) & set(other[n])) / keep for n in statistics.layers]
    exchanged = {}
    if previous:
        exchanged = {
            layer: sorted(set(kept[layer]) - set(previous.get(layer, ()))) for layer in kept
        }
    return Choice(
        criterion=criterion,
        kept=kept,
        protected=protected,
        overlap=overlap,
        tied=_tied(worth, statistics, kept),
        exchanged=exchanged,
    )


def require_count(mixture: Mixture, keep: int) -> None:
    """Refuse a number of experts that the router cannot work with.

    Raises:
        BadInputError: says why, and which numbers are next.
    """
    groups, top_k = mixture.num_groups, mixture.num_experts_per_tok
    if keep % groups:
        below = keep - keep % groups
        raise BadInputError(
            f"[shrink] keep: {keep} experts do not divide into the router's {groups} groups; keep "
            f"{below or groups} or {below + groups}"
        )
    reachable = keep // groups * mixture.top_groups  # identities aside: graphs compute top_k
    least = 2 if mixture.group_score == "top2" and groups > mixture.top_groups else 1
    if reachable < top_k or keep // groups < least:
        each = max(least, -(-top_k // mixture.top_groups))
        raise BadInputError(
            f"[shrink] keep: with {keep} experts a token could choose among {reachable}, fewer "
            f"than its {top_k}, or a group would have fewer than {least}; keep at least "
            f"{each * groups}"
        )


def require_same_layers(
    previous: Mapping[int, Sequence[int]] | None, layers: Sequence[int], experts: int
) -> None:
    """Refuse an earlier choice that is not of a model with these sparse ``layers``.

    Raises:
        BadInputError: names both models' layers.
    """
    if previous is None:
        return
    beyond = [e for kept in previous.values() for e in kept if not 0 <= e < experts]
    if set(previous) != set(layers) or beyond:
        raise BadInputError(
            f"[shrink] previous: a keep-map of layers {', '.join(map(str, sorted(previous)))}, but "
            f"this model has {experts} experts in layers {', '.join(map(str, layers))}; give a "
            "keep-map of the same teacher or leave it out"
        )


def super_experts(statistics: Statistics) -> dict[int, list[int]]:
    """Experts of each layer whose largest output stands out over all layers (arXiv 2507.23279,
    section 3: above the 99.5th percentile and a tenth of the maximum), in the first three quarters
    of the layers."""
    largest = statistics.total("output_max")
    limit = max(float(np.percentile(largest, SUPER_PERCENTILE)), SUPER_FRACTION * largest.max())
    early = np.array(statistics.layers) < SUPER_DEPTH * (max(statistics.layers) + 1)
    return {
        layer: np.flatnonzero(row > limit).tolist()
        for layer, row, counts in zip(statistics.layers, largest, early, strict=True)
        if counts and (row > limit).any()
    }


def enough_text(choice: Choice, statistics: Statistics) -> list[str]:
    """What the two halves of the text say about its size, and where it does not decide at all: in
    sentences, none for a choice that the text has no part in."""
    notes: list[str] = []
    if choice.criterion == "random" or all(
        len(kept) == statistics.tokens.shape[-1] for kept in choice.kept.values()
    ):
        return notes
    if choice.tied:
        everywhere = len(choice.tied) == len(statistics.layers)
        where = "every layer" if everywhere else f"layers {', '.join(map(str, choice.tied))}"
        notes.append(
            f"{choice.criterion} rates all experts alike in {where}, where the first by number "
            "stay; choose another criterion"
        )
    if not _has_halves(statistics):
        return [
            *notes,
            "the text is too little to say how sure the choice is: one half of it has no tokens; "
            "give more sequences",
        ]
    layers = zip(statistics.layers, choice.overlap, strict=True)
    decided = [overlap for layer, overlap in layers if layer not in choice.tied]
    return [*notes, _agreement(float(np.mean(decided)))] if decided else notes


def _agreement(overlap: float) -> str:
    if overlap >= ENOUGH:
        return f"two halves of the text agree on {overlap:.1%} of the experts: it is enough"
    more = f"about {text_wanted(overlap)} times the text would make the choice sure"
    if overlap >= NOISE:
        return f"two halves of the text agree on {overlap:.1%} of the experts: {more}"
    return (
        f"two halves of the text agree on only {overlap:.1%} of the experts: the choice is partly "
        f"noise; {more}"
    )


def text_wanted(overlap: float) -> int:
    """How many times the text would bring the overlap to ``ENOUGH``.

    The noise of a mean falls with the root of the number of tokens, and the experts on whom halves
    disagree are those whose worth is within the noise of the cut.
    """
    return max(2, math.ceil(((1 - overlap) / (1 - ENOUGH)) ** 2 - 1e-9))


def _favoured(
    worth: NDArray[np.float64],
    layers: Sequence[int],
    protected: Mapping[int, Sequence[int]],
    previous: Mapping[int, Sequence[int]] | None = None,
    margin: float = 0.0,
) -> NDArray[np.float64]:
    """``worth`` with protected experts above all, and those of an earlier choice raised."""
    result = worth.copy()
    for row, layer in zip(result, layers, strict=True):
        if previous and layer in previous:
            row[list(previous[layer])] *= 1 + margin
        row[list(protected.get(layer, ()))] = np.inf
    return result


def _best(worth: NDArray[np.float64], layers: Sequence[int], mixture: Mixture, keep: int) -> Kept:
    """The best of every group, in the original order."""
    groups = mixture.num_groups
    size, each = mixture.num_experts // groups, keep // groups
    grouped = worth.reshape(len(worth), groups, size)
    order = np.argsort(-grouped, axis=-1, kind="stable")[..., :each]
    numbers = np.sort(order, axis=-1) + np.arange(groups)[:, None] * size
    return {layer: row.reshape(-1).tolist() for layer, row in zip(layers, numbers, strict=True)}


def _has_halves(statistics: Statistics) -> bool:
    return bool(statistics.seen.sum(1).all())


def _tied(worth: NDArray[np.float64], statistics: Statistics, kept: Kept) -> tuple[int, ...]:
    """The layers where experts of one worth stay and go, and all that any token reached have it."""
    rows = zip(worth, statistics.total("tokens") > 0, statistics.layers, strict=True)
    return tuple(
        layer
        for row, reached, layer in rows
        if set(np.flatnonzero(reached)) - set(kept[layer])
        and np.ptp(row[reached]) <= ALIKE * abs(row[reached]).max()
    )
