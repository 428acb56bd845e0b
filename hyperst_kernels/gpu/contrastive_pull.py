"""Kernels of the gradient over unflagged tiles: the pull of all keys on each query, and by swapped arguments vice versa.

With share_ij = dL/d logit_ij, made of the softmaxes of its row and its column, G_ij = dL/dz_ij = share_ij times the slope
of the logit. The point X_i is pulled by (sum_j G_ij t_j) X_i / t_i - sum_j G_ij Y_j. Weights are rounded before both sums:
a rounding then errs in the size of a pair's pull, not in its direction.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyperst_kernels.gpu.contrastive_tiles import (
    NOWHERE,
    OVERFLOWS,
    diagonal_tiles,
    each_key,
    row_terms,
    rows_of,
    tile_of_pairs,
)
from hyperst_kernels.gpu.tile_math import load_each

PARTS = tl.constexpr(16)  # the fewest columns of a product


@triton.jit
def shares(
    remoteness,
    steepness,
    row_lse,
    column_lse,
    row_pull,
    column_pull,
    ROW_SHARE: tl.constexpr,
    COLUMN_SHARE: tl.constexpr,
):
    """dL / d logit times what the pulls carry: the softmax over the row and that over the column."""
    share = tl.zeros_like(remoteness)
    if ROW_SHARE:
        share = tl.exp2(tl.fma(remoteness, -steepness, -row_lse[:, None])) * row_pull[:, None]
    if COLUMN_SHARE:
        share += tl.exp2(tl.fma(remoteness, -steepness, -column_lse[None, :])) * column_pull[None, :]
    return share


@triton.jit
def add_tile(
    pull, times, along, start, x_tile, x_ptr, y_ptr, scale_y_ptr, b_ptr, ratio_x, ratio_y_ptr, ids_ptr, steepness,
    column_lse_ptr, column_pull_ptr, flag_ptr, other_pull_ptr, other_time_ptr, first, scale_x, time, a, row_ids, row_lse,
    row_pull, x_stride, y_stride, flag_row_stride, flag_column_stride, n, m, d, MASKED: tl.constexpr, CAREFUL: tl.constexpr,
    ROW_SHARE: tl.constexpr, COLUMN_SHARE: tl.constexpr, ALONG: tl.constexpr, ATOMIC: tl.constexpr,
    FLAG_N: tl.constexpr, FLAG_M: tl.constexpr,
    GEOMETRY: tl.constexpr, EXCLUDE: tl.constexpr, FAST: tl.constexpr, ROUNDED: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, OPERAND: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add the pulls of the keys of one tile. CAREFUL: z may be large, or the pairs of some rows in flagged blocks."""
    start = tl.cast(start, tl.int64)
    remoteness, slope, _, scale_y, y = tile_of_pairs(
        x_tile, x_ptr, y_ptr, scale_y_ptr, b_ptr, ids_ptr, first, start, 0, scale_x, time, a, row_ids,
        x_stride, y_stride, n, m, d, MASKED, GEOMETRY, EXCLUDE, FAST, CAREFUL,
        ROUNDED, PRECISION, DTYPE, OPERAND, True, EVEN, BLOCK_N, BLOCK_M, BLOCK_D,
    )  # fmt: skip
    if CAREFUL and FLAG_N > 0:
        rows, columns = first + tl.arange(0, BLOCK_N), start + tl.arange(0, BLOCK_M)
        place = (rows // FLAG_N * flag_row_stride)[:, None] + (columns // FLAG_M * flag_column_stride)[None, :]
        flags = tl.load(flag_ptr + place, (rows < n)[:, None] & (columns < m)[None, :], other=0)
        remoteness = tl.where(flags != 0, NOWHERE, remoteness)
    share = shares(
        remoteness, steepness, row_lse, each_key(column_lse_ptr, start, m, MASKED, DTYPE, BLOCK_M), row_pull,
        each_key(column_pull_ptr, start, m, MASKED, DTYPE, BLOCK_M), ROW_SHARE, COLUMN_SHARE,
    )  # fmt: skip
    if ALONG:
        along += tl.sum(share * remoteness, axis=1)
    share *= slope
    weight = (share * scale_y[None, :]).to(y.dtype)
    pull = tl.dot(weight, y, pull, input_precision=PRECISION, out_dtype=DTYPE)
    if GEOMETRY != 2:
        ratio_y = rows_of(ratio_y_ptr, start, 0, PARTS, m, PARTS, True, False, OPERAND, BLOCK_M, PARTS)
        times = tl.dot(weight, ratio_y.to(y.dtype), times, input_precision=PRECISION, out_dtype=DTYPE)
    if ATOMIC:
        back = (share * scale_x[:, None]).to(y.dtype)
        pulled = tl.dot(tl.trans(back), x_tile, input_precision=PRECISION, out_dtype=DTYPE)
        columns, features = start + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
        inside = (columns < m)[:, None] & (features < d)[None, :]
        tl.atomic_add(other_pull_ptr + columns[:, None] * d + features[None, :], pulled, inside)
        if GEOMETRY != 2:
            tl.atomic_add(other_time_ptr + columns, tl.sum(back.to(DTYPE) * ratio_x[:, None], axis=0), columns < m)
    return pull, times, along


@triton.jit
def _pull_of_rows(
    x_ptr, y_ptr, scale_x_ptr, scale_y_ptr, time_x_ptr, a_ptr, b_ptr, largest_b_ptr, ratio_x_ptr, ratio_y_ptr, ids_ptr,
    steepness_ptr, row_lse_ptr, column_lse_ptr, row_pull_ptr, column_pull_ptr, flag_ptr, flagged_ptr,
    pull_ptr, time_ptr, along_ptr, other_pull_ptr, other_time_ptr,
    x_stride, y_stride, flag_row_stride, flag_column_stride, n, m, d,
    ROW_SHARE: tl.constexpr, COLUMN_SHARE: tl.constexpr, ALONG: tl.constexpr, ATOMIC: tl.constexpr,
    FLAG_N: tl.constexpr, FLAG_M: tl.constexpr,
    GEOMETRY: tl.constexpr, EXCLUDE: tl.constexpr, FAST: tl.constexpr, ROUNDED: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, OPERAND: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """sum_j G_ij s_j y_j (n d) and sum_j G_ij t_j (n) of a block of rows; ALONG: also sum_j share_ij remoteness_ij (n).

    ATOMIC: adds the same for the columns to other_pull (m d) and other_time (m), in whatever order programs come.
    ``flagged`` counts the flags of each row of flagged blocks; t / s of a key comes as the sum of PARTS numbers.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK_N
    rows, features = first + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    steepness = tl.load(steepness_ptr)
    scale_x, time, a, row_ids = row_terms(scale_x_ptr, a_ptr, time_x_ptr, ids_ptr, rows, n, EXCLUDE, DTYPE)
    row_lse, row_pull = load_each(row_lse_ptr, rows, n, DTYPE), load_each(row_pull_ptr, rows, n, DTYPE)
    careful = False
    if FLAG_N > 0:
        careful = tl.max(tl.load(flagged_ptr + rows // FLAG_N, rows < n, other=0)) > 0
    if GEOMETRY == 0 and tl.float64 != DTYPE:
        careful = careful | (2 * (tl.max(time) * tl.load(largest_b_ptr) + tl.max(a)) > OVERFLOWS)
    x_tile = rows_of(x_ptr, first, 0, x_stride, n, d, EVEN, ROUNDED, OPERAND, BLOCK_N, BLOCK_D)
    ratio_x = row_lse
    if ATOMIC:
        ratio_x = load_each(ratio_x_ptr, rows, n, DTYPE)
    pull, times = tl.zeros([BLOCK_N, BLOCK_D], DTYPE), tl.zeros([BLOCK_N, PARTS], DTYPE)
    along = tl.zeros([BLOCK_N], DTYPE)
    if careful:
        for start in range(0, m, BLOCK_M):
            pull, times, along = add_tile(
                pull, times, along, start, x_tile, x_ptr, y_ptr, scale_y_ptr, b_ptr, ratio_x, ratio_y_ptr, ids_ptr,
                steepness, column_lse_ptr, column_pull_ptr, flag_ptr, other_pull_ptr, other_time_ptr, first, scale_x, time,
                a, row_ids, row_lse, row_pull, x_stride, y_stride, flag_row_stride, flag_column_stride, n, m, d, True, True,
                ROW_SHARE, COLUMN_SHARE, ALONG, ATOMIC, FLAG_N, FLAG_M,
                GEOMETRY, EXCLUDE, FAST, ROUNDED, PRECISION, DTYPE, OPERAND, EVEN, BLOCK_N, BLOCK_M, BLOCK_D,
            )  # fmt: skip
    else:
        whole, low, high = diagonal_tiles(first, m, BLOCK_N, BLOCK_M)
        for step in range(0, whole - (high - low)):
            tile = tl.where(step < low, step, step + high - low)
            pull, times, along = add_tile(
                pull, times, along, tile * BLOCK_M, x_tile, x_ptr, y_ptr, scale_y_ptr, b_ptr, ratio_x, ratio_y_ptr, ids_ptr,
                steepness, column_lse_ptr, column_pull_ptr, flag_ptr, other_pull_ptr, other_time_ptr, first, scale_x, time,
                a, row_ids, row_lse, row_pull, x_stride, y_stride, flag_row_stride, flag_column_stride, n, m, d, False, False,
                ROW_SHARE, COLUMN_SHARE, ALONG, ATOMIC, FLAG_N, FLAG_M,
                GEOMETRY, EXCLUDE, FAST, ROUNDED, PRECISION, DTYPE, OPERAND, EVEN, BLOCK_N, BLOCK_M, BLOCK_D,
            )  # fmt: skip
        for step in range(low, high + tl.cdiv(m, BLOCK_M) - whole):
            tile = tl.where(step < high, step, whole)
            pull, times, along = add_tile(
                pull, times, along, tile * BLOCK_M, x_tile, x_ptr, y_ptr, scale_y_ptr, b_ptr, ratio_x, ratio_y_ptr, ids_ptr,
                steepness, column_lse_ptr, column_pull_ptr, flag_ptr, other_pull_ptr, other_time_ptr, first, scale_x, time,
                a, row_ids, row_lse, row_pull, x_stride, y_stride, flag_row_stride, flag_column_stride, n, m, d, True, False,
                ROW_SHARE, COLUMN_SHARE, ALONG, ATOMIC, FLAG_N, FLAG_M,
                GEOMETRY, EXCLUDE, FAST, ROUNDED, PRECISION, DTYPE, OPERAND, EVEN, BLOCK_N, BLOCK_M, BLOCK_D,
            )  # fmt: skip
    tl.store(pull_ptr + rows[:, None] * d + features[None, :], pull, (rows < n)[:, None] & (features < d)[None, :])
    tl.store(time_ptr + rows, tl.sum(times, axis=1), rows < n)
    if ALONG:
        tl.store(along_ptr + rows, along, rows < n)


@triton.jit
def weights_of_tile(
    top, left, x_ptr, y_ptr, scale_x_ptr, scale_y_ptr, time_ptr, a_ptr, b_ptr, ids_ptr, steepness_ptr,
    row_lse_ptr, column_lse_ptr, row_pull_ptr, column_pull_ptr, along_ptr, x_stride, y_stride, n, m, d,
    CAREFUL: tl.constexpr, SYMMETRIC: tl.constexpr, GEOMETRY: tl.constexpr, EXCLUDE: tl.constexpr, FAST: tl.constexpr,
    ROUNDED: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, OPERAND: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """G_ij s_i s_j of a tile; stores its sum of share times remoteness."""
    rows, steepness = top + tl.arange(0, BLOCK_N), tl.load(steepness_ptr)
    scale_x, time, a, row_ids = row_terms(scale_x_ptr, a_ptr, time_ptr, ids_ptr, rows, n, EXCLUDE, DTYPE)
    remoteness, slope, _, scale_y, _ = tile_of_pairs(
        rows, x_ptr, y_ptr, scale_y_ptr, b_ptr, ids_ptr, top, left, 0, scale_x, time, a, row_ids, x_stride, y_stride,
        n, m, d, CAREFUL, GEOMETRY, EXCLUDE, FAST, CAREFUL,
        ROUNDED, PRECISION, DTYPE, OPERAND, False, EVEN, BLOCK_N, BLOCK_M, BLOCK_D,
    )  # fmt: skip
    share = shares(
        remoteness, steepness, load_each(row_lse_ptr, rows, n, DTYPE),
        each_key(column_lse_ptr, left, m, CAREFUL, DTYPE, BLOCK_M), load_each(row_pull_ptr, rows, n, DTYPE),
        each_key(column_pull_ptr, left, m, CAREFUL, DTYPE, BLOCK_M), True, SYMMETRIC,
    )  # fmt: skip
    tl.store(along_ptr, tl.sum(share * remoteness))
    return share * slope * scale_x[:, None] * scale_y[None, :]


@triton.jit
def store_weights(place, weight, inside, part_stride, SPLIT: tl.constexpr):
    rounded = weight.to(place.dtype.element_ty)
    tl.store(place, rounded, inside)
    if SPLIT:
        tl.store(place + part_stride, (weight - rounded.to(weight.dtype)).to(place.dtype.element_ty), inside)


@triton.jit
def _weights(
    x_ptr, y_ptr, scale_x_ptr, scale_y_ptr, time_ptr, a_ptr, b_ptr, largest_a_ptr, largest_b_ptr, ids_ptr, steepness_ptr,
    row_lse_ptr, column_lse_ptr, row_pull_ptr, column_pull_ptr, flag_ptr, weight_ptr, along_ptr,
    x_stride, y_stride, part_stride, weight_stride, n, m, d, first_row, first_column, tiles_m,
    SPLIT: tl.constexpr, SYMMETRIC: tl.constexpr, GEOMETRY: tl.constexpr, EXCLUDE: tl.constexpr, FAST: tl.constexpr,
    ROUNDED: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, OPERAND: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """G_ij s_i s_j of a block of pairs, 0 in flagged tiles; and each tile's sum of share times remoteness.

    SPLIT: a weight is the sum of two numbers, ``part_stride`` apart.
    """
    height, width = tl.program_id(0) // tiles_m * BLOCK_N, tl.program_id(0) % tiles_m * BLOCK_M
    top, left = tl.cast(first_row + height, tl.int64), tl.cast(first_column + width, tl.int64)
    i, j = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    tile = top // BLOCK_N * tl.cdiv(m, BLOCK_M) + left // BLOCK_M
    place = weight_ptr + tl.cast(height, tl.int64) * weight_stride + width + (i[:, None] * weight_stride + j[None, :])
    inside = (i < n - top)[:, None] & (j < m - left)[None, :]
    flagged = False
    if GEOMETRY != 2:
        flagged = tl.load(flag_ptr + tile) != 0
    careful = (left < top + BLOCK_N) & (top < left + BLOCK_M) | (top + BLOCK_N > n) | (left + BLOCK_M > m)
    if GEOMETRY == 0 and tl.float64 != DTYPE:
        a, b = tl.load(largest_a_ptr), tl.load(largest_b_ptr)
        careful = careful | (2 * (1 + a) * (1 + b) > OVERFLOWS)
    if flagged:
        tl.store(along_ptr + tile, 0.0)
        store_weights(place, tl.zeros([BLOCK_N, BLOCK_M], DTYPE), inside, part_stride, SPLIT)
    elif careful:
        weight = weights_of_tile(
            top, left, x_ptr, y_ptr, scale_x_ptr, scale_y_ptr, time_ptr, a_ptr, b_ptr, ids_ptr, steepness_ptr, row_lse_ptr,
            column_lse_ptr, row_pull_ptr, column_pull_ptr, along_ptr + tile, x_stride, y_stride, n, m, d, True,
            SYMMETRIC, GEOMETRY, EXCLUDE, FAST, ROUNDED, PRECISION, DTYPE, OPERAND, EVEN, BLOCK_N, BLOCK_M, BLOCK_D,
        )  # fmt: skip
        store_weights(place, weight, inside, part_stride, SPLIT)
    else:
        weight = weights_of_tile(
            top, left, x_ptr, y_ptr, scale_x_ptr, scale_y_ptr, time_ptr, a_ptr, b_ptr, ids_ptr, steepness_ptr, row_lse_ptr,
            column_lse_ptr, row_pull_ptr, column_pull_ptr, along_ptr + tile, x_stride, y_stride, n, m, d, False,
            SYMMETRIC, GEOMETRY, EXCLUDE, FAST, ROUNDED, PRECISION, DTYPE, OPERAND, EVEN, BLOCK_N, BLOCK_M, BLOCK_D,
        )  # fmt: skip
        store_weights(place, weight, None, part_stride, SPLIT)
