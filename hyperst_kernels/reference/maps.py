"""Maps between tangent vectors, points, and the models of hyperbolic space, at any radius.

Points are given by their SPACE components; the time component is x_t = sqrt(1/c + |x|^2). A tangent vector at x is
given by its space components too: its time component follows from tangency, v_t = <x, v> / x_t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels.reference import pair as pairs
from hyperst_kernels.reference.distance import near_or_far, radius
from hyperst_kernels.reference.exponential import ExpMap
from hyperst_kernels.reference.poincare import ToBall
from hyperst_kernels.reference.scalars import asinhc, sinhc
from hyperst_kernels.reference.transport import Transport


def _square(x: Tensor) -> Tensor:
    return (x * x).sum(-1, keepdim=True)


def time(x: Tensor, c: Tensor) -> Tensor:
    """x_t = sqrt(1/c + |x|^2): (... d) -> (... 1)."""
    norm = pairs.norm(x)
    return torch.hypot(c.rsqrt().expand_as(norm), norm)  # with c in one term alone, its slope is one term too


def exp_map0(v: Tensor, c: Tensor) -> Tensor:
    """sinhc(sqrt(c) |v|) v: (... d) -> (... d)."""
    return sinhc(c * _square(v)) * v


def log_map0(x: Tensor, c: Tensor) -> Tensor:
    """asinhc(sqrt(c) |x|) x: (... d) -> (... d)."""
    near = (c.sqrt() * pairs.norm(x)).detach() < 0.1
    close = torch.where(near, x, torch.zeros_like(x))
    # far out through |x|: the derivative by its square has no place in float32 at radius 40
    far = torch.where(near, torch.ones_like(x), x)
    norm = pairs.norm(far)
    return torch.where(near, asinhc(c * _square(close)) * close, radius(norm, c) * (far / norm))


def exp_map(x: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """cosh(t) x + sinhc(t) v, t = sqrt(c) |v|_L: (... d), (... d) -> (... d)."""
    return ExpMap.apply(x, v, c)


def log_map(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """((y - x) - 2 H x) D / sinh D with D = sqrt(c) d(x, y) and H = sinh^2(D/2)."""
    near, H, D = near_or_far(x, y, c)
    close = asinhc(H) / torch.sqrt(1 + H)
    # D / sinh D, of which the factor e^(-D/2) comes last: for far points it does not fit
    shrink = torch.where(near, torch.ones_like(D), torch.exp(-D / 2))
    ratio = torch.where(near, close, -2 * D * shrink / torch.expm1(-2 * D))
    back = torch.where(near, 2 * H * close, D * torch.tanh(D / 2))
    return ratio * (y - x) * shrink - back * x


def parallel_transport(x: Tensor, y: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """v + c <y, v>_L / (2 (1 + H)) (x + y): v at x carried along the geodesic to y."""
    return Transport.apply(x, y, v, c)


def lift(x: Tensor, c: Tensor) -> Tensor:
    """The point with its time component first: (... d) -> (... d+1)."""
    return torch.cat([time(x, c), x], dim=-1)


def project(x: Tensor, c: Tensor) -> Tensor:
    """The space components of a point with time first: (... d+1) -> (... d). Its time is recomputed wherever needed."""
    return x[..., 1:]


def lorentz_to_poincare(x: Tensor, c: Tensor) -> Tensor:
    """x / (1 + sqrt(c) x_t), of norm tanh(p/2) / sqrt(c): (... d) -> (... d)."""
    return ToBall.apply(x, c)


def poincare_to_lorentz(p: Tensor, c: Tensor) -> Tensor:
    """2 p / (1 - c |p|^2): (... d) -> (... d)."""
    root = c.sqrt() * pairs.norm(p)
    return 2 * p / ((1 - root) * (1 + root))


def centroid(x: Tensor, c: Tensor, weights: Tensor | None = None, dim: int = -2) -> Tensor:
    """Lorentz centroid m / (sqrt(c) sqrt(-<m, m>_L)), m the weighted mean in the ambient space (Law et al. 2019).

    With m_r its length in space, -<m, m>_L = (m_t + m_r)(m_t - m_r), and what the point i adds to m_t - m_r is
    cosh p - sinh p cos(theta) = e^-p + 2 sin^2(theta/2) sinh p in units of 1/sqrt(c), theta its angle from m: nothing
    cancels. Where all weights are 0, the origin.
    """
    x = x.movedim(dim, -2)
    w = torch.ones_like(x[..., 0]) if weights is None else weights.expand(x.shape[:-1])
    w = w / _nonzero(w.detach().amax(-1, True))  # whose sum fits
    empty = w.detach().sum(-1, True) == 0
    w = (w / torch.where(empty, torch.ones_like(w[..., :1]), w.sum(-1, True)))[..., None]
    k, m = c.sqrt(), (w * x).sum(-2, keepdim=True)
    pair = pairs.compare(x, m.expand_as(x))
    X, _, cosh_p, _, _ = pairs.hyperbolic(pair, c)
    s = torch.where(pair.norm_u * pair.norm_v == 0, torch.full_like(X, 0.5), (pair.e * pair.e).sum(-1, True) / 4)
    lag = 1 / (cosh_p + X) + 2 * s * X
    # the direction of the origin has no derivative, and there nothing cancels
    lag = torch.where(pair.norm_u == 0, cosh_p - k * (x * pair.b).sum(-1, True), lag)
    behind, ahead = (w * lag).sum(-2), (w * cosh_p).sum(-2) + k * pairs.norm(m).squeeze(-2)
    behind, ahead = (torch.where(empty, torch.ones_like(z), z) for z in (behind, ahead))
    return m.squeeze(-2) / torch.sqrt(ahead) / torch.sqrt(behind)


def _nonzero(x: Tensor) -> Tensor:
    return torch.where(x == 0, torch.ones_like(x), x)
