"""Device functions shared by all kernels: stable scalar functions of any tile, and the comparison of two rows.

They are the functions of ``reference/scalars.py`` and ``reference/pair.py`` under the same names, for float32 and
float64. exp, log1p and expm1 come from the device's library, which the interpreter does not have; everything else is
built from them, and the same code in both. Halves are products with 0.5, which are exact; a quotient by 2 is one that
may err by two units in the last place.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

# What rounding may leave of a number of a - b on one ray, in eps of that of u - v over |u| + |v|: see reference/pair.py.
NOISE = tl.constexpr(5.0)
# Chords are squared in this scale, a power of two: the square of 1e-20 is no number, and e^60 of it is much.
CHORD_SCALE = tl.constexpr(2.0**50)
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def div_rn(x, y):
    """x / y rounded once, in float64 too; ``/`` errs by two units in the last place on a device."""
    if y.dtype == tl.float64:
        quotient = x / y
    else:
        quotient = tl.div_rn(x, y)
    return quotient


@triton.jit
def sqrt_rn(x):
    """The square root rounded once, in float64 too; ``tl.sqrt`` errs by one unit in the last place on a device."""
    if x.dtype == tl.float64:
        root = tl.sqrt(x)
    else:
        root = tl.sqrt_rn(x)
    return root


@triton.jit
def exp(x):
    """e^x; ``tl.exp`` rounds its argument times log2(e), which costs |x| ulp on a device."""
    if INTERPRETED:
        return tl.exp(x)
    return libdevice.exp(x)


@triton.jit
def log1p(x):
    """log(1 + x) for x > -1."""
    if INTERPRETED:
        # what rounding 1 + x loses is given back by x / ((1 + x) - 1)
        u = 1 + x
        exact = u == 1
        return tl.where(exact, x, tl.log(u) * div_rn(x, tl.where(exact, 1, u - 1)))
    return libdevice.log1p(x)


@triton.jit
def expm1(x):
    """e^x - 1."""
    if INTERPRETED:
        # the same idea: (u - 1) x / log u for u = e^x as rounded
        u = tl.exp(x)
        same = u == 1
        plain = same | (u - 1 == -1) | (x > 30)
        ratio = div_rn(x, tl.where(plain, 1, tl.log(tl.where(plain, 2, u))))
        return tl.where(same, x, tl.where(plain, u - 1, (u - 1) * ratio))
    return libdevice.expm1(x)


@triton.jit
def asinh(z):
    """asinh(z), z >= 0, from the smallest z to the largest."""
    far = z > 1e9
    near = tl.where(far, 1, z)
    square = near * near
    far_value = tl.log(tl.where(far, z, 1)) + 0.6931471805599453
    return tl.where(far, far_value, log1p(near + square / (1 + tl.sqrt(1 + square))))


@triton.jit
def sinhc_excess(t_squared):
    """(sinh(t) / t - 1) / t^2 for t <= 1."""
    x = at_most(t_squared, 1)
    series = 1 / 1307674368000 + x * (1 / 355687428096000)
    series = 1 / 6227020800 + x * series
    series = 1 / 39916800 + x * series
    series = 1 / 362880 + x * series
    series = 1 / 5040 + x * series
    series = 1 / 120 + x * series
    return 1 / 6 + x * series


@triton.jit
def sinh(t):
    """sinh(t), t >= 0."""
    near = t < 1
    small, e = tl.where(near, t, 0), expm1(t)
    square = small * small
    return tl.where(near, small + small * (square * sinhc_excess(square)), (e + div_rn(e, e + 1)) * 0.5)


@triton.jit
def cosh(t):
    """cosh(t), t >= 0."""
    e = exp(t)
    return (e + 1 / e) * 0.5


@triton.jit
def tanh(t):
    """tanh(t), t >= 0."""
    e = expm1(-2 * t)
    return div_rn(-e, 2 + e)


@triton.jit
def sinhc(t_squared):
    """sinh(t) / t."""
    near = t_squared < 1
    t = sqrt_rn(tl.where(near, 1, t_squared))  # a unit in its last place is t of them in the result
    e = exp(t)
    return tl.where(near, 1 + t_squared * sinhc_excess(t_squared), (e - 1 / e) / (2 * t))


@triton.jit
def kappa(t_squared):
    """(cosh t - sinhc t) / t^2."""
    x = at_most(t_squared, 1)
    series = 16 / 355687428096000 + x * (18 / 121645100408832000)
    series = 14 / 1307674368000 + x * series
    series = 12 / 6227020800 + x * series
    series = 10 / 39916800 + x * series
    series = 8 / 362880 + x * series
    series = 6 / 5040 + x * series
    series = 4 / 120 + x * series
    series = 2 / 6 + x * series
    near = t_squared < 1
    safe = tl.where(near, 1, t_squared)
    t = sqrt_rn(safe)
    e = exp(t)
    return tl.where(near, series, ((e + 1 / e) * 0.5 - (e - 1 / e) / (2 * t)) / safe)


@triton.jit
def asinhc_series(z_squared):
    """asinh(z) / z for z^2 <= 0.01."""
    x = at_most(z_squared, 0.01)
    series = -429 / 30720 + x * (6435 / 557056)
    series = 231 / 13312 + x * series
    series = -63 / 2816 + x * series
    series = 35 / 1152 + x * series
    series = -15 / 336 + x * series
    series = 3 / 40 + x * series
    series = -1 / 6 + x * series
    return 1 + x * series


@triton.jit
def asinhc(z_squared):
    """asinh(z) / z."""
    near = z_squared < 0.01
    z = tl.sqrt(tl.where(near, 1, z_squared))
    return tl.where(near, asinhc_series(z_squared), asinh(z) / z)


@triton.jit
def asinhc_at(z):
    """asinh(z) / z of z >= 0 itself, whose square may be too large for a number."""
    near = z < 0.1
    small = tl.where(near, z, 0)
    return tl.where(near, asinhc_series(small * small), asinh(z) / nonzero(z))


@triton.jit
def asinhc_slope_series(z_squared):
    """(asinhc(z) - 1/sqrt(1 + z^2)) / z^2 for z^2 <= 0.01."""
    x = at_most(z_squared, 0.01)
    series = 6006 / 30720 + x * (-102960 / 557056)
    series = -2772 / 13312 + x * series
    series = 630 / 2816 + x * series
    series = -280 / 1152 + x * series
    series = 90 / 336 + x * series
    series = -12 / 40 + x * series
    return 1 / 3 + x * series


@triton.jit
def asinhc_fall(z_squared):
    """asinhc(z) - 1/sqrt(1 + z^2) = -z d asinhc(z) / dz."""
    near = z_squared < 0.01
    safe = tl.where(near, 1, z_squared)
    return tl.where(near, z_squared * asinhc_slope_series(z_squared), asinhc(safe) - 1 / tl.sqrt(1 + safe))


@triton.jit
def asinhc_slope(z_squared):
    """d asinhc(z) / d z^2; 0 in float32 from z = 3e12 on: there `asinhc_fall` is what can be used."""
    near = z_squared < 0.01
    safe = tl.where(near, 1, z_squared)
    return -tl.where(near, asinhc_slope_series(z_squared), asinhc_fall(safe) / safe) * 0.5


@triton.jit
def tanh_defect(p):
    """tanh(p) - p, p >= 0."""
    limit = 0.05 if p.dtype == tl.float64 else 0.4  # where seven terms and the difference err alike
    x = at_most(p, limit)
    y = x * x
    series = 21844 / 6081075 + y * (-929569 / 638512875)
    series = -1382 / 155925 + y * series
    series = 62 / 2835 + y * series
    series = -17 / 315 + y * series
    series = 2 / 15 + y * series
    series = -1 / 3 + y * series
    return tl.where(p < limit, x * y * series, tanh(p) - p)


@triton.jit
def at_most(x, limit):
    """min(x, limit), but a NaN stays: ``tl.minimum`` would hide it."""
    return tl.where(x > limit, limit, x)


@triton.jit
def at_least(x, limit):
    """max(x, limit), but a NaN stays."""
    return tl.where(x < limit, limit, x)


@triton.jit
def sign(x):
    """-1, 0 or 1."""
    return tl.where(x > 0, 1, tl.where(x < 0, -1, 0)).to(x.dtype)


@triton.jit
def nonzero(x):
    """x with its zeros replaced by ones: a denominator whose numerator is zero there too."""
    return tl.where(x == 0, 1, x)


@triton.jit
def atan2(y, x):
    """Angle of (x, y) for y >= 0, in [0, pi]; 0 at the origin."""
    flipped = tl.abs(x)
    small, large = at_most(y, flipped), at_least(flipped, y)
    angle = atan_unit(small / nonzero(large))
    angle = tl.where(y > flipped, 1.5707963267948966 - angle, angle)
    return tl.where(x < 0, 3.141592653589793 - angle, angle)


@triton.jit
def atan_unit(z):
    """atan(z), 0 <= z <= 1: two halvings of the angle, then its series in at most tan(pi/16)."""
    z = z / (1 + tl.sqrt(1 + z * z))
    z = z / (1 + tl.sqrt(1 + z * z))
    x = z * z
    series = 1 / 21 - x * (1 / 23)
    series = 1 / 19 - x * series
    series = 1 / 17 - x * series
    series = 1 / 15 - x * series
    series = 1 / 13 - x * series
    series = 1 / 11 - x * series
    series = 1 / 9 - x * series
    series = 1 / 7 - x * series
    series = 1 / 5 - x * series
    series = 1 / 3 - x * series
    return 4 * z * (1 - x * series)


# ---------------------------------------------------------------------------------------------------------- rows


@triton.jit
def pick(values, i):
    """Value i of a tuple: of all that a launch over several matrices was given, that of this program's own."""
    chosen = values[0]
    for k in tl.static_range(1, len(values)):
        chosen = tl.where(i == k, values[k], chosen)
    return chosen


