"""What a run must beat: the training mean, and ridge regression on image features."""

from __future__ import annotations

import numpy as np

__all__ = ["MEAN", "NETWORK", "NULL", "OURS", "RIDGE_OWN", "RIDGE_STAIN", "ridge_floor", "training_mean"]

OURS, NULL, MEAN = "HyperST (this run)", "null: images shuffled between spots", "training mean"
NETWORK = "its network alone"
RIDGE_OWN, RIDGE_STAIN = "ridge on this run's image features", "ridge on stain and texture features"

_COMPONENTS = 64


def training_mean(targets: np.ndarray, n_spots: int) -> np.ndarray:
    """The mean of the training targets (spot gene) for each of ``n_spots``: (n_spots gene).

    >>> training_mean(np.array([[0.0], [2.0]]), 3).ravel()
    array([1., 1., 1.])
    """
    return np.repeat(targets.mean(axis=0, keepdims=True, dtype=np.float64), n_spots, axis=0)


def ridge_floor(train_features: np.ndarray, train_targets: np.ndarray, test_features: np.ndarray) -> np.ndarray:
    """Standardise, PCA(64), ridge regression with its penalty chosen by leave-one-out: (test_spot gene).

    Args:
        train_features, test_features: (spot width). train_targets: (spot gene).
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    components = min(_COMPONENTS, *train_features.shape)
    pipeline = make_pipeline(
        StandardScaler(), PCA(components, svd_solver="full"), RidgeCV(alphas=np.logspace(-1, 5, 13))
    )
    return pipeline.fit(train_features.astype(np.float64), train_targets).predict(test_features.astype(np.float64))
