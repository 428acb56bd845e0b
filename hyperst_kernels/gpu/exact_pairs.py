"""Pairs computed from exact differences, feature by feature, where a product has cancelled: no program holds a whole row."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from hyperst_kernels.gpu.pair import CHORD_SCALE, unless_rounding
from hyperst_kernels.gpu.scalars import (
    at_least,
    at_most,
    div_rn,
    epsilon,
    nonzero,
    rounded_product,
    sign,
)
from hyperst_kernels.gpu.tile_math import load_each

# Rows and columns that the kernels of cancelled pairs look at together: they hold a dozen numbers per pair.
EXACT_TILE = {torch.float32: 32, torch.float64: 16}


@triton.jit
def feature(pointer, rows, stride, n, k, DTYPE: tl.constexpr):
    """One feature of some rows."""
    return tl.load(pointer + rows * stride + k, rows < n, other=0).to(DTYPE)


class Points(NamedTuple):
    """Some rows of a matrix (n d), which are vectors but for a factor, and the lengths of those."""

    ptr: tl.tensor
    stride: tl.tensor
    n: tl.tensor
    rows: tl.tensor
    norm: tl.tensor
    factor: tl.tensor


@triton.jit
def numbers_of(points, k, DTYPE: tl.constexpr):
    """Number k of each vector, rounded: unrounded, two equal rows would differ by what rounding takes from one."""
    return rounded_product(points.factor, feature(points.ptr, points.rows, points.stride, points.n, k, DTYPE))


@triton.jit
def opposite(x, y, DTYPE: tl.constexpr):
    """Of rows of one feature: 2 where their signs differ, 0 where they agree, 1 where one of the two is 0."""
    u, v = feature(x.ptr, x.rows, x.stride, x.n, 0, DTYPE), feature(y.ptr, y.rows, y.stride, y.n, 0, DTYPE)
    return tl.abs(sign(u)[:, None] - sign(v)[None, :])


@triton.jit
def chord_of(u, v, bisector, r, per_sum, leftover):
    """One number of a - b, of u and v: without the share of a + b that rounding left, and 0 on one ray."""
    return unless_rounding(per_sum * (2 * (u - v) - r * bisector) - leftover * bisector, u - v, per_sum)


@triton.jit
def compare_all(x, y, d, TILE: tl.constexpr, DTYPE: tl.constexpr):
    """Return `pair.compare` of all points x with all points y, a feature at a time, without holding a vector.

    |u| - |v|, |a - b| / 2, 1 / (|u| + |v|), and the share of a + b that rounding left in a - b.
    """
    per_x, per_y = (1 / nonzero(x.norm))[:, None], (1 / nonzero(y.norm))[None, :]
    per_sum = div_rn(1.0, nonzero(x.norm[:, None] + y.norm[None, :]))
    r = tl.zeros([TILE, TILE], DTYPE)
    for k in range(0, d):
        u, v = numbers_of(x, k, DTYPE)[:, None], numbers_of(y, k, DTYPE)[None, :]
        r += (u - v) * (u + v)
    r *= per_sum
    chord, lean, square = (
        tl.zeros([TILE, TILE], DTYPE), tl.zeros([TILE, TILE], DTYPE), tl.zeros([TILE, TILE], DTYPE)
    )  # fmt: skip
    for k in range(0, d):
        u, v = numbers_of(x, k, DTYPE)[:, None], numbers_of(y, k, DTYPE)[None, :]
        bisector = u * per_x + v * per_y
        e = CHORD_SCALE * per_sum * (2 * (u - v) - r * bisector)
        chord += e * e
        lean += e * bisector
        square += bisector * bisector
    leftover = tl.where(square > 2, lean / nonzero(square), 0)
    chord = at_least(chord - leftover * lean, 0)
    leftover *= 1 / CHORD_SCALE
    # so little may be what rounding left on one ray: only number by number can one tell
    limit = CHORD_SCALE * 1000 * epsilon(r) * r * per_sum
    doubtful = chord < limit * limit
    if tl.max(doubtful.to(tl.int32)) != 0:
        numbers = tl.zeros([TILE, TILE], DTYPE)
        for k in range(0, d):
            u, v = numbers_of(x, k, DTYPE)[:, None], numbers_of(y, k, DTYPE)[None, :]
            e = CHORD_SCALE * chord_of(u, v, u * per_x + v * per_y, r, per_sum, leftover)
            numbers += e * e
        chord = tl.where(doubtful, numbers, chord)
    half_chord = at_most(tl.sqrt(chord) * (0.5 / CHORD_SCALE), 1)
    if d == 1:  # a direction is a sign, and no rounding of it may be taken for an angle
        half_chord = opposite(x, y, DTYPE) * 0.5
    at_origin = (x.norm == 0)[:, None] | (y.norm == 0)[None, :]
    return r, tl.where(at_origin, 0.7071067811865476, half_chord), per_sum, leftover


@triton.jit
def add_point_gradients(x, y, dx_ptr, r, per_sum, leftover, per_length, along, across, d, top, DTYPE: tl.constexpr):
    """dx_i += sum_j along_ij a_i + across_ij e_ij per_length_ij, a feature at a time, for rows that no other program writes.

    ``dx`` begins with row ``top``.
    """
    per_x, per_y = (1 / nonzero(x.norm))[:, None], (1 / nonzero(y.norm))[None, :]
    for k in range(0, d):
        u, v = numbers_of(x, k, DTYPE)[:, None], numbers_of(y, k, DTYPE)[None, :]
        a = u * per_x
        bisector = a + v * per_y
        e = chord_of(u, v, bisector, r, per_sum, leftover)
        e = tl.where(d == 1, sign(u) - sign(v), e)  # no rounding of a sign may be taken for an angle
        target = dx_ptr + (x.rows - top) * d + k
        # added where it lies, by the one thread of a row that stores: what the others would read may be older or newer
        tl.atomic_add(target, tl.sum(along * a + across * (e * per_length), axis=1), x.rows < x.n, sem="relaxed")


class Vectors(NamedTuple):
    """A matrix (n d) and the length of each of its rows (n)."""

    ptr: tl.tensor
    stride: tl.tensor
    n: tl.tensor
    norm_ptr: tl.tensor


@triton.jit
def points_of(vectors, rows, DTYPE: tl.constexpr):
    return Points(vectors.ptr, vectors.stride, vectors.n, rows, load_each(vectors.norm_ptr, rows, vectors.n, DTYPE), 1)
