"""How good predicted expression is. Arrays are (spot gene), NumPy or torch, on one scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["METRICS", "mae", "mse", "per_gene_pearson", "top_k_mean"]

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


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"mse": mse, "mae": mae}
"""Errors of a prediction (spot gene) against a measurement, by the name they have in tables: another is an entry here."""
