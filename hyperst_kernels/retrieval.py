"""Retrieval: the nearest keys of each query by the distance that the loss was trained for, without the matrix of all pairs."""

from __future__ import annotations

from torch import Tensor

from hyperst_kernels import _checks
from hyperst_kernels._constants import INPUTS, LOSS_GEOMETRIES
from hyperst_kernels.operators.nearest import nearest_keys


def topk(
    queries: Tensor,
    keys: Tensor,
    k: int,
    c: float | Tensor = 1.0,
    *,
    input: str = "lorentz",
    geometry: str = "lorentz",
) -> tuple[Tensor, Tensor]:
    """Return the k nearest keys of each query, nearest first: distances (N, k) and indices (N, k).

    Queries (N, d) and keys (M, d) of any floating dtype; memory is O((N + M) d + N k). Distances, or with geometry "angle"
    exterior angles at the query, have the errors of `pairwise_distance` and `pairwise_exterior_angle`, are float32 (float64 for
    float64 inputs), and carry no gradient. Where several keys are at one distance, any of them may come. ``input`` is "lorentz"
    unless said otherwise, as of all functions of distances; losses and `similarity` begin with "tangent".

    Raises ValueError for k that is not between 1 and M, what `similarity` raises, and (on the CPU) for tangent vectors so long that
    products of their points overflow; on a GPU keys whose distance is NaN come last.

    >>> import torch
    >>> keys = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.6, 0.8]])
    >>> topk(torch.tensor([[0.3, 0.4]]), keys, 2, input="tangent")
    (tensor([[0.5000, 0.5000]]), tensor([[2, 0]]))
    """
    _checks.choice("input", input, INPUTS)
    _checks.choice("geometry", geometry, LOSS_GEOMETRIES)
    _checks.count("k", k)
    x, y = _checks.matrices(queries=queries, keys=keys)
    if k > y.shape[0]:
        raise ValueError(f"k must be at most the number of keys, {y.shape[0]}, got {k}")
    dtype = _checks.geometry_dtype(x)
    c = _checks.positive("c", c, x, dtype)
    if geometry == "lorentz" and input == "tangent":
        _checks.radius("queries", x, c)
        _checks.radius("keys", y, c)
    return nearest_keys(x.to(dtype), y.to(dtype), c, int(k), geometry, input == "tangent")
