"""Distances between all queries and all keys, a tile at a time: one product, what to make of it, and repairs.

Entries whose product has cancelled (duplicates, near neighbours) are recomputed from differences; where there are many
of them, or where float32 cannot hold the products, `NeedsFloat64` is raised, and the caller starts again in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hyperst_kernels.cpu.geometry import CHUNK_NUMBERS, Geometry, inner
from hyperst_kernels.cpu.native import bindings

# Measured on two cores: larger tiles fall out of the second-level cache, smaller ones pay per call.
TILE_ROWS, TILE_COLUMNS = 256, 1024
# An entry is recomputed when cancellation has cost it more bits than these leave of the dtype's precision. A pass that
# was widened to float64 for a float32 caller can lose all but 24 bits.
NEAR = {torch.float32: 2.0**-6, torch.float64: 2.0**-12}
NEAR_WIDENED = 2.0**-29
# Above this share of recomputed entries, float64 products are cheaper than differences.
MANY = 1 / 64

Near = tuple[Tensor, Tensor] | None


def for_threads(rows: int) -> int:
    """Return the rows of a tile, of which many threads share a larger one: some 50 PyTorch calls for each tile are serial."""
    return rows * max(1, torch.get_num_threads() // 16)


class NeedsFloat64(Exception):
    """Raised inside a float32 pass that would spend its time on differences, or overflow."""


class Tiles:
    """The tiles of the matrix of distances d(query, key), visited in a fixed order.

    Attributes:
        left, right: operands of the product, (n k) and (m k), padded with zeros: products are quicker for k a multiple
            of 8. `terms` gives the columns that the geometry knows of.
        shape: largest rows and columns of a tile.
    """

    def __init__(
        self,
        geometry: Geometry,
        queries: Tensor,
        keys: Tensor,
        near: float | None = None,
        shape: tuple[int, int] | None = None,
    ):
        self.geometry, self.queries, self.keys = geometry, queries, keys
        self.shape = (for_threads(TILE_ROWS), TILE_COLUMNS) if shape is None else shape
        self.near = NEAR[queries.dtype] if near is None else near
        self.n, self.m = len(queries), len(keys)
        self.width = queries.shape[1] + geometry.extra
        self.left, self.right = self._operand(geometry.left, queries), self._operand(geometry.right, keys)
        # of the keys of a tile, by the first: the operand (1 k) with the largest terms
        self.widest: dict[int, Tensor] = {}
        self.near_left = self.n * self.m * MANY + 1024 if queries.dtype == torch.float32 else float("inf")
        if not self._holds_products():
            if near is None and queries.dtype == torch.float32:
                raise NeedsFloat64
            self.left.fill_(torch.nan)  # what cannot be computed is not a number

    def _operand(self, fill: Callable[[Tensor, Tensor], None], features: Tensor) -> Tensor:
        operand = bindings.large(features.new_empty(len(features), -(-self.width // 8) * 8))
        fill(features, self.terms(operand))
        operand[:, self.width :] = 0
        return operand

    def _holds_products(self) -> bool:
        """Whether every z, and each sum on the way to it, is a finite number of the operands' dtype."""
        if min(self.n, self.m) == 0:
            return True
        left, right = (self.terms(t)[:, -self.geometry.extra :].amax(0, keepdim=True) for t in (self.left, self.right))
        return 4 * float(self.geometry.scale(left, right)) <= torch.finfo(left.dtype).max

    def terms(self, operand: Tensor) -> Tensor:
        """An operand, or its gradient, without the padding."""
        return operand[:, : self.width]

    def chunks(self, length: int) -> list[slice]:
        """Slices of rows whose temporaries stay in cache."""
        step = max(1, CHUNK_NUMBERS // self.queries.shape[1])
        return [slice(k, min(k + step, length)) for k in range(0, length, step)]

    def visit(self, n_buffers: int) -> Iterator[tuple[slice, slice, list[Tensor]]]:
        """Rows, columns and ``n_buffers`` buffers of the tile's shape, which the next tile uses again."""
        height, width = min(self.shape[0], self.n), min(self.shape[1], self.m)
        buffers = bindings.large(self.queries.new_empty(n_buffers, height * width))
        for i in range(0, self.n, height):
            for j in range(0, self.m, width):
                rows, columns = slice(i, min(i + height, self.n)), slice(j, min(j + width, self.m))
                shape = (rows.stop - i, columns.stop - j)
                yield rows, columns, [b[: shape[0] * shape[1]].view(shape) for b in buffers]

    def distances(
        self, rows: slice, columns: slice, z: Tensor, out: Tensor, slope: Tensor | None, work: Tensor
    ) -> Near:
        """Fill out with the distances of a tile and slope with 1/f'; return the entries (i, j) that were repaired."""
        torch.mm(self.left[rows], self.right[columns].T, out=z).clamp_(min=0)
        near = self.cancelled(rows, columns, z, z.amin(1))
        self.geometry.distance(z, out, slope, work)
        if near is not None:
            out[near] = self.exact(rows, columns, near)
        return near

    def cancelled(
        self, rows: slice, columns: slice, z: Tensor, minima: Tensor, product: Callable[[Tensor], Tensor] | None = None
    ) -> Near:
        """Entries whose product has cancelled: a cheap test of the row minima, then of the rows that fail it.

        ``product`` gives z from what is passed in its place.
        """
        left, right = self.terms(self.left[rows]), self.terms(self.right[columns])
        if columns.start not in self.widest:
            self.widest[columns.start] = right[right[:, -1].argmax()][None]
        suspects = (minima <= self.near * self.geometry.scale(left, self.widest[columns.start])[:, 0]).nonzero()[:, 0]
        if len(suspects) == 0:
            return None
        of_suspects = z[suspects] if product is None else product(z[suspects])
        i, j = (of_suspects <= self.near * self.geometry.scale(left[suspects], right)).nonzero(as_tuple=True)
        if len(i) == 0:
            return None
        self.near_left -= len(i)
        if self.near_left < 0:
            raise NeedsFloat64
        return suspects[i], j

    def exact(self, rows: slice, columns: slice, near: tuple[Tensor, Tensor]) -> Tensor:
        """Distances of the entries (i, j) of a tile, from differences: (len(i))."""
        i, j = near
        queries, keys = self.queries[rows], self.keys[columns]
        return torch.cat([self.geometry.exact(queries[i[some]], keys[j[some]]) for some in self.chunks(len(i))])

    def add_exact_gradients(
        self,
        rows: slice,
        columns: slice,
        near: tuple[Tensor, Tensor],
        weights: Tensor,
        d_queries: Tensor,
        d_keys: Tensor,
    ) -> None:
        """Add weights (len(i)) times the gradients of the distances of the entries (i, j) of a tile."""
        i, j = near
        for some in self.chunks(len(i)):
            a, b = i[some], j[some]
            x, y = self.queries[rows][a], self.keys[columns][b]
            dx, dy = x.new_zeros(x.shape), y.new_zeros(y.shape)
            self.geometry.add_exact_gradients(weights[some], x, y, dx, dy)
            d_queries[rows].index_add_(0, a, dx)
            d_keys[columns].index_add_(0, b, dy)

    def homogeneity(self, d_queries: Tensor, d_keys: Tensor) -> float:
        """<q, dL/dq> + <k, dL/dk>, rows summed in float64."""
        pairs = ((self.queries, d_queries), (self.keys, d_keys))
        return sum(float(inner(x, g).sum(dtype=torch.float64)) for x, g in pairs)
