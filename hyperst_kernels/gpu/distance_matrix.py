"""The matrix of all distances from one tiled product, cancelled pairs repaired from exact differences; and its gradient.

With s the scale from a given vector to sqrt(c) times its point and a = sqrt(c) x_t - 1,

    delta_ij = a_i b_j + a_i + b_j - s_i s_j <x_i, y_j>            d = acosh(1 + delta) / sqrt(c)

Where delta is small beside what it was subtracted from, the product has lost its digits: such pairs are computed again
feature by feature, in a second kernel that looks only at tiles which hold one. Backward, W_ij = G_ij / (sqrt(c) sinh(sqrt(c)
d_ij)) weighs the points in two products, and cancelled pairs again go their own way. Every sum has a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels._checks import geometry_dtype
from hyperst_kernels.gpu import launch, maps
from hyperst_kernels.gpu.exact_pairs import EXACT_TILE, Vectors, add_point_gradients, compare_all, points_of
from hyperst_kernels.gpu.pair import distance_of, per_chord, slopes_of_distance
from hyperst_kernels.gpu.scalars import (
    INTERPRETED,
    at_least,
    exp,
    expm1,
    hypot1,
    log1p,
    nonzero,
    rounded_product,
    sinhc,
    sqrt_rn,
)
from hyperst_kernels.gpu.split_products import Weights, multiply, parts_of, parts_of_weights, store_weights, summands
from hyperst_kernels.gpu.tile_math import block, dot, load_each, load_rows, store_each

# Bits of the product that cancellation may take before a pair is computed from differences.
CANCELLED = {torch.float32: 2.0**-6, torch.float64: 2.0**-12}


# -------------------------------------------------------------------------------------------------------- each row


@triton.jit
def scale_and_excess(length, factor, c, TANGENT: tl.constexpr):
    """From vectors of these lengths, times a factor, to sqrt(c) times their points; and sqrt(c) x_t - 1."""
    scale = sqrt_rn(c) * factor + 0 * length
    if TANGENT:
        scale *= sinhc(c * (factor * length) * (factor * length))
    reach = scale * length
    return scale, reach * (reach / (1 + hypot1(reach)))


@triton.jit
def _row_stats(
    x_ptr, c_ptr, norm_ptr, scale_ptr, excess_ptr, x_stride, n, d,
    TANGENT: tl.constexpr, ROUNDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    c = tl.load(c_ptr)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    store_each(norm_ptr, rows, sqrt_rn(dot(x, x)), n)
    if ROUNDED:
        x = x.to(tl.bfloat16).to(ROWS.DTYPE)
    scale, excess = scale_and_excess(tl.sqrt(dot(x, x)), 1, c, TANGENT)
    store_each(scale_ptr, rows, scale, n)
    store_each(excess_ptr, rows, excess, n)


def row_stats(x: Tensor, c: Tensor, tangent: bool, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    """|x|, s and a of each row, from the numbers that enter the product."""
    norm, scale, excess = (launch.scalars_like(x, len(x)) for _ in range(3))
    rounded = precision == "bf16" and x.dtype == torch.float32
    launch.over_rows(_row_stats, "map", x, x, c, norm, scale, excess, x.stride(0), TANGENT=tangent, ROUNDED=rounded)
    return norm, scale, excess


# --------------------------------------------------------------------------------------------------------- product


class Operand(NamedTuple):
    """A matrix (n d) of a product: its stride from row to row, how many rows, and s and a of each."""

    ptr: tl.tensor
    stride: tl.tensor
    n: tl.tensor
    scale_ptr: tl.tensor
    excess_ptr: tl.tensor


class Tiling(NamedTuple):
    """What the kernel of products knows when it is compiled.

    ROUNDED features, PRECISION for ``tl.dot``, DTYPE of results, OPERAND that of tiles; blocks of rows, columns and features.
    """

    ROUNDED: bool
    PRECISION: str
    DTYPE: tl.dtype
    OPERAND: tl.dtype
    BLOCK_N: int
    BLOCK_M: int
    BLOCK_D: int


@triton.jit
def tile_of(n, m, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """Rows and columns of this program's tile; neighbours in time share rows and columns in the cache."""
    GROUP: tl.constexpr = 8
    tiles_n, tiles_m = tl.cdiv(n, BLOCK_N), tl.cdiv(m, BLOCK_M)
    program = tl.program_id(0).to(tl.int64)
    group = program // (GROUP * tiles_m)
    height = tl.minimum(tiles_n - group * GROUP, GROUP)
    i = group * GROUP + program % (GROUP * tiles_m) % height
    j = program % (GROUP * tiles_m) // height
    return i, j, i * BLOCK_N + tl.arange(0, BLOCK_N), j * BLOCK_M + tl.arange(0, BLOCK_M)


