"""Two rows of vectors, compared without cancellation: the ground on which distance, cones and log_map stand.

For u, v with norms n_u, n_v and directions a, b, nothing here subtracts two nearly equal rounded numbers: the
difference of norms ``r`` and of directions ``e`` come from the exact difference w = u - v.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hyperst_kernels.reference.scalars import asinh


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


def _norm(vector: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vector, dim=-1, keepdim=True)


def _nonzero(x: Tensor) -> Tensor:
    """x with its zeros replaced by ones: a denominator whose numerator is zero there too."""
    return torch.where(x == 0, torch.ones_like(x), x)


def compare(u: Tensor, v: Tensor) -> Pair:
    """The pair (u, v): both (... d) of one shape."""
    norm_u, norm_v = _norm(u), _norm(v)
    a, b = u / _nonzero(norm_u), v / _nonzero(norm_v)
    w, norm_sum = u - v, _nonzero(norm_u + norm_v)
    r = (w * (u + v)).sum(-1, keepdim=True) / norm_sum
    e = (2 * w - r * (a + b)) / norm_sum
    # a - b is orthogonal to a + b: what rounding left along it would be amplified by sinh p sinh q. Not beyond a right
    # angle, where it is harmless, and not where one is the origin, whose a + b has the length 1
    bisector = a + b
    square = (bisector * bisector).sum(-1, keepdim=True)
    leftover = torch.where(square > 2, (e * bisector).sum(-1, keepdim=True) / _nonzero(square), 0 * square)
    e = e - leftover * bisector
    at_origin = (norm_u == 0) | (norm_v == 0)
    half_chord = torch.where(at_origin, torch.full_like(norm_u, 0.5**0.5), (_norm(e) / 2).clamp(max=1))
    return Pair(norm_u, norm_v, a, b, r, e, half_chord)


def rapidity_of_tangents(pair: Pair, c: Tensor) -> Rapidity:
    """p = sqrt(c) |u|: u and v are tangent vectors at the origin."""
    k = c.sqrt()
    return Rapidity(k * pair.norm_u, k * pair.norm_v, k * pair.r)


def rapidity_of_points(pair: Pair, c: Tensor) -> Rapidity:
    """sinh p = sqrt(c) |x|: x and y are the space components of points."""
    k = c.sqrt()
    X, Y = k * pair.norm_u, k * pair.norm_v
    # sinh(p - q) = (X^2 - Y^2) / (X cosh q + Y cosh p); the square of X is avoided so that large points do not overflow
    cosh_p, cosh_q = torch.hypot(torch.ones_like(X), X), torch.hypot(torch.ones_like(Y), Y)
    total = X + Y
    share_x, share_y = X / _nonzero(total), Y / _nonzero(total)
    sinh_delta = k * pair.r / _nonzero(share_x * cosh_q + share_y * cosh_p)
    return Rapidity(asinh(X), asinh(Y), torch.sign(sinh_delta) * asinh(sinh_delta.abs()))


def root_haversine(pair: Pair, rapidity: Rapidity) -> Tensor:
    """sqrt(H), H = sinh^2(delta/2) + sinh p sinh q sin^2(theta/2), for p + q up to about 170 in float32."""
    p, q, delta = rapidity
    radial = torch.sinh(delta.abs() / 2)
    angular = pair.half_chord * torch.exp((p + q) / 2) * torch.sqrt(torch.expm1(-2 * p) * torch.expm1(-2 * q)) / 2
    return torch.hypot(radial, angular)
