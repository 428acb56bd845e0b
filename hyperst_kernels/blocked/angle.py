"""Exterior angles of all pairs of a block, from one product of unit vectors where that has the digits.

With p and q the rapidities of x and y, w = cos theta of their directions, and everything divided by e^(p+q),

    tan(angle) = S / C,    S = sinh q sin theta,    C = sinh(q - p) - cosh p sinh q (1 - w)

Directions so close, or so opposite, that the product has lost the digits of sin theta go to the row-wise function, which
works with differences. Elsewhere an error of theta is one of the angle but for a factor of at most cosh p where C cancels,
which it does only for 1 - w of the size of 2 e^(-2p): near the origin.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hyperst_kernels.blocked.repairs import chunks, too_many
from hyperst_kernels.operators.entailment import exterior_angle
from hyperst_kernels.reference.entailment import angle_gradients
from hyperst_kernels.reference.flat import unit
from hyperst_kernels.reference.pair import norm
from hyperst_kernels.reference.scalars import polynomial

# 1 - |cos theta| from which on a product of unit vectors keeps all but six bits; in float64 for float32, all that count
ALIGNED, ALIGNED_WIDENED = 2.0**-6, 2.0**-30


class Polar(NamedTuple):
    """Vectors (n d) by directions (n d), lengths and rapidities (n 1); and e^-p, (1 - e^-2p) / 2, (1 + e^-2p) / 2."""

    direction: Tensor
    length: Tensor
    rapidity: Tensor
    decay: Tensor
    sinh: Tensor
    cosh: Tensor


def polar(x: Tensor, c: Tensor, tangent: bool) -> Polar:
    """Return tangent vectors, or points by their space components, (n d) in polar coordinates."""
    return Polar(unit(x), *of_lengths(norm(x), c, tangent))


def of_lengths(length: Tensor, c: Tensor, tangent: bool) -> tuple[Tensor, ...]:
    """All of `Polar` but the directions."""
    rapidity = c.sqrt() * length if tangent else torch.asinh(c.sqrt() * length)
    sinh, cosh = -torch.expm1(-2 * rapidity) / 2, (1 + torch.exp(-2 * rapidity)) / 2
    return length, rapidity, torch.exp(-rapidity), sinh, cosh


class _Turned(NamedTuple):
    """cos theta, 1 - cos theta and sin theta of all pairs, S and C, and which pairs are `ALIGNED`."""

    cosine: Tensor
    versine: Tensor
    sine: Tensor
    across: Tensor
    along: Tensor
    aligned: Tensor


def _turned(x: Polar, y: Polar, limit: float) -> _Turned:
    cosine = (x.direction @ y.direction.T).clamp(-1, 1)
    versine = 1 - cosine
    sine = torch.sqrt(versine * (1 + cosine))
    across = x.decay * y.sinh.T * sine
    # sinh(q - p) e^-(p+q) from the rapidities: e^-2p and e^-2q may be alike
    apart = y.rapidity.T - x.rapidity
    nearer = torch.minimum(x.rapidity, y.rapidity.T)
    radial = torch.sign(apart) * torch.exp(-2 * nearer) * -torch.expm1(-2 * apart.abs()) / 2
    along = radial - x.cosh * y.sinh.T * versine
    return _Turned(cosine, versine, sine, across, along, aligned(cosine, x.length, y.length, limit))


def aligned(cosine: Tensor, x_length: Tensor, y_length: Tensor, limit: float = ALIGNED) -> Tensor:
    """Which pairs are `ALIGNED`, by their cosines (r w) and lengths (r 1), (w 1); none with the origin."""
    versine = 1 - cosine
    return ((versine < limit) | (versine > 2 - limit)) & (x_length != 0) & (y_length.T != 0)


def values(x: Tensor, y: Tensor, c: Tensor, tangent: bool, limit: float = ALIGNED) -> Tensor:
    """`exterior_angle` of every x (r d) with every y (w d): (r w)."""
    u, v = polar(x, c, tangent), polar(y, c, tangent)
    turned = _turned(u, v, limit)
    if _for_float64(turned.aligned, x):
        return values(x.double(), y.double(), c.double(), tangent, ALIGNED_WIDENED).to(x.dtype)
    angles = torch.atan2(turned.across, turned.along)
    angles = torch.where(u.length == 0, torch.full_like(angles, math.pi / 2), angles)
    for i, j in chunks(turned.aligned, x.shape[1]):
        angles[i, j] = exterior_angle(x[i], y[j], c, tangent)
    return angles


def gradients(
    grad: Tensor, x: Tensor, y: Tensor, c: Tensor, tangent: bool, limit: float = ALIGNED
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (r d), y (w d) and c () from that of the angles (r w); 0 where x is the origin.

    d angle = [S (cosh D) dp - sinh p sin theta dq + sinh q (cosh p sinh q - sinh p cosh q w) dtheta] / sinh^2 D.
    """
    u, v = polar(x, c, tangent), polar(y, c, tangent)
    turned = _turned(u, v, limit)
    if _for_float64(turned.aligned, x):
        wide = gradients(grad.double(), x.double(), y.double(), c.double(), tangent, ALIGNED_WIDENED)
        return tuple(t.to(x.dtype) for t in wide)  # type: ignore[return-value]
    left_out = turned.aligned | (u.length == 0) | (v.length.T == 0)
    # twice divided by sinh D e^-(p+q): its square may be no number
    size = torch.where(left_out, torch.ones_like(grad), torch.hypot(turned.across, turned.along))
    upstream = torch.where(left_out, torch.zeros_like(grad), grad) / size
    # cosh(p - q) and sinh(q - p), both e^-(p+q) times
    even, odd = (v.decay.T**2 + u.decay**2) / 2, turned.along + u.cosh * v.sinh.T * turned.versine
    dp = (upstream * (turned.across / size) * (even + u.sinh * v.sinh.T * turned.versine)).sum(1, keepdim=True)
    dq = -(upstream * turned.sine * (u.sinh / size) * u.decay * v.decay.T**2).sum(0)[:, None]
    slope = v.sinh.T * u.decay * ((odd + u.sinh * v.cosh.T * turned.versine) / size)
    dw = -upstream * slope / torch.where(left_out, torch.ones_like(grad), turned.sine)
    dx, dy = (to_vectors(*some, c, tangent) for some in ((u, dw @ v.direction, dp), (v, dw.T @ u.direction, dq)))
    along = _along_curvature(u, v, turned, tangent) / size
    dc = (upstream * turned.sine * along / (2 * c)).sum(dtype=torch.float64)
    dc = dc + add_aligned_gradients(grad, x, y, c, tangent, turned.aligned, dx, dy)
    return dx, dy, dc.to(c.dtype)


