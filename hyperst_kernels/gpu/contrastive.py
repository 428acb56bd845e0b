"""InfoNCE over distances without the matrix: log-sum-exps of both directions in one pass, gradients in blocks.

One tile of the product serves rows and columns. With the terms of each row (``_prepare``), all geometries are
z_ij = t_i b_j + a_i - s_i s_j <x_i, y_j> and a logit that falls with z; logits carry the factor log2(e), so that powers of 2
serve for exponentials. Positives never enter: they are computed row by row from exact differences, and the log-sum-exp
runs over negatives only.

A tile that holds a near pair (``NEAR``), whose product has lost its digits, is flagged by the forward pass and left to
kernels that work feature by feature. The flags are kept: every later pass splits the pairs in the same way, whatever its
own rounding says. Backward, blocks of weights meet the points in library products; all sums have a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from hyperst_kernels._checks import geometry_dtype
from hyperst_kernels.cpu.geometry import geometry_of
from hyperst_kernels.gpu import distance as row_wise
from hyperst_kernels.gpu import launch, maps, pairwise
from hyperst_kernels.gpu.pairwise import NEAR_TILE, add_pulls, compare_all, feature, near_slopes, operand, products
from hyperst_kernels.gpu.tile_math import asinh, at_least, load_each, rapidity, root_haversine, store_each

GEOMETRIES = {"lorentz": 0, "euclidean": 1, "cosine": 2}
# z beside what it was subtracted from, below which a pair is near: it keeps 15 of 23 bits, and half of that error counts.
NEAR = {torch.float32: 2.0**-8, torch.float64: 2.0**-16}
BLOCK = 8192  # rows and columns whose weights are in memory together
LOG2_E = 1.4426950408889634


# ------------------------------------------------------------------------------------------------------ prepared rows


class _Side(NamedTuple):
    """Queries or keys (r d) and the terms of each (r): norm, scale s, time t and excess a."""

    vectors: Tensor
    norm: Tensor
    scale: Tensor
    time: Tensor
    excess: Tensor


def _prepare(vectors: Tensor, c: Tensor, geometry: str, tangent: bool, precision: str) -> _Side:
    vectors = launch.unit_stride(vectors)
    norm, scale, excess = pairwise.terms_of(vectors, c, tangent, precision)
    one = torch.ones_like(norm)
    if geometry == "lorentz":
        return _Side(vectors, norm, scale, 1 + excess, excess)
    if geometry == "euclidean":  # |x|^2 + |y|^2 - 2 <x, y>
        return _Side(vectors, norm, 2**0.5 * one, one, norm * norm)
    return _Side(vectors, norm, 1 / norm.clamp(min=1e-12), one, one / 2)  # 1 - cos


# ------------------------------------------------------------------------------------------------------------- tiles


@triton.jit
def log2(x, FAST: tl.constexpr):
    if FAST:
        return libdevice.fast_log2f(x)
    return tl.log2(x)


@triton.jit
def logits_of(z, steepness, GEOMETRY: tl.constexpr, FAST: tl.constexpr):
    """log2(e) times the logit, minus a distance times a steepness."""
    if GEOMETRY == 0:
        # log(1 + z + sqrt(z (z + 2))) = acosh(1 + z); far out the square would overflow
        return -steepness * log2(tl.where(z > 1e18, 2 * z, (1 + z) + tl.sqrt(z * (z + 2))), FAST)
    if GEOMETRY == 1:
        return -steepness * tl.sqrt(z)
    return -steepness * z


@triton.jit
def slope_of(z, GEOMETRY: tl.constexpr):
    """Derivative of the distance by z, but for the factor 1/sqrt(c); finite at 0, where its weight is 0."""
    z = at_least(z, 1e-30)
    if GEOMETRY == 0:
        return tl.where(z > 1e18, 1 / z, tl.rsqrt(z * (z + 2)))
    if GEOMETRY == 1:
        return tl.rsqrt(z) / 2
    return 1 + 0 * z


@triton.jit
def tile_logits(
    x_tile, x_ptr, y_ptr, scale_y_ptr, b_ptr, ids_ptr, first, start, scale_x, time, a, row_ids, steepness,
    x_stride, y_stride, n, m, d, GEOMETRY: tl.constexpr, EXCLUDE: tl.constexpr, FAST: tl.constexpr,
    ROUNDED: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, OPERAND: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """z and the logits of a tile, -inf at positives, excluded pairs and beyond the ends; and the excesses of the keys.

    Rows from ``first`` and columns from ``start`` on, 64 bit. WHOLE: ``x_tile`` holds the rows already, all features of them.
    """
    columns = start + tl.arange(0, BLOCK_M)
    if WHOLE:
        y = operand(y_ptr, start, 0, y_stride, m, d, ROUNDED, OPERAND, BLOCK_M, BLOCK_D)
        product = tl.dot(x_tile, tl.trans(y), input_precision=PRECISION, out_dtype=DTYPE)
    else:
        product = products(
            x_ptr, y_ptr, first, start, x_stride, y_stride, n, m, d,
            ROUNDED, PRECISION, DTYPE, OPERAND, BLOCK_N, BLOCK_M, BLOCK_D,
        )  # fmt: skip
    scale_y = load_each(scale_y_ptr, columns, m, DTYPE)
    b = tl.load(b_ptr + columns, columns < m, other=float("inf")).to(DTYPE)  # what is beyond is infinitely far
    z = time[:, None] * b[None, :] + a[:, None] - product * scale_x[:, None] * scale_y[None, :]
    z = tl.maximum(z, 0, propagate_nan=tl.PropagateNan.ALL)
    logits = logits_of(z, steepness, GEOMETRY, FAST)
    if (start < first + BLOCK_N) & (first < start + BLOCK_M):
        same = (tl.arange(0, BLOCK_N) + (first - start).to(tl.int32))[:, None] == tl.arange(0, BLOCK_M)[None, :]
        logits = tl.where(same, float("-inf"), logits)
    if EXCLUDE:
        ids = tl.load(ids_ptr + columns, columns < m, other=0)
        logits = tl.where(row_ids[:, None] == ids[None, :], float("-inf"), logits)
    return z, logits, b


@triton.jit
def row_terms(scale_ptr, time_ptr, a_ptr, ids_ptr, rows, n, EXCLUDE: tl.constexpr, DTYPE: tl.constexpr):
    """Scale, time, excess and id of some rows; those beyond the end are infinitely far from everything."""
    ids = rows
    if EXCLUDE:
        ids = tl.load(ids_ptr + rows, rows < n, other=0)
    return (
        load_each(scale_ptr, rows, n, DTYPE),
        tl.load(time_ptr + rows, rows < n, other=1).to(DTYPE),
        tl.load(a_ptr + rows, rows < n, other=float("inf")).to(DTYPE),
        ids,
    )


@triton.jit
def finite(maximum):
    """A maximum that may be subtracted: 0 for the -inf of a sum with nothing in it."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def holds_near(best, time, a, b, rows, columns, n, m, steepness, limit, GEOMETRY: tl.constexpr):
    """Whether a row's best logit belongs to a z below ``limit`` times the widest span of the tile."""
    widest = time * tl.max(tl.where(columns < m, b, 0)) + a
    distance = -best / steepness
    if GEOMETRY == 0:
        u = tl.exp2(distance)
        z = (u - 1) * (u - 1) / (2 * u)
    else:
        z = distance * distance
    return tl.max(((z <= limit * widest) & (rows < n)).to(tl.int32)) != 0


