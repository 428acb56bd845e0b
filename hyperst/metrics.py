"""How good predicted expression is. Arrays are (spot gene), NumPy or torch, on one scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "METRICS",
    "jensen_shannon",
    "mae",
    "mse",
    "per_gene_pearson",
    "relative_variance_distance",
    "top_k_mean",
]

_Array = TypeVar("_Array", np.ndarray, Tensor)


def _pair(prediction: _Array, target: _Array) -> tuple[Tensor, Tensor]:
    first, second = (torch.as_tensor(value).double() for value in (prediction, target))
    if first.shape != second.shape or first.ndim != 2 or len(first) == 0:
        raise ValueError(
            "prediction and target must have one shape (spot, gene) with at least one spot, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    return first, second


def per_gene_pearson(prediction: _Array, target: _Array) -> _Array:
    """Pearson correlation over spots of each gene, (gene,), of the kind and dtype of ``prediction``.

    NaN where the gene is constant in either: a correlation is not defined there.

    >>> per_gene_pearson(np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([[1.0, 0.0], [3.0, 2.0]]))
    array([ 1., nan])
    """
    first, second = (value - value.mean(0) for value in _pair(prediction, target))
    norms = first.norm(dim=0) * second.norm(dim=0)
    # a constant column leaves rounding behind after its mean is taken off
    constant = torch.zeros_like(norms, dtype=torch.bool)
    for centred, value in zip((first, second), _pair(prediction, target), strict=True):
        constant |= centred.abs().amax(0) <= 1e-12 * value.abs().amax(0)
    correlation = torch.where(constant, torch.nan, (first * second).sum(0) / torch.where(constant, 1.0, norms))
    return correlation.numpy() if isinstance(prediction, np.ndarray) else correlation.to(prediction.dtype)


def top_k_mean(correlations: _Array, k: int) -> float:
    """Mean of the ``k`` largest correlations, NaN left out. The choice is made on the test set: compare with a null.

    >>> top_k_mean(np.array([0.1, 0.5, np.nan, 0.3]), 2)
    0.4
    """
    values = torch.as_tensor(correlations).double()
    values = values[~values.isnan()]
    if not 1 <= k <= len(values):
        raise ValueError(f"k must lie between 1 and the {len(values)} defined correlations, got {k}")
    return float(values.topk(k).values.mean())


def mse(prediction: _Array, target: _Array) -> float:
    """Mean squared error over spots and genes.

    >>> mse(np.zeros((2, 1)), np.array([[1.0], [3.0]]))
    5.0
    """
    first, second = _pair(prediction, target)
    return float((first - second).square().mean())


def mae(prediction: _Array, target: _Array) -> float:
    """Mean absolute error over spots and genes.

    >>> mae(np.zeros((2, 1)), np.array([[1.0], [3.0]]))
    2.0
    """
    first, second = _pair(prediction, target)
    return float((first - second).abs().mean())


def relative_variance_distance(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """RVD of each gene, ((v_prediction - v_target) / v_target)^2 of the variances v over spots; float64 (gene,).

    0 where the prediction varies as much as the measurement, 1 where it is constant. NaN where the measurement is constant.
    Source: Zhu et al., Stem, arXiv 2501.15598 (2025).

    >>> relative_variance_distance(np.array([[0.0, 1], [1, 1]]), np.array([[0.0, 0], [2, 2]]))
    array([0.5625, 1.    ])
    """
    first, second = (value.var(dim=0, correction=0) for value in _pair(prediction, target))
    return torch.where(second > 0, ((first - second) / second) ** 2, torch.nan).numpy()


def jensen_shannon(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of each gene's distributions over the spots, in bits; float64 (gene,), 0 to 1.

    Expression over the spots, divided by its sum, is taken for a distribution: 0 where prediction and measurement are alike in
    space, whatever their scale, 1 where no spot has both. Values below 0, which no expression has, count as 0. NaN where
    either is 0 everywhere. Source: Lin, IEEE Trans. Inf. Theory 37:145 (1991); used so by Wang et al., Nat. Commun. 16:1544
    (2025).

    >>> jensen_shannon(np.array([[2.0, 0, 0], [2, 1, 0]]), np.array([[1.0, 3, 1], [1, 0, 1]]))
    array([ 0.,  1., nan])
    """
    from scipy.spatial.distance import jensenshannon

    first, second = (value.clamp(min=0).numpy() for value in _pair(prediction, target))
    defined = (first.sum(axis=0) > 0) & (second.sum(axis=0) > 0)
    divergence = np.full(first.shape[1], np.nan)
    divergence[defined] = jensenshannon(first[:, defined], second[:, defined], base=2, axis=0) ** 2
    return divergence


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"mse": mse, "mae": mae}
"""Errors of a prediction (spot gene) against a measurement, by the name they have in tables: another is an entry here."""
