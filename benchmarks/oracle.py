"""Hyperbolic geometry in 60-digit arithmetic, from the textbook definitions: what float code is compared with."""

from __future__ import annotations

import mpmath
import torch

mpmath.mp.dps = 60


def vector(x: torch.Tensor) -> list[mpmath.mpf]:
    return [mpmath.mpf(float(value)) for value in x]


def norm(x):
    return mpmath.sqrt(mpmath.fsum(value**2 for value in x))


def exp_map0(v, c):
    t = mpmath.sqrt(c) * norm(v)
    return [value * (mpmath.sinh(t) / t if t else 1) for value in v]


def time(x, c):
    return mpmath.sqrt(1 / mpmath.mpf(c) + norm(x) ** 2)


def inner(x, y, c):
    return mpmath.fsum(a * b for a, b in zip(x, y, strict=True)) - time(x, c) * time(y, c)


def distance(x, y, c):
    return mpmath.acosh(max(mpmath.mpf(1), -c * inner(x, y, c))) / mpmath.sqrt(c)


def exterior_angle(x, y, c):
    """arccos form (Desai et al. 2023, eq. 8)."""
    a = c * inner(x, y, c)
    value = (time(y, c) + time(x, c) * a) / (norm(x) * mpmath.sqrt(a**2 - 1))
    return mpmath.acos(max(mpmath.mpf(-1), min(mpmath.mpf(1), value)))


def dot(x, y):
    return mpmath.fsum(a * b for a, b in zip(x, y, strict=True))


def exp_map(x, v, c):
    t = mpmath.sqrt(c * (dot(v, v) - (dot(x, v) / time(x, c)) ** 2))
    stretch = mpmath.sinh(t) / t if t else mpmath.mpf(1)
    return [mpmath.cosh(t) * a + stretch * b for a, b in zip(x, v, strict=True)]


def parallel_transport(x, y, v, c):
    product = dot(y, v) - time(y, c) * dot(x, v) / time(x, c)
    beta = c * product / (1 - c * inner(x, y, c))
    return [w + beta * (a + b) for a, b, w in zip(x, y, v, strict=True)]


def centroid(rows, c):
    mean = [mpmath.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
    mean_t = mpmath.fsum(time(row, c) for row in rows) / len(rows)
    scale = mpmath.sqrt(c) * mpmath.sqrt(mean_t**2 - dot(mean, mean))
    return [value / scale for value in mean]


def error(got: torch.Tensor, want) -> float:
    """|got - want| / |want|."""
    return float(norm([a - b for a, b in zip(vector(got), want, strict=True)]) / norm(want))


def tangent_distance(u, v, c):
    return distance(exp_map0(u, c), exp_map0(v, c), c)


def gradient(f, u, step="1e-25"):
    """Central differences at a step far below the 60 digits: exact for our purposes."""
    h = mpmath.mpf(step)
    slopes = []
    for i in range(len(u)):
        up, down = list(u), list(u)
        up[i], down[i] = up[i] + h, down[i] - h
        slopes.append((f(up) - f(down)) / (2 * h))
    return slopes


def sinhc(t_squared):
    t = mpmath.sqrt(t_squared)
    return mpmath.sinh(t) / t if t else mpmath.mpf(1)


def asinhc(z_squared):
    z = mpmath.sqrt(z_squared)
    return mpmath.asinh(z) / z


# functions of one number by the names that the kernels have for them
SCALARS = {
    "exp": mpmath.exp,
    "expm1": mpmath.expm1,
    "log1p": mpmath.log1p,
    "asinh": mpmath.asinh,
    "sinh": mpmath.sinh,
    "cosh": mpmath.cosh,
    "tanh": mpmath.tanh,
    "sinhc": sinhc,
    "kappa": lambda t_squared: (mpmath.cosh(mpmath.sqrt(t_squared)) - sinhc(t_squared)) / t_squared,
    "asinhc": asinhc,
    "tanh_defect": lambda p: mpmath.tanh(p) - p,
    "atan_unit": mpmath.atan,
    "hypot1": lambda x: mpmath.sqrt(1 + x * x),
    "sinhc_scaled": lambda p: mpmath.exp(-p) * mpmath.sinh(p) / p,
}
