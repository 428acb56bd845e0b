"""Entailment cones of the Lorentz model (Le et al. 2019; Desai et al. 2023, eqs. 7-10). See `docs/entailment.md`.

Angles are in radians. ``input`` and the errors raised are those of `hyperst_kernels.distance`.
"""

from __future__ import annotations

from torch import Tensor

from hyperst_kernels import _checks
from hyperst_kernels.distance import INPUTS
from hyperst_kernels.reference import entailment as reference

REDUCTIONS = ("mean", "sum", "none")


def half_aperture(x: Tensor, c: float | Tensor = 1.0, *, min_radius: float = 0.1, input: str = "lorentz") -> Tensor:
    """Half-aperture of the cone at x: (..., d) -> (...), pi/2 where sqrt(c)|x| <= 2 min_radius.

    >>> import torch
    >>> half_aperture(torch.tensor([0.6, 0.8, 0.0]), input="tangent")
    tensor(0.1710)
    """
    _checks.choice("input", input, INPUTS)
    dtype, c, (x,) = _checks.prepare(c, x=x)
    _checks.positive("min_radius", min_radius, x)
    return reference.half_aperture(x, c, min_radius, input).to(dtype)


def exterior_angle(x: Tensor, y: Tensor, c: float | Tensor = 1.0, *, input: str = "lorentz") -> Tensor:
    """Angle at x between the outward ray from the origin and the geodesic to y: (..., d), (..., d) -> (...).

    0 where y lies straight behind x, pi where it lies before it, pi/2 by convention where x is the origin.

    >>> import torch
    >>> exterior_angle(torch.tensor([0.6, 0.8, 0.0]), torch.tensor([0.3, -0.4, 1.2]), input="tangent")
    tensor(2.5654)
    """
    _checks.choice("input", input, INPUTS)
    dtype, c, (x, y) = _checks.prepare(c, x=x, y=y)
    return reference.exterior_angle(x, y, c, input).to(dtype)


def entailment_loss(
    parent: Tensor,
    child: Tensor,
    c: float | Tensor = 1.0,
    *,
    eta: float = 1.0,
    min_radius: float = 0.1,
    input: str = "lorentz",
    reduction: str = "mean",
) -> Tensor:
    """max(0, exterior_angle(parent, child) - eta half_aperture(parent)) over matching rows (..., d).

    ``eta`` > 0 widens (or narrows) the cone; ``reduction`` "mean" and "sum" give a 0-d tensor, "none" gives (...).

    >>> import torch
    >>> entailment_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    tensor(0.)
    """
    _checks.choice("input", input, INPUTS)
    _checks.choice("reduction", reduction, REDUCTIONS)
    dtype, c, (parent, child) = _checks.prepare(c, parent=parent, child=child)
    if reduction == "mean" and parent.numel() == 0:
        raise ValueError(f"parent must hold at least one row to take a mean over, got shape {tuple(parent.shape)}")
    for name, value in (("eta", eta), ("min_radius", min_radius)):
        _checks.positive(name, value, parent)
    loss = reference.entailment_loss(parent, child, c, eta, min_radius, input)
    if reduction == "none":
        return loss.to(dtype)
    return loss.mean() if reduction == "mean" else loss.sum()
