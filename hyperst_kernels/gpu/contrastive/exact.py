"""Pairs whose distances come from differences: those that have cancelled in a product, tile by tile, and positives, row by row."""

from __future__ import annotations

import triton
import triton.language as tl

from hyperst_kernels.gpu.contrastive.backward_rows import shares
from hyperst_kernels.gpu.contrastive.forward import FARTHEST, NOWHERE, add_powers, load_steepness, log_sum
from hyperst_kernels.gpu.contrastive.geometry import NORM, distance_of_rows, exact_pairs, factor_of, slope_of_rows
from hyperst_kernels.gpu.exact_pairs import Points, add_point_gradients
from hyperst_kernels.gpu.scalars import rounded_product, sqrt_rn
from hyperst_kernels.gpu.tile_math import block, load_each, load_rows, pick, store_each

NEAR = tl.constexpr(1)  # the flag of a tile that is for these kernels


@triton.jit
def taking_part(ids, rows, columns, n, m, EXCLUDE: tl.constexpr):
    """Which pairs of a tile are negatives of each other."""
    part = (rows < n)[:, None] & (columns < m)[None, :] & (rows[:, None] != columns[None, :])
    if EXCLUDE:
        row_ids, ids = tl.load(ids.rows + rows, rows < n, other=0), tl.load(ids.columns + columns, columns < m, other=0)
        part = part & (row_ids[:, None] != ids[None, :])
    return part


@triton.jit
def points_of(matrices, t, rows, n, DTYPE: tl.constexpr):
    """Some of the first n rows of a side of term t."""
    stats = pick(matrices.stats, t)
    norm = load_each(stats + NORM * matrices.longest, rows, n, DTYPE)
    factor = factor_of(stats, matrices.longest)
    return Points(pick(matrices.vectors, t), pick(matrices.strides, t), n, rows, norm, factor)


