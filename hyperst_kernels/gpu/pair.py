"""Two rows: how they differ, and their distance and its slopes, the functions of ``reference/pair.py`` under the same names."""

from __future__ import annotations

import triton
import triton.language as tl

from hyperst_kernels.gpu.scalars import (
    asinh,
    at_least,
    at_most,
    div_rn,
    epsilon,
    exp,
    expm1,
    hypot,
    hypot1,
    largest_exponent,
    nonzero,
    odd_asinh,
    rounded_product,
    sign,
    sinh,
    sinhc_scaled,
    sqrt_rn,
)
from hyperst_kernels.gpu.tile_math import dot, scale_of

# What rounding may leave of a number of a - b on one ray, in eps of that of u - v over |u| + |v|: see reference/pair.py.
NOISE = tl.constexpr(5.0)
# Chords are squared in this scale, a power of two: the square of 1e-20 is no number, and e^60 of it is much.
CHORD_SCALE = tl.constexpr(2.0**50)


@triton.jit
def split(v, a):
    """The part of v along the direction a, and the rest: exactly zero for v on the ray of a. See ``reference.pair.split``."""
    along = dot(v, a)
    across = v - along[:, None] * a
    more = dot(across, a)
    across -= more[:, None] * a
    across = tl.where(tl.abs(across) < 2 * epsilon(v) * tl.abs(along[:, None] * a), 0, across)
    return along + more, across


@triton.jit
def unless_rounding(e, w, per_sum):
    """Numbers of a - b; 0 for what rounding left of them on one ray, from those of u - v and 1 / (|u| + |v|)."""
    return tl.where(tl.abs(e) < (NOISE * epsilon(e) * per_sum) * tl.abs(w), 0, e)


@triton.jit
def compare(u, v):
    """Norms |u|, |v|, directions a, b, |u| - |v|, a - b and |a - b| / 2 of matching rows: ``reference.pair.compare``."""
    scale_u, unscale_u = scale_of(u)
    scale_v, unscale_v = scale_of(v)
    u, v = u * scale_u[:, None], v * scale_v[:, None]
    # far out, a unit in the last place of a norm, or of their difference, is one of e^radius times as many
    norm_u, norm_v = sqrt_rn(dot(u, u)), sqrt_rn(dot(v, v))
    # one division per row: a division of every number costs more than the rest
    a, b = rounded_product(u, (1 / nonzero(norm_u))[:, None]), rounded_product(v, (1 / nonzero(norm_v))[:, None])
    # both in the scale of the longer
    scale, unscale = tl.minimum(scale_u, scale_v), tl.maximum(unscale_u, unscale_v)
    share_u, share_v = unscale_u * scale, unscale_v * scale
    u, v = u * share_u[:, None], v * share_v[:, None]
    w = u - v
    per_sum = div_rn(1.0, nonzero(norm_u * share_u + norm_v * share_v))
    r = dot(w, u + v) * per_sum
    bisector = a + b
    e = (2 * per_sum)[:, None] * w - (r * per_sum)[:, None] * bisector
    square = dot(bisector, bisector)  # 1 where one of the two is the origin, whose a - b must stay
    leftover = tl.where(square > 2, dot(e, bisector) / nonzero(square), 0)
    e = e - leftover[:, None] * bisector
    # on one ray a number of e is what rounding left: see NOISE of the reference
    e = unless_rounding(e, w, per_sum[:, None])
    if u.shape[1] == 1:  # a direction is a sign, and no rounding of it may be taken for an angle
        a, b = sign(u), sign(v)
        e = a - b
    scaled = CHORD_SCALE * e
    half_chord = at_most(tl.sqrt(dot(scaled, scaled)) * (0.5 / CHORD_SCALE), 1)
    half_chord = tl.where((norm_u == 0) | (norm_v == 0), 0.7071067811865476, half_chord)
    # of norms far apart take the difference of the rounded norms: then p, q and p - q err together, and p + q - D does not
    long, gap = tl.maximum(norm_u * share_u, norm_v * share_v), norm_u * share_u - norm_v * share_v
    r = tl.where(2 * tl.abs(gap) > long, gap, r)
    return norm_u * unscale_u, norm_v * unscale_v, a, b, r * unscale, e, half_chord


@triton.jit
def hyperbolic(norm_u, norm_v, r, k):
    """sinh p, sinh q, cosh p, cosh q and sinh(p - q) of points, from norms and their difference, k = sqrt(c)."""
    X, Y = k * norm_u, k * norm_v
    cosh_p, cosh_q = hypot1(X), hypot1(Y)
    total = nonzero(X + Y)
    # one share each, so that the square of a large X is never formed
    return X, Y, cosh_p, cosh_q, k * r / nonzero(X / total * cosh_q + Y / total * cosh_p)


