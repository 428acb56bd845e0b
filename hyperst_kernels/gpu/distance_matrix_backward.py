"""The gradient of the matrix of all distances.

With G the gradient of the matrix, W_ij = G_ij / (sqrt(c) sinh(sqrt(c) d_ij)) weighs the points in two products. Cancelled pairs
go their own way, from differences. Every sum has a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.gpu import launch, maps
from hyperst_kernels.gpu.distance_matrix import CANCELLED, Operand, row_stats, span_of, tile_of
from hyperst_kernels.gpu.exact_pairs import EXACT_TILE, Vectors, add_point_gradients, compare_all, points_of
from hyperst_kernels.gpu.pair import per_chord, slopes_of_distance
from hyperst_kernels.gpu.scalars import exp, expm1, nonzero, rounded_product, sqrt_rn
from hyperst_kernels.gpu.split_products import Weights, multiply, parts_of, parts_of_weights, store_parts, summands
from hyperst_kernels.gpu.tile_math import load_each


@triton.jit
def _weights(
    grad_ptr, distance_ptr, c_ptr, x, y, out, cancelled_ptr, scale_grad_ptr, limit, unit,
    SPLIT: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """W_ij s_i s_j ``unit``; which tiles hold cancelled pairs, and their sums of the gradient times the distance."""
    n, m = x.n, y.n
    i, j, rows, columns = tile_of(n, m, TILE, TILE)
    inside = (rows < n)[:, None] & (columns < m)[None, :]
    place = rows[:, None] * m + columns[None, :]
    grad = tl.load(grad_ptr + place, inside, other=0).to(DTYPE)
    distance = tl.load(distance_ptr + place, inside, other=0)
    k = sqrt_rn(tl.load(c_ptr))
    D = k * distance
    growth = -expm1(-D)  # sinh D = e^D (1 - e^-D)(1 + e^-D) / 2, cosh D - 1 = e^D (1 - e^-D)^2 / 2
    span = span_of(load_each(x.excess_ptr, rows, n, DTYPE), load_each(y.excess_ptr, columns, m, DTYPE))
    decay = exp(-D)
    cancelled = growth * growth <= 2 * limit * span * decay
    scale_x, scale_y = load_each(x.scale_ptr, rows, n, DTYPE) * unit, load_each(y.scale_ptr, columns, m, DTYPE)
    weight = grad * 2 * decay / (k * nonzero(growth * (1 + decay)))
    weight = tl.where(cancelled, 0, weight * scale_x[:, None] * scale_y[None, :])
    store_parts(out.ptr + place, weight, inside, out.part_stride, SPLIT)
    number = i * tl.cdiv(m, TILE) + j
    tl.store(scale_grad_ptr + number, tl.sum(rounded_product(grad, distance)))
    # whoever looks for cancelled pairs later finds them by the zero weight, not by judging again
    tl.store(cancelled_ptr + number, tl.max((inside & (weight == 0) & (grad != 0)).to(tl.int32)).to(tl.int8))


class Tiles(NamedTuple):
    """A number for each pair or tile of pairs, seen from either side."""

    ptr: tl.tensor
    row_stride: tl.tensor
    column_stride: tl.tensor


@triton.jit
def _cancelled_gradients(
    x, y, c_ptr, grads, weight_ptr, cancelled, dx_ptr, d, TANGENT: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr
):
    """Add the gradients of cancelled pairs to some rows of dx, which no other program writes. Weights lie as ``grads`` do, the
    first part of them alone is read."""
    i = tl.program_id(0).to(tl.int64)
    rows = i * TILE + tl.arange(0, TILE)
    k = sqrt_rn(tl.load(c_ptr))
    u = points_of(x, rows, DTYPE)
    flags, tiles = cancelled.ptr + i * cancelled.row_stride, tl.cdiv(y.n, TILE)
    end = tiles
    if tl.float64 != DTYPE:  # which has no register left for this
        some, any_flag = tl.arange(0, 128), 0
        for first in range(0, tiles, 128):
            place = flags + (first + some).to(tl.int64) * cancelled.column_stride
            any_flag = tl.maximum(any_flag, tl.max(tl.load(place, first + some < tiles, other=0).to(tl.int32)))
        end = tl.where(any_flag != 0, tiles, 0)  # mostly there is none to look for
    for j in range(0, end):
        if tl.load(flags + tl.cast(j, tl.int64) * cancelled.column_stride) != 0:
            columns = tl.cast(j, tl.int64) * TILE + tl.arange(0, TILE)
            inside = (rows < x.n)[:, None] & (columns < y.n)[None, :]
            place = rows[:, None] * grads.row_stride + columns[None, :] * grads.column_stride
            weight = tl.load(weight_ptr + place, inside, other=1)
            grad = tl.where(weight == 0, tl.load(grads.ptr + place, inside, other=0).to(DTYPE), 0)
            v = points_of(y, columns, DTYPE)
            r, half_chord, per_sum, leftover = compare_all(u, v, d, TILE, DTYPE)
            along, across = slopes_of_distance(u.norm[:, None], v.norm[None, :], r, half_chord, k, TANGENT)
            add_point_gradients(
                u, v, dx_ptr, r, per_sum, leftover, per_chord(half_chord), grad * along, grad * across, d, 0, DTYPE
            )


class Side:
    """Rows (n d) of one side: as operands of products with weights, and what has been summed for their gradient.

    Weights are times the scales s from vectors to sqrt(c) times their points, so that those of far pairs are numbers in bf16 too;
    the operands are vectors, and t / s.
    """

    def __init__(self, x: Tensor, c: Tensor, tangent: bool, parts: int):
        self.x, (self.n, self.d) = x, x.shape
        # of the exact numbers, not of those a low precision rounded: the gradient is that of the true distance
        self.norm, self.scale, self.excess = row_stats(x, c, tangent, "ieee")
        dtype = torch.bfloat16 if parts else c.dtype
        # beside the vectors: a product with one vector takes as long as one with more
        times = summands((1 + self.excess) / self.scale, dtype)
        vectors = parts_of(x.to(c.dtype), dtype, max(1, parts))
        self.operands = [
            torch.cat([part, times if k == 0 else torch.zeros_like(times)], 1) for k, part in enumerate(vectors)
        ]
        self.sums = c.new_zeros(self.operands[0].shape)
        self.exact = c.new_zeros(x.shape)  # the gradient of x by cancelled pairs

    def vectors(self, some: slice) -> Vectors:
        """Some rows, as kernels of cancelled pairs take them."""
        x = self.x[some]
        return Vectors(x, x.stride(0), len(x), self.norm[some])

    def part(self, some: slice) -> Operand:
        """Some rows, as the kernel of weights takes them."""
        x = self.x[some]
        return Operand(x, x.stride(0), len(x), self.scale[some], self.excess[some])

    def gradient(self, c: Tensor, tangent: bool, unit: float) -> Tensor:
        """The gradient of x in the geometry's dtype."""
        x, of_times = self.x.to(c.dtype), self.sums[:, self.d :].sum(1)
        grad = (of_times * (self.scale / (1 + self.excess)))[:, None] * x - self.sums[:, : self.d]
        grad *= (c.sqrt() / unit / self.scale)[:, None]
        if tangent:
            grad = maps.exp_map0_backward(grad, x, torch.ones_like(c), c)[0]
        return grad.add_(self.exact)


