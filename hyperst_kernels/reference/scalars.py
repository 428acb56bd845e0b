"""Scalar functions of hyperbolic geometry that stay accurate, with their derivatives, at every argument.

The even functions take the SQUARE of their argument, so that no square root stands between a vector and its gradient
at the origin. Below a threshold they are Taylor polynomials long enough for float64; above it the closed form is used
on an argument that was made safe first, because ``torch.where`` differentiates both of its branches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SINHC_SERIES = [1 / math.factorial(2 * k + 1) for k in range(10)]
ASINHC_SERIES = [(-1) ** k * math.factorial(2 * k) / (4**k * math.factorial(k) ** 2 * (2 * k + 1)) for k in range(10)]
# (tanh p - p) / p^3
TANH_DEFECT_SERIES = [-1 / 3, 2 / 15, -17 / 315, 62 / 2835, -1382 / 155925, 21844 / 6081075, -929569 / 638512875]


def polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    """Horner's rule, lowest coefficient first."""
    value = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def sinhc(t_squared: Tensor) -> Tensor:
    """sinh(t) / t as a function of t^2."""
    near = t_squared < 1
    t = torch.where(near, torch.ones_like(t_squared), t_squared).sqrt()
    return torch.where(near, polynomial(t_squared.clamp(max=1), SINHC_SERIES), torch.sinh(t) / t)


def asinhc(z_squared: Tensor) -> Tensor:
    """asinh(z) / z as a function of z^2."""
    near = z_squared < 0.01
    z = torch.where(near, torch.ones_like(z_squared), z_squared).sqrt()
    return torch.where(near, polynomial(z_squared.clamp(max=0.01), ASINHC_SERIES), asinh(z) / z)


def asinh(z: Tensor) -> Tensor:
    """asinh(z) for z >= 0, with full relative accuracy from the smallest z to the largest."""
    far = z > 1e9
    near = torch.where(far, torch.ones_like(z), z)
    near_squared = near * near
    near_value = torch.log1p(near + near_squared / (1 + torch.sqrt(1 + near_squared)))
    return torch.where(far, torch.log(torch.where(far, z, torch.ones_like(z))) + math.log(2), near_value)


def cosh_minus_1(t_squared: Tensor) -> Tensor:
    """cosh(t) - 1 as a function of t^2: t^2/2 sinhc(t/2)^2."""
    return t_squared / 2 * sinhc(t_squared / 4) ** 2


def tanh_defect(p: Tensor) -> Tensor:
    """tanh(p) - p for p >= 0 without cancellation."""
    limit = 0.05 if p.dtype == torch.float64 else 0.4  # where seven terms and the difference err alike
    small = p.clamp(max=limit)
    series = small**3 * polynomial(small * small, TANH_DEFECT_SERIES)
    return torch.where(p < limit, series, torch.tanh(p) - p)


def kappa(t_squared: Tensor) -> Tensor:
    """(cosh t - sinhc t) / t^2 as a function of t^2: the derivative of sinhc(|u|) u along u, less sinhc."""
    near = t_squared < 1
    safe = torch.where(near, torch.ones_like(t_squared), t_squared)
    t = safe.sqrt()
    series = polynomial(t_squared.clamp(max=1), [(2 * k + 2) / math.factorial(2 * k + 3) for k in range(9)])
    return torch.where(near, series, (torch.cosh(t) - torch.sinh(t) / t) / safe)
