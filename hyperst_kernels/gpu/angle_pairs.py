"""Exterior angles of all pairs of a loss on a GPU: one pass over a block of cosines forward, one backward.

The formulas are those of `hyperst_kernels.blocked.angle`, which computes the pairs whose cosine has lost the digits of the angle.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.blocked import angle
from hyperst_kernels.blocked.blocks import Fill, blocks
from hyperst_kernels.blocked.repairs import chunks, too_many
from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.distance_matrix import tile_of
from hyperst_kernels.gpu.scalars import atan2, exp, expm1, hypot, rounded_product, sign
from hyperst_kernels.gpu.split_products import Weights, multiply, parts_of, parts_of_weights, store_parts
from hyperst_kernels.gpu.tile_math import load_each, store_each

TILE = {torch.float32: 32, torch.float64: 16}
HALF_PI = tl.constexpr(1.5707963267948966)


class PolarRows(NamedTuple):
    """Numbers of some rows: length, rapidity p, e^-p, (1 - e^-2p) / 2, (1 + e^-2p) / 2, and what slopes by c are made of."""

    length: tl.tensor
    rapidity: tl.tensor
    decay: tl.tensor
    sinh: tl.tensor
    cosh: tl.tensor
    excess: tl.tensor


class Turned(NamedTuple):
    """1 - cos theta and sin theta of the pairs of a tile, S and C, and which pairs are left to others."""

    versine: tl.tensor
    sine: tl.tensor
    across: tl.tensor
    along: tl.tensor
    aligned: tl.tensor


@triton.jit
def polar_rows(pointers, rows, n, DTYPE: tl.constexpr):
    """Some rows' own numbers."""
    return PolarRows(
        load_each(pointers.length, rows, n, DTYPE),
        load_each(pointers.rapidity, rows, n, DTYPE),
        load_each(pointers.decay, rows, n, DTYPE),
        load_each(pointers.sinh, rows, n, DTYPE),
        load_each(pointers.cosh, rows, n, DTYPE),
        load_each(pointers.excess, rows, n, DTYPE),
    )


@triton.jit
def turned(cosine, u, v, limit):
    """From cosines of a tile."""
    cosine = tl.minimum(tl.maximum(cosine, -1, propagate_nan=tl.PropagateNan.ALL), 1, propagate_nan=tl.PropagateNan.ALL)
    versine = 1 - cosine
    sine = tl.sqrt(versine * (1 + cosine))
    p, q = u.rapidity[:, None], v.rapidity[None, :]
    radial = sign(q - p) * exp(-2 * tl.minimum(p, q)) * -expm1(-2 * tl.abs(q - p)) * 0.5
    along = radial - u.cosh[:, None] * v.sinh[None, :] * versine
    aligned = ((versine < limit) | (versine > 2 - limit)) & (u.length != 0)[:, None] & (v.length != 0)[None, :]
    return Turned(versine, sine, u.decay[:, None] * v.sinh[None, :] * sine, along, aligned)


@triton.jit
def _angles(cosine_ptr, x, y, out_ptr, aligned_ptr, n, m, limit, DTYPE: tl.constexpr, TILE: tl.constexpr):
    """Angles of a block from its cosines, and which tiles hold a pair that is left to others."""
    i, j, rows, columns = tile_of(n, m, TILE, TILE)
    inside = (rows < n)[:, None] & (columns < m)[None, :]
    place = rows[:, None] * m + columns[None, :]
    u, v = polar_rows(x, rows, n, DTYPE), polar_rows(y, columns, m, DTYPE)
    pairs = turned(tl.load(cosine_ptr + place, inside, other=0), u, v, limit)
    found = tl.where((u.length == 0)[:, None], HALF_PI, atan2(pairs.across, pairs.along))
    tl.store(out_ptr + place, found, inside)
    tl.store(aligned_ptr + i * tl.cdiv(m, TILE) + j, tl.max((inside & pairs.aligned).to(tl.int32)).to(tl.int8))


class GradientArgs(NamedTuple):
    """Where gradients of a block go: by cosines, by rapidities of rows and of columns for each tile, and by c for each tile."""

    weights: Weights
    rows: tl.tensor
    columns: tl.tensor
    curvature: tl.tensor