def add_aligned_gradients(
    grad: Tensor, x: Tensor, y: Tensor, c: Tensor, tangent: bool, some: Tensor, dx: Tensor, dy: Tensor
) -> Tensor:
    """Add the gradients of ``some`` pairs (r w) to dx (r d) and dy (w d), and return that of c (), float64."""
    dc = c.new_zeros((), dtype=torch.float64)
    for i, j in chunks(some, x.shape[1]):
        # in float64: the slope by c is what is left of two numbers that are alike
        slopes = angle_gradients(x[i].double(), y[j].double(), c.double(), tangent)
        of_x, of_y, of_c = ((grad[i, j].double()[:, None] * slope).to(dx.dtype) for slope in slopes)
        # index_put adds in fixed order on a GPU too, index_add does not
        dx.index_put_((i,), of_x, accumulate=True)
        dy.index_put_((j,), of_y, accumulate=True)
        dc = dc + of_c.sum(dtype=torch.float64)
    return dc


def to_vectors(some: Polar, of_direction: Tensor, of_rapidity: Tensor, c: Tensor, tangent: bool) -> Tensor:
    """The gradient of vectors from those of their directions and rapidities; 0 at the origin."""
    length = torch.where(some.length == 0, torch.ones_like(some.length), some.length)
    across = of_direction - (of_direction * some.direction).sum(1, keepdim=True) * some.direction
    # dp/d|x| = sqrt(c) / cosh p of points
    per_length = c.sqrt() if tangent else c.sqrt() * some.decay / some.cosh
    return across / length + per_length * of_rapidity * some.direction


def _along_curvature(u: Polar, v: Polar, turned: _Turned, tangent: bool) -> Tensor:
    """p dangle/dp + q dangle/dq of tangent vectors (tanh p and tanh q of points), times sinh^2 D / sin theta e^(-2 (p+q)).

    Near the origin both terms are of size 1 and their sum is of size p^2: it is put together from what they differ by.
    """
    p, q = u.rapidity, v.rapidity.T
    apart = torch.exp(-torch.minimum(p, q)) * torch.expm1(-(p - q).abs())
    growth = apart**2 / 2 + u.sinh * v.sinh.T * turned.versine  # (cosh D - 1) e^-(p+q)
    shrink = u.decay * v.decay.T
    if tangent:
        of_u, of_v = sinhc_excess(u), sinhc_excess(v).T
        return p * v.sinh.T * u.decay * growth + p * q * (of_v * u.decay - of_u * v.decay.T) * shrink
    of_u, of_v = torch.expm1(-p) ** 2 / 2, torch.expm1(-q) ** 2 / 2  # (cosh - 1) e^-p
    both = u.sinh * v.sinh.T / u.cosh
    return both * (growth * u.decay + (of_v * u.decay - of_u * v.decay.T) / v.cosh.T * shrink)


def sinhc_excess(some: Polar) -> Tensor:
    """(sinh(p) / p - 1) e^-p: (n 1)."""
    p = some.rapidity
    series = p**2 * polynomial(p.clamp(max=1) ** 2, [1 / math.factorial(2 * k + 3) for k in range(9)])
    return torch.where(p < 1, series * some.decay, some.sinh / p.clamp(min=1) - some.decay)


def _for_float64(aligned: Tensor, x: Tensor) -> bool:
    """Whether a float32 block is for float64: of one feature all pairs are aligned there too."""
    return x.dtype == torch.float32 and x.shape[1] > 1 and too_many(aligned)
