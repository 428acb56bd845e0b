"""Flagged tiles from products after all: of points less a centre that is near them, as in a batch that has collapsed.

With X = M + xi and t = t_M + tau, M any point, and nothing lost since both are differences,

    z_ij = a_i + b_j - (<xi_i, eta_j> - tau_i tau_j),    a = (|xi|^2 - tau^2) / 2

(Lorentz model; in the Euclidean geometry tau = 0), whose error is one of the points' spread and not of their norms. M is the
first of a block's own rows. Points are made in float64, where x times its scale less M keeps the digits of float32, and
multiplied as three bf16 numbers each. A tile of which some pair is near even beside the spread stays with the kernels of
`exact`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.contrastive.exact import NEAR, taking_part
from hyperst_kernels.gpu.contrastive.forward import FARTHEST, add_powers, load_steepness, log_sum
from hyperst_kernels.gpu.contrastive.geometry import LN_2, LORENTZ, factor_of, remoteness_of
from hyperst_kernels.gpu.contrastive.inputs import LossInputs, TermView, matrix_args, matrix_args_of
from hyperst_kernels.gpu.contrastive.numbers import log_add
from hyperst_kernels.gpu.distance_matrix import scale_and_excess
from hyperst_kernels.gpu.tile_math import dot, load_each, load_rows, pick

CENTRED = tl.constexpr(2)  # a tile's flag, in place of NEAR
# z beside the spread of a tile, below which a pair is near: products of 22 bits leave the 15 that ordinary tiles have
LIMIT = tl.constexpr(2.0**-10)
LEAST = tl.constexpr(1e-30)  # the squares that a smaller z is made of are no numbers
SIDE = 64  # rows and columns that a program looks at together
FEATURES = 16  # and features
MARKED = tl.constexpr(16)  # tiles that one program marks
_LN_2 = tl.constexpr(LN_2)


class Centring(NamedTuple):
    """What a kernel of centred points knows when it is compiled: of `Tiling` and `Exact`, and its own blocks.

    WEIGHTS: the precision of their products with points; PRECISION that of products of points.
    """

    GEOMETRY: int
    EXCLUDE: bool
    FAST: bool
    PRECISION: str
    WEIGHTS: str
    FLAG_N: int
    FLAG_M: int
    BLOCK_N: int
    BLOCK_M: int
    BLOCK_D: int


class Points(NamedTuple):
    """A matrix (n d) of vectors; the scale from each to its point, and the point's time, float64."""

    ptr: tl.tensor
    stride: tl.tensor
    n: tl.tensor
    d: tl.tensor
    scale_ptr: tl.tensor
    time_ptr: tl.tensor


@triton.jit
def points_of(matrices, numbers, t, n):
    """The first n rows of a side of term t."""
    scale_ptr = pick(numbers, t)
    return Points(
        pick(matrices.vectors, t), pick(matrices.strides, t), n, matrices.d, scale_ptr, scale_ptr + matrices.longest
    )  # fmt: skip


@triton.jit
def _scales_and_times(xs, c_ptr, out_ptrs, TANGENT: tl.constexpr, CENTRING: tl.constexpr):
    """Scale and time of each row (2 longest), float64."""
    BLOCK_N: tl.constexpr = CENTRING.BLOCK_N
    k = tl.program_id(1)
    n, out = pick(xs.lengths, k), pick(out_ptrs, k)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    square = tl.zeros([BLOCK_N], tl.float64)
    for start in range(0, xs.d, CENTRING.BLOCK_D):
        features = start + tl.arange(0, CENTRING.BLOCK_D)
        x = load_rows(pick(xs.vectors, k), rows, features, pick(xs.strides, k), n, xs.d, tl.float64)
        square += dot(x, x)
    factor = factor_of(pick(xs.stats, k), xs.longest).to(tl.float64)
    scale, time = 1.4142135623730951 * factor + 0 * square, 1 + 0 * square
    if CENTRING.GEOMETRY == LORENTZ:
        scale, excess = scale_and_excess(tl.sqrt(square), factor, tl.load(c_ptr).to(tl.float64), TANGENT)
        time = 1 + excess
    tl.store(out + rows, scale, rows < n)
    tl.store(out + xs.longest + rows, time, rows < n)


@triton.jit
def centre_of(points, first, features):
    """Some features of the point of one row."""
    x = tl.load(points.ptr + first * points.stride + features, features < points.d, other=0).to(tl.float64)
    return tl.load(points.scale_ptr + first) * x


@triton.jit
def centred(points, rows, features, scale, centre):
    """Some features of points less those of the centre."""
    x = load_rows(points.ptr, rows, features, points.stride, points.n, points.d, tl.float64)
    return (scale[:, None] * x - centre[None, :]).to(tl.float32)


