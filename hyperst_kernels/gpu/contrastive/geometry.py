"""What a geometry is to the kernels: rows as they enter products, distances of pairs, and the way back to the rows' gradients.

All geometries are z_ij = t_i b_j + a_i - s_i s_j <x_i, y_j>: in the Lorentz model with the scale s from a given vector to
sqrt(c) times its point, the time t and the excess a = b = t - 1. The factor of the features, the exp(alpha) of a lift, is
in s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from hyperst_kernels._constants import GEOMETRIES
from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.distance_matrix import scale_and_excess
from hyperst_kernels.gpu.exact_pairs import compare_all, numbers_of
from hyperst_kernels.gpu.pair import compare, distance_of, per_chord, slopes_of_distance
from hyperst_kernels.gpu.scalars import at_least, div_rn, kappa, nonzero, sinhc, sqrt_rn
from hyperst_kernels.gpu.split_products import PARTS, store_parts, store_summands
from hyperst_kernels.gpu.tile_math import block, dot, load_each, load_rows, pick, store_each, store_rows

LORENTZ, EUCLIDEAN, COSINE = (tl.constexpr(GEOMETRIES.index(name)) for name in ("lorentz", "euclidean", "cosine"))
OVERFLOWS = tl.constexpr(1e18)  # z whose square float32 cannot hold
# Elsewhere the digits that 1 + w loses move a logit by less than 1e-4, and are few beside a distance.
STEEP, SHORT = tl.constexpr(512.0), tl.constexpr(2.0**-7)
NORM, SCALE, TIME, EXCESS, RATIO, OTHER = (tl.constexpr(i) for i in range(6))
LN_2 = 0.6931471805599453


def cancels(geometry: str) -> bool:
    """Whether products of points lose the digits of near pairs; then points have times too, whose weighted sums count."""
    return geometry != "cosine"


def unit_of_remoteness(geometry: str) -> float:
    """Return sqrt(c) d, or d, of a remoteness of 1."""
    return LN_2 if geometry == "lorentz" else 1.0


def unit_of_weights(geometry: str, tangent: bool, dtype: torch.dtype) -> float:
    """Return what weights of points are multiplied with, a power of two, which rounds nothing.

    They go like e^-(p + q): far out they would be subnormal numbers. float16 holds no points that far out, and not the unit.
    """
    far = geometry == "lorentz" and not tangent and dtype != torch.float16
    return 2.0**48 if far else 1.0


class PreparedFeatures(NamedTuple):
    """Queries or keys.

    ``vectors`` (r d) as they were given; ``stats`` (6 longest) are the norm of each with its factor, s, t, a and t / s,
    and at the start of the last row the largest a, the factor and, of the first side, what all logits have in common.
    ``parts`` (r PARTS) are numbers whose sums are t / s. ``halves`` (r 2w) are the vectors as they enter products of bf16
    numbers: rounded and, w numbers behind, what rounding took, each followed by zeros.
    """

    vectors: Tensor
    stats: Tensor
    parts: Tensor | None
    halves: Tensor | None

    @property
    def scale(self) -> Tensor:
        return self.stats[SCALE.value, : len(self.vectors)]

    @property
    def excess(self) -> Tensor:
        return self.stats[EXCESS.value, : len(self.vectors)]

    @property
    def largest(self) -> Tensor:
        return self.stats[OTHER.value, 0]

    @property
    def slope(self) -> Tensor:
        """Minus the slope of a logit by sqrt(c) d in the Lorentz model, by d in the others."""
        return self.stats[OTHER.value, 2]

    @property
    def steepness(self) -> Tensor:
        """Minus that of a logit in units of log2(e) by the remoteness."""
        return self.stats[OTHER.value, 3]

    @property
    def exact_steepness(self) -> Tensor:
        """And by the distance."""
        return self.stats[OTHER.value, 4]


class Halves(NamedTuple):
    """Where `PreparedFeatures.halves` of several matrices go, and their width w."""

    ptrs: tuple[Tensor, ...]
    width: int


@triton.jit
def largest_of(stats_ptr, longest):
    """The largest excess."""
    return tl.load(stats_ptr + OTHER * longest)


@triton.jit
def factor_of(stats_ptr, longest):
    return tl.load(stats_ptr + OTHER * longest + 1)


@triton.jit
def _row_stats(
    x_ptrs, factors_ptr, c_ptr, scale_ptr, stats_ptr, parts_ptr, halves, x_strides, longest, ns, d,
    GEOMETRY: tl.constexpr, TANGENT: tl.constexpr, ROUNDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    k = tl.program_id(1)
    n = pick(ns, k)
    rows, columns = block(ROWS)
    x = load_rows(pick(x_ptrs, k), rows, columns, pick(x_strides, k), n, d, ROWS.DTYPE)
    factor = tl.full([], 1, ROWS.DTYPE)
    if factors_ptr is not None:
        factor = tl.load(factors_ptr + k)
    length = sqrt_rn(dot(x, x))
    norm = factor * length
    if halves is not None:
        inside = (rows < n)[:, None] & (columns < halves.width)[None, :]
        place = pick(halves.ptrs, k) + rows[:, None] * (2 * halves.width) + columns[None, :]
        store_parts(place, x, inside, halves.width, True)
    if ROUNDED:
        x = x.to(tl.bfloat16).to(ROWS.DTYPE)
        length = tl.sqrt(dot(x, x))
    if GEOMETRY == LORENTZ:
        scale, excess = scale_and_excess(length, factor, tl.load(c_ptr), TANGENT)
        time = 1 + excess
    elif GEOMETRY == EUCLIDEAN:  # |x|^2 + |y|^2 - 2 <x, y>
        scale, time, excess = 1.4142135623730951 * factor + 0 * norm, 1 + 0 * norm, factor * length * factor * length
    else:  # 1 - cos
        scale, time, excess = factor / at_least(factor * length, 1e-12), 1 + 0 * norm, 0.5 + 0 * norm
    out = stats_ptr + tl.cast(k, tl.int64) * (OTHER + 1) * longest
    store_each(out + NORM * longest, rows, norm, n)
    store_each(out + SCALE * longest, rows, scale, n)
    store_each(out + TIME * longest, rows, time, n)
    store_each(out + EXCESS * longest, rows, excess, n)
    ratio = time / scale
    store_each(out + RATIO * longest, rows, ratio, n)
    if parts_ptr is not None:
        store_summands(parts_ptr + (tl.cast(k, tl.int64) * longest + rows)[:, None] * PARTS, ratio, rows < n)
    if tl.program_id(0) == 0:
        tl.store(out + OTHER * longest + 1, factor)
        if k == 0:
            logit_scale = tl.load(scale_ptr)
            slope = logit_scale
            if GEOMETRY == LORENTZ:
                slope = div_rn(logit_scale, sqrt_rn(tl.load(c_ptr)))
            others = out + OTHER * longest
            tl.store(others + 2, slope)
            if GEOMETRY == LORENTZ:  # whose remoteness is in units of log2(e) itself
                tl.store(others + 3, slope)
            else:
                tl.store(others + 3, slope * 1.4426950408889634)
            tl.store(others + 4, logit_scale * 1.4426950408889634)


def prepare(
    features: Sequence[Tensor],
    factors: Tensor | None,
    c: Tensor,
    logit_scale: Tensor,
    geometry: str,
    tangent: bool,
    precision: str,
    parts: torch.dtype | None,
    width: int | None,
) -> list[PreparedFeatures]:
    """The sides of all features, in one launch; with ``parts`` in some dtype, if there is one and points have times.

    And with ``halves`` of some ``width``, if there is one.
    """
    features = [launch.unit_stride(x) for x in features]
    longest = -(-max(map(len, features)) // 16) * 16  # every row of ``stats`` aligned for wide loads
    stats = c.new_zeros(len(features), OTHER.value + 1, longest)  # no excess is below 0
    factors = None if factors is None else factors.contiguous()
    with_parts = parts is not None and cancels(geometry)
    summands = c.new_empty(len(features), longest, PARTS.value, dtype=parts) if with_parts else None
    halves = None
    if width is not None:  # a kernel that holds fewer numbers of a row leaves the others
        new = torch.empty if width <= launch.row_width(features[0].shape[1]) else torch.zeros
        halves = Halves(tuple(new(len(x), 2 * width, dtype=torch.bfloat16, device=x.device) for x in features), width)
    rounded = precision == "bf16" and features[0].dtype == torch.float32
    flags = {"GEOMETRY": GEOMETRIES.index(geometry), "TANGENT": tangent, "ROUNDED": rounded}
    strides = tuple(x.stride(0) for x in features)
    given = (tuple(features), factors, c, logit_scale, stats, summands, halves, strides, longest)
    launch.over_rows(_row_stats, "map", features, *given, **flags)
    torch.amax(stats[:, EXCESS.value], 1, out=stats[:, OTHER.value, 0])
    return [
        PreparedFeatures(
            x, stats[k], None if summands is None else summands[k, : len(x)], None if halves is None else halves.ptrs[k]
        )
        for k, x in enumerate(features)
    ]


# ---------------------------------------------------------------------------- pairs, from products and from differences


@triton.jit
def log2(x, FAST: tl.constexpr):
    if FAST:
        return libdevice.fast_log2f(x)
    return tl.log2(x)


@triton.jit
def log2_1p(w, FAST: tl.constexpr):
    """log2(1 + w) of w >= 0 with the relative error of a few roundings: the sum has lost digits, and the instruction has none."""
    if w.dtype == tl.float64:
        grown = 1 + w
        return tl.log2(grown) + 1.4426950408889634 * ((w - (grown - 1)) / grown)
    # of degree 4 with the least relative error of log2(1 + w) / w up to 1/8: 8e-9
    series = 0.48061303 + w * (-0.35410042 + w * 0.22490003)
    series = w * (1.44269503 + w * (-0.72134313 + w * series))
    return tl.where(w < 0.125, series, log2(1 + w, FAST))


@triton.jit
def is_extreme(widest, steepness, GEOMETRY: tl.constexpr, DTYPE: tl.constexpr):
    """Whether distances of pairs with z up to 2 ``widest`` are for the careful `remoteness_of`."""
    extreme = False
    if GEOMETRY == LORENTZ:
        extreme = (tl.abs(steepness) > STEEP) | (widest < SHORT)
        if tl.float64 != DTYPE:
            extreme = extreme | (2 * widest > OVERFLOWS)
    return extreme


@triton.jit
def remoteness_of(z, GEOMETRY: tl.constexpr, FAST: tl.constexpr, CAREFUL: tl.constexpr):
    """Remoteness of pairs, and its slope by z but for a factor 1/sqrt(c).

    CAREFUL: z may pass OVERFLOWS, or be infinite; and the digits of short distances count.
    """
    if GEOMETRY == LORENTZ:
        # log(1 + z + sqrt(z (z + 2))) = acosh(1 + z)
        clipped = z
        if CAREFUL:
            clipped = tl.minimum(z, OVERFLOWS, propagate_nan=tl.PropagateNan.ALL)
        square = clipped * (clipped + 2)
        slope = tl.rsqrt(square)
        growth = clipped + square * slope
        if not CAREFUL:
            return log2(1 + growth, FAST), slope
        slope = tl.where(z > OVERFLOWS, 1 / z, slope)
        if z.dtype == tl.float64:  # one logarithm for both: each takes many registers
            growth = tl.where(z > OVERFLOWS, tl.where(z < 8.9e307, 2 * z, float("nan")), growth)
            return log2_1p(growth, FAST), slope
        far = tl.where(z < 1.7e38, 1 + log2(z, FAST), float("nan"))
        return tl.where(z > OVERFLOWS, far, log2_1p(growth, FAST)), slope
    if GEOMETRY == EUCLIDEAN:
        slope = tl.rsqrt(z)
        return z * slope, slope * 0.5
    return z, 1 + 0 * z


@triton.jit
def exact_pairs(x, y, k, d, GRADIENT: tl.constexpr, EXACT: tl.constexpr):
    """Distances of all points x from all points y, and what `add_point_gradients` needs for their gradients."""
    TILE: tl.constexpr = EXACT.TILE
    DTYPE: tl.constexpr = EXACT.DTYPE
    nothing = tl.zeros([TILE, TILE], DTYPE)
    if EXACT.GEOMETRY == LORENTZ:
        r, half_chord, per_sum, leftover = compare_all(x, y, d, TILE, DTYPE)
        distance = distance_of(x.norm[:, None], y.norm[None, :], r, half_chord, k, EXACT.TANGENT)
        if GRADIENT:
            along, across = slopes_of_distance(x.norm[:, None], y.norm[None, :], r, half_chord, k, EXACT.TANGENT)
            return distance, r, per_sum, leftover, per_chord(half_chord), along, across
        return distance, nothing, nothing, nothing, nothing, nothing, nothing
    square = nothing
    for j in range(0, d):
        u, v = numbers_of(x, j, DTYPE)[:, None], numbers_of(y, j, DTYPE)[None, :]
        square += (u - v) * (u - v)
    distance = tl.sqrt(square)
    return distance, nothing, nothing + 0.5, nothing, nothing + 1, nothing, 1 / tl.where(distance == 0, 1, distance)


@triton.jit
def distance_of_rows(x, y, c_ptr, GEOMETRY: tl.constexpr, TANGENT: tl.constexpr, DTYPE: tl.constexpr):
    """d(x_i, y_i), from differences."""
    if GEOMETRY == LORENTZ:
        norm_x, norm_y, _, _, r, _, half_chord = compare(x, y)
        return distance_of(norm_x, norm_y, r, half_chord, sqrt_rn(tl.load(c_ptr)), TANGENT)
    if GEOMETRY == EUCLIDEAN:
        return tl.sqrt(dot(x - y, x - y))
    # a zero vector is orthogonal to everything
    norm_x, norm_y = tl.sqrt(dot(x, x)), tl.sqrt(dot(y, y))
    apart = x / at_least(norm_x, 1e-12)[:, None] - y / at_least(norm_y, 1e-12)[:, None]
    return (dot(apart, apart) + (norm_x == 0).to(DTYPE) + (norm_y == 0).to(DTYPE)) * 0.5


@triton.jit
def slope_of_rows(x, y, c_ptr, GEOMETRY: tl.constexpr, TANGENT: tl.constexpr):
    """The gradient of d(x_i, y_i) by x_i."""
    if GEOMETRY == LORENTZ:
        norm_x, norm_y, a, _, r, e, half_chord = compare(x, y)
        along, across = slopes_of_distance(norm_x, norm_y, r, half_chord, sqrt_rn(tl.load(c_ptr)), TANGENT)
        return along[:, None] * a + across[:, None] * (per_chord(half_chord)[:, None] * e)
    if GEOMETRY == EUCLIDEAN:
        return (x - y) / nonzero(tl.sqrt(dot(x - y, x - y)))[:, None]
    length = at_least(tl.sqrt(dot(x, x)), 1e-12)[:, None]
    a, b = x / length, y / at_least(tl.sqrt(dot(y, y)), 1e-12)[:, None]
    return (dot(a, b)[:, None] * a - b) / length


# -------------------------------------------------------------------------------------------------- the way back


@triton.jit
def _to_features(
    xs, points_ptrs, times_ptrs, c_ptr, top, ns, d,
    GEOMETRY: tl.constexpr, TANGENT: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """In place of sum w Y: dL/dX = (sum w t) X / t - sum w Y, carried to the features times their factor.

    Sums of points and of times begin with row ``top``, and are UNIT times what they stand for.
    """
    k = tl.program_id(1)
    n = pick(ns, k)
    rows, columns = block(ROWS)
    rows += top
    stats = pick(xs.stats, k)
    x = load_rows(pick(xs.vectors, k), rows, columns, pick(xs.strides, k), n, d, ROWS.DTYPE)
    target = pick(points_ptrs, k)
    points = load_rows(target, rows - top, columns, d, n - top, d, ROWS.DTYPE)
    factor = factor_of(stats, xs.longest)
    if GEOMETRY == COSINE:
        scale = load_each(stats + SCALE * xs.longest, rows, n, ROWS.DTYPE)
        point = scale[:, None] * x
        grad = (point * dot(point, points)[:, None] - points) * (scale / factor)[:, None]
    else:
        time = load_each(pick(times_ptrs, k), rows - top, n - top, ROWS.DTYPE)
        ratio = load_each(stats + RATIO * xs.longest, rows, n, ROWS.DTYPE)
        grad = (time / nonzero(ratio))[:, None] * x - points
        if GEOMETRY == EUCLIDEAN:
            grad *= 1.4142135623730951
        else:
            c = tl.load(c_ptr)
            grad *= sqrt_rn(c) * (1 / UNIT)
            if TANGENT:  # `maps.exp_map0_backward`
                u = factor * x
                squared = c * dot(u, u)
                grad = sinhc(squared)[:, None] * grad + (c * kappa(squared) * dot(u, grad))[:, None] * u
    tl.debug_barrier()  # in place: threads may have read what others write
    store_rows(target, rows - top, columns, grad, n - top, d)


@triton.jit
def _to_gradients(
    xs, points_ptrs, out_ptrs, by_rows_ptr, by_rows_stride, top, ns, d, ROWS: tl.constexpr,
):  # fmt: skip
    """dL/dx in the features' own dtype, and <x, dL/dx> of each row, from that of the features times their factor.

    The results may take the place of the sums of points.
    """
    k = tl.program_id(1)
    n = pick(ns, k)
    rows, columns = block(ROWS)
    rows += top
    x = load_rows(pick(xs.vectors, k), rows, columns, pick(xs.strides, k), n, d, ROWS.DTYPE)
    grad = load_rows(pick(points_ptrs, k), rows - top, columns, d, n - top, d, ROWS.DTYPE)
    grad *= factor_of(pick(xs.stats, k), xs.longest)
    tl.debug_barrier()
    store_rows(pick(out_ptrs, k), rows, columns, grad, n, d)
    store_each(by_rows_ptr + tl.cast(k, tl.int64) * by_rows_stride, rows, dot(x, grad), n)
