"""Cones: half-aperture, exterior angle, and the hinge of several (parent, child) relations in one launch."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.pair import compare, per_chord, rapidity, separation
from hyperst_kernels.gpu.scalars import (
    at_least,
    at_most,
    atan2,
    cosh,
    exp,
    expm1,
    largest_exponent,
    nonzero,
    sinh,
    sqrt_rn,
    tanh,
)
from hyperst_kernels.gpu.tile_math import block, dot, load_each, load_rows, norm, store_each, store_rows, summed


@triton.jit
def aperture(X, K: tl.constexpr):
    """asin(min(1, 2K / X)), and its derivative by log X, whose square would not fit (0 inside the rim)."""
    inside = X <= 2 * K
    X = tl.where(inside, 4 * K, X)
    far = tl.sqrt(X - 2 * K) * tl.sqrt(X + 2 * K)
    angle = tl.where(inside, 1.5707963267948966, atan2(2 * K + 0 * X, far))
    return angle, tl.where(inside, 0, -2 * K / far)


@triton.jit
def _half_aperture(
    x_ptr, c_ptr, out_ptr, x_stride, n, d,
    K: tl.constexpr, TANGENT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    X = sqrt_rn(tl.load(c_ptr)) * norm(x)
    if TANGENT:
        X = sinh(X)
    angle, _ = aperture(X, K)
    store_each(out_ptr, rows, angle, n)


@triton.jit
def _half_aperture_backward(
    grad_ptr, x_ptr, c_ptr, dx_ptr, dc_ptr, x_stride, n, d,
    K: tl.constexpr, TANGENT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    c = tl.load(c_ptr)
    k = sqrt_rn(c)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    grad = load_each(grad_ptr, rows, n, ROWS.DTYPE)
    length = norm(x)
    by_norm, by_c = aperture_slopes(length, c, k, K, TANGENT)
    store_rows(dx_ptr, rows, columns, (grad * by_norm)[:, None] * (x * (1 / nonzero(length))[:, None]), n, d)
    store_each(dc_ptr, rows, grad * by_c, n)


@triton.jit
def aperture_slopes(length, c, k, K: tl.constexpr, TANGENT: tl.constexpr):
    """Derivatives of the half-aperture by |x| and by c."""
    p = k * length
    if TANGENT:
        _, slope = aperture(sinh(p), K)
        slope = slope / nonzero(tanh(p))
        by_length, by_c = slope * k, slope * p / (2 * c)
    else:  # not by p, which would take the slope by c below the least number
        _, slope = aperture(p, K)
        by_length, by_c = slope / nonzero(length), slope / (2 * c)
    return by_length, by_c


def half_aperture(x: Tensor, c: Tensor, min_radius: float, tangent: bool) -> Tensor:
    """(n d) -> (n)."""
    x, out = launch.unit_stride(x), x.new_empty(len(x))
    launch.over_rows(_half_aperture, "map", x, x, c, out, x.stride(0), K=min_radius, TANGENT=tangent)
    return out


def half_aperture_backward(
    grad: Tensor, x: Tensor, c: Tensor, min_radius: float, tangent: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x (n d) and c ()."""
    x, dx, dc = launch.unit_stride(x), x.new_empty(x.shape), launch.scalars_like(x, len(x))
    constants = {"K": min_radius, "TANGENT": tangent}
    launch.over_rows(_half_aperture_backward, "map", x, grad.contiguous(), x, c, dx, dc, x.stride(0), **constants)
    return dx, summed(dc, c)


@triton.jit
def exterior(norm_u, sine, half_chord, p, q, delta):
    """atan2(sin(theta) sinh q, sinh(q - p) - 2 s cosh p sinh q), both times e^-q; pi/2 where the parent is the origin."""
    sinh_q = -expm1(-2 * q) * 0.5
    radial = exp(-p + 2 * at_least(delta, 0)) * expm1(-2 * tl.abs(delta)) * 0.5
    radial = tl.where(delta < 0, -radial, radial)
    # the square of the chord alone may be no number
    angle = atan2(sine * sinh_q, radial - 2 * (half_chord * cosh(p)) * half_chord * sinh_q)
    return tl.where(norm_u == 0, 1.5707963267948966, angle)


