"""The matrix of all distances from one tiled product, cancelled pairs repaired from exact differences.

With s the scale from a given vector to sqrt(c) times its point and a = sqrt(c) x_t - 1,

    delta_ij = a_i b_j + a_i + b_j - s_i s_j <x_i, y_j>            d = acosh(1 + delta) / sqrt(c)

Where delta is small beside what it was subtracted from, the product has lost its digits: such pairs are computed again
feature by feature, in a second kernel that looks only at tiles which hold one. The gradient is in `distance_matrix_backward`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.exact_pairs import EXACT_TILE, Vectors, compare_all, points_of
from hyperst_kernels.gpu.pair import distance_of
from hyperst_kernels.gpu.scalars import (
    INTERPRETED,
    at_least,
    hypot1,
    log1p,
    sinhc,
    sqrt_rn,
)
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
def put_distances(product, x, y, rows, columns, c_ptr, out_ptr, cancelled_ptr, limit, DTYPE: tl.constexpr):
    """Store the distances of a tile from its product of vectors, and whether it holds a cancelled pair."""
    n, m = x.n, y.n
    scale_x, scale_y = load_each(x.scale_ptr, rows, n, DTYPE), load_each(y.scale_ptr, columns, m, DTYPE)
    span = span_of(load_each(x.excess_ptr, rows, n, DTYPE), load_each(y.excess_ptr, columns, m, DTYPE))
    delta = at_least(span - product * scale_x[:, None] * scale_y[None, :], 0)
    delta = tl.where(delta < float("inf"), delta, float("nan"))  # a distance that is infinite would be a wrong one
    inside = (rows < n)[:, None] & (columns < m)[None, :]
    cancelled = inside & (delta <= limit * span)
    tl.store(cancelled_ptr, tl.max(cancelled.to(tl.int32)).to(tl.int8))
    # cancelled pairs are marked by the sign: the second kernel must not judge by a rounded distance
    distance = log1p(delta + tl.sqrt(delta) * tl.sqrt(delta + 2)) / sqrt_rn(tl.load(c_ptr))
    tl.store(out_ptr + rows[:, None] * m + columns[None, :], tl.where(cancelled, -1, distance), inside)


@triton.jit
def _pairwise(x, y, c_ptr, out_ptr, cancelled_ptr, d, limit, TILING: tl.constexpr):
    i, j, rows, columns = tile_of(x.n, y.n, TILING.BLOCK_N, TILING.BLOCK_M)
    product = products(x, y, i * TILING.BLOCK_N, j * TILING.BLOCK_M, d, TILING)
    place = cancelled_ptr + i * tl.cdiv(y.n, TILING.BLOCK_M) + j
    put_distances(product, x, y, rows, columns, c_ptr, out_ptr, place, limit, TILING.DTYPE)


@triton.jit
def _distances(x, y, c_ptr, out_ptr, cancelled_ptr, limit, DTYPE: tl.constexpr, TILE: tl.constexpr):
    """Put distances in the place of products of vectors (n m)."""
    i, j, rows, columns = tile_of(x.n, y.n, TILE, TILE)
    inside = (rows < x.n)[:, None] & (columns < y.n)[None, :]
    product = tl.load(out_ptr + rows[:, None] * y.n + columns[None, :], inside, other=0)
    place = cancelled_ptr + i * tl.cdiv(y.n, TILE) + j
    put_distances(product, x, y, rows, columns, c_ptr, out_ptr, place, limit, DTYPE)


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
    vectors = Vectors(x, x.stride(0), n, norm_x), Vectors(y, y.stride(0), m, norm_y)
    repair(*vectors, c, out, cancelled, d, tangent, (table["rows"], table["columns"]))
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


def repair(
    x: Vectors, y: Vectors, c: Tensor, out: Tensor, cancelled: Tensor, d: int, tangent: bool, size: tuple[int, int]
) -> None:
    """Compute the distances marked in ``out`` (n m) from differences; ``cancelled`` are the flags of tiles of a size."""
    _repair[(cancelled.numel(),)](
        x, y, c, out, cancelled, d, TANGENT=tangent, DTYPE=launch.triton_dtype(c.dtype), TILE=EXACT_TILE[c.dtype],
        BLOCK_N=size[0], BLOCK_M=size[1], num_warps=8 if c.dtype == torch.float64 else 4, **launch.OPTIONS,
    )  # fmt: skip
