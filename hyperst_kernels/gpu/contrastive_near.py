"""Kernels over the flagged tiles: pairs so near that a product has lost their digits, computed feature by feature."""

from __future__ import annotations

import triton
import triton.language as tl

from hyperst_kernels.gpu.contrastive_pull import shares
from hyperst_kernels.gpu.contrastive_rows import NORM, factor_of
from hyperst_kernels.gpu.contrastive_tiles import FARTHEST, NOWHERE, add_powers, load_steepness, log_sum
from hyperst_kernels.gpu.pairwise import add_pulls, compare_all, feature
from hyperst_kernels.gpu.tile_math import (
    distance_of,
    load_each,
    per_chord,
    pick,
    rounded_product,
    slopes_of_distance,
    sqrt_rn,
    store_each,
)


@triton.jit
def exact_pairs(
    x_ptr, y_ptr, rows, columns, x_stride, y_stride, norm_x, norm_y, factor_x, factor_y, k, n, m, d,
    GEOMETRY: tl.constexpr, TANGENT: tl.constexpr, GRADIENT: tl.constexpr, TILE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Distances of every row from every column, and what `add_pulls` needs for their gradients."""
    nothing = tl.zeros([TILE, TILE], DTYPE)
    if GEOMETRY == 0:
        r, half_chord, per_sum, leftover = compare_all(
            x_ptr, y_ptr, rows, columns, x_stride, y_stride, norm_x, norm_y, factor_x, factor_y, n, m, d, TILE, DTYPE
        )
        distance = distance_of(norm_x[:, None], norm_y[None, :], r, half_chord, k, TANGENT)
        if GRADIENT:
            along, across = slopes_of_distance(norm_x[:, None], norm_y[None, :], r, half_chord, k, TANGENT)
            return distance, r, per_sum, leftover, per_chord(half_chord), along, across
        return distance, nothing, nothing, nothing, nothing, nothing, nothing
    square = nothing
    for j in range(0, d):
        u = rounded_product(factor_x, feature(x_ptr, rows, x_stride, n, j, DTYPE))[:, None]
        v = rounded_product(factor_y, feature(y_ptr, columns, y_stride, m, j, DTYPE))[None, :]
        square += (u - v) * (u - v)
    distance = tl.sqrt(square)
    return distance, nothing, nothing + 0.5, nothing, nothing + 1, nothing, 1 / tl.where(distance == 0, 1, distance)


@triton.jit
def taking_part(ids_ptr, rows, columns, n, m, EXCLUDE: tl.constexpr):
    """Which pairs of a tile are negatives of each other."""
    part = (rows < n)[:, None] & (columns < m)[None, :] & (rows[:, None] != columns[None, :])
    if EXCLUDE:
        row_ids, ids = tl.load(ids_ptr + rows, rows < n, other=0), tl.load(ids_ptr + columns, columns < m, other=0)
        part = part & (row_ids[:, None] != ids[None, :])
    return part


@triton.jit
def _near_log_sum_exps(
    x_ptrs, y_ptrs, x_terms_ptrs, y_terms_ptrs, c_ptr, ids_ptr, steepness_ptr, flag_ptrs, out_ptrs,
    x_strides, y_strides, flag_row_stride, flag_column_stride, longest, ns, ms, d,
    TANGENT: tl.constexpr, GEOMETRY: tl.constexpr, EXCLUDE: tl.constexpr, DTYPE: tl.constexpr,
    TILE: tl.constexpr, FLAG_N: tl.constexpr, FLAG_M: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of some of the first n rows over the pairs of flagged tiles."""
    t = tl.program_id(1)
    x_ptr, y_ptr, x_stride, y_stride = pick(x_ptrs, t), pick(y_ptrs, t), pick(x_strides, t), pick(y_strides, t)
    x_terms, y_terms, flag_ptr = pick(x_terms_ptrs, t), pick(y_terms_ptrs, t), pick(flag_ptrs, t)
    first = tl.program_id(0).to(tl.int64) * TILE
    n = pick(ns, t)
    m = tl.where(first < n, pick(ms, t), 0)
    rows, block = first + tl.arange(0, TILE), first // FLAG_N
    k, steepness = sqrt_rn(tl.load(c_ptr)), load_steepness(steepness_ptr)
    factor_x, factor_y = factor_of(x_terms, longest), factor_of(y_terms, longest)
    norm_x = load_each(x_terms + NORM * longest, rows, n, DTYPE)
    offset, total = tl.full([TILE], FARTHEST, DTYPE), tl.zeros([TILE], DTYPE)
    for start in range(0, m, TILE):
        if tl.load(flag_ptr + block * flag_row_stride + start // FLAG_M * flag_column_stride) != 0:
            columns = tl.cast(start, tl.int64) + tl.arange(0, TILE)
            norm_y = load_each(y_terms + NORM * longest, columns, m, DTYPE)
            distance, _, _, _, _, _, _ = exact_pairs(
                x_ptr, y_ptr, rows, columns, x_stride, y_stride, norm_x, norm_y, factor_x, factor_y, k, n, m, d,
                GEOMETRY, TANGENT, False, TILE, DTYPE,
            )  # fmt: skip
            part = taking_part(ids_ptr, rows, columns, n, m, EXCLUDE)
            distance = tl.where(part, distance, FARTHEST)
            offset, total = add_powers(offset, total, distance, tl.min(distance, axis=1), steepness, False, 1)
    store_each(pick(out_ptrs, t), rows, log_sum(offset, total), n)


@triton.jit
def _near_gradient(
    x_ptrs, y_ptrs, x_terms_ptrs, y_terms_ptrs, c_ptr, ids_ptr, scale_ptr, steepness_ptr, flag_ptrs,
    row_lse_ptrs, column_lse_ptrs, row_grad_ptrs, column_grad_ptrs, dx_ptrs, along_ptrs,
    x_strides, y_strides, flag_row_stride, flag_column_stride, longest, ns, ms, d, top, last,
    TANGENT: tl.constexpr, GEOMETRY: tl.constexpr, EXCLUDE: tl.constexpr, DTYPE: tl.constexpr,
    TILE: tl.constexpr, FLAG_N: tl.constexpr, FLAG_M: tl.constexpr,
):  # fmt: skip
    """Add the gradients of the pairs of flagged tiles to the rows of dx, from row ``top`` to before row ``last``.

    Also the rows' sums of dL/dlogit times the distance.
    """
    t = tl.program_id(1)
    x_ptr, y_ptr, x_stride, y_stride = pick(x_ptrs, t), pick(y_ptrs, t), pick(x_strides, t), pick(y_strides, t)
    x_terms, y_terms, flag_ptr = pick(x_terms_ptrs, t), pick(y_terms_ptrs, t), pick(flag_ptrs, t)
    dx_ptr, column_lse_ptr, column_grad_ptr = pick(dx_ptrs, t), pick(column_lse_ptrs, t), pick(column_grad_ptrs, t)
    first = top + tl.program_id(0).to(tl.int64) * TILE
    n = tl.minimum(pick(ns, t), last)
    m = tl.where(first < n, pick(ms, t), 0)
    rows, block = first + tl.arange(0, TILE), first // FLAG_N
    k, scale, steepness = sqrt_rn(tl.load(c_ptr)), tl.load(scale_ptr), load_steepness(steepness_ptr)
    factor_x, factor_y = factor_of(x_terms, longest), factor_of(y_terms, longest)
    norm_x = load_each(x_terms + NORM * longest, rows, n, DTYPE)
    row_lse, row_grad = (
        load_each(pick(row_lse_ptrs, t), rows, n, DTYPE), load_each(pick(row_grad_ptrs, t), rows, n, DTYPE)
    )  # fmt: skip
    total = tl.zeros([TILE], DTYPE)
    for start in range(0, m, TILE):
        if tl.load(flag_ptr + block * flag_row_stride + start // FLAG_M * flag_column_stride) != 0:
            columns = tl.cast(start, tl.int64) + tl.arange(0, TILE)
            norm_y = load_each(y_terms + NORM * longest, columns, m, DTYPE)
            distance, r, per_sum, leftover, per_length, along, across = exact_pairs(
                x_ptr, y_ptr, rows, columns, x_stride, y_stride, norm_x, norm_y, factor_x, factor_y, k, n, m, d,
                GEOMETRY, TANGENT, True, TILE, DTYPE,
            )  # fmt: skip
            part = taking_part(ids_ptr, rows, columns, n, m, EXCLUDE)
            column_lse, column_grad = (
                load_each(column_lse_ptr, columns, m, DTYPE), load_each(column_grad_ptr, columns, m, DTYPE)
            )  # fmt: skip
            share = shares(
                tl.where(part, distance, NOWHERE), steepness, row_lse, column_lse, row_grad, column_grad, True, True
            )
            total += tl.sum(rounded_product(share, distance), axis=1)
            add_pulls(
                x_ptr, y_ptr, dx_ptr, rows, columns, x_stride, y_stride, norm_x, norm_y, factor_x, factor_y, r, per_sum,
                leftover, per_length, -scale * share * along, -scale * share * across, n, m, d, top, DTYPE,
            )  # fmt: skip
    store_each(pick(along_ptrs, t), rows - top, total, n - top)