class MatrixGradient:
    """The gradient of distances of x (n d) and y (m d), of which blocks come one after the other.

    In every precision but "ieee" weights and vectors are sums of two bf16 numbers: they keep 17 bits.
    """

    def __init__(self, x: Tensor, y: Tensor, c: Tensor, tangent: bool, precision: str):
        self.c, self.tangent, self.parts = c, tangent, parts_of_weights(c.dtype, precision)
        self.x, self.y = (Side(launch.unit_stride(t), c, tangent, self.parts) for t in (x, y))
        # weights of points far out go like e^-(p + q): as subnormal numbers they have no digits in bf16
        self.unit = 1.0 if tangent or not self.parts else 2.0**48
        self.along = c.new_zeros((), dtype=torch.float64)  # sum of the gradient times the distance

    def add(self, rows: slice, columns: slice, distance: Tensor, grad: Tensor) -> None:
        """Take a block of distances (r w) and its gradient, both in one piece."""
        c, (n, m), tile = self.c, distance.shape, EXACT_TILE[self.c.dtype]
        tiles = (triton.cdiv(n, tile), triton.cdiv(m, tile))
        weights = torch.empty(max(1, self.parts), n, m, dtype=self.x.operands[0].dtype, device=c.device)
        cancelled, by_distance = torch.empty(tiles, dtype=torch.int8, device=c.device), c.new_empty(tiles)
        numbers = {"DTYPE": launch.triton_dtype(c.dtype), "TILE": tile, **launch.OPTIONS}
        warps = 4 if c.dtype == torch.float64 else 8
        _weights[(tiles[0] * tiles[1],)](
            grad, distance, c, self.x.part(rows), self.y.part(columns), Weights(weights, weights.stride(0), m), cancelled,
            by_distance, CANCELLED[c.dtype], self.unit, SPLIT=self.parts == 2, num_warps=warps, **numbers,
        )  # fmt: skip
        self.along += by_distance.sum(dtype=torch.float64)
        self.x.sums[rows] += multiply(weights, [part[columns] for part in self.y.operands])
        self.y.sums[columns] += multiply(weights.mT, [part[rows] for part in self.x.operands])
        u, v, d = self.x.vectors(rows), self.y.vectors(columns), self.x.d
        flags = {"TANGENT": self.tangent, "num_warps": 8, **numbers}
        _cancelled_gradients[(tiles[0],)](
            u, v, c, Tiles(grad, m, 1), weights, Tiles(cancelled, tiles[1], 1), self.x.exact[rows], d, **flags
        )
        _cancelled_gradients[(tiles[1],)](
            v, u, c, Tiles(grad, 1, m), weights, Tiles(cancelled, 1, tiles[1]), self.y.exact[columns], d, **flags
        )

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x and y in the geometry's dtype, and of c (), float64."""
        dx, dy = (side.gradient(self.c, self.tangent, self.unit) for side in (self.x, self.y))
        # d is homogeneous in the vectors and 1/sqrt(c)
        homogeneity = sum((side.x.double() * grad).sum() for side, grad in ((self.x, dx), (self.y, dy))) - self.along
        return dx, dy, homogeneity / (2 * self.c.double())


@launch.on_own_device
def pairwise_distance_backward(
    grad: Tensor, x: Tensor, y: Tensor, c: Tensor, distance: Tensor, tangent: bool, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (n d), y (m d) and c () from that of the matrix (n m), in the geometry's dtype whatever the precision.

    Holds one more matrix of that size.
    """
    if grad.numel() == 0 or x.shape[1] == 0:
        return torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(c)
    gradient = MatrixGradient(x, y, c, tangent, "ieee")
    gradient.add(slice(0, len(x)), slice(0, len(y)), distance.contiguous(), grad.contiguous())
    dx, dy, dc = gradient.finish()
    return dx.to(x.dtype), dy.to(y.dtype), dc.to(c.dtype)
