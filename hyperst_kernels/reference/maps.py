"""Maps between tangent vectors, points, and the models of hyperbolic space, at any radius.

Points are given by their SPACE components; the time component is x_t = sqrt(1/c + |x|^2). A tangent vector at x is
given by its space components too: its time component follows from tangency, v_t = <x, v> / x_t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels.reference import pair as pairs
from hyperst_kernels.reference.distance import haversine
from hyperst_kernels.reference.exponential import ExpMap
from hyperst_kernels.reference.scalars import asinh, asinhc, sinhc
from hyperst_kernels.reference.transport import Transport


def _square(x: Tensor) -> Tensor:
    return (x * x).sum(-1, keepdim=True)


def time(x: Tensor, c: Tensor) -> Tensor:
    """x_t = sqrt(1/c + |x|^2): (... d) -> (... 1)."""
    return torch.hypot(torch.ones_like(c), c.sqrt() * pairs.norm(x)) / c.sqrt()


def exp_map0(v: Tensor, c: Tensor) -> Tensor:
    """sinhc(sqrt(c) |v|) v: (... d) -> (... d)."""
    return sinhc(c * _square(v)) * v


def log_map0(x: Tensor, c: Tensor) -> Tensor:
    """asinhc(sqrt(c) |x|) x: (... d) -> (... d)."""
    square = c * _square(x)
    near = square < 0.01
    # far out through |x|: the derivative by its square has no place in float32 at radius 40
    far = c.sqrt() * torch.linalg.vector_norm(torch.where(near, torch.ones_like(x), x), dim=-1, keepdim=True)
    return torch.where(near, asinhc(torch.where(near, square, torch.zeros_like(square))), asinh(far) / far) * x


def exp_map(x: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """cosh(t) x + sinhc(t) v, t = sqrt(c) |v|_L: (... d), (... d) -> (... d)."""
    return ExpMap.apply(x, v, c)


def log_map(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """((y - x) - 2 H x) D / sinh D with D = sqrt(c) d(x, y) and H = sinh^2(D/2)."""
    H = haversine(x, y, c)[..., None]
    near = H < 1
    small, root = torch.where(near, H, torch.zeros_like(H)), torch.where(near, torch.ones_like(H), H).sqrt()
    # D / sinh D and D tanh(D/2); far apart from D itself, because H^2 and its like do not fit into float32
    close = asinhc(small) / torch.sqrt(1 + small)
    D, cosh_half = 2 * asinh(root), torch.sqrt(1 + root * root)
    ratio = torch.where(near, close, D / root / cosh_half / 2)
    back = torch.where(near, 2 * small * close, D * (root / cosh_half))
    return ratio * (y - x) - back * x


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
    return x / (1 + torch.hypot(torch.ones_like(c), c.sqrt() * pairs.norm(x)))


def poincare_to_lorentz(p: Tensor, c: Tensor) -> Tensor:
    """2 p / (1 - c |p|^2): (... d) -> (... d)."""
    root = c.sqrt() * pairs.norm(p)
    return 2 * p / ((1 - root) * (1 + root))


def centroid(x: Tensor, c: Tensor, weights: Tensor | None = None, dim: int = -2) -> Tensor:
    """Lorentz centroid m / (sqrt(c) sqrt(-<m, m>_L)), m the weighted mean in the ambient space (Law et al. 2019).

    -<m, m>_L is one plus the hyperbolic variance, summed in a second pass from differences to the mean:
    1/c + sum w (|x - m_s|^2 - (x_t - m_t)^2).
    """
    x = x.movedim(dim, -2)
    w = (
        torch.full_like(x[..., :1], 1 / x.shape[-2])
        if weights is None
        else (weights / weights.sum(-1, True))[..., None]
    )
    x_t = time(x, c)
    m_s, m_t = (w * x).sum(-2, keepdim=True), (w * x_t).sum(-2, keepdim=True)
    # (x_t - m_t)^2 next to |x - m_s|^2: the part of x - m_s along m_s is compared with it before squaring
    spread = (w * (_square(x - m_s) - (x_t - m_t) ** 2)).sum(-2)
    return (m_s / torch.sqrt(c * (1 / c + spread))[..., None, :]).squeeze(-2)
