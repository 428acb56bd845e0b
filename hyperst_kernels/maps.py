"""Maps of the Lorentz model. Points and tangent vectors are given by their SPACE components, shape (..., d).

Curvature is -c with c > 0 (a float, or a 0-d tensor that may require grad). Half-precision inputs are computed in
float32 and returned in their own dtype. Formulas: Nickel & Kiela 2018; Law et al. 2019 (centroid); `docs/maps.md`.
All raise TypeError for tensors that are not floating and ValueError for shapes that do not broadcast, c <= 0, and (on
the CPU) NaN or inf.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels import _checks, operators
from hyperst_kernels.reference import maps as reference


def exp_map0(v: Tensor, c: float | Tensor = 1.0) -> Tensor:
    """Exponential map at the origin: tangent vectors (..., d) to points (..., d).

    Raises ValueError where the point would overflow (``sqrt(c) |v| > 44`` in float32).

    >>> import torch
    >>> exp_map0(torch.tensor([0.6, 0.8, 0.0]))
    tensor([0.7051, 0.9402, 0.0000])
    """
    return scaled_exp_map0(v, None, c)


def scaled_exp_map0(v: Tensor, scale: Tensor | None, c: float | Tensor) -> Tensor:
    """`exp_map0` of scale * v in one pass: v (..., d), scale () or None for 1."""
    c, (v,) = _checks.prepare(c, v=v)
    scale = torch.ones_like(c) if scale is None else scale.to(c)
    _checks.radius("v", v, c * scale**2)
    return operators.row_wise("exp_map0", v, scale, c)


def log_map0(x: Tensor, c: float | Tensor = 1.0) -> Tensor:
    """Logarithmic map at the origin, the inverse of `exp_map0`: points (..., d) to tangent vectors (..., d).

    >>> import torch
    >>> log_map0(exp_map0(torch.tensor([0.6, 0.8, 0.0])))
    tensor([0.6000, 0.8000, 0.0000])
    """
    c, (x,) = _checks.prepare(c, x=x)
    return operators.row_wise("log_map0", x, c)


def exp_map(x: Tensor, v: Tensor, c: float | Tensor = 1.0) -> Tensor:
    """Exponential map at x: points (..., d) and tangent vectors at them (..., d) to points (..., d).

    >>> import torch
    >>> exp_map(torch.zeros(2), torch.tensor([1.0, 0.0]))
    tensor([1.1752, 0.0000])
    """
    c, (x, v) = _checks.prepare(c, x=x, v=v)
    return operators.row_wise("exp_map", x, v, c)


def log_map(x: Tensor, y: Tensor, c: float | Tensor = 1.0) -> Tensor:
    """Logarithmic map at x, the inverse of `exp_map`: (..., d), (..., d) to tangent vectors at x (..., d).

    >>> import torch
    >>> log_map(torch.zeros(2), torch.tensor([1.1752012, 0.0])).round(decimals=5)
    tensor([1., 0.])
    """
    c, (x, y) = _checks.prepare(c, x=x, y=y)
    return operators.row_wise("log_map", x, y, c)


def parallel_transport(x: Tensor, y: Tensor, v: Tensor, c: float | Tensor = 1.0) -> Tensor:
    """Carry v (..., d), tangent at x (..., d), along the geodesic to y (..., d).

    >>> import torch
    >>> parallel_transport(torch.zeros(2), torch.tensor([1.1752012, 0.0]), torch.tensor([0.0, 1.0]))
    tensor([0., 1.])
    """
    c, (x, y, v) = _checks.prepare(c, x=x, y=y, v=v)
    return operators.row_wise("parallel_transport", x, y, v, c)


def lift(x: Tensor, c: float | Tensor = 1.0) -> Tensor:
    """Space components (..., d) to full points (..., d+1), time ``sqrt(1/c + |x|^2)`` first.

    >>> import torch
    >>> lift(torch.zeros(2), c=4.0)
    tensor([0.5000, 0.0000, 0.0000])
    """
    c, (x,) = _checks.prepare(c, x=x)
    return operators.row_wise("lift", x, c)


def project(x: Tensor, c: float | Tensor = 1.0) -> Tensor:
    """Full points (..., d+1), time first, to space components (..., d): the nearest thing to them on the hyperboloid.

    >>> import torch
    >>> project(torch.tensor([1.0, 0.0, 0.0]))
    tensor([0., 0.])
    """
    c, (x,) = _checks.prepare(c, x=x)
    if x.shape[-1] < 2:
        raise ValueError(f"x must hold the time and at least one space component, got shape {tuple(x.shape)}")
    return reference.project(x.to(c.dtype), c).to(x.dtype)


def lorentz_to_poincare(x: Tensor, c: float | Tensor = 1.0) -> Tensor:
    """Points of the hyperboloid (..., d) to the Poincare ball of radius 1/sqrt(c) (..., d).

    >>> import torch
    >>> lorentz_to_poincare(exp_map0(torch.tensor([2.0]))).allclose(torch.tensor([1.0]).tanh())
    True
    """
    c, (x,) = _checks.prepare(c, x=x)
    return operators.row_wise("lorentz_to_poincare", x, c)


def poincare_to_lorentz(p: Tensor, c: float | Tensor = 1.0) -> Tensor:
    """Points of the Poincare ball (..., d), ``sqrt(c) |p| < 1``, to the hyperboloid (..., d). ValueError outside the ball.

    >>> import torch
    >>> poincare_to_lorentz(torch.tensor([0.5]))
    tensor([1.3333])
    """
    c, (p,) = _checks.prepare(c, p=p)
    _checks.inside_ball("p", p, c)
    return operators.row_wise("poincare_to_lorentz", p, c)


def centroid(x: Tensor, c: float | Tensor = 1.0, weights: Tensor | None = None, dim: int = -2) -> Tensor:
    """Lorentz centroid of points (..., n, d) along ``dim``: (..., d). Weights (..., n), >= 0, are normalised.

    The point that minimises the weighted sum of squared LORENTZIAN distances (Law et al. 2019, eq. 11).

    >>> import torch
    >>> centroid(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    tensor([0., 0.])
    """
    c, (x,) = _checks.prepare(c, x=x)
    if x.ndim < 2 or x.shape[dim] == 0:
        raise ValueError(f"x must hold at least one point along dim {dim}, got shape {tuple(x.shape)}")
    if weights is not None:
        weights = weights.to(device=x.device, dtype=c.dtype)
    return reference.centroid(x.to(c.dtype), c, weights, dim).to(x.dtype)