@triton.jit
def later(points, rows, time):
    """Times of points less that of the centre."""
    return (load_each(points.time_ptr, rows, points.n, tl.float64) - time).to(tl.float32)


@triton.jit
def centred_pairs(x, y, rows, columns, first, CENTRING: tl.constexpr):
    """z of pairs, times of rows and of columns less the centre's, and how far each is from it, in the unit of z.

    The centre is the point of row ``first``.
    """
    BLOCK_N: tl.constexpr = CENTRING.BLOCK_N
    BLOCK_M: tl.constexpr = CENTRING.BLOCK_M
    x_scale, y_scale = load_each(x.scale_ptr, rows, x.n, tl.float64), load_each(y.scale_ptr, columns, y.n, tl.float64)
    product = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    x_square, y_square = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, x.d, CENTRING.BLOCK_D):
        features = start + tl.arange(0, CENTRING.BLOCK_D)
        centre = centre_of(x, first, features)
        u, v = centred(x, rows, features, x_scale, centre), centred(y, columns, features, y_scale, centre)
        product = tl.dot(u, tl.trans(v), product, input_precision=CENTRING.PRECISION, out_dtype=tl.float32)
        x_square += dot(u, u)
        y_square += dot(v, v)
    time = tl.load(x.time_ptr + first)
    a, b = later(x, rows, time), later(y, columns, time)
    apart = (x_square - a * a)[:, None] * 0.5 + (y_square - b * b)[None, :] * 0.5
    z = tl.maximum(apart - (product - a[:, None] * b[None, :]), LEAST, propagate_nan=tl.PropagateNan.ALL)
    x_reach, y_reach = tl.where(rows < x.n, x_square + a * a, 0), tl.where(columns < y.n, y_square + b * b, 0)
    return z, a, b, x_reach * 0.5, y_reach * 0.5


@triton.jit
def _mark(xs, ys, x_numbers, y_numbers, ids, flags, CENTRING: tl.constexpr):
    """Flag tiles CENTRED in which no pair is near beside the spread."""
    FLAG_N: tl.constexpr = CENTRING.FLAG_N
    FLAG_M: tl.constexpr = CENTRING.FLAG_M
    t, number = tl.program_id(1), tl.program_id(0).to(tl.int64)
    n, m = pick(xs.lengths, t), pick(ys.lengths, t)
    x, y = points_of(xs, x_numbers, t, n), points_of(ys, y_numbers, t, m)
    flag_ptr, begin = pick(flags.ptrs, t) + number * flags.row_stride, tl.program_id(2) * MARKED
    end = tl.where(tl.load(pick(flags.counts, t) + number) > 0, tl.minimum(tl.cdiv(m, FLAG_M), begin + MARKED), 0)
    for tile in range(begin, end):
        place = flag_ptr + tile * flags.column_stride
        if tl.load(place) == NEAR:
            nearest, x_widest, y_widest = float("inf"), 0.0, 0.0
            for first in range(number * FLAG_N, tl.minimum(number * FLAG_N + FLAG_N, n), CENTRING.BLOCK_N):
                for start in range(tile * FLAG_M, tl.minimum(tile * FLAG_M + FLAG_M, m), CENTRING.BLOCK_M):
                    rows = first + tl.arange(0, CENTRING.BLOCK_N)
                    columns = tl.cast(start, tl.int64) + tl.arange(0, CENTRING.BLOCK_M)
                    z, _, _, x_reach, y_reach = centred_pairs(x, y, rows, columns, first, CENTRING)
                    part = taking_part(ids, rows, columns, n, m, CENTRING.EXCLUDE)
                    # neither infinite nor NaN
                    z = tl.where(part, tl.where(z < FARTHEST, z, 0), FARTHEST)
                    nearest = tl.minimum(nearest, tl.min(z))
                    x_widest, y_widest = tl.maximum(x_widest, tl.max(x_reach)), tl.maximum(y_widest, tl.max(y_reach))
            if (nearest > LIMIT * (x_widest + y_widest)) & (nearest > LEAST):
                tl.store(place, tl.cast(CENTRED, tl.int8))