@triton.jit
def operand(matrix, first, start, d, BLOCK: tl.constexpr, TILING: tl.constexpr):
    """Some features of the rows from ``first`` (64 bit) on; within the tile 32 bits are enough for an offset."""
    features = start + tl.arange(0, TILING.BLOCK_D)
    place = matrix.ptr + first * matrix.stride
    tile = load_rows(place, tl.arange(0, BLOCK), features, matrix.stride, matrix.n - first, d, TILING.OPERAND)
    if TILING.ROUNDED:
        tile = tile.to(tl.bfloat16)
        if INTERPRETED:  # which cannot multiply bf16
            tile = tile.to(tl.float32)
    return tile


@triton.jit
def products(x, y, first_row, first_column, d, TILING: tl.constexpr):
    """<x_i, y_j> of a tile of rows of x (n d) and y (m d), accumulated in DTYPE."""
    BLOCK_N: tl.constexpr = TILING.BLOCK_N
    BLOCK_M: tl.constexpr = TILING.BLOCK_M
    tile = tl.zeros([BLOCK_N, BLOCK_M], TILING.DTYPE)
    for start in range(0, d, TILING.BLOCK_D):
        left = operand(x, first_row, start, d, BLOCK_N, TILING)
        right = operand(y, first_column, start, d, BLOCK_M, TILING)
        tile = tl.dot(left, tl.trans(right), tile, input_precision=TILING.PRECISION, out_dtype=TILING.DTYPE)
    return tile


@triton.jit
def span_of(a, b):
    """What delta was subtracted from: x_t y_t c - 1 of all pairs."""
    return a[:, None] * b[None, :] + (a[:, None] + b[None, :])


@triton.jit
def _pairwise(x, y, c_ptr, out_ptr, cancelled_ptr, d, limit, TILING: tl.constexpr):
    DTYPE: tl.constexpr = TILING.DTYPE
    n, m = x.n, y.n
    i, j, rows, columns = tile_of(n, m, TILING.BLOCK_N, TILING.BLOCK_M)
    product = products(x, y, i * TILING.BLOCK_N, j * TILING.BLOCK_M, d, TILING)
    scale_x, scale_y = load_each(x.scale_ptr, rows, n, DTYPE), load_each(y.scale_ptr, columns, m, DTYPE)
    span = span_of(load_each(x.excess_ptr, rows, n, DTYPE), load_each(y.excess_ptr, columns, m, DTYPE))
    delta = at_least(span - product * scale_x[:, None] * scale_y[None, :], 0)
    inside = (rows < n)[:, None] & (columns < m)[None, :]
    cancelled = inside & (delta <= limit * span)
    tl.store(cancelled_ptr + i * tl.cdiv(m, TILING.BLOCK_M) + j, tl.max(cancelled.to(tl.int32)).to(tl.int8))
    # cancelled pairs are marked by the sign: the second kernel must not judge by a rounded distance
    distance = log1p(delta + tl.sqrt(delta) * tl.sqrt(delta + 2)) / sqrt_rn(tl.load(c_ptr))
    tl.store(out_ptr + rows[:, None] * m + columns[None, :], tl.where(cancelled, -1, distance), inside)


