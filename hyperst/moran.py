"""Moran's I: how alike neighbouring spots are, of every gene."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from hyperst.data import Section, niche_members

__all__ = ["morans_i", "neighbours"]


def neighbours(section: Section) -> sparse.csr_array:
    """Which spots are neighbours on the array, float64 (spot spot), 1 for a pair; no spot is its own neighbour."""
    return sparse.csr_array(niche_members(section).astype(np.float64) - sparse.diags_array(np.ones(section.n_spots)))


def morans_i(values: np.ndarray, weights: sparse.csr_array) -> np.ndarray:
    """Moran's I of each gene: n / sum(w) * sum_ij w_ij z_i z_j / sum_i z_i^2, z being ``values`` less their mean over spots.

    Near 1 where neighbours are alike, -1 / (n - 1) on average where values have no order in space, negative where neighbours
    differ. Source: Moran, Biometrika 37:17 (1950).

    Args:
        values: (spot gene). weights: (spot spot), such as :func:`neighbours`.

    Returns:
        float64 (gene,); NaN where a gene is constant, or where no spot has a neighbour.

    >>> ring = sparse.csr_array(np.roll(np.eye(4), 1, axis=1) + np.roll(np.eye(4), -1, axis=1))
    >>> morans_i(np.array([[1.0, 1, 5], [-1, 1, 5], [1, -1, 5], [-1, -1, 5]]), ring)
    array([-1.,  0., nan])
    """
    values = np.asarray(values, dtype=np.float64)
    if weights.shape != (len(values), len(values)):
        raise ValueError(f"weights must be (spot, spot) of the {len(values)} spots of values, got {weights.shape}")
    centred = values - values.mean(axis=0)
    centred[:, np.ptp(values, axis=0) == 0] = 0  # the mean of a constant is rounded
    square, total = (centred**2).sum(axis=0), float(weights.sum())
    defined = (square > 0) & (total > 0)
    product = (centred * (weights @ centred)).sum(axis=0)
    return np.where(defined, len(values) * product / np.where(defined, total * square, 1.0), np.nan)