@triton.jit
def load_rows(pointer, rows, columns, stride, n, d, DTYPE: tl.constexpr):
    """Rows of a matrix (n d) as a tile, zero beyond its ends; ``rows`` are 64 bit, so offsets do not overflow."""
    inside = (rows < n)[:, None] & (columns < d)[None, :]
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], inside, other=0).to(DTYPE)


@triton.jit
def store_rows(pointer, rows, columns, tile, n, d):
    """Write a tile over rows of a contiguous matrix (n d)."""
    inside = (rows < n)[:, None] & (columns < d)[None, :]
    tl.store(pointer + rows[:, None] * d + columns[None, :], tile.to(pointer.dtype.element_ty), inside)


@triton.jit
def load_each(pointer, rows, n, DTYPE: tl.constexpr):
    """One number per row."""
    return tl.load(pointer + rows, rows < n, other=0).to(DTYPE)


@triton.jit
def store_each(pointer, rows, values, n):
    tl.store(pointer + rows, values.to(pointer.dtype.element_ty), rows < n)


@triton.jit
def rounded_product(x, y):
    """x * y as rounded, also where it is added to: no compiler takes a fused multiply-add apart to fuse another."""
    return tl.fma(x, y, 0.0)


@triton.jit
def dot(x, y):
    """Sum of x * y over each row: the same bits in all threads that share a row.

    Unrounded, a thread's own product would be fused into the first addition between threads.
    """
    return tl.sum(rounded_product(x, y), axis=1)


