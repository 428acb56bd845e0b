"""Distances of all pairs of a loss, in tiles: each is one product, forward and backward, and stays in cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hyperst_kernels.blocked.blocks import SIDE, Fill
from hyperst_kernels.cpu.distance_matrix import blocks, gradients
from hyperst_kernels.cpu.geometry import geometry_of
from hyperst_kernels.cpu.tiles import NEAR_WIDENED, Tiles


class TiledPairs:
    """`hyperst_kernels.blocked.blocks.AllPairs` of geometries without angles. ``widened`` is of float32 numbers in float64.

    Raises NeedsFloat64 where float32 does not serve.
    """

    def __init__(self, queries: Tensor, keys: Tensor, c: Tensor, geometry: str, tangent: bool, widened: bool):
        self.c = c
        near = NEAR_WIDENED if widened else None
        self.tiles = Tiles(geometry_of(geometry, c, tangent), queries, keys, near, SIDE["cpu"])

    def blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        return blocks(self.tiles)

    def gradients(self, fill: Fill) -> tuple[Tensor, Tensor, Tensor]:
        dx, dy, dc = gradients(self.tiles, fill)
        return dx, dy, self.c.new_tensor(dc, dtype=torch.float64)