@triton.jit
def _centred_log_sum_exps(
    xs, ys, x_numbers, y_numbers, ids, steepness_ptr, flags, out_ptrs, ns, CENTRING: tl.constexpr
):  # fmt: skip
    """Add the pairs of centred tiles to log-sum-exps of some of the first n rows."""
    BLOCK_N: tl.constexpr = CENTRING.BLOCK_N
    t = tl.program_id(1)
    first = tl.program_id(0).to(tl.int64) * BLOCK_N
    n, m, block = pick(ns, t), pick(ys.lengths, t), first // CENTRING.FLAG_N
    flag_ptr, out_ptr = pick(flags.ptrs, t) + block * flags.row_stride, pick(out_ptrs, t)
    if tl.load(pick(flags.counts, t) + block, first < n, other=0) > 0:
        x, y = points_of(xs, x_numbers, t, n), points_of(ys, y_numbers, t, m)
        rows, steepness = first + tl.arange(0, BLOCK_N), load_steepness(steepness_ptr)
        offset, total = tl.full([BLOCK_N], FARTHEST, tl.float32), tl.zeros([BLOCK_N], tl.float32)
        for start in range(0, m, CENTRING.BLOCK_M):
            if tl.load(flag_ptr + start // CENTRING.FLAG_M * flags.column_stride) == CENTRED:
                columns = tl.cast(start, tl.int64) + tl.arange(0, CENTRING.BLOCK_M)
                z, _, _, _, _ = centred_pairs(x, y, rows, columns, first, CENTRING)
                remoteness, _ = remoteness_of(z, CENTRING.GEOMETRY, CENTRING.FAST, True)
                part = taking_part(ids, rows, columns, n, m, CENTRING.EXCLUDE)
                remoteness = tl.where(part, remoteness, FARTHEST)
                closest = tl.min(remoteness, axis=1)
                offset, total = add_powers(offset, total, remoteness, closest, steepness, False, 1)
        others = tl.load(out_ptr + rows, rows < n, other=float("-inf"))
        tl.debug_barrier()  # in place: several threads may have read what one of them writes
        tl.store(out_ptr + rows, log_add(log_sum(offset, total) * _LN_2, others * _LN_2) / _LN_2, rows < n)


# ---------------------------------------------------------------------------------------------------------- launches


def centring(inputs: LossInputs, size: dict[str, int]) -> dict:
    """Constants of these kernels, where tiles of flags have that size."""
    points, weights = ("ieee", "ieee") if inputs.precision == "ieee" else ("bf16x6", "bf16x3")
    own = Centring(
        GEOMETRY=inputs.constants["GEOMETRY"],
        EXCLUDE=inputs.constants["EXCLUDE"],
        FAST=launch.architecture().startswith("cuda"),
        PRECISION=launch.product_precision(torch.float32, points),
        WEIGHTS=launch.product_precision(torch.float32, weights),
        FLAG_N=size["FLAG_N"],
        FLAG_M=size["FLAG_M"],
        BLOCK_N=min(SIDE, size["FLAG_N"]),
        BLOCK_M=min(SIDE, size["FLAG_M"]),
        BLOCK_D=FEATURES,
    )
    return {"CENTRING": own, "num_warps": 8, "num_stages": 1, **launch.OPTIONS}


def scales_and_times(inputs: LossInputs) -> list[Tensor]:
    """Scales and times (2 longest) of the points of all features, float64."""
    longest = inputs.sides[0].stats.shape[1]
    numbers = inputs.c.new_empty(len(inputs.sides), 2, longest, dtype=torch.float64)
    _scales_and_times[(triton.cdiv(longest, SIDE), len(inputs.sides))](
        matrix_args_of(inputs.sides), inputs.c, tuple(numbers), TANGENT=inputs.tangent,
        **centring(inputs, {"FLAG_N": SIDE, "FLAG_M": SIDE}),
    )  # fmt: skip
    return list(numbers)


def of_terms(numbers: Sequence[Tensor], terms: Sequence[TermView]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Those of the rows and of the columns of each term of a launch."""
    return tuple(numbers[t.owner] for t in terms), tuple(numbers[t.partner] for t in terms)


def centred_sums(inputs: LossInputs, flags: Tensor, rows: Tensor, columns: Tensor, all_columns: bool) -> None:
    """Flag tiles CENTRED and add them to log2-sum-exps (t n), (t m), in place."""
    numbers = scales_and_times(inputs)
    own, size = inputs.flagged(inputs.queries, flags)
    high, wide = (triton.cdiv(length, tile) for length, tile in zip((inputs.n, inputs.m), size.values(), strict=True))
    _mark[(high, len(inputs.queries), triton.cdiv(wide, MARKED.value))](
        *matrix_args(inputs.queries), *of_terms(numbers, inputs.queries), inputs.ids_of(inputs.queries), own,
        **centring(inputs, size),
    )  # fmt: skip
    symmetric = [term for term in inputs.keys if term.symmetric]
    for terms, sums, of_all in ((inputs.queries, rows, True), (symmetric, columns, all_columns)):
        if terms:
            own, size = inputs.flagged(terms, flags)
            constants = centring(inputs, size)
            _centred_log_sum_exps[(triton.cdiv(sums.shape[1], constants["CENTRING"].BLOCK_N), len(terms))](
                *matrix_args(terms), *of_terms(numbers, terms), inputs.ids_of(terms), inputs.steepness, own,
                tuple(sums[t.number] for t in terms), tuple(t.n if of_all else t.pairs for t in terms), **constants,
            )  # fmt: skip
