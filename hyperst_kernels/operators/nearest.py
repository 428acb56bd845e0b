"""The operator of the nearest keys of each query, blockwise on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels.blocked.blocks import Geometry
from hyperst_kernels.blocked.nearest import nearest
from hyperst_kernels.operators.register import PORTABLE, TRITON, define, in_full_precision
from hyperst_kernels.reference.flat import common_scale, unit

_nearest = define(
    "nearest(Tensor queries, Tensor keys, Tensor c, int k, str geometry, bool tangent) -> (Tensor, Tensor)",
    lambda queries, keys, c, k, *flags: (
        c.new_empty(queries.shape[0], k),
        c.new_empty(queries.shape[0], k, dtype=torch.int64),
    ),
    dict.fromkeys(
        (*TRITON, *PORTABLE),
        in_full_precision(
            lambda x, y, c, k, geometry, tangent: nearest(x, y, c, k, Geometry(geometry, tangent, "bf16x3"))
        ),
    ),
)


def nearest_keys(
    queries: Tensor, keys: Tensor, c: Tensor, k: int, geometry: str, tangent: bool
) -> tuple[Tensor, Tensor]:
    """Distances (n k), the smallest first, and indices (n k): (n d), (m d) of the geometry's dtype. Without a gradient."""
    queries, keys, c = (t.detach() for t in (queries, keys, c))
    if geometry == "euclidean":
        size = common_scale(queries, keys)
        distances, indices = _nearest(queries * size, keys * size, c, k, geometry, tangent)
        return distances / size, indices
    if geometry == "cosine":
        queries, keys = unit(queries), unit(keys)
    return _nearest(queries, keys, c, k, geometry, tangent)
