"""Exterior angles and cone hinges of matching float32 rows in machine code (`native/rows.h`), as in `reference.entailment`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperst_kernels.cpu.distance import row_gradients, row_values


def exterior_angle(x: Tensor, y: Tensor, c: Tensor, tangent: bool) -> Tensor:
    """(r d), (r d) -> (r): the hinge of a cone without an aperture."""
    return row_values("hinge", x, y, c, tangent, 0.0, 1.0)


def exterior_angle_backward(
    grad: Tensor, x: Tensor, y: Tensor, c: Tensor, tangent: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, y (r d) and c () from that of the angles (r)."""
    return row_gradients("hinge_slopes", grad, x, y, c, tangent, 0.0, 1.0)


def entailment_hinges(
    parents: Sequence[Tensor],
    children: Sequence[Tensor],
    c: Tensor,
    etas: Sequence[float],
    min_radius: float,
    tangent: bool,
) -> Tensor:
    """One (n d) of each per relation -> (relations n)."""
    relations = zip(parents, children, etas, strict=True)
    return torch.stack([row_values("hinge", x, y, c, tangent, eta, min_radius) for x, y, eta in relations])


def entailment_hinges_backward(
    grad: Tensor,
    parents: Sequence[Tensor],
    children: Sequence[Tensor],
    c: Tensor,
    etas: Sequence[float],
    min_radius: float,
    tangent: bool,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Gradients of parents, children and c () from that of the hinges (relations n)."""
    relations = zip(grad, parents, children, etas, strict=True)
    found = [row_gradients("hinge_slopes", g, x, y, c, tangent, eta, min_radius) for g, x, y, eta in relations]
    dx, dy, dc = zip(*found, strict=True)
    return list(dx), list(dy), torch.stack(dc).sum()
