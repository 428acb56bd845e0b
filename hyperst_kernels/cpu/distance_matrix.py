"""The matrix of all distances: blocked products, accurate for near pairs too, in O(n m) memory instead of O(n m d)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hyperst_kernels._checks import geometry_dtype
from hyperst_kernels.cpu.geometry import Lorentz, inner
from hyperst_kernels.cpu.tiles import NEAR_WIDENED, Near, NeedsFloat64, Tiles


def pairwise_distance(x: Tensor, y: Tensor, c: Tensor, tangent: bool, precision: str) -> Tensor:
    """(n d), (m d) -> (n m) in the geometry's dtype. ``precision`` is for kernels that have a choice."""
    if x.numel() == 0 or y.numel() == 0:  # there are no tiles of nothing
        return c.new_empty(x.shape[0], y.shape[0])

    def fill(tiles: Tiles) -> Tensor:
        matrix = c.new_empty(tiles.n, tiles.m)
        for rows, columns, (z, out, work) in tiles.visit(3):
            block = matrix[rows, columns]
            in_place = block.is_contiguous() and block.dtype == out.dtype
            tiles.distances(rows, columns, z, block if in_place else out, None, work)
            if not in_place:
                block.copy_(out)
        return matrix

    return _in_enough_precision(fill, x, y, c, tangent)


def pairwise_distance_backward(
    grad: Tensor, x: Tensor, y: Tensor, c: Tensor, distance: Tensor, tangent: bool, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (n d), y (m d) and c () from that of the matrix (n m)."""
    if grad.numel() == 0:
        return torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(c)

    def sweep(tiles: Tiles) -> tuple[Tensor, Tensor, Tensor]:
        if tiles.queries.dtype == distance.dtype:
            dx, dy, dc = _gradients_from(distance, grad, tiles)
        else:  # in float64, of which the distances have kept too little
            dx, dy, dc = gradients(tiles, lambda rows, columns, _, out: out.copy_(grad[rows, columns]))
        return dx.to(x.dtype), dy.to(y.dtype), c.new_tensor(dc)

    return _in_enough_precision(sweep, x, y, c, tangent)


def blocks(tiles: Tiles) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and distances (r w) of each tile, which the next one overwrites."""
    for rows, columns, (z, out, work) in tiles.visit(3):
        tiles.distances(rows, columns, z, out, None, work)
        yield rows, columns, out


def gradients(tiles: Tiles, fill: Callable[[slice, slice, Tensor, Tensor], object]) -> tuple[Tensor, Tensor, float]:
    """Gradients of queries (n d), keys (m d) and c: ``fill(rows, columns, distances, out)`` puts that of a tile into ``out``."""
    sums = _Gradients(tiles)
    for rows, columns, (z, out, slope, work, weights) in tiles.visit(5):
        near = tiles.distances(rows, columns, z, out, slope, work)
        fill(rows, columns, out, weights)
        sums.along += float(inner(weights, out).sum(dtype=torch.float64))
        of_near = None if near is None else weights[near]
        sums.add(rows, columns, weights.div_(slope), near, of_near)
    return sums.of_features()


def _gradients_from(distance: Tensor, grad: Tensor, tiles: Tiles) -> tuple[Tensor, Tensor, float]:
    """The same from the distances (n m), which spare a product for each tile, and their gradients."""
    sums, geometry = _Gradients(tiles), tiles.geometry
    assert isinstance(geometry, Lorentz)
    for rows, columns, (weights,) in tiles.visit(1):
        known, upstream = distance[rows, columns], grad[rows, columns]
        least, along = geometry.weigh(known, upstream, weights)
        sums.along += along
        near = tiles.cancelled(rows, columns, known, geometry.product(least), geometry.product)
        sums.add(rows, columns, weights, near, None if near is None else upstream[near])
    return sums.of_features()


class _Gradients:
    """Sums over tiles, of which gradients of features are made.

    Attributes:
        along: sum of the gradients by distances, times the distances.
    """

    def __init__(self, tiles: Tiles):
        self.tiles, self.along = tiles, 0.0
        self.d_left, self.d_right = torch.zeros_like(tiles.left), torch.zeros_like(tiles.right)
        self.dx, self.dy = (t.new_zeros(t.shape) for t in (tiles.queries, tiles.keys))

    def add(self, rows: slice, columns: slice, weights: Tensor, near: Near, of_near: Tensor | None) -> None:
        """Add a tile: gradients by products, but for those of ``near`` entries, which have gradients by distances."""
        if near is not None and of_near is not None:
            self.tiles.add_exact_gradients(rows, columns, near, of_near, self.dx, self.dy)
            weights[near] = 0
        self.d_left[rows].addmm_(weights, self.tiles.right[columns])
        self.d_right[columns].addmm_(weights.T, self.tiles.left[rows])

    def of_features(self) -> tuple[Tensor, Tensor, float]:
        """Of queries (n d), keys (m d) and c."""
        tiles, dx, dy = self.tiles, self.dx, self.dy
        tiles.geometry.add_left_gradient(tiles.queries, tiles.terms(self.d_left), dx)
        tiles.geometry.add_right_gradient(tiles.keys, tiles.terms(self.d_right), dy)
        if not isinstance(tiles.geometry, Lorentz):
            return dx, dy, 0.0
        # d is homogeneous in the features and 1/sqrt(c)
        return dx, dy, (tiles.homogeneity(dx, dy) - self.along) / (2 * float(tiles.geometry.c))


def _in_enough_precision(compute: Callable, x: Tensor, y: Tensor, c: Tensor, tangent: bool):
    """``compute`` on tiles in the geometry's dtype; in float64 where too much of the product cancels, or overflows."""
    dtype = geometry_dtype(x)
    try:
        return compute(Tiles(Lorentz(c, tangent), x.to(dtype), y.to(dtype)))
    except NeedsFloat64:
        return compute(Tiles(Lorentz(c.double(), tangent), x.double(), y.double(), NEAR_WIDENED))
