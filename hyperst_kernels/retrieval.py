"""Retrieval: the nearest keys of each query by the distance that the loss was trained for, without the matrix of all pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels import _checks
from hyperst_kernels._constants import GEOMETRIES, INPUTS
from hyperst_kernels._precision import full_float32
from hyperst_kernels.blocked.blocks import Geometry
from hyperst_kernels.blocked.nearest import nearest
from hyperst_kernels.reference.flat import common_scale, unit


@torch.no_grad()
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

    Queries (N, d) and keys (M, d) as in `similarity`, of any floating dtype; memory is O((N + M) d + N k). Distances have the
    errors of `pairwise_distance` and the dtype of the inputs, but for float16 and bfloat16, which come in float32; they carry no
    gradient. Where keys are at one distance, any of them may come.

    Raises ValueError for k that is not between 1 and M, and what `similarity` raises.

    >>> keys = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.6, 0.8]])
    >>> topk(torch.tensor([[0.3, 0.4]]), keys, 2, input="tangent")
    (tensor([[0.5000, 0.5000]]), tensor([[2, 0]]))
    """
    _checks.choice("input", input, INPUTS)
    _checks.choice("geometry", geometry, GEOMETRIES)
    _checks.count("k", k)
    x, y = _checks.matrices(queries=queries, keys=keys)
    if k > y.shape[0]:
        raise ValueError(f"k must be at most the number of keys, {y.shape[0]}, got {k}")
    dtype = _checks.geometry_dtype(x)
    c = _checks.positive("c", c, x, dtype)
    x, y, size = x.to(dtype), y.to(dtype), 1
    if geometry == "euclidean":
        size = common_scale(x, y)
        x, y = x * size, y * size
    elif geometry == "cosine":
        x, y = unit(x), unit(y)
    with torch.autocast(x.device.type, enabled=False), full_float32():
        distances, indices = nearest(x, y, c, int(k), Geometry(geometry, input == "tangent", "bf16x3"))
    return distances / size, indices