# ----------------------------------------------------------------------------------------------------------- forward


@triton.jit
def _log_sum_exps(
    x_ptr, y_ptr, scale_x_ptr, scale_y_ptr, time_ptr, a_ptr, b_ptr, ids_ptr, steepness_ptr,
    row_ptr, column_max_ptr, column_sum_ptr, flag_ptr, x_stride, y_stride, n, m, d, limit,
    SYMMETRIC: tl.constexpr, GEOMETRY: tl.constexpr, EXCLUDE: tl.constexpr, FAST: tl.constexpr, ROUNDED: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, OPERAND: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Each program owns blocks of rows; the columns' sums of its rows go to a workspace (programs, n) of its own."""
    program = tl.program_id(0).to(tl.int64)
    steepness = tl.load(steepness_ptr)
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK_N), tl.num_programs(0)):
        first = tl.cast(block, tl.int64) * BLOCK_N
        rows = first + tl.arange(0, BLOCK_N)
        scale_x, time, a, row_ids = row_terms(scale_x_ptr, time_ptr, a_ptr, ids_ptr, rows, n, EXCLUDE, DTYPE)
        x_tile = rows
        if WHOLE:
            x_tile = operand(x_ptr, first, 0, x_stride, n, d, ROUNDED, OPERAND, BLOCK_N, BLOCK_D)
        maximum = tl.full([BLOCK_N], float("-inf"), DTYPE)
        total = tl.zeros([BLOCK_N], DTYPE)
        for start in range(0, m, BLOCK_M):
            columns = tl.cast(start, tl.int64) + tl.arange(0, BLOCK_M)
            _, logits, b = tile_logits(
                x_tile, x_ptr, y_ptr, scale_y_ptr, b_ptr, ids_ptr, first, tl.cast(start, tl.int64), scale_x, time, a,
                row_ids, steepness, x_stride, y_stride, n, m, d,
                GEOMETRY, EXCLUDE, FAST, ROUNDED, PRECISION, DTYPE, OPERAND, WHOLE, BLOCK_N, BLOCK_M, BLOCK_D,
            )  # fmt: skip
            best = tl.max(logits, axis=1)
            near = False
            if GEOMETRY != 2:
                near = holds_near(best, time, a, b, rows, columns, n, m, steepness, limit, GEOMETRY)
                place = flag_ptr + tl.cast(block, tl.int64) * tl.cdiv(m, BLOCK_M) + start // BLOCK_M
                tl.store(place, near.to(tl.int8))
            if near == 0:
                new = tl.maximum(maximum, best)
                anchor = finite(new)
                total = total * tl.exp2(maximum - anchor) + tl.sum(tl.exp2(logits - anchor[:, None]), axis=1)
                maximum = new
                if SYMMETRIC:  # noqa: SIM102 (known when compiled; the other when run)
                    if start < n:
                        inside = columns < n
                        mine = program * n + columns
                        before = tl.load(column_max_ptr + mine, inside, other=float("-inf"))
                        sums = tl.load(column_sum_ptr + mine, inside, other=0)
                        highest = tl.maximum(before, tl.max(logits, axis=0))
                        below = finite(highest)
                        gained = tl.sum(tl.exp2(logits - below[None, :]), axis=0)
                        tl.store(column_sum_ptr + mine, sums * tl.exp2(before - below) + gained, inside)
                        tl.store(column_max_ptr + mine, highest, inside)
        store_each(row_ptr, rows, maximum + tl.log2(total), n)


