"""Intervals of the difference of two predictions: over the spots of one section, or over folds and seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t

__all__ = ["Interval", "gene_interval", "mean_interval", "paired_interval", "resampled_correlations", "spot_intervals"]

_RESAMPLES, _RESAMPLES_OF_SPOTS = 10_000, 1000
_CONFIDENCE = 0.95
_FEWEST_BLOCKS = 6  # of five, all differ in one direction by chance once in 16 times, and so do all their resamples


@dataclass(frozen=True)
class Interval:
    """A mean difference and the ends of its 95 % interval; ``low`` and ``high`` are None where there are too few."""

    mean: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign of the difference is shown."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired_interval(differences: np.ndarray, seed: int = 0) -> Interval | None:
    """Interval of a mean difference over folds, from the differences of two rows in the same folds with the same seeds.

    Folds are drawn with replacement, then seeds within each drawn fold, 10,000 times, for the range of the middle 95 % of their
    means (the percentile bootstrap of data in two levels, Davison and Hinkley, Bootstrap Methods and their Application, 1997,
    section 3.8). Over two to five folds that range leaves out 0 in 47 to 17 % of rows that do not differ. So each end is the
    outer one of this and of Student's interval of the folds' means, which holds what it says over any number of folds whose
    differences are normal. Every fold counts once. A single fold says nothing of others, and has no ends.

    Args:
        differences: (fold seed), NaN where one of the two rows has no value.

    Returns:
        None where there is no pair at all.

    >>> paired_interval(np.array([[0.1, 0.1], [0.1, 0.1]]))
    Interval(mean=0.1, low=0.1, high=0.1)
    >>> paired_interval(np.array([[0.25, 0.5]]))
    Interval(mean=0.375, low=None, high=None)
    """
    differences = np.asarray(differences, dtype=np.float64)
    rows = [row[np.isfinite(row)] for row in differences]
    rows = [row for row in rows if len(row)]
    if not rows:
        return None
    of_folds = np.asarray([row.mean() for row in rows])
    mean = float(of_folds.mean())
    if len(rows) < 2:
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
    low, high = _ends(means / len(rows))
    margin = float(t.ppf((1 + _CONFIDENCE) / 2, len(rows) - 1) * of_folds.std(ddof=1) / np.sqrt(len(rows)))
    return Interval(mean, min(low, mean - margin), max(high, mean + margin))


def spot_intervals(
    one: np.ndarray, other: np.ndarray, measured: np.ndarray, blocks: np.ndarray, seed: int = 0
) -> dict[str, Interval]:
    """Bootstrap intervals over the spots of a section, of the score of a prediction less that of another one.

    Neighbouring spots are alike, so whole blocks of spots are drawn with replacement, 1000 times, the same for both predictions.
    Of other sections the intervals say nothing.

    Args:
        one, other, measured: (spot gene).
        blocks: integers (spot,), the same for spots that are drawn together.

    Returns:
        "mse", and "pcc", the mean over genes of the correlation, if it is defined for both; without ends where there are fewer
        than six blocks.

    >>> measured = np.arange(8.0)[:, None]
    >>> spot_intervals(measured + 1, measured + 2, measured, np.arange(8))["mse"]
    Interval(mean=-3.0, low=-3.0, high=-3.0)
    """
    place, weights = _resamples(blocks, seed)
    n_blocks = weights.shape[1]
    scores = [_weighted_scores(prediction, measured, place, weights) for prediction in (one, other)]
    found = {}
    for metric in ("pcc", "mse"):
        first, *resampled = scores[0][metric] - scores[1][metric]
        defined = np.asarray(resampled)[np.isfinite(resampled)]
        if np.isfinite(first):
            ends = _ends(defined) if n_blocks >= _FEWEST_BLOCKS and len(defined) else (None, None)
            found[metric] = Interval(float(first), *ends)
    return found


def resampled_correlations(
    prediction: np.ndarray, measured: np.ndarray, blocks: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Correlation of each gene over the spots as they are (row 0) and over 1000 resamples of their blocks, float64 (1001, gene).

    NaN where it is undefined. The resamples are those of :func:`spot_intervals`, the same for every prediction of a section, so
    that differences of two are paired.

    >>> measured = np.arange(8.0)[:, None]
    >>> resampled_correlations(measured, measured, np.arange(8))[0]
    array([1.])
    """
    place, weights = _resamples(blocks, seed)
    return _weighted_values(prediction, measured, place, weights)[0]


