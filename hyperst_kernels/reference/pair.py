"""Two rows of vectors, compared without cancellation: the ground on which distance, cones and log_map stand.

For u, v with norms n_u, n_v and directions a, b, nothing here subtracts two nearly equal rounded numbers: the
difference of norms ``r`` and of directions ``e`` come from the exact difference w = u - v.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hyperst_kernels.reference.scalars import asinh

# What rounding may leave of a number of a - b on one ray, in eps of that number of u - v over |u| + |v|: 4 by the roundings
# that it goes through, and 3.99 were seen.
NOISE = 5.0


class Pair(NamedTuple):
    """Norms, directions and their differences; vectors are (... d), scalars (... 1)."""

    norm_u: Tensor
    norm_v: Tensor
    a: Tensor  # u / |u|, zero at the origin
    b: Tensor  # v / |v|, zero at the origin
    r: Tensor  # |u| - |v|
    e: Tensor  # a - b
    half_chord: Tensor  # |e| / 2 = sin(theta / 2), at most 1; sqrt(1/2) where one of the two is the origin


class Rapidity(NamedTuple):
    """Hyperbolic polar coordinates of a pair on the unit hyperboloid, each (... 1)."""

    p: Tensor  # of u
    q: Tensor  # of v
    delta: Tensor  # p - q without cancellation


# Numbers in between can be squared and summed: their squares neither overflow nor lose the digits that count. Others are
# scaled first by a power of two, up or down, which rounds nothing: down no further than needed, for a long row may have small
# numbers.
_SQUARABLE = {
    torch.float32: (2.0**-40, 2.0**60, 2.0**100, 2.0**-70),
    torch.float64: (2.0**-400, 2.0**480, 2.0**600, 2.0**-600),
}


def scale_of(x: Tensor) -> Tensor:
    """A power of two for each row that brings its squares into range: (... d) -> (... 1), 1 wherever that serves."""
    smallest, largest, up, down = _SQUARABLE[x.dtype]
    size = x.detach().abs().amax(-1, keepdim=True)
    scale = torch.where(size < smallest, torch.full_like(size, up), torch.ones_like(size))
    return torch.where(size > largest, torch.full_like(size, down), scale)


def norm(x: Tensor) -> Tensor:
    """|x|, also where its square overflows or vanishes: (... d) -> (... 1)."""
    scale = scale_of(x)
    return torch.linalg.vector_norm(x * scale, dim=-1, keepdim=True) / scale


def direction(x: Tensor, length: Tensor) -> Tensor:
    """x / |x|, zero at the origin."""
    return x / _nonzero(length)


class Hyperbolic(NamedTuple):
    """Sines and cosines of the rapidities of a pair of points, each (... 1)."""

    sinh_p: Tensor
    sinh_q: Tensor
    cosh_p: Tensor
    cosh_q: Tensor
    sinh_delta: Tensor  # sinh(p - q) without cancellation


def _nonzero(x: Tensor) -> Tensor:
    """x with its zeros replaced by ones: a denominator whose numerator is zero there too."""
    return torch.where(x == 0, torch.ones_like(x), x)


def split(v: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The part of v along the direction a (... 1), and the rest (... d): exactly zero for v on the ray of a.

    Rounding leaves 1.5 eps of a number of v; where the part along a shrinks by e^-radius, that would be what is seen.
    """
    along = (v * a).sum(-1, keepdim=True)
    across = v - along * a
    more = (across * a).sum(-1, keepdim=True)
    across = across - more * a
    rounding = across.abs() < 2 * torch.finfo(v.dtype).eps * (along * a).abs()
    return along + more, across - torch.where(rounding, across, 0 * across).detach()


