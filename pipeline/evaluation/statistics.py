"""Intervals and correlations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
FEWEST = 5


class Interval(NamedTuple):
    """A mean and the interval that holds it with a probability of 95 %."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.low):
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def paired_difference(one: Sequence[float], other: Sequence[float], seed: int = 0) -> Interval:
    """Mean of `one - other` over the same images, with its percentile bootstrap interval (Efron 1979).

    Of fewer than `FEWEST` images the interval would say nothing: its ends are not numbers.

    Raises:
        ValueError: they differ in length, or are empty.
    """
    if len(one) != len(other) or not len(one):
        raise ValueError(f"paired values must be as many: {len(one)} and {len(other)}")
    difference = np.subtract(one, other)
    if len(one) < FEWEST:
        return Interval(float(difference.mean()), float("nan"), float("nan"))
    dice = np.random.default_rng(seed)
    means = np.array([dice.choice(difference, len(difference)).mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(difference.mean()), float(low), float(high))


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation, -1..1; ties share their mean rank; not a number where one side is constant."""
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    _, place, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: npt.NDArray[np.float64] = (ends - (counts - 1) / 2)[place]
    return ranks