@triton.jit
def rapidity(norm_u, norm_v, r, k, TANGENT: tl.constexpr):
    """Hyperbolic polar coordinates p, q, p - q from norms and their difference, k = sqrt(c)."""
    if TANGENT:
        return k * norm_u, k * norm_v, k * r
    X, Y, _, _, sinh_delta = hyperbolic(norm_u, norm_v, r, k)
    return asinh(X), asinh(Y), odd_asinh(sinh_delta)


@triton.jit
def separation(p, q, delta, half_chord):
    """Half the distance D of two rows, and the factors of its slopes, in none of which a rounded D is an exponent.

    D/2 = asinh(sqrt H), H = sinh^2(delta/2) + sinh p sinh q sin^2(theta/2), as in ``reference.pair.half_distance``, with
    e^m taken out where sqrt(H) may be too large for a number. Returns D/2, m, e^(m - D/2), sinh(delta) e^-D and e^((p+q-D)/2),
    the last 0 where there is no chord to multiply it with.
    """
    apart = tl.abs(delta) * 0.5
    # an integer, so that nothing is rounded where it is subtracted
    m = tl.floor(at_least(at_least(apart, (p + q) * 0.5 + tl.log(half_chord)) - 40, 0))
    grown = exp(apart - m)
    radial = tl.where(m > 0, -grown * expm1(-2 * apart) * 0.5, sinh(tl.where(m > 0, 0, apart)))
    # in two halves that are alike, and capped: where they may be too large, a small chord takes them back
    shift, limit = tl.floor((p - q) * 0.25), largest_exponent(m)
    growth_p = exp(at_most((p - m) * 0.5 - shift, limit))
    growth_q = exp(at_most((q - m) * 0.5 + shift, limit))
    shrink_p, shrink_q = tl.sqrt(-expm1(-2 * p)), tl.sqrt(-expm1(-2 * q))  # of tiny vectors the product is no number
    angular = half_chord * (growth_p * shrink_p) * (growth_q * shrink_q * 0.5)
    root = hypot(radial, angular)
    fall = 1 / (root + hypot(root, exp(-m)))  # e^(-D/2) = sqrt(1 + H) - sqrt(H)
    radial = -(grown * fall) * (grown * fall) * expm1(-4 * apart) * 0.5
    growth = tl.where(half_chord == 0, 0, growth_p * fall * growth_q)
    return asinh(root) + m, m, fall, tl.where(delta < 0, -radial, radial), growth


@triton.jit
def half_distance(p, q, delta, half_chord):
    """D/2, see `separation`."""
    half, _, _, _, _ = separation(p, q, delta, half_chord)
    return half


@triton.jit
def distance_of(norm_u, norm_v, r, half_chord, k, TANGENT: tl.constexpr):
    """Distances from what `compare` returns, k = sqrt(c)."""
    if TANGENT:
        half = half_distance(k * norm_u, k * norm_v, k * r, half_chord)
    else:
        X, Y, _, _, sinh_delta = hyperbolic(norm_u, norm_v, r, k)
        half = asinh(root_of_points(X, Y, sinh_delta, half_chord))
    return div_rn(2.0, k) * half


@triton.jit
def slopes(p, q, delta, half_chord):
    """dD/dp, dD/dq, sinh q / sinh D times e^(D-p-q), e^((p+q-D)/2) and D = sqrt(c) d.

    All hyperbolic functions carry their growth e^-p, e^-q, e^-D taken out; 0 where the points coincide.
    """
    half, _, _, radial, growth = separation(p, q, delta, half_chord)
    apart = half != 0
    sinh_D = -expm1(-4 * tl.where(apart, half, 1)) * 0.5
    sinh_p, sinh_q = -expm1(-2 * p) * 0.5, -expm1(-2 * q) * 0.5
    cosh_p, cosh_q = (1 + exp(-2 * p)) * 0.5, (1 + exp(-2 * q)) * 0.5
    root_spread = half_chord * growth
    spread = 2 * root_spread * root_spread
    A_u = tl.where(apart, (radial + spread * cosh_p * sinh_q) / sinh_D, 0)
    A_v = tl.where(apart, (-radial + spread * cosh_q * sinh_p) / sinh_D, 0)
    return A_u, A_v, tl.where(apart, sinh_q / sinh_D, 0), growth, 2 * half


