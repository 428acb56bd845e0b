"""Points in the convention of geoopt, and back.

geoopt's Lorentz model has ``<x, x> = -k``: its k is the inverse of this library's c (the curvature is -1/k), and its
points hold their time component first. Its PoincareBall takes this library's c and points as they are; its maps between
the two models use a ball of radius 1 for every k, so that `lorentz_to_poincare` here is theirs times sqrt(k).
"""

from __future__ import annotations

from torch import Tensor

from hyperst_kernels import _checks
from hyperst_kernels.maps import lift, project


def from_geoopt(x: Tensor, k: float | Tensor = 1.0) -> tuple[Tensor, float | Tensor]:
    """Points of geoopt's ``Lorentz(k)``, (..., d+1) with time first, to space components (..., d) and c = 1/k.

    ``k`` is a float or 0-d tensor > 0 and c is of its kind, differentiable. Points keep their dtype. A tangent vector
    needs only its space components here, ``v[..., 1:]``. Raises TypeError / ValueError as `project` does, naming k.

    Source: geoopt's `Lorentz` (Kochurov et al. 2020).

    >>> import torch
    >>> from_geoopt(torch.tensor([2.5, 1.5, 0.0]), k=4.0)
    (tensor([1.5000, 0.0000]), 0.25)
    """
    _checks.features("x", x)
    _checks.positive_number("k", k, _checks.geometry_dtype(x))
    return project(x, 1 / k), 1 / k


def to_geoopt(x: Tensor, c: float | Tensor = 1.0) -> tuple[Tensor, float | Tensor]:
    """Space components (..., d) to points of geoopt's ``Lorentz(k)``, (..., d+1) with time first, and k = 1/c.

    ``c`` is a float or 0-d tensor > 0 and k is of its kind, differentiable. Raises as `lift` does.

    >>> import torch
    >>> to_geoopt(torch.tensor([1.5, 0.0]), c=0.25)
    (tensor([2.5000, 1.5000, 0.0000]), 4.0)
    """
    return lift(x, c), 1 / c
