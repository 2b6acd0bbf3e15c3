"""Means with bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

RESAMPLES = 1000
LEVEL = 0.95


class Interval(BaseModel):
    """A measured value with its 95 % confidence interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    low: float
    high: float


def mean_interval(groups: Sequence[NDArray[np.float64]], seed: int = 0) -> Interval:
    """Mean over all values; whole groups are resampled.

    Tokens of one sequence depend on each other, so resampling tokens would give intervals that
    are too narrow (cluster bootstrap, Davison & Hinkley 1997, section 3.8).
    """
    sums = np.array([g.sum() for g in groups], np.float64)
    counts = np.array([len(g) for g in groups], np.float64)
    value = sums.sum() / counts.sum()
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(groups), (RESAMPLES, len(groups)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value=float(value), low=float(low), high=float(high))


def exponential(interval: Interval) -> Interval:
    """Perplexity from a mean negative log-likelihood."""
    low, value, high = np.exp([interval.low, interval.value, interval.high]).tolist()
    return Interval(value=value, low=low, high=high)