@triton.jit
def _cancelled_log_sum_exps(xs, ys, c_ptr, ids, steepness_ptr, flags, out_ptrs, ns, EXACT: tl.constexpr):
    """Log-sum-exp of some of the first n rows over the pairs of flagged tiles."""
    TILE: tl.constexpr = EXACT.TILE
    DTYPE: tl.constexpr = EXACT.DTYPE
    t = tl.program_id(1)
    flag_ptr = pick(flags.ptrs, t)
    first = tl.program_id(0).to(tl.int64) * TILE
    n = pick(ns, t)
    rows, block = first + tl.arange(0, TILE), first // EXACT.FLAG_N
    m = pick(ys.lengths, t)
    end = tl.where(first < n, m, 0)
    if tl.float64 != DTYPE:  # which has no register left for this
        end = tl.where(tl.load(pick(flags.counts, t) + block, first < n, other=0) > 0, m, 0)
    k, steepness = sqrt_rn(tl.load(c_ptr)), load_steepness(steepness_ptr)
    x = points_of(xs, t, rows, n, DTYPE)
    offset, total = tl.full([TILE], FARTHEST, DTYPE), tl.zeros([TILE], DTYPE)
    for start in range(0, end, TILE):
        if tl.load(flag_ptr + block * flags.row_stride + start // EXACT.FLAG_M * flags.column_stride) == NEAR:
            columns = tl.cast(start, tl.int64) + tl.arange(0, TILE)
            y = points_of(ys, t, columns, m, DTYPE)
            distance, _, _, _, _, _, _ = exact_pairs(x, y, k, xs.d, False, EXACT)
            part = taking_part(ids, rows, columns, n, m, EXACT.EXCLUDE)
            distance = tl.where(part, distance, FARTHEST)
            offset, total = add_powers(offset, total, distance, tl.min(distance, axis=1), steepness, False, 1)
    store_each(pick(out_ptrs, t), rows, log_sum(offset, total), n)


@triton.jit
def _cancelled_gradients(
    xs, ys, c_ptr, ids, scale_ptr, steepness_ptr, flags, upstream, dx_ptrs, scale_grad_ptrs, top, last,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Add the gradients of the pairs of flagged tiles to the rows of dx, from row ``top`` to before row ``last``.

    Also the rows' sums of dL/dlogit times the distance.
    """
    TILE: tl.constexpr = EXACT.TILE
    DTYPE: tl.constexpr = EXACT.DTYPE
    t = tl.program_id(1)
    flag_ptr, dx_ptr = pick(flags.ptrs, t), pick(dx_ptrs, t)
    column_lse_ptr, column_grad_ptr = pick(upstream.column_lse, t), pick(upstream.column_grad, t)
    first = top + tl.program_id(0).to(tl.int64) * TILE
    n = tl.minimum(pick(xs.lengths, t), last)
    rows, block = first + tl.arange(0, TILE), first // EXACT.FLAG_N
    m = pick(ys.lengths, t)
    end = tl.where(tl.load(pick(flags.counts, t) + block, first < n, other=0) > 0, m, 0)
    k, scale, steepness = sqrt_rn(tl.load(c_ptr)), tl.load(scale_ptr), load_steepness(steepness_ptr)
    x = points_of(xs, t, rows, n, DTYPE)
    row_lse, row_grad = (
        load_each(pick(upstream.row_lse, t), rows, n, DTYPE), load_each(pick(upstream.row_grad, t), rows, n, DTYPE)
    )  # fmt: skip
    total = tl.zeros([TILE], DTYPE)
    for start in range(0, end, TILE):
        if tl.load(flag_ptr + block * flags.row_stride + start // EXACT.FLAG_M * flags.column_stride) == NEAR:
            columns = tl.cast(start, tl.int64) + tl.arange(0, TILE)
            y = points_of(ys, t, columns, m, DTYPE)
            distance, r, per_sum, leftover, per_length, along, across = exact_pairs(x, y, k, xs.d, True, EXACT)
            part = taking_part(ids, rows, columns, n, m, EXACT.EXCLUDE)
            column_lse, column_grad = (
                load_each(column_lse_ptr, columns, m, DTYPE), load_each(column_grad_ptr, columns, m, DTYPE)
            )  # fmt: skip
            share = shares(
                tl.where(part, distance, NOWHERE), steepness, row_lse, column_lse, row_grad, column_grad, True, True
            )
            total += tl.sum(rounded_product(share, distance), axis=1)
            along, across = -scale * share * along, -scale * share * across
            add_point_gradients(x, y, dx_ptr, r, per_sum, leftover, per_length, along, across, xs.d, top, DTYPE)
    store_each(pick(scale_grad_ptrs, t), rows - top, total, n - top)


@triton.jit
def features_of(matrices, t, rows, columns, n, DTYPE: tl.constexpr):
    """Some rows times their factor, rounded: unrounded, two equal rows would differ by what rounding takes from one."""
    x = load_rows(pick(matrices.vectors, t), rows, columns, pick(matrices.strides, t), n, matrices.d, DTYPE)
    return rounded_product(factor_of(pick(matrices.stats, t), matrices.longest), x)


@triton.jit
def _positives(
    xs, ys, c_ptr, scale_ptr, out_ptr, out_stride, ns, d, GEOMETRY: tl.constexpr, TANGENT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Logits of the positives of each term, in float64; 0 beyond its own rows."""
    t = tl.program_id(1)
    n = pick(ns, t)
    rows, columns = block(ROWS)
    x = features_of(xs, t, rows, columns, n, ROWS.DTYPE)
    y = features_of(ys, t, rows, columns, n, ROWS.DTYPE)
    distance = distance_of_rows(x, y, c_ptr, GEOMETRY, TANGENT, ROWS.DTYPE)
    logits = tl.where(rows < n, -tl.load(scale_ptr).to(tl.float64) * distance.to(tl.float64), 0)
    store_each(out_ptr + tl.cast(t, tl.int64) * out_stride, rows, logits, out_stride)


@triton.jit
def _positive_gradients(
    xs, ys, c_ptr, weight_ptrs, dx_ptrs, top, ns, d, GEOMETRY: tl.constexpr, TANGENT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """dx_i += weight_i times the gradient of d(x_i, y_i) by x_i, for the rows from ``top`` on; dx begins there."""
    t = tl.program_id(1)
    n = pick(ns, t)
    rows, columns = block(ROWS)
    rows += top
    x = features_of(xs, t, rows, columns, n, ROWS.DTYPE)
    y = features_of(ys, t, rows, columns, n, ROWS.DTYPE)
    slope = slope_of_rows(x, y, c_ptr, GEOMETRY, TANGENT)
    change = load_each(pick(weight_ptrs, t), rows, n, ROWS.DTYPE)[:, None] * slope
    place = pick(dx_ptrs, t) + (rows - top)[:, None] * d + columns[None, :]
    inside = (rows < n)[:, None] & (columns < d)[None, :]
    total = tl.load(place, inside, other=0) + change
    tl.debug_barrier()  # in place: several threads may have read what one of them writes
    tl.store(place, total, inside)
