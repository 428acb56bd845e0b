"""Functions of numbers, elementwise on any tile, stable over the whole range of their dtype.

They are the functions of ``reference/scalars.py`` under the same names, for float32 and float64. exp, log1p and expm1 come
from the device's library, which the interpreter does not have; everything else is built from them, and the same code in
both. Halves are products with 0.5, which are exact; a quotient by 2 is one that may err by two units in the last place.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

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


@triton.jit
def rounded_product(x, y):
    """x * y as rounded, also where it is added to: no compiler takes a fused multiply-add apart to fuse another."""
    return tl.fma(x, y, 0.0)


@triton.jit
def epsilon(x):
    """The distance from 1 to the next number of this type."""
    return 2.220446049250313e-16 if x.dtype == tl.float64 else 1.1920928955078125e-07


@triton.jit
def odd_asinh(z):
    """asinh(z) of either sign."""
    size = asinh(tl.abs(z))
    return tl.where(z < 0, -size, size)


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
def sinhc_scaled(p):
    """e^-p sinh(p) / p."""
    safe = nonzero(p)
    return tl.where(p == 0, 1, -expm1(-2 * safe) / (2 * safe))
