"""Exterior angles and cone hinges of matching float32 rows in machine code (`native/terms.h`), as in `reference.entailment`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from hyperst_kernels.cpu.native import bindings


def exterior_angle(x: Tensor, y: Tensor, c: Tensor, tangent: bool) -> Tensor:
    """(r d), (r d) -> (r): the hinge of a cone without an aperture."""
    return entailment_hinges([x], [y], c, [0.0], 1.0, tangent)[0]


def exterior_angle_backward(
    grad: Tensor, x: Tensor, y: Tensor, c: Tensor, tangent: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, y (r d) and c () from that of the angles (r)."""
    (dx,), (dy,), dc = entailment_hinges_backward(grad[None], [x], [y], c, [0.0], 1.0, tangent)
    return dx, dy, dc


def _shared(
    vectors: Sequence[Tensor],
    gradients: Sequence[Tensor],
    c: Tensor,
    etas: Sequence[float],
    min_radius: float,
    tangent: bool,
) -> tuple:
    """Features, relations and what they have in common, as arguments of the functions."""
    features = bindings.features(vectors, gradients)
    r, (rows, d) = len(etas), vectors[0].shape
    relations = bindings.table(*((k, r + k) for k in range(r)))
    numbers = (ctypes.c_double * r)(*etas)
    return features, relations, r, rows, d, float(c) ** 0.5, tangent, numbers, min_radius


def entailment_hinges(
    parents: Sequence[Tensor],
    children: Sequence[Tensor],
    c: Tensor,
    etas: Sequence[float],
    min_radius: float,
    tangent: bool,
) -> Tensor:
    """One (n d) of each per relation -> (relations n)."""
    vectors = [bindings.rows(x.float()) for x in (*parents, *children)]
    out = vectors[0].new_empty(len(etas), vectors[0].shape[0])
    bindings.call("hinges", *_shared(vectors, [], c, etas, min_radius, tangent), out)
    return out.to(parents[0].dtype)


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
    vectors = [bindings.rows(x.float()) for x in (*parents, *children)]
    gradients = [x.new_empty(x.shape) for x in vectors]
    dc = c.new_empty(vectors[0].shape[0], dtype=torch.float64)
    features, *shared = _shared(vectors, gradients, c, etas, min_radius, tangent)
    bindings.call("hinges_slopes", features, len(vectors), *shared, grad.float().contiguous(), dc)
    found = [g.to(parents[0].dtype) for g in gradients]
    return found[: len(etas)], found[len(etas) :], dc.sum().to(c.dtype)
