"""Distance of matching rows and its gradients from four sums per pair, for float32 rows: one sweep over them each.

    H = sinh^2(delta/2) + sinh p sinh q s^2,    s = sin(theta/2)          d = (2/sqrt c) asinh(sqrt H)

as in `reference.distance`. The sums are those of exact differences, in float64: what cancels below leaves more than the
digits of float32. All but the sums and the final combination is work on one number per row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hyperst_kernels.cpu import native


class _Polar(NamedTuple):
    """Hyperbolic polar coordinates of pairs of rows, each (r) in float64."""

    norm_x: Tensor  # 1 at the origin
    norm_y: Tensor
    difference: Tensor  # |x| - |y|
    sinh_p: Tensor
    sinh_q: Tensor
    cosh_p: Tensor
    cosh_q: Tensor
    sinh_delta: Tensor
    s_squared: Tensor  # sin^2(theta/2), 0 where one of the two is the origin
    H: Tensor


def _polar(x: Tensor, y: Tensor, c: float, tangent: bool) -> _Polar:
    xx, yy, ww, wu = native.compare(x, y)
    norm_x, norm_y = xx.sqrt(), yy.sqrt()
    difference = wu / _nonzero(norm_x + norm_y)
    s_squared = ((ww - difference**2) / (4 * _nonzero(norm_x * norm_y))).clamp(0, 1)
    s_squared = torch.where(norm_x * norm_y == 0, 0, s_squared)
    X, Y, delta = (c**0.5 * t for t in (norm_x, norm_y, difference))
    if tangent:
        sinh_p, sinh_q, cosh_p, cosh_q = torch.sinh(X), torch.sinh(Y), torch.cosh(X), torch.cosh(Y)
    else:
        sinh_p, sinh_q, cosh_p, cosh_q = X, Y, torch.sqrt(1 + X * X), torch.sqrt(1 + Y * Y)
        # sinh(p - q) = (X^2 - Y^2) / (X cosh q + Y cosh p)
        delta = torch.asinh(delta * (X + Y) / _nonzero(X * cosh_q + Y * cosh_p))
    H = torch.sinh(delta / 2) ** 2 + sinh_p * sinh_q * s_squared
    return _Polar(
        *(_nonzero(norm_x), _nonzero(norm_y), difference),
        *(sinh_p, sinh_q, cosh_p, cosh_q, torch.sinh(delta), s_squared, H),
    )


def distance(x: Tensor, y: Tensor, c: float, tangent: bool) -> Tensor:
    """(r d), (r d) -> (r)."""
    return (2 / c**0.5 * torch.asinh(_polar(x, y, c, tangent).H.sqrt())).float()


def distance_gradients(x: Tensor, y: Tensor, c: float, tangent: bool) -> tuple[Tensor, Tensor]:
    """(r d), (r d), 0 for pairs that coincide. Each is a combination of x - y and of its own row."""
    t = _polar(x, y, c, tangent)
    root = torch.sqrt(t.H) * torch.sqrt(1 + t.H)
    slope = torch.where(t.H == 0, 0, 1 / (c**0.5 * _nonzero(root)))  # dd/dH
    none = torch.zeros_like(slope)
    if not tangent:
        # 2 dH/dX = X Y_t / X_t - Y = (Y_t / X_t) (X - Y) - (1 - Y_t / X_t) Y = (X - Y) - (1 - Y_t / X_t) X: the first
        # where x is the farther out, else the second. Likewise for y.
        x_t, y_t, size = t.cosh_p, t.cosh_q, slope * c / 2
        gap = size * c**0.5 * t.difference * (t.sinh_p + t.sinh_q) / (x_t + y_t)  # X_t - Y_t
        out = x_t > y_t
        of_x = (size * torch.where(out, y_t / x_t, 1), torch.where(out, 0, -gap / x_t), torch.where(out, -gap / x_t, 0))
        of_y = (-size * torch.where(out, 1, x_t / y_t), torch.where(out, 0, gap / y_t), torch.where(out, gap / y_t, 0))
        return native.combine(x, y, of_x), native.combine(x, y, of_y)
    # dH/dx = (sinh(delta)/2 + s^2 cosh p sinh q) sqrt(c) a - sinh p sinh q / (2 |x|) (b - a + 2 s^2 a), with the
    # directions a, b; b - a = (|x| - |y|) x / (|x| |y|) - (x - y) / |y|
    p_growth, q_growth = (
        torch.where(sinh == 0, c**0.5, sinh / norm) for sinh, norm in ((t.sinh_p, t.norm_x), (t.sinh_q, t.norm_y))
    )
    s2 = t.s_squared
    along = slope * p_growth * q_growth / 2
    of_x = c**0.5 * (t.sinh_delta / 2 + s2 * t.cosh_p * t.sinh_q) / t.norm_x
    of_x -= p_growth * q_growth / 2 * (t.difference + 2 * s2 * t.norm_y) / t.norm_x
    of_y = c**0.5 * (-t.sinh_delta / 2 + s2 * t.cosh_q * t.sinh_p) / t.norm_y
    of_y -= p_growth * q_growth / 2 * (-t.difference + 2 * s2 * t.norm_x) / t.norm_y
    return native.combine(x, y, (along, slope * of_x, none)), native.combine(x, y, (-along, none, slope * of_y))


def _nonzero(t: Tensor) -> Tensor:
    return torch.where(t == 0, 1, t)
