"""Kernels of the pairs (i, i): row by row, from exact differences in the geometry's dtype."""

from __future__ import annotations

import triton
import triton.language as tl

from hyperst_kernels.gpu.contrastive.geometry import factor_of
from hyperst_kernels.gpu.maps import block
from hyperst_kernels.gpu.tile_math import (
    at_least,
    compare,
    distance_of,
    dot,
    load_each,
    load_rows,
    nonzero,
    per_chord,
    pick,
    rounded_product,
    slopes_of_distance,
    sqrt_rn,
    store_each,
)


@triton.jit
def features_of(views, t, rows, columns, longest, n, d, DTYPE: tl.constexpr):
    """Some rows times their factor, rounded: unrounded, two equal rows would differ by what rounding takes from one."""
    x = load_rows(pick(views.vectors, t), rows, columns, pick(views.strides, t), n, d, DTYPE)
    return rounded_product(factor_of(pick(views.terms, t), longest), x)


@triton.jit
def _positives(
    xs, ys, c_ptr, scale_ptr, out_ptr, longest, out_stride, ns, d, GEOMETRY: tl.constexpr, TANGENT: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Logits of the positives of each term, in float64; 0 beyond its own rows."""
    t = tl.program_id(1)
    n = pick(ns, t)
    rows, columns = block(BLOCK_ROWS, BLOCK_D)
    x = features_of(xs, t, rows, columns, longest, n, d, DTYPE)
    y = features_of(ys, t, rows, columns, longest, n, d, DTYPE)
    if GEOMETRY == 0:
        k = sqrt_rn(tl.load(c_ptr))
        norm_x, norm_y, _, _, r, _, half_chord = compare(x, y)
        distance = distance_of(norm_x, norm_y, r, half_chord, k, TANGENT)
    elif GEOMETRY == 1:
        distance = tl.sqrt(dot(x - y, x - y))
    else:  # a zero vector is orthogonal to everything
        norm_x, norm_y = tl.sqrt(dot(x, x)), tl.sqrt(dot(y, y))
        apart = x / at_least(norm_x, 1e-12)[:, None] - y / at_least(norm_y, 1e-12)[:, None]
        distance = (dot(apart, apart) + (norm_x == 0).to(DTYPE) + (norm_y == 0).to(DTYPE)) * 0.5
    logits = tl.where(rows < n, -tl.load(scale_ptr).to(tl.float64) * distance.to(tl.float64), 0)
    store_each(out_ptr + tl.cast(t, tl.int64) * out_stride, rows, logits, out_stride)


@triton.jit
def _positive_pulls(
    xs, ys, c_ptr, weight_ptrs, dx_ptrs, longest, top, ns, d, GEOMETRY: tl.constexpr, TANGENT: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dx_i += weight_i times the gradient of d(x_i, y_i) by x_i, for the rows from ``top`` on; dx begins there."""
    t = tl.program_id(1)
    n = pick(ns, t)
    rows, columns = block(BLOCK_ROWS, BLOCK_D)
    rows += top
    x = features_of(xs, t, rows, columns, longest, n, d, DTYPE)
    y = features_of(ys, t, rows, columns, longest, n, d, DTYPE)
    if GEOMETRY == 0:
        norm_x, norm_y, a, _, r, e, half_chord = compare(x, y)
        along, across = slopes_of_distance(norm_x, norm_y, r, half_chord, sqrt_rn(tl.load(c_ptr)), TANGENT)
        slope = along[:, None] * a + across[:, None] * (per_chord(half_chord)[:, None] * e)
    elif GEOMETRY == 1:
        slope = (x - y) / nonzero(tl.sqrt(dot(x - y, x - y)))[:, None]
    else:
        length = at_least(tl.sqrt(dot(x, x)), 1e-12)[:, None]
        a, b = x / length, y / at_least(tl.sqrt(dot(y, y)), 1e-12)[:, None]
        slope = (dot(a, b)[:, None] * a - b) / length
    change = load_each(pick(weight_ptrs, t), rows, n, DTYPE)[:, None] * slope
    place = pick(dx_ptrs, t) + (rows - top)[:, None] * d + columns[None, :]
    inside = (rows < n)[:, None] & (columns < d)[None, :]
    total = tl.load(place, inside, other=0) + change
    tl.debug_barrier()  # in place: several threads may have read what one of them writes
    tl.store(place, total, inside)
