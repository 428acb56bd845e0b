"""The matrix of all distances: blocked products, accurate for near pairs too, in O(n m) memory instead of O(n m d)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hyperst_kernels._checks import geometry_dtype
from hyperst_kernels.cpu.geometry import Lorentz, inner
from hyperst_kernels.cpu.tiles import NEAR_WIDENED, NeedsFloat64, Tiles


def pairwise_distance(x: Tensor, y: Tensor, c: Tensor, tangent: bool, precision: str) -> Tensor:
    """(n d), (m d) -> (n m) in the geometry's dtype. ``precision`` is for kernels that have a choice."""
    if x.numel() == 0 or y.numel() == 0:  # there are no tiles of nothing
        return c.new_empty(x.shape[0], y.shape[0])

    def fill(tiles: Tiles) -> Tensor:
        matrix = c.new_empty(tiles.n, tiles.m)
        for rows, columns, (z, out, work) in tiles.visit(3):
            tiles.distances(rows, columns, z, out, None, work)
            matrix[rows, columns] = out
        return matrix

    return _in_enough_precision(fill, x, y, c, tangent)


def pairwise_distance_backward(
    grad: Tensor, x: Tensor, y: Tensor, c: Tensor, distance: Tensor, tangent: bool, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (n d), y (m d) and c () from that of the matrix (n m)."""
    if grad.numel() == 0:
        return torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(c)

    def sweep(tiles: Tiles) -> tuple[Tensor, Tensor, Tensor]:
        d_left, d_right = torch.zeros_like(tiles.left), torch.zeros_like(tiles.right)
        dx, dy = (t.new_zeros(t.shape) for t in (tiles.queries, tiles.keys))
        for rows, columns, (z, out, slope, work, weights) in tiles.visit(5):
            near = tiles.distances(rows, columns, z, out, slope, work)
            weights.copy_(grad[rows, columns])
            if near is not None:
                tiles.add_exact_gradients(rows, columns, near, weights[near], dx, dy)
                slope[near] = torch.inf
            weights.div_(slope)
            d_left[rows].addmm_(weights, tiles.right[columns])
            d_right[columns].addmm_(weights.T, tiles.left[rows])
        tiles.geometry.add_left_gradient(tiles.queries, tiles.terms(d_left), dx)
        tiles.geometry.add_right_gradient(tiles.keys, tiles.terms(d_right), dy)
        # d is homogeneous in the features and 1/sqrt(c)
        total = float(inner(grad, distance).sum(dtype=torch.float64))
        dc = (tiles.homogeneity(dx, dy) - total) / (2 * float(c))
        return dx.to(x.dtype), dy.to(y.dtype), c.new_tensor(dc)

    return _in_enough_precision(sweep, x, y, c, tangent)


def _in_enough_precision(compute: Callable, x: Tensor, y: Tensor, c: Tensor, tangent: bool):
    """``compute`` on tiles in the geometry's dtype; in float64 where too much of the product cancels, or overflows."""
    dtype = geometry_dtype(x)
    try:
        return compute(Tiles(Lorentz(c, tangent), x.to(dtype), y.to(dtype)))
    except NeedsFloat64:
        return compute(Tiles(Lorentz(c.double(), tangent), x.double(), y.double(), NEAR_WIDENED))
