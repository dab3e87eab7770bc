"""Intervals by the percentile bootstrap over prompts, and the two fits that the curve needs. Numpy only.

The bootstrap is B. Efron's (Annals of Statistics 7, 1979): prompts are drawn with replacement 2000 times with a fixed
seed, and 2.5% of the resampled values lie below `low` and 2.5% above `high`. Cells on the same prompts are resampled
together, so differences between them are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 2000
TAIL = 0.025
SEED = 20_240_607


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


@lru_cache(maxsize=32)
def resamples(prompts: int) -> Floats:
    """How often each prompt is drawn: `[RESAMPLES, prompts]`, rows sum to `prompts`. Raises ValueError for none."""
    if prompts < 1:
        raise ValueError(f"prompts is {prompts}; an interval needs at least one")
    random = np.random.default_rng(SEED)
    drawn = random.integers(prompts, size=(RESAMPLES, prompts)) + np.arange(RESAMPLES)[:, None] * prompts
    counts = np.bincount(drawn.ravel(), minlength=RESAMPLES * prompts).reshape(RESAMPLES, prompts).astype(np.float64)
    counts.setflags(write=False)
    return counts


def mean_interval(values: Floats) -> Interval:
    """The mean of one value per prompt `[prompts]`."""
    return ratio_interval(values, np.ones_like(values))


def ratio_interval(numerators: Floats, denominators: Floats) -> Interval:
    """Sum over sum, each `[prompts]`: a mean weighted by the denominators."""
    counts = resamples(len(numerators))
    low, high = np.quantile((counts @ numerators) / np.maximum(counts @ denominators, 1e-12), (TAIL, 1 - TAIL))
    return Interval(float(numerators.sum() / denominators.sum()), float(low), float(high))


def rate_interval(values: Floats) -> Interval:
    """The mean of shares `[prompts]` in 0..1, widened where all are alike."""
    return widened(mean_interval(values), len(values))


def widened(interval: Interval, prompts: int) -> Interval:
    """A rate's interval where every resample is alike, which says nothing of what was not drawn: the exact binomial
    bound for no failure (or no success) in `prompts` trials, 1 - p = TAIL ** (1 / prompts) (Clopper and Pearson, 1934).
    """
    bound = TAIL ** (1 / prompts)
    low = min(interval.low, bound) if interval.value >= 1 else interval.low
    high = max(interval.high, 1 - bound) if interval.value <= 0 else interval.high
    return Interval(interval.value, low, high)


def isotonic(values: Floats) -> Floats:
    """The non-decreasing rows closest to `values` `[..., steps]` in squares, by the max-min formula
    (Barlow et al., Statistical Inference under Order Restrictions, 1972): fit_i = max over j <= i of min over k >= i of
    mean(j..k)."""
    steps = values.shape[-1]
    sums = np.concatenate([np.zeros_like(values[..., :1]), np.cumsum(values, axis=-1)], axis=-1)
    fitted = np.empty_like(values)
    for place in range(steps):
        best = np.full(values.shape[:-1], -np.inf)
        for start in range(place + 1):
            means = (sums[..., place + 1 :] - sums[..., start, None]) / (np.arange(place, steps) + 1 - start)
            best = np.maximum(best, means.min(axis=-1))
        fitted[..., place] = best
    return fitted


def isotonic_intervals(outcomes: Floats) -> list[Interval]:
    """Rates that cannot fall from row to row, e.g. of rising step budgets: `[rungs, prompts]` to an interval each.

    Every resample is fitted by itself, so the bounds do not fall either.
    """
    prompts = outcomes.shape[1]
    fitted = isotonic(resamples(prompts) @ outcomes.T / prompts)
    lows, highs = np.quantile(fitted, (TAIL, 1 - TAIL), axis=0)
    values = isotonic(outcomes.mean(axis=1))
    rows = [
        widened(Interval(float(value), float(low), float(high)), prompts)
        for value, low, high in zip(values, lows, highs, strict=True)
    ]
    rising = np.maximum.accumulate([row.low for row in rows])
    return [Interval(row.value, float(low), row.high) for row, low in zip(rows, rising, strict=True)]


def linear_fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Least squares y = intercept + slope * x; returns (intercept, slope, R2)."""
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    slope = float(((xs - xs.mean()) * (ys - ys.mean())).sum() / ((xs - xs.mean()) ** 2).sum())
    intercept = float(ys.mean() - slope * xs.mean())
    left, total = ((ys - intercept - slope * xs) ** 2).sum(), ((ys - ys.mean()) ** 2).sum()
    return intercept, slope, float(1 - left / total) if total > 0 else 1.0