def compare(u: Tensor, v: Tensor) -> Pair:
    """The pair (u, v): both (... d) of one shape.

    Of float32 vectors in float64 where the device has it: on one ray but for the rounding of their numbers, they have an
    angle that only twice as many digits show.
    """
    dtype = u.dtype
    if u.device.type != "mps":
        u, v = u.double(), v.double()
    norm_u, norm_v = norm(u), norm(v)
    a, b = direction(u, norm_u), direction(v, norm_v)
    scale = torch.minimum(scale_of(u), scale_of(v))
    u, v = scale * u, scale * v
    w, norm_sum = u - v, _nonzero(scale * norm_u + scale * norm_v)
    r = (w * (u + v)).sum(-1, keepdim=True) / norm_sum
    bisector = a + b
    e = (2 * w - r * bisector) / norm_sum
    # a - b is orthogonal to a + b: what rounding left along it would be amplified by sinh p sinh q. Not beyond a right
    # angle, where it is harmless, and not where one is the origin, whose a + b has the length 1
    square = (bisector * bisector).sum(-1, keepdim=True)
    leftover = torch.where(square > 2, (e * bisector).sum(-1, keepdim=True) / _nonzero(square), 0 * square)
    e = e - leftover * bisector
    # On one ray 2 w = r (a + b), and what is left of a number of e is rounding, which sinh p sinh q would amplify too. It
    # is taken out of the value alone: the slope of e is that of the formula.
    rounding = e.abs() < NOISE * torch.finfo(e.dtype).eps * (w / norm_sum).abs()
    e = e - torch.where(rounding, e, 0 * e).detach()
    at_origin = (norm_u == 0) | (norm_v == 0)
    half_chord = torch.where(at_origin, torch.full_like(norm_u, 0.5**0.5), (norm(e) / 2).clamp(max=1))
    return Pair(*(z.to(dtype) for z in (norm_u, norm_v, a, b, r / scale, e, half_chord)))


def rapidity_of_tangents(pair: Pair, c: Tensor) -> Rapidity:
    """p = sqrt(c) |u|: u and v are tangent vectors at the origin."""
    k = c.sqrt()
    return Rapidity(k * pair.norm_u, k * pair.norm_v, k * pair.r)


def hyperbolic(pair: Pair, c: Tensor) -> Hyperbolic:
    """sinh p = sqrt(c) |x| and what follows from it: x and y are the space components of points."""
    k = c.sqrt()
    X, Y = k * pair.norm_u, k * pair.norm_v
    # sinh(p - q) = (X^2 - Y^2) / (X cosh q + Y cosh p); the square of X is avoided so that large points do not overflow
    cosh_p, cosh_q = torch.hypot(torch.ones_like(X), X), torch.hypot(torch.ones_like(Y), Y)
    total = X + Y
    share_x, share_y = X / _nonzero(total), Y / _nonzero(total)
    return Hyperbolic(X, Y, cosh_p, cosh_q, k * pair.r / _nonzero(share_x * cosh_q + share_y * cosh_p))


def rapidity_of_points(pair: Pair, c: Tensor) -> Rapidity:
    """Rapidities of points given by their space components."""
    t = hyperbolic(pair, c)
    return Rapidity(asinh(t.sinh_p), asinh(t.sinh_q), torch.sign(t.sinh_delta) * asinh(t.sinh_delta.abs()))


def largest_exponent(dtype: torch.dtype) -> float:
    """Of which e to it fits: 88.2 in float32."""
    return math.log(torch.finfo(dtype).max) - 0.5


def half_distance(rapidity: Rapidity, half_chord: Tensor) -> Tensor:
    """D/2 = asinh(sqrt H), H = sinh^2(delta/2) + sinh p sinh q sin^2(theta/2), of every radius.

    With e^m taken out of sqrt(H) where that may be too large for a number, e^40 still being left.
    """
    p, q, delta = rapidity
    apart, mean = delta.abs() / 2, (p + q) / 2
    m = (torch.maximum(apart, mean + half_chord.log()) - 40).clamp(min=0).detach()
    radial = torch.sinh(torch.where(m > 0, torch.zeros_like(apart), apart))
    radial = torch.where(m > 0, -torch.exp(apart - m) * torch.expm1(-2 * apart) / 2, radial)
    # once for each half of a growth that a small chord may take back, and capped for no chord at all
    growth = torch.exp(((mean - m) / 2).clamp(max=largest_exponent(p.dtype)))
    shrink_p, shrink_q = torch.sqrt(-torch.expm1(-2 * p)), torch.sqrt(-torch.expm1(-2 * q))
    angular = half_chord * (growth * shrink_p) * (growth * shrink_q / 2)
    return asinh(torch.hypot(radial, angular)) + m


def root_of_points(pair: Pair, c: Tensor) -> Tensor:
    """sqrt(H) of points, without exponentials: sinh(t/2) = sinh(t) / sqrt(2 + 2 cosh t). It fits where they do."""
    X, Y, _, _, sinh_delta = hyperbolic(pair, c)
    one = torch.ones_like(X)
    radial = sinh_delta / torch.sqrt(1 + torch.hypot(one, sinh_delta)) / 2**0.5
    return torch.hypot(radial, pair.half_chord * X.sqrt() * Y.sqrt())