@triton.jit
def _angle_gradients(
    cosine_ptr, grad_ptr, x, y, out, n, m, limit,
    TANGENT: tl.constexpr, SPLIT: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Gradients of a block by its cosines, by rapidities and by c, from that of its angles; 0 of pairs left to others."""
    i, j, rows, columns = tile_of(n, m, TILE, TILE)
    inside = (rows < n)[:, None] & (columns < m)[None, :]
    place = rows[:, None] * m + columns[None, :]
    u, v = polar_rows(x, rows, n, DTYPE), polar_rows(y, columns, m, DTYPE)
    pairs = turned(tl.load(cosine_ptr + place, inside, other=0), u, v, limit)
    left_out = pairs.aligned | (u.length == 0)[:, None] | (v.length == 0)[None, :] | (inside == 0)
    size = tl.where(left_out, 1, hypot(pairs.across, tl.abs(pairs.along)))
    upstream = tl.where(left_out, 0, tl.load(grad_ptr + place, inside, other=0)) / size
    p, q = u.rapidity[:, None], v.rapidity[None, :]
    u_decay, u_sinh, u_cosh = u.decay[:, None], u.sinh[:, None], u.cosh[:, None]
    v_decay, v_sinh, v_cosh = v.decay[None, :], v.sinh[None, :], v.cosh[None, :]
    growth = u_sinh * v_sinh * pairs.versine
    # cosh(p - q) and sinh(q - p), both e^-(p+q) times
    even, odd = (v_decay * v_decay + u_decay * u_decay) * 0.5, pairs.along + u_cosh * v_sinh * pairs.versine
    # rounded before they are added, so that threads that share a row or a column have the same bits
    by_row = rounded_product(upstream * (pairs.across / size), even + growth)
    by_column = rounded_product(-upstream * pairs.sine * (u_sinh / size) * u_decay, v_decay * v_decay)
    slope = v_sinh * u_decay * ((odd + u_sinh * v_cosh * pairs.versine) / size)
    weight = -upstream * slope / tl.where(left_out, 1, pairs.sine)
    store_parts(out.weights.ptr + place, weight, inside, out.weights.part_stride, SPLIT)
    store_each(out.rows + j * n, rows, tl.sum(by_row, axis=1), n)
    store_each(out.columns + i * m, columns, tl.sum(by_column, axis=0), m)
    # p d angle / dp + q d angle / dq of tangent vectors (tanh p and tanh q of points)
    apart = exp(-tl.minimum(p, q)) * expm1(-tl.abs(p - q))
    growth += apart * apart * 0.5
    excess = v.excess[None, :] * u_decay - u.excess[:, None] * v_decay
    if TANGENT:
        along = p * v_sinh * u_decay * growth + p * q * excess * (u_decay * v_decay)
    else:
        along = u_sinh * v_sinh / u_cosh * (growth * u_decay + excess / v_cosh * (u_decay * v_decay))
    # beyond the ends there is no number to divide by
    by_curvature = tl.where(left_out, 0, upstream * pairs.sine * (along / size))
    tl.store(out.curvature + i * tl.cdiv(m, TILE) + j, tl.sum(by_curvature))


class _Side:
    """Rows (n d) of one side in polar coordinates, and what has been summed for their gradient."""

    def __init__(self, x: Tensor, c: Tensor, tangent: bool, parts: int):
        self.x, self.polar = x, angle.polar(x, c, tangent)
        p = self.polar.rapidity
        excess = angle.sinhc_excess(self.polar) if tangent else torch.expm1(-p) ** 2 / 2
        numbers = (*self.polar[1:], excess)
        self.numbers = [number[:, 0].contiguous() for number in numbers]
        self.operands = parts_of(self.polar.direction, torch.bfloat16 if parts else c.dtype, max(1, parts))
        self.by_direction, self.exact = torch.zeros_like(x), torch.zeros_like(x)
        self.by_rapidity = c.new_zeros(len(x))

    def rows(self, some: slice) -> PolarRows:
        """Numbers of some rows, as kernels take them."""
        return PolarRows(*(number[some] for number in self.numbers))

    def gradient(self, c: Tensor, tangent: bool) -> Tensor:
        return angle.to_vectors(self.polar, self.by_direction, self.by_rapidity[:, None], c, tangent) + self.exact


class AnglePairs:
    """`hyperst_kernels.blocked.blocks.AllPairs` of exterior angles at the queries."""

    def __init__(self, queries: Tensor, keys: Tensor, c: Tensor, tangent: bool, precision: str):
        self.c, self.tangent, self.parts = c, tangent, parts_of_weights(c.dtype, precision)
        with launch.on_device_of(c):
            self.queries, self.keys = (_Side(x, c, tangent, self.parts) for x in (queries, keys))

    def blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        for rows, columns, values, _, _ in self._blocks():
            yield rows, columns, values

    def _blocks(self) -> Iterator[tuple[slice, slice, Tensor, Tensor, bool]]:
        """Also cosines, and whether some pairs are aligned."""
        for rows, columns in blocks(len(self.queries.x), len(self.keys.x), self.c.device):
            x, y = self.queries.x[rows], self.keys.x[columns]
            with launch.on_device_of(self.c):
                # in the dtype of the geometry: of halves an angle would have 12 bits where pairs begin to be aligned
                cosine = self.queries.polar.direction[rows] @ self.keys.polar.direction[columns].T
                (n, m), out = cosine.shape, torch.empty_like(cosine)
                tile = TILE[cosine.dtype]
                tiles = triton.cdiv(n, tile) * triton.cdiv(m, tile)
                aligned = torch.empty(tiles, dtype=torch.int8, device=cosine.device)
                _angles[(tiles,)](
                    cosine, self.queries.rows(rows), self.keys.rows(columns), out, aligned, n, m, angle.ALIGNED,
                    DTYPE=launch.triton_dtype(cosine.dtype), TILE=tile, **launch.OPTIONS,
                )  # fmt: skip
                some = bool(aligned.any())
                if some:
                    lost = self._aligned(rows, columns, cosine)
                    if too_many(lost):
                        out = angle.values(x, y, self.c, self.tangent)
                    else:
                        for i, j in chunks(lost, x.shape[1]):
                            out[i, j] = angle.exterior_angle(x[i], y[j], self.c, self.tangent)
            yield rows, columns, out, cosine, some

    def _aligned(self, rows: slice, columns: slice, cosine: Tensor) -> Tensor:
        """Which pairs of a block are aligned."""
        return angle.aligned(cosine, self.queries.polar.length[rows], self.keys.polar.length[columns])

    def gradients(self, fill: Fill) -> tuple[Tensor, Tensor, Tensor]:
        c, dc = self.c, self.c.new_zeros((), dtype=torch.float64)
        for rows, columns, values, cosine, some in self._blocks():
            grad = torch.empty_like(values)
            fill(rows, columns, values, grad)
            x, y = self.queries.x[rows], self.keys.x[columns]
            with launch.on_device_of(c):
                lost = self._aligned(rows, columns, cosine) if some else None
                if lost is not None and too_many(lost):
                    dx, dy, of_c = angle.gradients(grad, x, y, c, self.tangent)
                    self.queries.exact[rows] += dx
                    self.keys.exact[columns] += dy
                    dc += of_c
                    continue
                dc += self._add(rows, columns, cosine, grad)
                if lost is not None:
                    dc += angle.add_aligned_gradients(
                        grad, x, y, c, self.tangent, lost, self.queries.exact[rows], self.keys.exact[columns]
                    )
        return self.queries.gradient(c, self.tangent), self.keys.gradient(c, self.tangent), dc

    def _add(self, rows: slice, columns: slice, cosine: Tensor, grad: Tensor) -> Tensor:
        """Take the pairs of a block that are not aligned; returns the gradient of c."""
        c, (n, m), tile = self.c, cosine.shape, TILE[self.c.dtype]
        tiles = (triton.cdiv(n, tile), triton.cdiv(m, tile))
        weights = torch.empty(max(1, self.parts), n, m, dtype=self.queries.operands[0].dtype, device=c.device)
        by_row, by_column, by_c = c.new_empty(tiles[1], n), c.new_empty(tiles[0], m), c.new_empty(tiles)
        _angle_gradients[(tiles[0] * tiles[1],)](
            cosine, grad, self.queries.rows(rows), self.keys.rows(columns),
            GradientArgs(Weights(weights, weights.stride(0), m), by_row, by_column, by_c), n, m, angle.ALIGNED,
            TANGENT=self.tangent, SPLIT=self.parts == 2, DTYPE=launch.triton_dtype(c.dtype), TILE=tile, **launch.OPTIONS,
        )  # fmt: skip
        self.queries.by_rapidity[rows] += by_row.sum(0)
        self.keys.by_rapidity[columns] += by_column.sum(0)
        self.queries.by_direction[rows] += multiply(weights, [part[columns] for part in self.keys.operands])
        self.keys.by_direction[columns] += multiply(weights.mT, [part[rows] for part in self.queries.operands])
        return by_c.sum(dtype=torch.float64) / (2 * c.double())