@launch.on_own_device
def pairwise_distance(x: Tensor, y: Tensor, c: Tensor, tangent: bool, precision: str) -> Tensor:
    """(n d), (m d) -> (n m) in the geometry's dtype."""
    x, y = launch.unit_stride(x), launch.unit_stride(y)
    (n, d), m = x.shape, len(y)
    out = c.new_empty(n, m)
    if out.numel() == 0:
        return out
    if d == 0:
        return out.zero_()
    norm_x, scale_x, a = row_stats(x, c, tangent, precision)
    norm_y, scale_y, b = row_stats(y, c, tangent, precision)
    told = launch.product_precision(x.dtype, precision)
    # without tensor cores a tile's accumulator and operands need twice the registers
    table = launch.settings("plain product" if told == "ieee" and x.element_size() >= 4 else "product", d, x.dtype)
    size = {"BLOCK_N": table["rows"], "BLOCK_M": table["columns"]}
    tiles = (triton.cdiv(n, size["BLOCK_N"]), triton.cdiv(m, size["BLOCK_M"]))
    cancelled = torch.empty(tiles, dtype=torch.int8, device=x.device)
    numbers = {"DTYPE": launch.triton_dtype(c.dtype), **launch.OPTIONS}
    tiling = Tiling(
        ROUNDED=precision == "bf16" and x.dtype == torch.float32, PRECISION=told, DTYPE=numbers["DTYPE"],
        OPERAND=launch.operand_dtype(x.dtype), BLOCK_D=table["inner"], **size,
    )  # fmt: skip
    _pairwise[(tiles[0] * tiles[1],)](
        Operand(x, x.stride(0), n, scale_x, a), Operand(y, y.stride(0), m, scale_y, b), c, out, cancelled, d, CANCELLED[c.dtype],
        TILING=tiling, num_warps=table["warps"], num_stages=table["stages"], **launch.OPTIONS,
    )  # fmt: skip
    _repair[(tiles[0] * tiles[1],)](
        Vectors(x, x.stride(0), n, norm_x), Vectors(y, y.stride(0), m, norm_y), c, out, cancelled, d, TANGENT=tangent,
        TILE=EXACT_TILE[c.dtype], num_warps=8 if c.dtype == torch.float64 else 4, **numbers, **size,
    )  # fmt: skip
    return out


# ------------------------------------------------------------------------------------------------------ cancelled pairs