def gene_interval(resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % interval of each gene, (gene,) each, of what :func:`resampled_correlations` gives, or of a difference.

    NaN where the gene has no value, or there are too few blocks of spots to resample (all resamples are alike).
    """
    undefined = ~np.isfinite(resampled[0]) | ~np.isfinite(resampled[1:]).any(axis=0)
    undefined |= (resampled[1:] == resampled[:1]).all(axis=0)
    values = np.where(undefined, 0.0, resampled[1:])
    low, high = np.nanquantile(values, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2], axis=0)
    return np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)


def mean_interval(resampled: np.ndarray) -> Interval | None:
    """Interval of the mean over genes, those without a value left out; None where no gene has one.

    >>> mean_interval(np.array([[0.5, np.nan], [0.25, np.nan], [0.75, np.nan]])).mean
    0.5
    """
    means = _mean_over_genes(resampled)
    if not np.isfinite(means[0]):
        return None
    defined = means[1:][np.isfinite(means[1:])]
    alone = not len(defined) or bool((defined == means[0]).all())
    return Interval(float(means[0]), *((None, None) if alone else _ends(defined)))


def _resamples(blocks: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Block of each spot, (spot,), and how often each block counts, (resample, block): the blocks as they are come first.

    Fewer than six blocks are taken as they are in every resample.
    """
    _, place = np.unique(blocks, return_inverse=True)
    n_blocks = int(place.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=_RESAMPLES_OF_SPOTS)
    if n_blocks < _FEWEST_BLOCKS:
        drawn = np.ones_like(drawn)
    return place, np.concatenate([np.ones((1, n_blocks)), drawn])


def _weighted_scores(
    prediction: np.ndarray, measured: np.ndarray, place: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Scores (resample,) when block b of spots counts ``weights[:, b]`` times."""
    correlation, error = _weighted_values(prediction, measured, place, weights)
    return {"pcc": _mean_over_genes(correlation), "mse": error}


def _mean_over_genes(values: np.ndarray) -> np.ndarray:
    defined = np.isfinite(values)
    n_defined = defined.sum(axis=1)
    return np.where(n_defined > 0, np.where(defined, values, 0.0).sum(axis=1) / np.maximum(n_defined, 1), np.nan)


def _weighted_values(
    prediction: np.ndarray, measured: np.ndarray, place: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Correlation (resample gene), NaN where undefined, and squared error (resample,), from sums over each block."""
    x, y = (np.asarray(values, dtype=np.float64) for values in (prediction, measured))
    error = ((x - y) ** 2).mean(axis=1)
    x, y = (
        (values - values.mean(axis=0)) for values in (x, y)
    )  # so that variances are no differences of large numbers

    def total(values: np.ndarray) -> np.ndarray:
        sums = np.zeros((weights.shape[1], *values.shape[1:]))
        np.add.at(sums, place, values)
        return weights @ sums

    count = total(np.ones(len(x)))
    mean_x, mean_y, xx, yy, xy = (total(values) / count[:, None] for values in (x, y, x * x, y * y, x * y))
    variance_x, variance_y = xx - mean_x**2, yy - mean_y**2
    # what rounding leaves of the variance of a constant
    defined = (variance_x > 1e-12 * xx[0]) & (variance_y > 1e-12 * yy[0]) & (xx[0] > 0) & (yy[0] > 0)
    product = np.where(defined, variance_x * variance_y, 1.0)
    return np.where(defined, (xy - mean_x * mean_y) / np.sqrt(product), np.nan), total(error) / count


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)
