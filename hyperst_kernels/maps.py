"""Maps of the Lorentz model. Points and tangent vectors are given by their SPACE components, shape (..., d).

Curvature is -c with c > 0 (a float, or a 0-d tensor that may require grad). Half-precision inputs are computed in
float32 and returned in their own dtype. Formulas: Nickel & Kiela 2018; Law et al. 2019 (centroid); `docs/explanation/maps.md`.
All raise TypeError for tensors that are not floating and ValueError for shapes that do not broadcast, tensors on several
devices, a c that is not a positive normal number of the geometry's dtype, and (on the CPU) NaN or inf.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels import _checks
from hyperst_kernels.operators import maps as operators
from hyperst_kernels.reference import maps as reference


def exp_map0(v: Tensor, c: float | Tensor = 1.0) -> Tensor:
    """Exponential map at the origin: tangent vectors (..., d) to points (..., d).

    Raises ValueError (on the CPU) where the point, of length ``sinh(sqrt(c) |v|) / sqrt(c)``, overflows: beyond
    ``sqrt(c) |v|`` = 88.7 in float32 and bfloat16, 11.7 in float16 and 709 in float64 for c = 1; 82.4, 4.8 and 703 for
    c = 1e-6.

    >>> import torch
    >>> exp_map0(torch.tensor([0.6, 0.8, 0.0]))
    tensor([0.7051, 0.9402, 0.0000])
    """
    return scaled_exp_map0(v, None, c)


def scaled_exp_map0(v: Tensor, scale: Tensor | None, c: float | Tensor) -> Tensor:
    """`exp_map0` of scale * v in one pass: v (..., d), scale () or None for 1."""
    c, (v,) = _checks.prepare(c, v=v)
    scale = torch.ones_like(c) if scale is None else scale.to(c)
    _checks.representable("v", v, c * scale**2)
    return operators.exp_map0(v, scale, c)


def log_map0(x: Tensor, c: float | Tensor = 1.0) -> Tensor:
    """Logarithmic map at the origin, the inverse of `exp_map0`: points (..., d) to tangent vectors (..., d).

    >>> import torch
    >>> log_map0(exp_map0(torch.tensor([0.6, 0.8, 0.0])))
    tensor([0.6000, 0.8000, 0.0000])
    """
    c, (x,) = _checks.prepare(c, x=x)
    return operators.log_map0(x, c)


def exp_map(x: Tensor, v: Tensor, c: float | Tensor = 1.0) -> Tensor:
    """Exponential map at x: points (..., d) and tangent vectors at them (..., d) to points (..., d).

    >>> import torch
    >>> exp_map(torch.zeros(2), torch.tensor([1.0, 0.0]))
    tensor([1.1752, 0.0000])
    """
    c, (x, v) = _checks.prepare(c, x=x, v=v)
    return operators.exp_map(x, v, c)


def log_map(x: Tensor, y: Tensor, c: float | Tensor = 1.0) -> Tensor:
    """Logarithmic map at x, the inverse of `exp_map`: (..., d), (..., d) to tangent vectors at x (..., d).

    >>> import torch
    >>> log_map(torch.zeros(2), torch.tensor([1.1752012, 0.0])).round(decimals=5)
    tensor([1., 0.])
    """
    c, (x, y) = _checks.prepare(c, x=x, y=y)
    return operators.log_map(x, y, c)


def parallel_transport(x: Tensor, y: Tensor, v: Tensor, c: float | Tensor = 1.0) -> Tensor:
    """Carry v (..., d), tangent at x (..., d), along the geodesic to y (..., d).

    >>> import torch
    >>> parallel_transport(torch.zeros(2), torch.tensor([1.1752012, 0.0]), torch.tensor([0.0, 1.0]))
    tensor([0., 1.])
    """
    c, (x, y, v) = _checks.prepare(c, x=x, y=y, v=v)
    return operators.parallel_transport(x, y, v, c)


def lift(x: Tensor, c: float | Tensor = 1.0) -> Tensor:
    """Space components (..., d) to full points (..., d+1), time ``sqrt(1/c + |x|^2)`` first.

    >>> import torch
    >>> lift(torch.zeros(2), c=4.0)
    tensor([0.5000, 0.0000, 0.0000])
    """
    c, (x,) = _checks.prepare(c, x=x)
    return operators.lift(x, c)


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

    The ball holds the radius p as ``tanh(p/2)``, and an error of that is ``2 cosh^2(p/2)`` times as large in p. There and
    back, seven roundings make it up to 3.5 eps: in float32 a radius of 10 is off by up to 0.005 and 14 by 0.3 (in float64,
    30 by 0.005 and 34 by 0.3); from 15.4 on (float64: 35.5) all of it may be lost, and a point may round to the rim, which
    is no point. Distances and maps of Lorentz points have no such limit.

    >>> import torch
    >>> lorentz_to_poincare(exp_map0(torch.tensor([2.0]))).allclose(torch.tensor([1.0]).tanh())
    True
    """
    c, (x,) = _checks.prepare(c, x=x)
    return operators.lorentz_to_poincare(x, c)


def poincare_to_lorentz(p: Tensor, c: float | Tensor = 1.0) -> Tensor:
    """Points of the Poincare ball (..., d), ``sqrt(c) |p| < 1``, to the hyperboloid (..., d).

    Raises ValueError (on the CPU) outside the ball and on its rim, where points of radius 15.4 and more may have been
    rounded to in float32 (35.5 in float64): see `lorentz_to_poincare`.

    >>> import torch
    >>> poincare_to_lorentz(torch.tensor([0.5]))
    tensor([1.3333])
    """
    c, (p,) = _checks.prepare(c, p=p)
    _checks.inside_ball("p", p, c)
    return operators.poincare_to_lorentz(p, c)


def centroid(x: Tensor, c: float | Tensor = 1.0, weights: Tensor | None = None, dim: int = -2) -> Tensor:
    """Lorentz centroid of points (..., n, d) along ``dim``: (..., d). ``weights`` (..., n), >= 0, are normalised.

    The point that minimises the weighted sum of squared LORENTZIAN distances (Law et al. 2019, eq. 11).

    Computed in float64. ``weights`` may be of any real dtype, a mask too, and broadcast over the sets; n is their last
    dimension whatever ``dim`` is. A set whose weights are all 0 has the origin as its centroid, and zero gradients. Raises
    ValueError for weights of another shape, for a ``dim`` that is not one of points, and (on the CPU) for weights that are
    negative, NaN or infinite; elsewhere, and under torch.compile and torch.func.vmap, the centroid of such a set is NaN.

    >>> import torch
    >>> centroid(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    tensor([0., 0.])
    """
    c, (x,) = _checks.prepare(c, x=x)
    if x.ndim < 2:
        raise ValueError(f"x must have shape (..., n, d), got {tuple(x.shape)}")
    if not -x.ndim <= dim < x.ndim or dim % x.ndim == x.ndim - 1:
        raise ValueError(f"dim must be a dimension of points, not the last of x {tuple(x.shape)}, got {dim}")
    if x.shape[dim] == 0:
        raise ValueError(f"x must hold at least one point along dim {dim}, got shape {tuple(x.shape)}")
    if weights is not None:
        weights = _checks.weights("weights", weights, x.movedim(dim, -2).shape[:-1])
        _checks.reachable("weights", weights, x.device)
        weights = weights.to(device=x.device, dtype=torch.float64)
    # the slope by what a point adds to -<m, m>_L is e^2p as large as the point: beyond float32 from radius 44 on
    return reference.centroid(x.double(), c.double(), weights, dim).to(x.dtype)
