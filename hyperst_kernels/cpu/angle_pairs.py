"""Exterior angles of all pairs of float32 vectors on a CPU: a product of a tile, and one pass over it in machine code.

The formulas are those of `hyperst_kernels.blocked.angle`, which computes the pairs whose cosine has lost the digits of the angle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hyperst_kernels.blocked import angle
from hyperst_kernels.blocked.blocks import SIDE, Fill, blocks
from hyperst_kernels.blocked.repairs import chunks, too_many
from hyperst_kernels.cpu.native import bindings


class _Side:
    """Vectors (n d) of one side in polar coordinates, and what has been summed for their gradient."""

    def __init__(self, x: Tensor, c: Tensor, tangent: bool):
        # numbers of size e^-p have the roundings of p otherwise
        wide = angle.Polar(angle.unit(x), *angle.of_lengths(angle.norm(x).double(), c.double(), tangent))
        p, lift = wide.rapidity, -torch.expm1(-wide.rapidity)
        if tangent:
            excess, of_curvature = angle.sinhc_excess(wide), p * wide.decay
        else:
            excess, of_curvature = lift**2 / 2, wide.sinh / wide.cosh * wide.decay
        numbers = (wide.decay, wide.decay**2 / 2, wide.sinh, wide.cosh, lift, excess, of_curvature)
        self.numbers = torch.cat(numbers, 1).T.float().contiguous()
        self.x, self.polar = x, angle.Polar(*(t.float() for t in wide))
        self.by_direction, self.exact = torch.zeros_like(x), torch.zeros_like(x)
        self.by_rapidity = c.new_zeros(len(x), dtype=torch.float64)

    def gradient(self, c: Tensor, tangent: bool) -> Tensor:
        by_rapidity = self.by_rapidity.float()[:, None]
        return angle.to_vectors(self.polar, self.by_direction, by_rapidity, c, tangent).add_(self.exact)


class AnglePairs:
    """`hyperst_kernels.blocked.blocks.AllPairs` of exterior angles at the queries."""

    def __init__(self, queries: Tensor, keys: Tensor, c: Tensor, tangent: bool):
        self.c, self.tangent = c, tangent
        self.queries, self.keys = (_Side(x, c, tangent) for x in (queries, keys))

    def matrix(self) -> Tensor:
        """All angles (n m)."""
        out = bindings.large(self.c.new_empty(len(self.queries.x), len(self.keys.x)))
        for rows, columns, (cosine,) in self._products(1):
            self._fill(rows, columns, cosine, out[rows, columns])
        return out

    def blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        for rows, columns, (cosine, out) in self._products(2):
            self._fill(rows, columns, cosine, out)
            yield rows, columns, out

    def gradients(self, fill: Fill) -> tuple[Tensor, Tensor, Tensor]:
        def grad(rows: slice, columns: slice, cosine: Tensor, values: Tensor, out: Tensor) -> Tensor:
            self._fill(rows, columns, cosine, values)
            fill(rows, columns, values, out)
            return out

        return self._gradients(grad, 3)

    def gradients_of(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`gradients` from those of all angles (n m)."""
        return self._gradients(lambda rows, columns, *_: grad[rows, columns], 2)

    def _products(self, buffers: int) -> Iterator[tuple[slice, slice, list[Tensor]]]:
        """Rows and columns of tiles, and buffers of their shape, the first with cosines; the next tile overwrites all."""
        n, m = len(self.queries.x), len(self.keys.x)
        height, width = SIDE["cpu"]
        memory = bindings.large(self.c.new_empty(buffers, min(height, n) * min(width, m)))
        for rows, columns in blocks(n, m, self.c.device):
            shape = rows.stop - rows.start, columns.stop - columns.start
            tile = [some[: shape[0] * shape[1]].view(shape) for some in memory]
            torch.mm(self.queries.polar.direction[rows], self.keys.polar.direction[columns].T, out=tile[0])
            yield rows, columns, tile

    def _call(self, name: str, rows: slice, columns: slice, cosine: Tensor, *arguments: Tensor | int) -> None:
        """Run a function of machine code on a tile."""
        x, y = self.queries.numbers, self.keys.numbers
        numbers = (x[:, rows], x.stride(0), y[:, columns], y.stride(0))
        bindings.call(name, cosine, cosine.stride(0), *cosine.shape, *numbers, angle.ALIGNED, *arguments)

    def _fill(self, rows: slice, columns: slice, cosine: Tensor, out: Tensor) -> None:
        """Put angles of a tile into ``out``."""
        aligned = out.new_empty(math.prod(bindings.blocks(*out.shape)), dtype=torch.float64)
        self._call("angles", rows, columns, cosine, out, out.stride(0), aligned)
        lost = self._lost(rows, columns, cosine, aligned)
        if lost is None:
            return
        x, y = self.queries.x[rows], self.keys.x[columns]
        if too_many(lost):
            out.copy_(angle.values(x, y, self.c, self.tangent))
            return
        for i, j in chunks(lost, x.shape[1]):
            out[i, j] = angle.exterior_angle(x[i], y[j], self.c, self.tangent)

    def _lost(self, rows: slice, columns: slice, cosine: Tensor, count: Tensor) -> Tensor | None:
        """Which pairs of a tile are aligned, or None where none is."""
        if not count.any():
            return None
        return angle.aligned(cosine, self.queries.polar.length[rows], self.keys.polar.length[columns])

    def _gradients(self, grad_of: Callable[..., Tensor], buffers: int) -> tuple[Tensor, Tensor, Tensor]:
        """From ``grad_of(rows, columns, cosines, *spare)``, gradients by the angles of a tile, which may be in the last buffer."""
        c, tangent, along, dc = self.c, self.tangent, 0.0, self.c.new_zeros((), dtype=torch.float64)
        for rows, columns, (cosine, weights, *more) in self._products(buffers):
            grad = grad_of(rows, columns, cosine, weights, *more)
            n, m = cosine.shape
            strips, chunks_of_columns = bindings.blocks(n, m)
            by_row, by_column = c.new_empty(chunks_of_columns, n), c.new_empty(strips, m)
            sums = c.new_empty(strips * chunks_of_columns, 2, dtype=torch.float64)
            given = (grad, grad.stride(0), weights, weights.stride(0), by_row, by_column, sums)
            self._call("angle_slopes", rows, columns, cosine, *given)
            x, y = self.queries.x[rows], self.keys.x[columns]
            lost = self._lost(rows, columns, cosine, sums[:, 1])
            if lost is not None and too_many(lost):
                dx, dy, of_c = angle.gradients(grad, x, y, c, tangent)
                self.queries.exact[rows] += dx
                self.keys.exact[columns] += dy
                dc += of_c
                continue
            along += float(sums[:, 0].sum())
            self.queries.by_rapidity[rows] += by_row.sum(0, dtype=torch.float64)
            self.keys.by_rapidity[columns] += by_column.sum(0, dtype=torch.float64)
            self.queries.by_direction[rows].addmm_(weights, self.keys.polar.direction[columns])
            self.keys.by_direction[columns].addmm_(weights.T, self.queries.polar.direction[rows])
            if lost is not None:
                exact = self.queries.exact[rows], self.keys.exact[columns]
                dc += angle.add_aligned_gradients(grad, x, y, c, tangent, lost, *exact)
        return self.queries.gradient(c, tangent), self.keys.gradient(c, tangent), dc + along / (2 * c.double())