@triton.jit
def sine_of(a, b, half_chord):
    """sin(theta) from both half chords."""
    half_sum = at_most(tl.sqrt(dot(a + b, a + b)) * 0.5, 1)
    return 2 * half_chord * half_sum


@triton.jit
def exterior_slopes(norm_u, norm_v, r, sine, half_chord, p, q, delta):
    """Derivatives of the exterior angle by p, q and theta.

    0 where the points coincide or the parent is the origin; the slope across the ray is 0 on the ray itself (a kink), as
    far as rounded directions can tell.
    """
    half, m, fall, radial, growth = separation(p, q, delta, half_chord)
    defined = (half != 0) & (norm_u != 0)
    D = tl.where(defined, 2 * half, 1)
    sinh_D, cosh_D = -expm1(-2 * D) * 0.5, (1 + exp(-2 * D)) * 0.5
    sinh_p, sinh_q = -expm1(-2 * p) * 0.5, -expm1(-2 * q) * 0.5
    cosh_q = (1 + exp(-2 * q)) * 0.5
    limit = largest_exponent(D)
    q_growth = exp(at_most(q - 2 * m, limit)) * fall * fall  # e^(q - D)
    near_q, near_p = sinh_q / sinh_D, sinh_p / sinh_D  # over one at a time: of tiny vectors the square is no number
    by_p = sine * near_q * q_growth * cosh_D / sinh_D
    by_q = -sine * near_p * (exp(at_most(p - 4 * m, limit)) * fall * fall * fall * fall) / sinh_D
    spread = half_chord * growth
    by_theta = near_q * q_growth * ((2 * spread * spread * cosh_q * sinh_p - radial) / sinh_D)
    # 4 eps of what |u - v| is of |u| + |v|: see the reference; 8 where quotients, of directions, err by 2^-22 each
    apart = at_least(tl.abs(r) / nonzero(norm_u + norm_v), half_chord)
    straight = sine <= (8.9e-16 if sine.dtype == tl.float64 else 9.5e-7) * apart
    bent = defined & (straight == 0) & (norm_v != 0)
    return tl.where(defined, by_p, 0), tl.where(defined, by_q, 0), tl.where(bent, by_theta, 0)


@triton.jit
def across(chord, a):
    """Unit vector across a, from its end along the unit chord; twice, because rounding leaves some of a for obtuse angles."""
    vector = chord - dot(chord, a)[:, None] * a
    vector = vector - dot(vector, a)[:, None] * a
    return vector * (1 / nonzero(tl.sqrt(dot(vector, vector))))[:, None]


@triton.jit
def angle_gradient(norm_x, norm_y, r, a, b, half_chord, p, q, delta, c, k, TANGENT: tl.constexpr):
    """Gradients of the exterior angle: the part of dx along a, of dx across, the same of dy, and by c."""
    sine = sine_of(a, b, half_chord)
    by_p, by_q, by_theta = exterior_slopes(norm_x, norm_y, r, sine, half_chord, p, q, delta)
    turn_x, turn_y = by_theta / nonzero(norm_x), by_theta / nonzero(norm_y)
    if TANGENT:
        return k * by_p, turn_x, k * by_q, turn_y, (by_p * p + by_q * q) / (2 * c)
    by_c = (by_p * tanh(p) + by_q * tanh(q)) / (2 * c)
    return k * by_p / cosh(p), turn_x, k * by_q / cosh(q), turn_y, by_c