@triton.jit
def slopes_of_distance(norm_u, norm_v, r, half_chord, k, TANGENT: tl.constexpr):
    """Coefficients of the direction and of the unit chord in dd/du = A a + B (e - 2 s a), from what `compare` returns.

    Of the unit chord, because far out the coefficient of e itself may be too large for a number, and e next to nothing.
    """
    if TANGENT:
        p = k * norm_u
        A, _, weight, growth, _ = slopes(p, k * norm_v, k * r, half_chord)
        weight *= sinhc_scaled(p)
        root_spread = half_chord * growth
        along, across = A - 2 * weight * root_spread * root_spread, 2 * weight * (growth * root_spread)
    else:
        # half of sqrt(c) / sinh D times (sinh(p - q) / cosh p) a + sinh q e, as in `haversine_gradient`
        X, Y, cosh_p, _, sinh_delta = hyperbolic(norm_u, norm_v, r, k)
        root = root_of_points(X, Y, sinh_delta, half_chord)
        cosh = hypot1(root)
        root = nonzero(root)
        along, across = sinh_delta / cosh_p / root / cosh * 0.5, half_chord * Y / root / cosh
    return along, across


@triton.jit
def per_chord(half_chord):
    """1 / |e|, which makes a unit vector of the chord e."""
    return 1 / nonzero(2 * half_chord)


@triton.jit
def curvature_slope(p, q, delta, half_chord, A_u, A_v, D, c, k):
    """dd/dc at fixed tangent vectors: (p A_u + q A_v - D) / (2 c sqrt c), by its series where that cancels."""
    closed = (p * A_u + q * A_v - D) / (2 * c * k)
    limit = 0.03 if D.dtype == tl.float64 else 0.3
    small = (p < limit) & (q < limit)
    p, q = tl.where(small, p, 0), tl.where(small, q, 0)
    delta, D = tl.where(small, delta, 0), tl.where(small, D, 0)
    u1, u2 = delta * delta, D * D
    p2, q2 = p * p, q * q
    m1 = ((u1 + u2) * 0.25 + (u1 * u1 + u1 * u2 + u2 * u2) * (1 / 36)) / (0.5 + (u1 + u2) * (1 / 24))
    m2 = (u1 * u1 + u1 * u2 + u2 * u2) * (1 / 3)
    m3 = (u1 + u2) * (u1 * u1 + u2 * u2) * 0.25
    bracket = (p2 + q2 - m1) * (1 / 3) - (p2 * p2 + q2 * q2 - m2) * (1 / 45)
    bracket += (p2 * p2 * p2 + q2 * q2 * q2 - m3) * (2 / 945)
    series = half_chord * half_chord * sinh(p) * sinh(q) / nonzero(sinh(D)) * bracket / (c * k)
    return tl.where(small, series, closed)


@triton.jit
def root_of_points(sinh_p, sinh_q, sinh_delta, half_chord):
    """sqrt(H) of points, without exponentials: sinh(t/2) = sinh(t) / sqrt(2 + 2 cosh t)."""
    size = tl.abs(sinh_delta)
    radial = size / (1.4142135623730951 * tl.sqrt(1 + hypot1(size)))
    return hypot(radial, half_chord * tl.sqrt(sinh_p) * tl.sqrt(sinh_q))


@triton.jit
def root_between(x, y, k):
    """sqrt(H) = sinh(sqrt(c) d / 2) of matching points, k = sqrt(c)."""
    norm_x, norm_y, _, _, r, _, half_chord = compare(x, y)
    X, Y, _, _, sinh_delta = hyperbolic(norm_x, norm_y, r, k)
    return root_of_points(X, Y, sinh_delta, half_chord)


@triton.jit
def haversine_gradient(x, y, k):
    """sqrt(H), to_x and to_y with dH = c/2 (to_x . dx + to_y . dy), cosh q / cosh p, (cosh q - cosh p)^2 / (cosh p cosh q).

    to_x = (y_t/x_t) x - y as (sinh(p - q) / cosh p) a + sinh(q) e, where nothing cancels.
    """
    norm_x, norm_y, a, b, r, e, half_chord = compare(x, y)
    X, Y, cosh_p, cosh_q, sinh_delta = hyperbolic(norm_x, norm_y, r, k)
    root = root_of_points(X, Y, sinh_delta, half_chord)
    along = sinh_delta / k
    to_x = (along / cosh_p)[:, None] * a + norm_y[:, None] * e
    to_y = (-along / cosh_q)[:, None] * b - norm_x[:, None] * e
    gap = k * r * ((X + Y) / (cosh_p + cosh_q))
    return root, to_x, to_y, cosh_q / cosh_p, (gap / cosh_p) * (gap / cosh_q)
