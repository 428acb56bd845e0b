"""Distances of all pairs in a product of hyperbolic spaces on a CPU: of a tile, those of every factor while it is in cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hyperst_kernels.blocked.blocks import SIDE, Fill
from hyperst_kernels.blocked.product import combined, factors, shared, slope
from hyperst_kernels.cpu.geometry import Lorentz, inner
from hyperst_kernels.cpu.tiles import NEAR_WIDENED, Near, Tiles


class _Factor:
    """Tiles of one factor, and what has been summed for its gradients."""

    def __init__(self, tiles: Tiles):
        self.tiles, self.along = tiles, 0.0
        self.d_left, self.d_right = torch.zeros_like(tiles.left), torch.zeros_like(tiles.right)
        self.dx, self.dy = torch.zeros_like(tiles.queries), torch.zeros_like(tiles.keys)

    def add(self, rows: slice, columns: slice, near: Near, apart: Tensor, slope: Tensor, grad: Tensor) -> None:
        """Take the gradient by the distances ``apart`` of a tile, with the ``slope`` of `Geometry.distance`; overwrites both."""
        self.along += float(inner(grad, apart).sum(dtype=torch.float64))
        if near is not None:
            self.tiles.add_exact_gradients(rows, columns, near, grad[near], self.dx, self.dy)
            slope[near] = torch.inf
        grad.div_(slope)
        self.d_left[rows].addmm_(grad, self.tiles.right[columns])
        self.d_right[columns].addmm_(grad.T, self.tiles.left[rows])

    def gradients(self) -> tuple[Tensor, Tensor, float]:
        """Those of its features and its curvature."""
        tiles = self.tiles
        tiles.geometry.add_left_gradient(tiles.queries, tiles.terms(self.d_left), self.dx)
        tiles.geometry.add_right_gradient(tiles.keys, tiles.terms(self.d_right), self.dy)
        return self.dx, self.dy, tiles.homogeneity(self.dx, self.dy) - self.along


class ProductPairs:
    """`hyperst_kernels.blocked.blocks.AllPairs` of a product: queries (n d), keys (m d), c (k). Raises NeedsFloat64."""

    def __init__(self, queries: Tensor, keys: Tensor, c: Tensor, name: str, tangent: bool, widened: bool):
        self.c, self.name, near = c, name, NEAR_WIDENED if widened else None
        parts = zip(factors(queries, c), factors(keys, c), c, strict=True)
        self.tiles = [Tiles(Lorentz(some, tangent), x, y, near, SIDE["cpu"]) for x, y, some in parts]

    def blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        for rows, columns, (z, work, out, *own) in self.tiles[0].visit(3 + len(self.tiles)):
            for tiles, apart in zip(self.tiles, own, strict=True):
                tiles.distances(rows, columns, z, apart, None, work)
            yield rows, columns, combined(own, self.name, out)

    def gradients(self, fill: Fill) -> tuple[Tensor, Tensor, Tensor]:
        k, found = len(self.tiles), [_Factor(tiles) for tiles in self.tiles]
        for rows, columns, (z, work, out, grad, *more) in self.tiles[0].visit(4 + 2 * k):
            own, inverse = more[:k], more[k:]
            near = [
                tiles.distances(rows, columns, z, apart, inverse_slope, work)
                for tiles, apart, inverse_slope in zip(self.tiles, own, inverse, strict=True)
            ]
            fill(rows, columns, combined(own, self.name, out), grad)
            alike = shared(grad, out, self.name)
            for factor, lost, apart, inverse_slope in zip(found, near, own, inverse, strict=True):
                factor.add(rows, columns, lost, apart, inverse_slope, slope(alike, apart, self.name, work))
        dx, dy, dc = zip(*(factor.gradients() for factor in found), strict=True)
        return torch.cat(dx, 1), torch.cat(dy, 1), self.c.new_tensor(dc, dtype=torch.float64) / (2 * self.c.double())
