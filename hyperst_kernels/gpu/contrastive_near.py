"""Kernels over the flagged tiles: pairs so near that a product has lost their digits, computed feature by feature."""

from __future__ import annotations

import triton
import triton.language as tl

from hyperst_kernels.gpu.pairwise import add_pulls, compare_all, feature, near_slopes
from hyperst_kernels.gpu.tile_math import asinh, load_each, rapidity, root_haversine, store_each


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
            anchor = tl.where(new == float("-inf"), 0.0, new)  # -inf: nothing took part yet
            total = total * tl.exp2(maximum - anchor) + tl.sum(tl.exp2(logits - anchor[:, None]), axis=1)
            maximum = new
    store_each(out_ptr, rows, maximum + tl.log2(total), n)


@triton.jit
def shares(logits, row_lse, column_lse, row_grad, column_grad):
    """dL / d logit: the softmax over the row times the row's upstream gradient, and the same of the column."""
    share = tl.exp2(logits - row_lse[:, None]) * row_grad[:, None]
    return share + tl.exp2(logits - column_lse[None, :]) * column_grad[None, :]


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
            share = shares(logits, row_lse, column_lse, row_grad, column_grad)
            total += tl.sum(tl.where(logits == float("-inf"), 0, share * logits), axis=1)
            add_pulls(
                x_ptr, y_ptr, dx_ptr, rows, columns, x_stride, y_stride, norm_x, norm_y, r, per_sum, leftover,
                -scale * share * along, -scale * share * across, n, m, d, DTYPE,
            )  # fmt: skip
    store_each(along_ptr, rows, total, n)