@triton.jit
def epsilon(x):
    """The distance from 1 to the next number of this type."""
    return 2.220446049250313e-16 if x.dtype == tl.float64 else 1.1920928955078125e-07


@triton.jit
def scale_of(x):
    """A power of two for each row that brings its squares into range, and its inverse; 1 wherever that serves."""
    size = tl.max(tl.abs(x), axis=1)
    if x.dtype == tl.float64:
        small, large = 3.872591914849318e-121, 3.121748550315992e144  # 2^-400, 2^480
        up, down = 4.149515568880993e180, 2.409919865102884e-181  # 2^600, 2^-600
    else:
        small, large = 9.094947017729282e-13, 1.152921504606847e18  # 2^-40, 2^60
        # 2^100; 2^-70, which leaves small numbers of a long row above the least one
        up, down = 1.2676506002282294e30, 8.470329472543003e-22
    tiny, huge = size < small, size > large
    scale = tl.where(huge, down, tl.where(tiny, up, 1.0)).to(x.dtype)
    return scale, tl.where(huge, 1 / down, tl.where(tiny, 1 / up, 1.0)).to(x.dtype)


@triton.jit
def norm(x):
    """|x| of each row, also where its square overflows or vanishes."""
    scale, unscale = scale_of(x)
    x = x * scale[:, None]
    return sqrt_rn(dot(x, x)) * unscale


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
def odd_asinh(z):
    """asinh(z) of either sign."""
    size = asinh(tl.abs(z))
    return tl.where(z < 0, -size, size)


@triton.jit
def rapidity(norm_u, norm_v, r, k, TANGENT: tl.constexpr):
    """Hyperbolic polar coordinates p, q, p - q from norms and their difference, k = sqrt(c)."""
    if TANGENT:
        return k * norm_u, k * norm_v, k * r
    X, Y, _, _, sinh_delta = hyperbolic(norm_u, norm_v, r, k)
    return asinh(X), asinh(Y), odd_asinh(sinh_delta)


@triton.jit
def hypot1(x):
    """sqrt(1 + x^2) for x >= 0 without overflow."""
    large = x > 1e9
    return tl.where(large, x, tl.sqrt(1 + tl.where(large, 0, x) * x))


@triton.jit
def hypot(x, y):
    """sqrt(x^2 + y^2) for x, y >= 0 without overflow."""
    large = nonzero(at_least(x, y))
    small = at_most(y, x) / large
    return tl.where((x == 0) & (y == 0), 0, large * tl.sqrt(1 + small * small))


@triton.jit
def largest_exponent(x):
    """Of which e to it fits."""
    return 709.0 if x.dtype == tl.float64 else 88.0


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
def sinhc_scaled(p):
    """e^-p sinh(p) / p."""
    safe = nonzero(p)
    return tl.where(p == 0, 1, -expm1(-2 * safe) / (2 * safe))


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
