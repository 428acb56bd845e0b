"""The nearest keys of each query, a block of distances at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels.blocked.blocks import Geometry, blocks


def nearest(queries: Tensor, keys: Tensor, c: Tensor, k: int, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Distances (n k), the smallest first, and indices (n k) of keys: (n d), (m d) -> (n k), (n k)."""
    found: list[tuple[Tensor, Tensor]] = []
    for rows, columns in blocks(queries.shape[0], keys.shape[0], queries.device):
        values = geometry.values(queries[rows], keys[columns], c)
        best, where = values.topk(min(k, values.shape[1]), largest=False)
        where = where + columns.start
        if columns.start > 0:  # beside those of the blocks before
            best, order = torch.cat([found[-1][0], best], 1).sort(dim=1, stable=True)
            where = torch.cat([found.pop()[1], where], 1).gather(1, order)
        found.append((best[:, :k], where[:, :k]))
    if not found:  # no query
        return c.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device=c.device)
    distances, indices = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(indices)
