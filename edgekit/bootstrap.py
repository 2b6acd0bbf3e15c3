"""Means with bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

RESAMPLES = 1000
LEVEL = 0.95
FEWEST = 5  # groups; resampling fewer says nothing about others


class Interval(BaseModel):
    """A measured value with its 95 % confidence interval, absent for too few sequences."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    low: float | None = None
    high: float | None = None

    def text(self, digits: int) -> str:
        """Such as "0.123 (0.101 to 0.145)", or the value alone."""
        value = f"{self.value:.{digits}f}"
        if self.low is None or self.high is None:
            return value
        return f"{value} ({self.low:.{digits}f} to {self.high:.{digits}f})"

    @property
    def errors(self) -> tuple[float, float]:
        """Distances to both ends, 0 where there is no interval; for plots."""
        if self.low is None or self.high is None:
            return 0.0, 0.0
        return self.value - self.low, self.high - self.value


def mean_interval(groups: Sequence[NDArray[np.float64]], seed: int = 0) -> Interval:
    """Mean over all values; whole groups are resampled.

    Tokens of one sequence depend on each other, so resampling tokens would give intervals that
    are too narrow (cluster bootstrap, Davison & Hinkley 1997, section 3.8). Below ``FEWEST`` groups
    with values there is no interval.
    """
    groups = [g for g in groups if len(g)]
    sums = np.array([g.sum() for g in groups], np.float64)
    counts = np.array([len(g) for g in groups], np.float64)
    value = sums.sum() / counts.sum()
    if len(groups) < FEWEST:
        return Interval(value=float(value))
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(groups), (RESAMPLES, len(groups)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value=float(value), low=float(low), high=float(high))


def exponential(interval: Interval) -> Interval:
    """Perplexity from a mean negative log-likelihood."""
    ends = (interval.low, interval.value, interval.high)
    low, value, high = (None if end is None else float(np.exp(end)) for end in ends)
    assert value is not None
    return Interval(value=value, low=low, high=high)
