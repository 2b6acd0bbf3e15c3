"""How unevenly a router uses its experts: whether there is anything to leave out.

A router that uses all experts alike (GLM-5.2 was reported with a Gini coefficient of 0.066) gives
pruning nothing to hold on to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.distill.statistics import Statistics

EVEN_GINI = 0.15  # below it no expert is used much less than others
TOP = 0.25  # share of the experts whose use is told


@dataclass(frozen=True)
class Skew:
    """Per sparse layer: the share of routed tokens that the busiest quarter of the experts take,
    the Gini coefficient, and the entropy of use as a share of its maximum."""

    top_share: list[float]
    gini: list[float]
    entropy: list[float]

    @property
    def uneven(self) -> bool:
        """Whether the mean Gini coefficient says that experts differ."""
        return float(np.mean(self.gini)) >= EVEN_GINI

    @property
    def sentence(self) -> str:
        """For the report."""
        share, gini = float(np.mean(self.top_share)), float(np.mean(self.gini))
        text = (
            f"the busiest quarter of the experts takes {share:.0%} of the routed tokens "
            f"(Gini {gini:.2f})"
        )
        if self.uneven:
            return text
        return text + "; the experts are used so evenly that leaving some out is not justified"


def skew(statistics: Statistics) -> Skew:
    """Measure the use of the experts."""
    use = np.sort(statistics.frequency, axis=1)  # ascending
    experts = use.shape[1]
    top = max(1, round(TOP * experts))
    return Skew(
        top_share=use[:, -top:].sum(1).tolist(),
        gini=[gini(row) for row in use],
        entropy=[_entropy(row) for row in use],
    )


def gini(ascending: NDArray[np.float64]) -> float:
    """Gini coefficient of shares in ascending order: 0 for equal ones, near 1 for a single one."""
    count = len(ascending)
    ranks = np.arange(1, count + 1)
    total = ascending.sum()
    return float((2 * ranks - count - 1) @ ascending / (count * total)) if total > 0 else 0.0


def _entropy(shares: NDArray[np.float64]) -> float:
    positive = shares[shares > 0]
    if len(shares) < 2:
        return 1.0
    return float(-(positive * np.log(positive)).sum() / np.log(len(shares)))