@triton.jit
def _merge(maximum_ptr, sum_ptr, out_ptr, programs, n, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """The columns' log-sum-exps from those of all programs, in their order."""
    columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    maximum = tl.full([BLOCK], float("-inf"), DTYPE)
    for program in range(0, programs):
        place = tl.cast(program, tl.int64) * n + columns
        maximum = tl.maximum(maximum, tl.load(maximum_ptr + place, columns < n, other=float("-inf")))
    anchor = finite(maximum)
    total = tl.zeros([BLOCK], DTYPE)
    for program in range(0, programs):
        place = tl.cast(program, tl.int64) * n + columns
        part = tl.load(maximum_ptr + place, columns < n, other=float("-inf"))
        total += tl.load(sum_ptr + place, columns < n, other=0) * tl.exp2(part - anchor)
    store_each(out_ptr, columns, maximum + tl.log2(total), n)


# ------------------------------------------------------------------------------------------------------- near tiles


@triton.jit
def exact_pairs(
    x_ptr, y_ptr, rows, columns, x_stride, y_stride, norm_x, norm_y, k, n, m, d,
    GEOMETRY: tl.constexpr, TANGENT: tl.constexpr, GRADIENT: tl.constexpr, TILE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Distances of every row from every column, and what `add_pulls` needs for their gradients."""
    nothing = tl.zeros([TILE, TILE], DTYPE)
    if GEOMETRY == 0:
        r, half_chord, per_sum, leftover = compare_all(
            x_ptr, y_ptr, rows, columns, x_stride, y_stride, norm_x, norm_y, n, m, d, TILE, DTYPE
        )
        p, q, delta = rapidity(norm_x[:, None], norm_y[None, :], r, k, TANGENT)
        distance = 2 / k * asinh(root_haversine(p, q, delta, half_chord))
        if GRADIENT:
            along, across = near_slopes(p, q, delta, half_chord, TANGENT)
            return distance, r, per_sum, leftover, along, across
        return distance, nothing, nothing, nothing, nothing, nothing
    square = nothing
    for j in range(0, d):
        u = feature(x_ptr, rows, x_stride, n, j, DTYPE)[:, None]
        v = feature(y_ptr, columns, y_stride, m, j, DTYPE)[None, :]
        square += (u - v) * (u - v)
    distance = tl.sqrt(square)
    return distance, nothing, nothing + 0.5, nothing, nothing, 1 / tl.where(distance == 0, 1, distance)


@triton.jit
def exact_logits(distance, ids_ptr, rows, columns, steepness, n, m, EXCLUDE: tl.constexpr):
    """log2(e) times the logits, -inf where a pair does not take part."""
    part = (rows < n)[:, None] & (columns < m)[None, :] & (rows[:, None] != columns[None, :])
    if EXCLUDE:
        row_ids, ids = tl.load(ids_ptr + rows, rows < n, other=0), tl.load(ids_ptr + columns, columns < m, other=0)
        part = part & (row_ids[:, None] != ids[None, :])
    return tl.where(part, -steepness * distance, float("-inf"))


@triton.jit
def _near_log_sum_exps(
    x_ptr, y_ptr, c_ptr, norm_x_ptr, norm_y_ptr, ids_ptr, steepness_ptr, flag_ptr, out_ptr,
    x_stride, y_stride, flag_row_stride, flag_column_stride, n, m, d,
    TANGENT: tl.constexpr, GEOMETRY: tl.constexpr, EXCLUDE: tl.constexpr, DTYPE: tl.constexpr,
    TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of some rows over the pairs of flagged tiles."""
    rows = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    block = tl.program_id(0).to(tl.int64) * TILE // BLOCK_N
    k, steepness = tl.sqrt(tl.load(c_ptr)), tl.load(steepness_ptr)
    norm_x = load_each(norm_x_ptr, rows, n, DTYPE)
    maximum, total = tl.full([TILE], float("-inf"), DTYPE), tl.zeros([TILE], DTYPE)
    for start in range(0, m, TILE):
        if tl.load(flag_ptr + block * flag_row_stride + start // BLOCK_M * flag_column_stride) != 0:
            columns = tl.cast(start, tl.int64) + tl.arange(0, TILE)
            norm_y = load_each(norm_y_ptr, columns, m, DTYPE)
            distance, _, _, _, _, _ = exact_pairs(
                x_ptr, y_ptr, rows, columns, x_stride, y_stride, norm_x, norm_y, k, n, m, d,
                GEOMETRY, TANGENT, False, TILE, DTYPE,
            )  # fmt: skip
            logits = exact_logits(distance, ids_ptr, rows, columns, steepness, n, m, EXCLUDE)
            new = tl.maximum(maximum, tl.max(logits, axis=1))
            anchor = finite(new)
            total = total * tl.exp2(maximum - anchor) + tl.sum(tl.exp2(logits - anchor[:, None]), axis=1)
            maximum = new
    store_each(out_ptr, rows, maximum + tl.log2(total), n)


# ---------------------------------------------------------------------------------------------------------- backward


@triton.jit
def shares(logits, row_lse, column_lse, row_grad, column_grad, SYMMETRIC: tl.constexpr):
    """dL / d logit: the softmax over the row times the row's upstream gradient, and the same of the column."""
    share = tl.exp2(logits - row_lse[:, None]) * row_grad[:, None]
    if SYMMETRIC:
        share += tl.exp2(logits - column_lse[None, :]) * column_grad[None, :]
    return share


@triton.jit
def _weights(
    x_ptr, y_ptr, scale_x_ptr, scale_y_ptr, time_ptr, a_ptr, b_ptr, ids_ptr, steepness_ptr, slope_ptr,
    row_lse_ptr, column_lse_ptr, row_grad_ptr, column_grad_ptr, flag_ptr, weight_ptr, along_ptr,
    x_stride, y_stride, weight_stride, n, m, d, first_row, first_column, tiles_m,
    SYMMETRIC: tl.constexpr, GEOMETRY: tl.constexpr, EXCLUDE: tl.constexpr, FAST: tl.constexpr, ROUNDED: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, OPERAND: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dL/dz of a block of pairs, 0 in flagged tiles; and each tile's sum of dL/dlogit times the logit."""
    top, left = first_row + tl.program_id(0) // tiles_m * BLOCK_N, first_column + tl.program_id(0) % tiles_m * BLOCK_M
    rows, columns = tl.cast(top, tl.int64) + tl.arange(0, BLOCK_N), tl.cast(left, tl.int64) + tl.arange(0, BLOCK_M)
    tile = tl.cast(top // BLOCK_N, tl.int64) * tl.cdiv(m, BLOCK_M) + left // BLOCK_M
    place = (rows - first_row)[:, None] * weight_stride + (columns - first_column)[None, :]
    inside = (rows < n)[:, None] & (columns < m)[None, :]
    flagged = False
    if GEOMETRY != 2:
        flagged = tl.load(flag_ptr + tile) != 0
    if flagged:
        tl.store(along_ptr + tile, 0.0)
        tl.store(weight_ptr + place, tl.zeros([BLOCK_N, BLOCK_M], weight_ptr.dtype.element_ty), inside)
    else:
        steepness = tl.load(steepness_ptr)
        scale_x, time, a, row_ids = row_terms(scale_x_ptr, time_ptr, a_ptr, ids_ptr, rows, n, EXCLUDE, DTYPE)
        z, logits, _ = tile_logits(
            rows, x_ptr, y_ptr, scale_y_ptr, b_ptr, ids_ptr, tl.cast(top, tl.int64), tl.cast(left, tl.int64),
            scale_x, time, a, row_ids, steepness, x_stride, y_stride, n, m, d,
            GEOMETRY, EXCLUDE, FAST, ROUNDED, PRECISION, DTYPE, OPERAND, False, BLOCK_N, BLOCK_M, BLOCK_D,
        )  # fmt: skip
        share = shares(
            logits, load_each(row_lse_ptr, rows, n, DTYPE), load_each(column_lse_ptr, columns, m, DTYPE),
            load_each(row_grad_ptr, rows, n, DTYPE), load_each(column_grad_ptr, columns, m, DTYPE), SYMMETRIC,
        )  # fmt: skip
        tl.store(along_ptr + tile, tl.sum(tl.where(logits == float("-inf"), 0, share * logits)))
        weight = share * slope_of(z, GEOMETRY) * -tl.load(slope_ptr)
        tl.store(weight_ptr + place, weight.to(weight_ptr.dtype.element_ty), inside)


@triton.jit
def _near_gradient(
    x_ptr, y_ptr, c_ptr, norm_x_ptr, norm_y_ptr, ids_ptr, scale_ptr, flag_ptr,
    row_lse_ptr, column_lse_ptr, row_grad_ptr, column_grad_ptr, dx_ptr, along_ptr,
    x_stride, y_stride, flag_row_stride, flag_column_stride, n, m, d,
    TANGENT: tl.constexpr, GEOMETRY: tl.constexpr, EXCLUDE: tl.constexpr, DTYPE: tl.constexpr,
    TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Add the gradients of the pairs of flagged tiles to some rows of dx; and the rows' sum of dL/dlogit times the logit."""
    rows = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    block = tl.program_id(0).to(tl.int64) * TILE // BLOCK_N
    k, scale = tl.sqrt(tl.load(c_ptr)), tl.load(scale_ptr)
    norm_x = load_each(norm_x_ptr, rows, n, DTYPE)
    row_lse, row_grad = load_each(row_lse_ptr, rows, n, DTYPE), load_each(row_grad_ptr, rows, n, DTYPE)
    total = tl.zeros([TILE], DTYPE)
    for start in range(0, m, TILE):
        if tl.load(flag_ptr + block * flag_row_stride + start // BLOCK_M * flag_column_stride) != 0:
            columns = tl.cast(start, tl.int64) + tl.arange(0, TILE)
            norm_y = load_each(norm_y_ptr, columns, m, DTYPE)
            distance, r, per_sum, leftover, along, across = exact_pairs(
                x_ptr, y_ptr, rows, columns, x_stride, y_stride, norm_x, norm_y, k, n, m, d,
                GEOMETRY, TANGENT, True, TILE, DTYPE,
            )  # fmt: skip
            logits = exact_logits(distance, ids_ptr, rows, columns, scale * 1.4426950408889634, n, m, EXCLUDE)
            column_lse, column_grad = (
                load_each(column_lse_ptr, columns, m, DTYPE), load_each(column_grad_ptr, columns, m, DTYPE)
            )  # fmt: skip
            share = shares(logits, row_lse, column_lse, row_grad, column_grad, True)
            total += tl.sum(tl.where(logits == float("-inf"), 0, share * logits), axis=1)
            add_pulls(
                x_ptr, y_ptr, dx_ptr, rows, columns, x_stride, y_stride, norm_x, norm_y, r, per_sum, leftover,
                -scale * share * along, -scale * share * across, n, m, d, DTYPE,
            )  # fmt: skip
    store_each(along_ptr, rows, total, n)


# -------------------------------------------------------------------------------------------------------------- host


class _Launch:
    """What forward and backward launch alike: prepared sides, settings, constants."""

    def __init__(
        self,
        queries: Tensor,
        keys: Tensor,
        c: Tensor,
        logit_scale: Tensor,
        exclude_ids: Tensor | None,
        geometry: str,
        tangent: bool,
        symmetric: bool,
        precision: str,
    ):
        self.n, self.m, self.d = len(queries), len(keys), queries.shape[1]
        self.c, self.scale, self.geometry, self.tangent = c, logit_scale, geometry, tangent
        self.symmetric, self.near = symmetric, geometry != "cosine"
        self.x, self.y = (_prepare(v, c, geometry, tangent, precision) for v in (queries, keys))
        self.ids = queries.new_empty(0, dtype=torch.int64) if exclude_ids is None else exclude_ids.contiguous()
        per_log2 = logit_scale / c.sqrt() if geometry == "lorentz" else logit_scale * LOG2_E
        self.steepness = per_log2.to(c.dtype)
        told = launch.product_precision(self.x.vectors, precision)
        self.table = launch.settings("contrastive", self.d, queries.dtype)
        self.size = {"BLOCK_N": self.table["rows"], "BLOCK_M": self.table["columns"]}
        self.tiles = (triton.cdiv(self.n, self.table["rows"]), triton.cdiv(self.m, self.table["columns"]))
        self.constants = {
            "GEOMETRY": GEOMETRIES[geometry],
            "EXCLUDE": exclude_ids is not None,
            "DTYPE": launch.triton_dtype(c.dtype),
        }
        self.product = {
            "SYMMETRIC": symmetric,
            "FAST": c.dtype == torch.float32 and launch.architecture().startswith("cuda"),
            "ROUNDED": precision == "bf16" and queries.dtype == torch.float32,
            "PRECISION": told,
            "OPERAND": launch.operand_dtype(queries.dtype),
            "BLOCK_D": self.table["inner"],
            "num_warps": self.table["warps"],
            "num_stages": self.table["stages"],
            **self.constants,
            **self.size,
        }
        self.tile = NEAR_TILE[c.dtype]
        self.exactly = {**self.constants, "TANGENT": tangent, "TILE": self.tile}

    def operands(self) -> tuple:
        x, y = self.x, self.y
        return (x.vectors, y.vectors, x.scale, y.scale, x.time, x.excess, y.excess, self.ids, self.steepness)

    def strides(self) -> tuple[int, int]:
        return self.x.vectors.stride(0), self.y.vectors.stride(0)

    def both_ways(self) -> tuple[tuple, tuple]:
        """(rows, columns, flag strides, block sizes, numbers of rows and columns) of the near kernels, and swapped."""
        rows, columns = self.table["rows"], self.table["columns"]
        x, y = self.x, self.y
        return (
            (x, y, (self.tiles[1], 1), {"BLOCK_N": rows, "BLOCK_M": columns}, self.n, self.m),
            (y, x, (1, self.tiles[1]), {"BLOCK_N": columns, "BLOCK_M": rows}, self.m, self.n),
        )


def flags_shape(n: int, m: int, queries: Tensor, geometry: str) -> tuple[int, int]:
    """Of the flags that `forward` returns: one per tile, none where no pair is near."""
    if geometry == "cosine":
        return 0, 0
    table = launch.settings("contrastive", queries.shape[1], queries.dtype)
    return -(-n // table["rows"]), -(-m // table["columns"])


def forward(
    queries: Tensor,
    keys: Tensor,
    c: Tensor,
    logit_scale: Tensor,
    exclude_ids: Tensor | None,
    geometry: str,
    tangent: bool,
    symmetric: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """LSE over negatives of each row (n) and each of the first n columns (n or 0), positives (n), flags of the tiles."""
    run = _Launch(queries, keys, c, logit_scale, exclude_ids, geometry, tangent, symmetric, precision)
    n, width = run.n, run.n if symmetric else 0
    rows, columns = c.new_empty(n), c.new_empty(width)
    programs = min(run.tiles[0], run.table["programs"])
    maxima, sums = c.new_full((programs, width), -torch.inf), c.new_zeros(programs, width)
    flags = torch.empty(flags_shape(n, run.m, queries, geometry), dtype=torch.int8, device=queries.device)
    with launch.on_device_of(queries):
        _log_sum_exps[(programs,)](
            *run.operands(),
            rows,
            maxima,
            sums,
            flags,
            *run.strides(),
            n,
            run.m,
            run.d,
            NEAR[c.dtype],
            WHOLE=run.d <= run.table["inner"],
            **run.product,
        )
        if symmetric:
            grid = (triton.cdiv(n, 1024),)
            _merge[grid](maxima, sums, columns, programs, n, DTYPE=run.constants["DTYPE"], BLOCK=1024)
        if run.near:
            for found, (x, y, flag_strides, size, length, width) in zip((rows, columns), run.both_ways(), strict=True):
                if len(found):
                    exact = c.new_empty(n)
                    length = min(length, n)
                    _near_log_sum_exps[(triton.cdiv(n, run.tile),)](
                        x.vectors, y.vectors, c, x.norm, y.norm, run.ids, run.scale * LOG2_E, flags, exact,
                        x.vectors.stride(0), y.vectors.stride(0), *flag_strides, length, width, run.d,
                        **run.exactly, **size,
                    )  # fmt: skip
                    found.copy_(torch.logaddexp2(found, exact))
    ln2 = 1 / LOG2_E
    return rows * ln2, columns * ln2, _positives(run), flags


def _positives(run: _Launch) -> Tensor:
    """Logits of the pairs (i, i), from exact differences in the geometry's dtype."""
    x, y = (side.vectors[: run.n].to(run.c.dtype) for side in (run.x, run.y))
    if run.geometry == "lorentz":
        return -run.scale * row_wise.distance(x, y, run.c, run.tangent)
    return -run.scale * geometry_of(run.geometry, run.c, run.tangent).exact(x, y)


def backward(
    grad_rows: Tensor,
    grad_columns: Tensor,
    queries: Tensor,
    keys: Tensor,
    c: Tensor,
    logit_scale: Tensor,
    exclude_ids: Tensor | None,
    row_negatives: Tensor,
    column_negatives: Tensor,
    positives: Tensor,
    flags: Tensor,
    geometry: str,
    tangent: bool,
    symmetric: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries (n d), keys (m d), c () and logit_scale () from those of the row and column losses."""
    run = _Launch(queries, keys, c, logit_scale, exclude_ids, geometry, tangent, symmetric, precision)
    n, m = run.n, run.m
    row_lse = torch.logaddexp(row_negatives, positives) * LOG2_E
    column_lse, column_grad = c.new_zeros(m), c.new_zeros(m)
    if symmetric:
        column_lse[:n] = torch.logaddexp(column_negatives, positives) * LOG2_E
        column_grad[:n] = grad_columns
    saved = (row_lse, column_lse, grad_rows.contiguous(), column_grad)
    dx, dy, along = _pull(run, saved, flags)
    if run.near:
        exact_along = c.new_empty(n)
        swapped = (column_lse, row_lse, column_grad, saved[2])
        for out, terms, way in zip((dx, dy), (saved, swapped), run.both_ways(), strict=True):
            x, y, flag_strides, size, length, width = way
            kept = exact_along if out is dx else c.new_empty(length)
            _near_gradient[(triton.cdiv(length, run.tile),)](
                x.vectors, y.vectors, c, x.norm, y.norm, run.ids, logit_scale, flags, *terms, out, kept,
                x.vectors.stride(0), y.vectors.stride(0), *flag_strides, length, width, run.d, **run.exactly, **size,
            )  # fmt: skip
        along = along + exact_along.sum(dtype=torch.float64)
    d_scale = along / LOG2_E + _add_positives(
        run, dx, dy, grad_rows, grad_columns, row_negatives, column_negatives, positives
    )
    dc = torch.zeros_like(c)
    if geometry == "lorentz":  # d is homogeneous in the features and 1/sqrt(c); d_scale is s dL/ds here
        homogeneity = sum((v.double() * dv).sum() for v, dv in ((queries, dx), (keys, dy)))
        dc = ((homogeneity - d_scale) / (2 * c.double())).to(c.dtype)
    return dx.to(queries.dtype), dy.to(keys.dtype), dc, (d_scale / logit_scale.double()).to(c.dtype)


def _add_positives(run, dx, dy, grad_rows, grad_columns, row_negatives, column_negatives, positives) -> Tensor:
    """Add the gradients of the positives' own pulls, and return their share of s dL/ds."""
    pull = grad_rows * torch.sigmoid(row_negatives - positives)
    if run.symmetric:
        pull = pull + grad_columns * torch.sigmoid(column_negatives - positives)
    x, y = (side.vectors[: run.n].to(run.c.dtype) for side in (run.x, run.y))
    if run.geometry == "lorentz":
        gx, gy, _ = row_wise.distance_backward(run.scale * pull, x, y, run.c, run.tangent)
    else:
        gx, gy = (
            (run.scale * pull)[:, None] * g for g in geometry_of(run.geometry, run.c, run.tangent).exact_gradient(x, y)
        )
    dx += gx
    dy[: run.n] += gy
    return -(pull.double() * positives.double()).sum()


def _pull(run: _Launch, saved: tuple[Tensor, ...], flags: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of all unflagged pairs by queries and keys in the geometry's dtype, and the sum of dL/dlogit logit."""
    x, y, c = run.x, run.y, run.c
    # bf16 has the range that weights of 1/n^2 need, float16 has not
    dtype = torch.bfloat16 if x.vectors.dtype == torch.bfloat16 else geometry_dtype(x.vectors)
    points = [(side.scale[:, None] * side.vectors).to(dtype) for side in (x, y)]
    pulls = [c.new_zeros(side.vectors.shape) for side in (x, y)]
    times = [c.new_zeros(len(side.time)) for side in (x, y)]
    weights = torch.empty(min(BLOCK, run.n), min(BLOCK, run.m), dtype=dtype, device=x.vectors.device)
    along = c.new_zeros(run.tiles)
    slope = run.scale / c.sqrt() if run.geometry == "lorentz" else run.scale
    for top in range(0, run.n, BLOCK):
        for left in range(0, run.m, BLOCK):
            height, width = min(BLOCK, run.n - top), min(BLOCK, run.m - left)
            some, others = slice(top, top + height), slice(left, left + width)
            tiles_m = triton.cdiv(width, run.table["columns"])
            with launch.on_device_of(x.vectors):
                _weights[(triton.cdiv(height, run.table["rows"]) * tiles_m,)](
                    *run.operands(), slope, *saved, flags, weights, along, *run.strides(), weights.stride(0),
                    run.n, run.m, run.d, top, left, tiles_m, **run.product,
                )  # fmt: skip
            block = weights[:height, :width]
            pulls[0][some] += block @ points[1][others]
            pulls[1][others] += block.T @ points[0][some]
            if run.geometry != "cosine":
                times[0][some] += block @ y.time[others].to(dtype)
                times[1][others] += block.T @ x.time[some].to(dtype)
    dx, dy = (_to_features(run, *each) for each in zip((x, y), points, pulls, times, strict=True))
    return dx, dy, along.sum(dtype=torch.float64)


def _to_features(run: _Launch, side: _Side, points: Tensor, pull: Tensor, time: Tensor) -> Tensor:
    """dL/dX = (sum w t) X / t - sum w Y, carried from the operands X of the product to the features."""
    if run.geometry == "cosine":
        return (points * (points * pull).sum(1, keepdim=True) - pull) * side.scale[:, None]
    grad = (time / side.time)[:, None] * points - pull
    if run.geometry == "euclidean":
        return grad * 2**0.5
    grad = grad * run.c.sqrt()
    if not run.tangent:
        return grad
    return maps.exp_map0_backward(grad, side.vectors.to(grad.dtype), torch.ones_like(run.c), run.c)[0]
