"""The matrix of all distances: blocked products, accurate for near pairs too, in O(n m) memory instead of O(n m d)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
        for rows, columns, distances in blocks(tiles):
            matrix[rows, columns] = distances
        return matrix

    return _in_enough_precision(fill, x, y, c, tangent)


def pairwise_distance_backward(
    grad: Tensor, x: Tensor, y: Tensor, c: Tensor, distance: Tensor, tangent: bool, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (n d), y (m d) and c () from that of the matrix (n m)."""
    if grad.numel() == 0:
        return torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(c)

    def sweep(tiles: Tiles) -> tuple[Tensor, Tensor, Tensor]:
        dx, dy, dc = gradients(tiles, lambda rows, columns, distances, out: out.copy_(grad[rows, columns]))
        return dx.to(x.dtype), dy.to(y.dtype), c.new_tensor(dc)

    return _in_enough_precision(sweep, x, y, c, tangent)


def blocks(tiles: Tiles) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and distances (r w) of each tile, which the next one overwrites."""
    for rows, columns, (z, out, work) in tiles.visit(3):
        tiles.distances(rows, columns, z, out, None, work)
        yield rows, columns, out


def gradients(tiles: Tiles, fill: Callable[[slice, slice, Tensor, Tensor], object]) -> tuple[Tensor, Tensor, float]:
    """Gradients of queries (n d), keys (m d) and c: ``fill(rows, columns, distances, out)`` puts that of a tile into ``out``."""
    d_left, d_right = torch.zeros_like(tiles.left), torch.zeros_like(tiles.right)
    dx, dy = (t.new_zeros(t.shape) for t in (tiles.queries, tiles.keys))
    along = 0.0
    for rows, columns, (z, out, slope, work, weights) in tiles.visit(5):
        near = tiles.distances(rows, columns, z, out, slope, work)
        fill(rows, columns, out, weights)
        along += float(inner(weights, out).sum(dtype=torch.float64))
        if near is not None:
            tiles.add_exact_gradients(rows, columns, near, weights[near], dx, dy)
            slope[near] = torch.inf
        weights.div_(slope)
        d_left[rows].addmm_(weights, tiles.right[columns])
        d_right[columns].addmm_(weights.T, tiles.left[rows])
    tiles.geometry.add_left_gradient(tiles.queries, tiles.terms(d_left), dx)
    tiles.geometry.add_right_gradient(tiles.keys, tiles.terms(d_right), dy)
    if not isinstance(tiles.geometry, Lorentz):
        return dx, dy, 0.0
    # d is homogeneous in the features and 1/sqrt(c)
    return dx, dy, (tiles.homogeneity(dx, dy) - along) / (2 * float(tiles.geometry.c))


def _in_enough_precision(compute: Callable, x: Tensor, y: Tensor, c: Tensor, tangent: bool):
    """``compute`` on tiles in the geometry's dtype; in float64 where too much of the product cancels, or overflows."""
    dtype = geometry_dtype(x)
    try:
        return compute(Tiles(Lorentz(c, tangent), x.to(dtype), y.to(dtype)))
    except NeedsFloat64:
        return compute(Tiles(Lorentz(c.double(), tangent), x.double(), y.double(), NEAR_WIDENED))
