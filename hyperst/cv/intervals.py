"""Intervals of the difference of two rows over the same folds and seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Interval", "paired_interval"]

_RESAMPLES = 10_000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean difference and the ends of its 95 % interval; ``low`` and ``high`` are None where one pair is all there is."""

    mean: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign of the difference is shown."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired_interval(differences: np.ndarray, seed: int = 0) -> Interval | None:
    """Bootstrap interval of a mean difference, from the differences of two rows in the same folds with the same seeds.

    Folds are drawn with replacement, then seeds within each drawn fold, 10,000 times; the interval is the range of the middle
    95 % of their means (the percentile bootstrap of data in two levels, Davison and Hinkley, Bootstrap Methods and their
    Application, 1997, section 3.8). Every fold counts once. With a single fold only its seeds vary.

    Args:
        differences: (fold seed), NaN where one of the two rows has no value.

    Returns:
        None where there is no pair at all.

    >>> paired_interval(np.array([[0.1, 0.1], [0.1, 0.1]]))
    Interval(mean=0.1, low=0.1, high=0.1)
    >>> paired_interval(np.array([[0.25]]))
    Interval(mean=0.25, low=None, high=None)
    """
    differences = np.asarray(differences, dtype=np.float64)
    rows = [row[np.isfinite(row)] for row in differences]
    rows = [row for row in rows if len(row)]
    if not rows:
        return None
    mean = float(np.mean([row.mean() for row in rows]))
    if sum(map(len, rows)) < 2:
        return Interval(mean, None, None)
    random = np.random.default_rng(seed)
    sizes = np.asarray([len(row) for row in rows])
    values = np.zeros((len(rows), sizes.max()))
    for place, row in zip(values, rows, strict=True):
        place[: len(row)] = row
    means = np.zeros(_RESAMPLES)
    for _ in rows:
        fold = random.integers(len(rows), size=_RESAMPLES)
        drawn = random.integers(sizes[fold, None], size=(_RESAMPLES, sizes.max()))
        used = np.arange(sizes.max()) < sizes[fold, None]
        means += (values[fold[:, None], drawn] * used).sum(axis=1) / sizes[fold]
    low, high = np.quantile(means / len(rows), [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Interval(mean, float(low), float(high))
