"""What an expert is worth, by every published criterion, from one file of sums.

All are of the form ``S = N^-b Σ g^a |f|^c`` over the tokens routed to the expert, with its output f
before the gate and the gate g that multiplies it (arXiv 2606.15716; the exponents' convention is
ours). N is the number of those tokens.

| name | S | source |
|---|---|---|
| reap | Σ g·|f| / N | arXiv 2510.13999, eq. 9 |
| ean | Σ |f| | arXiv 2504.05586 |
| gated_ean | Σ g·|f| | |
| man | Σ |f| / N | arXiv 2606.15716 |
| msan | Σ |f|² / N | arXiv 2606.15716 |
| frequency | N | |
| cp | Σ g / N | arXiv 2605.28207 |
| acp | Σ g / N · sqrt(Σ |f|² / N) | arXiv 2605.28207, over routed tokens |
| coverage | rank in the domains in turn, each by reap | |
| random | a seeded number | control |
"""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import NDArray

from edgekit.distill.statistics import Statistics
from edgekit.recipe import OfflineCriterion

CRITERIA: tuple[str, ...] = get_args(OfflineCriterion)


def scores(statistics: Statistics, criterion: str, seed: int = 0) -> NDArray[np.float64]:
    """Worth [L, E] of every expert; an expert that no token was routed to has 0.

    Raises:
        ValueError: there is no such criterion.
    """
    count = statistics.total("tokens")
    per_token = 1 / np.maximum(count, 1)
    if criterion == "reap":
        return statistics.total("gated_sum") * per_token
    if criterion == "ean":
        return statistics.total("norm_sum")
    if criterion == "gated_ean":
        return statistics.total("gated_sum")
    if criterion == "man":
        return statistics.total("norm_sum") * per_token
    if criterion == "msan":
        return statistics.total("norm_sq_sum") * per_token
    if criterion == "frequency":
        return count
    if criterion == "cp":
        return statistics.total("gate_sum") * per_token
    if criterion == "acp":
        strength = np.sqrt(statistics.total("norm_sq_sum") * per_token)
        return statistics.total("gate_sum") * per_token * strength
    if criterion == "coverage":
        return _coverage(statistics)
    if criterion == "random":
        return np.random.default_rng(seed).random(count.shape)
    raise ValueError(f"no criterion {criterion!r}")


def _coverage(statistics: Statistics) -> NDArray[np.float64]:
    """Each domain names its best expert in turn, then its second best; the earlier an expert is
    named, the more it is worth. So the first m have about m / D favourites of each domain."""
    ranks = np.stack([
        np.argsort(np.argsort(-scores(statistics.domain(name), "reap"), axis=1, kind="stable"), 1)
        for name in statistics.domains
    ])  # fmt: skip
    turn = ranks * len(ranks) + np.arange(len(ranks))[:, None, None]
    return 1.0 / (1.0 + turn.min(0))