@triton.jit
def _exterior_angle(
    x_ptr, y_ptr, c_ptr, out_ptr, x_stride, y_stride, n, d,
    TANGENT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    k = sqrt_rn(tl.load(c_ptr))
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    y = load_rows(y_ptr, rows, columns, y_stride, n, d, ROWS.DTYPE)
    norm_x, norm_y, a, b, r, _, half_chord = compare(x, y)
    p, q, delta = rapidity(norm_x, norm_y, r, k, TANGENT)
    store_each(out_ptr, rows, exterior(norm_x, sine_of(a, b, half_chord), half_chord, p, q, delta), n)


@triton.jit
def _exterior_angle_backward(
    grad_ptr, x_ptr, y_ptr, c_ptr, dx_ptr, dy_ptr, dc_ptr, x_stride, y_stride, n, d,
    TANGENT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    c = tl.load(c_ptr)
    k = sqrt_rn(c)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    y = load_rows(y_ptr, rows, columns, y_stride, n, d, ROWS.DTYPE)
    grad = load_each(grad_ptr, rows, n, ROWS.DTYPE)
    norm_x, norm_y, a, b, r, e, half_chord = compare(x, y)
    p, q, delta = rapidity(norm_x, norm_y, r, k, TANGENT)
    along_x, turn_x, along_y, turn_y, by_c = angle_gradient(
        norm_x, norm_y, r, a, b, half_chord, p, q, delta, c, k, TANGENT
    )
    length = per_chord(half_chord)[:, None]
    dx = (grad * along_x)[:, None] * a + (grad * turn_x)[:, None] * across(e * length, a)
    dy = (grad * along_y)[:, None] * b + (grad * turn_y)[:, None] * across(-e * length, b)
    store_rows(dx_ptr, rows, columns, dx, n, d)
    store_rows(dy_ptr, rows, columns, dy, n, d)
    store_each(dc_ptr, rows, grad * by_c, n)


def exterior_angle(x: Tensor, y: Tensor, c: Tensor, tangent: bool) -> Tensor:
    """Angle at x: (n d), (n d) -> (n)."""
    x, y, out = launch.unit_stride(x), launch.unit_stride(y), x.new_empty(len(x))
    launch.over_rows(_exterior_angle, "pair", x, x, y, c, out, x.stride(0), y.stride(0), TANGENT=tangent)
    return out


def exterior_angle_backward(
    grad: Tensor, x: Tensor, y: Tensor, c: Tensor, tangent: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, y (n d) and c ()."""
    x, y, dx, dy = launch.unit_stride(x), launch.unit_stride(y), x.new_empty(x.shape), y.new_empty(y.shape)
    dc = launch.scalars_like(x, len(x))
    strides = (x.stride(0), y.stride(0))
    launch.over_rows(
        _exterior_angle_backward, "pair", x, grad.contiguous(), x, y, c, dx, dy, dc, *strides, TANGENT=tangent
    )
    return dx, dy, summed(dc, c)


# ---------------------------------------------------------------------------------------------------------- hinges


@triton.jit
def _hinges(
    x_ptrs, y_ptrs, c_ptr, out_ptr, x_strides, y_strides, n, d,
    ETAS: tl.constexpr, K: tl.constexpr, TANGENT: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    k = sqrt_rn(tl.load(c_ptr))
    for i in tl.static_range(len(ETAS)):
        x = load_rows(x_ptrs[i], rows, columns, x_strides[i], n, d, ROWS.DTYPE)
        y = load_rows(y_ptrs[i], rows, columns, y_strides[i], n, d, ROWS.DTYPE)
        norm_x, norm_y, a, b, r, _, half_chord = compare(x, y)
        p, q, delta = rapidity(norm_x, norm_y, r, k, TANGENT)
        angle = exterior(norm_x, sine_of(a, b, half_chord), half_chord, p, q, delta)
        cone, _ = aperture(sinh(p) if TANGENT else k * norm_x, K)
        store_each(out_ptr + tl.cast(n, tl.int64) * i, rows, at_least(angle - ETAS[i] * cone, 0), n)


@triton.jit
def _hinges_backward(
    grad_ptr, x_ptrs, y_ptrs, c_ptr, dx_ptrs, dy_ptrs, dc_ptr, x_strides, y_strides, n, d,
    ETAS: tl.constexpr, K: tl.constexpr, TANGENT: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    c = tl.load(c_ptr)
    k = sqrt_rn(c)
    for i in tl.static_range(len(ETAS)):
        x = load_rows(x_ptrs[i], rows, columns, x_strides[i], n, d, ROWS.DTYPE)
        y = load_rows(y_ptrs[i], rows, columns, y_strides[i], n, d, ROWS.DTYPE)
        norm_x, norm_y, a, b, r, e, half_chord = compare(x, y)
        p, q, delta = rapidity(norm_x, norm_y, r, k, TANGENT)
        angle = exterior(norm_x, sine_of(a, b, half_chord), half_chord, p, q, delta)
        cone, _ = aperture(sinh(p) if TANGENT else k * norm_x, K)
        grad = load_each(grad_ptr + tl.cast(n, tl.int64) * i, rows, n, ROWS.DTYPE)
        grad = tl.where(angle <= ETAS[i] * cone, 0, grad)
        along_x, turn_x, along_y, turn_y, by_c = angle_gradient(
            norm_x, norm_y, r, a, b, half_chord, p, q, delta, c, k, TANGENT
        )
        cone_by_norm, cone_by_c = aperture_slopes(norm_x, c, k, K, TANGENT)
        length = per_chord(half_chord)[:, None]
        dx = (grad * (along_x - ETAS[i] * cone_by_norm))[:, None] * a + (grad * turn_x)[:, None] * across(e * length, a)
        dy = (grad * along_y)[:, None] * b + (grad * turn_y)[:, None] * across(-e * length, b)
        store_rows(dx_ptrs[i], rows, columns, dx, n, d)
        store_rows(dy_ptrs[i], rows, columns, dy, n, d)
        store_each(dc_ptr + tl.cast(n, tl.int64) * i, rows, grad * (by_c - ETAS[i] * cone_by_c), n)


def entailment_hinges(
    parents: Sequence[Tensor],
    children: Sequence[Tensor],
    c: Tensor,
    etas: Sequence[float],
    min_radius: float,
    tangent: bool,
) -> Tensor:
    """max(0, exterior angle - eta half-aperture) of r relations, each (n d) and (n d): (r n)."""
    x, y = ([launch.unit_stride(t) for t in group] for group in (parents, children))
    out = x[0].new_empty(len(etas), len(x[0]))
    strides = (tuple(t.stride(0) for t in x), tuple(t.stride(0) for t in y))
    constants = {"ETAS": tuple(etas), "K": min_radius, "TANGENT": tangent}
    launch.over_rows(_hinges, "pair", x[0], tuple(x), tuple(y), c, out, *strides, **constants)
    return out


def entailment_hinges_backward(
    grad: Tensor,
    parents: Sequence[Tensor],
    children: Sequence[Tensor],
    c: Tensor,
    etas: Sequence[float],
    min_radius: float,
    tangent: bool,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Gradients of the parents, the children (n d each) and c () from that of the hinges (r n)."""
    x, y = ([launch.unit_stride(t) for t in group] for group in (parents, children))
    dx, dy = ([t.new_empty(t.shape) for t in group] for group in (x, y))
    dc = launch.scalars_like(x[0], grad.numel())
    strides = (tuple(t.stride(0) for t in x), tuple(t.stride(0) for t in y))
    constants = {"ETAS": tuple(etas), "K": min_radius, "TANGENT": tangent}
    pointers = (grad.contiguous(), tuple(x), tuple(y), c, tuple(dx), tuple(dy), dc)
    launch.over_rows(_hinges_backward, "pair", x[0], *pointers, *strides, **constants)
    return dx, dy, summed(dc, c)
