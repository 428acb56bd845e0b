"""How far the tissue of a slide is from that which a run was trained on, by the features of the run's image backbone.

The distance is that of Mahalanobis under a normal distribution with few free directions (probabilistic principal components,
Tipping and Bishop, J. R. Stat. Soc. B 61:611, 1999), so that what lies beside the training features counts too. It becomes a
p-value among the distances of tissue that was left out: see :func:`applicability`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["UNLIKE", "TissueModel", "applicability", "fit_tissue", "left_out_distances"]

UNLIKE = 0.05
"""Applicability up to which a spot counts as unlike the training tissue: one spot in 20 of tissue that is like it."""

_COMPONENTS = 32
_LEAST_VARIANCE = 0.2  # along any direction, of features of variance 1: a little in one that hardly varied is not far
_FEWEST_PER_COMPONENT = 4  # spots
_GROUPS = 5


@dataclass(frozen=True)
class TissueModel:
    """A normal distribution of image features.

    Attributes:
        mean, scale: float64 (width,), of the training spots; features are divided by ``scale``.
        axes: float64 (component width), orthonormal, with ``variances`` (component,) along them.
        rest: variance in each of all other directions.
    """

    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray
    variances: np.ndarray
    rest: float

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Mahalanobis distance float64 (spot,) of features (spot width), over the root of the width: about 1 inside.

        >>> random = np.random.default_rng(0)
        >>> model = fit_tissue(random.normal(size=(500, 8)))
        >>> model.distances(random.normal(size=(500, 8))).mean().round(1), model.distances(np.full((1, 8), 9.0)) > 5
        (np.float64(1.0), array([ True]))
        """
        centred = (np.asarray(features, dtype=np.float64) - self.mean) / self.scale
        along = centred @ self.axes.T
        # of differences, so that rounding cannot make it negative
        beside = ((centred - along @ self.axes) ** 2).sum(axis=1)
        squared = (along**2 / self.variances).sum(axis=1)
        if len(self.variances) < len(self.mean):
            squared += beside / self.rest
        return np.sqrt(squared / len(self.mean))


def fit_tissue(features: np.ndarray, scale: np.ndarray | None = None) -> TissueModel:
    """The distribution of the features (spot width) of at least two spots, whose standard deviation is the ``scale`` if not given.

    A feature that is constant there has scale 1.
    """
    features = np.asarray(features, dtype=np.float64)
    n, width = features.shape
    if n < 2:
        raise ValueError(f"features: got those of {n} spots, need at least 2")
    mean, scale = features.mean(axis=0), _scale(features) if scale is None else scale
    _, singular, axes = np.linalg.svd((features - mean) / scale, full_matrices=False)
    variances = singular**2 / (n - 1)
    count = max(1, min(_COMPONENTS, n // _FEWEST_PER_COMPONENT, len(variances)))
    kept = variances[:count]
    rest = float(variances[count:].sum()) / (width - count) if width > count else 0.0
    return TissueModel(mean, scale, axes[:count], np.maximum(kept, _LEAST_VARIANCE), max(rest, _LEAST_VARIANCE))


def _scale(features: np.ndarray) -> np.ndarray:
    found = features.std(axis=0)
    return np.where(found > 1e-6 * max(float(found.max()), np.finfo(np.float64).tiny), found, 1.0)


def left_out_distances(features: Sequence[np.ndarray]) -> np.ndarray:
    """Distances of the spots of each group to the others, float64 (spot,): what tissue that is like the training has.

    The scale is that of all groups: a feature that hardly varies in some of them would make the rest far away.

    Args:
        features: (spot width) of each of at least two sections or patients; beyond five they are left out several at a time.
    """
    if len(features) < 2:
        raise ValueError(f"features: got those of {len(features)} groups, need at least 2")
    parts = [range(start, len(features), min(_GROUPS, len(features))) for start in range(min(_GROUPS, len(features)))]
    found, scale = [], _scale(np.concatenate(features))
    for part in parts:
        model = fit_tissue(np.concatenate([each for number, each in enumerate(features) if number not in part]), scale)
        found += [model.distances(features[number]) for number in part]
    return np.concatenate(found)


def applicability(distances: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """p-value float32 (spot,): the share of tissue that was left out which is as far away, the spot itself counted.

    It lies in (0, 1]; of tissue like the training a share p of the spots has at most p.

    >>> applicability(np.array([0.5, 2.0, 9.0]), np.array([1.0, 2.0, 3.0])).tolist()
    [1.0, 0.75, 0.25]
    """
    below = np.searchsorted(np.sort(left_out), distances, side="left")
    return ((len(left_out) - below + 1) / (len(left_out) + 1)).astype(np.float32)
