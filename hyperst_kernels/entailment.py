"""Entailment cones of the Lorentz model (Le et al. 2019; Desai et al. 2023, eqs. 7-10). See `docs/explanation/entailment.md`.

Angles are in radians. ``input`` and the errors raised are those of `hyperst_kernels.distance`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hyperst_kernels import _checks
from hyperst_kernels._constants import INPUTS
from hyperst_kernels.operators import angle_matrix
from hyperst_kernels.operators import entailment as operators

REDUCTIONS = ("mean", "sum", "none")


def half_aperture(x: Tensor, c: float | Tensor = 1.0, *, min_radius: float = 0.1, input: str = "lorentz") -> Tensor:
    """Half-aperture of the cone at x: (..., d) -> (...), pi/2 where sqrt(c)|x| <= 2 min_radius.

    >>> import torch
    >>> half_aperture(torch.tensor([0.6, 0.8, 0.0]), input="tangent")
    tensor(0.1710)
    """
    _checks.choice("input", input, INPUTS)
    c, (x,) = _checks.prepare(c, x=x)
    _checks.positive_number("min_radius", min_radius, c.dtype)
    return operators.half_aperture(x, c, float(min_radius), input == "tangent")


def exterior_angle(x: Tensor, y: Tensor, c: float | Tensor = 1.0, *, input: str = "lorentz") -> Tensor:
    """Angle at x between the outward ray from the origin and the geodesic to y: (..., d), (..., d) -> (...).

    0 where y lies straight behind x, pi where it lies before it, pi/2 by convention where x is the origin.

    >>> import torch
    >>> exterior_angle(torch.tensor([0.6, 0.8, 0.0]), torch.tensor([0.3, -0.4, 1.2]), input="tangent")
    tensor(2.5654)
    """
    _checks.choice("input", input, INPUTS)
    c, (x, y) = _checks.prepare(c, x=x, y=y)
    return operators.exterior_angle(x, y, c, input == "tangent")


def pairwise_exterior_angle(x: Tensor, y: Tensor, c: float | Tensor = 1.0, *, input: str = "lorentz") -> Tensor:
    """Return `exterior_angle` of every row of x with every row of y, in radians: (N, d), (M, d) -> (N, M).

    Entry (i, j) is the angle at x_i; errors raised are those of `hyperst_kernels.pairwise_distance`. One product of directions;
    pairs whose directions are so close or so opposite that it has lost digits are computed from differences, also in the
    gradient. Extra memory is that of a few blocks of the matrix. Source: Desai et al. 2023, equation 8.

    >>> import torch
    >>> x, y = torch.tensor([[0.5, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> pairwise_exterior_angle(x, y, input="tangent")
    tensor([[0.0000, 2.1709, 3.1416]])
    """
    _checks.choice("input", input, INPUTS)
    x, y = _checks.matrices(x=x, y=y)
    dtype = _checks.geometry_dtype(x)
    c = _checks.positive("c", c, x, dtype)
    return angle_matrix.pairwise_exterior_angle(x.to(dtype), y.to(dtype), c, input == "tangent").to(x.dtype)


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
    _checks.choice("reduction", reduction, REDUCTIONS)
    (loss,) = entailment_hinges([(parent, child, eta)], c, min_radius, input)
    if reduction == "mean" and loss.numel() == 0:
        shapes = f"{tuple(parent.shape)} and {tuple(child.shape)}"
        raise ValueError(f"parent and child must hold at least one row to take a mean over, got shapes {shapes}")
    if reduction == "none":
        return loss
    loss = loss.to(_checks.geometry_dtype(loss))  # sums are never taken in half precision
    return loss.mean() if reduction == "mean" else loss.sum()


def entailment_hinges(
    relations: Sequence[tuple[Tensor, Tensor, float]], c: float | Tensor, min_radius: float, input: str
) -> Tensor:
    """`entailment_loss` of every row of several relations (parent, child, eta), all (..., d), at once: (r, ...)."""
    _checks.choice("input", input, INPUTS)
    named: dict[str, Tensor] = {}
    for i, (parent, child, _) in enumerate(relations):
        number = f"_{i}" if len(relations) > 1 else ""
        named |= {f"parent{number}": parent, f"child{number}": child}
    c, vectors = _checks.prepare(c, **named)
    for i, (_, _, eta) in enumerate(relations):
        _checks.positive_number(f"eta_{i}" if len(relations) > 1 else "eta", eta, c.dtype)
    _checks.positive_number("min_radius", min_radius, c.dtype)
    etas = [float(eta) for _, _, eta in relations]
    return operators.entailment_hinges(vectors[::2], vectors[1::2], c, etas, float(min_radius), input == "tangent")