@triton.jit
def _repair(
    x, y, c_ptr, out_ptr, cancelled_ptr, d,
    TANGENT: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    # one axis: the second holds 65,535 programs at most
    program, tiles_m = tl.program_id(0).to(tl.int64), tl.cdiv(y.n, BLOCK_M)
    i, j = program // tiles_m, program % tiles_m
    if tl.load(cancelled_ptr + program) != 0:
        k = sqrt_rn(tl.load(c_ptr))
        for part in range(0, (BLOCK_N // TILE) * (BLOCK_M // TILE)):
            rows = i * BLOCK_N + part // (BLOCK_M // TILE) * TILE + tl.arange(0, TILE)
            columns = j * BLOCK_M + part % (BLOCK_M // TILE) * TILE + tl.arange(0, TILE)
            inside = (rows < x.n)[:, None] & (columns < y.n)[None, :]
            place = out_ptr + rows[:, None] * y.n + columns[None, :]
            cancelled = tl.load(place, inside, other=0) < 0
            if tl.max(cancelled.to(tl.int32)) != 0:
                u, v = points_of(x, rows, DTYPE), points_of(y, columns, DTYPE)
                r, half_chord, _, _ = compare_all(u, v, d, TILE, DTYPE)
                tl.store(place, distance_of(u.norm[:, None], v.norm[None, :], r, half_chord, k, TANGENT), cancelled)


@triton.jit
def _weights(
    grad_ptr, distance_ptr, c_ptr, a_ptr, b_ptr, out, cancelled_ptr, scale_grad_ptr, n, m, limit,
    SPLIT: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Weights of points; which tiles hold cancelled pairs, and their sums of the gradient times the distance."""
    i, j, rows, columns = tile_of(n, m, TILE, TILE)
    inside = (rows < n)[:, None] & (columns < m)[None, :]
    place = rows[:, None] * m + columns[None, :]
    grad = tl.load(grad_ptr + place, inside, other=0).to(DTYPE)
    distance = tl.load(distance_ptr + place, inside, other=0)
    k = sqrt_rn(tl.load(c_ptr))
    D = k * distance
    growth = -expm1(-D)  # sinh D = e^D (1 - e^-D)(1 + e^-D) / 2, cosh D - 1 = e^D (1 - e^-D)^2 / 2
    span = span_of(load_each(a_ptr, rows, n, DTYPE), load_each(b_ptr, columns, m, DTYPE))
    decay = exp(-D)
    cancelled = growth * growth <= 2 * limit * span * decay
    weight = tl.where(cancelled, 0, grad * 2 * decay / (k * nonzero(growth * (1 + decay))))
    store_weights(out.ptr + place, weight, inside, out.part_stride, SPLIT)
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
    for j in range(0, tl.cdiv(y.n, TILE)):
        if tl.load(cancelled.ptr + i * cancelled.row_stride + j * cancelled.column_stride) != 0:
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


@launch.on_own_device
def pairwise_distance_backward(
    grad: Tensor, x: Tensor, y: Tensor, c: Tensor, distance: Tensor, tangent: bool, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (n d), y (m d) and c () from that of the matrix (n m). Holds one more matrix of that size."""
    x, y, grad, distance = launch.unit_stride(x), launch.unit_stride(y), grad.contiguous(), distance.contiguous()
    (n, d), m = x.shape, len(y)
    if grad.numel() == 0 or d == 0:
        return torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(c)
    # of the exact numbers, not of those a low precision rounded: the gradient is that of the true distance
    norm_x, scale_x, a = row_stats(x, c, tangent, "ieee")
    norm_y, scale_y, b = row_stats(y, c, tangent, "ieee")
    tile = EXACT_TILE[c.dtype]
    tiles = (triton.cdiv(n, tile), triton.cdiv(m, tile))
    parts = parts_of_weights(c.dtype, precision)
    weights = torch.empty(max(1, parts), n, m, dtype=torch.bfloat16 if parts else c.dtype, device=x.device)
    out, by_distance = Weights(weights, weights.stride(0), m), c.new_empty(tiles)
    cancelled = torch.empty(tiles, dtype=torch.int8, device=x.device)
    numbers = {"DTYPE": launch.triton_dtype(c.dtype), **launch.OPTIONS}
    _weights[(tiles[0] * tiles[1],)](
        grad,
        distance,
        c,
        a,
        b,
        out,
        cancelled,
        by_distance,
        n,
        m,
        CANCELLED[c.dtype],
        SPLIT=parts == 2,
        TILE=tile,
        **numbers,
    )
    dx = _grad_points(weights, x, y, scale_x, scale_y, a, b, c, tangent)
    dy = _grad_points(weights.mT, y, x, scale_y, scale_x, b, a, c, tangent)
    u, v = Vectors(x, x.stride(0), n, norm_x), Vectors(y, y.stride(0), m, norm_y)
    flags = {"TANGENT": tangent, "TILE": tile, "num_warps": 8, **numbers}
    _cancelled_gradients[(tiles[0],)](
        u, v, c, Tiles(grad, m, 1), weights, Tiles(cancelled, tiles[1], 1), dx, d, **flags
    )
    _cancelled_gradients[(tiles[1],)](
        v, u, c, Tiles(grad, 1, m), weights, Tiles(cancelled, 1, tiles[1]), dy, d, **flags
    )
    # d is homogeneous in the vectors and 1/sqrt(c)
    homogeneity = sum((v.double() * dv).sum() for v, dv in ((x, dx), (y, dy))) - by_distance.sum(dtype=torch.float64)
    return dx.to(x.dtype), dy.to(y.dtype), (homogeneity / (2 * c.double())).to(c.dtype)


def _grad_points(
    weights: Tensor,
    x: Tensor,
    y: Tensor,
    scale_x: Tensor,
    scale_y: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    tangent: bool,
) -> Tensor:
    """Gradient of x (n d) in the geometry's dtype from the weights (parts n m) of all pairs but the cancelled ones."""
    dtype = geometry_dtype(x)
    times = summands(
        1 + b, weights.dtype
    )  # beside the points: a product of weights and one vector takes as long as one more
    points, *rest = parts_of(scale_y[:, None] * y.to(dtype), weights)
    operands = [torch.cat([points, times], 1), *(torch.cat([part, torch.zeros_like(times)], 1) for part in rest)]
    sums = multiply(weights, operands)
    of_times, of_points = sums[:, y.shape[1] :].sum(1), sums[:, : y.shape[1]]
    grad_points = (of_times * (scale_x / (1 + a)))[:, None] * x.to(dtype) - of_points
    if not tangent:
        return grad_points * c.sqrt()
    return maps.exp_map0_backward(grad_points * c.sqrt(), x.to(dtype), torch.ones_like(c), c)[0]
