"""Distances of matching float32 rows in machine code (`native/rows.h`), and what the other functions of such rows share.

    H = sinh^2(delta/2) + sinh p sinh q s^2,    s = sin(theta/2)          d = (2/sqrt c) asinh(sqrt H)

as in `reference.distance`. A row is read twice, and once more for its gradient; everything is summed and computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperst_kernels._checks import geometry_dtype
from hyperst_kernels.cpu.native import bindings


def usable(x: Tensor) -> bool:
    """Whether the functions of rows in machine code take rows like these."""
    return x.device.type == "cpu" and geometry_dtype(x) == torch.float32 and bindings.library() is not None


def distance(x: Tensor, y: Tensor, c: Tensor, tangent: bool) -> Tensor:
    """(r d), (r d) -> (r)."""
    return row_values("distance", x, y, c, tangent)


def distance_backward(grad: Tensor, x: Tensor, y: Tensor, c: Tensor, tangent: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, y (r d) and c () from that of the distances (r)."""
    return row_gradients("distance_slopes", grad, x, y, c, tangent)


def add_distance_gradients(
    weights: Tensor, x: Tensor, y: Tensor, c: Tensor, tangent: bool, dx: Tensor, dy: Tensor
) -> Tensor:
    """Add weights (r) times the gradients of the distances to dx and dy, all float32; returns that of c, row by row."""
    return _add("distance_slopes", weights, x, y, c, tangent, (), dx, dy)


def _shared(x: Tensor, y: Tensor, c: Tensor, tangent: bool) -> tuple:
    return x, x.stride(0), y, y.stride(0), *x.shape, float(c) ** 0.5, tangent


def row_values(name: str, x: Tensor, y: Tensor, c: Tensor, tangent: bool, *cone: float) -> Tensor:
    """Return what a function of the library gives of matching rows: (r d), (r d) -> (r). ``cone``: eta and the least radius."""
    wide_x, wide_y = bindings.rows(x.float()), bindings.rows(y.float())
    out = wide_x.new_empty(len(x))
    bindings.call(name, *_shared(wide_x, wide_y, c, tangent), *cone, out)
    return out.to(x.dtype)


def _add(
    name: str,
    weights: Tensor,
    x: Tensor,
    y: Tensor,
    c: Tensor,
    tangent: bool,
    cone: Sequence[float],
    dx: Tensor,
    dy: Tensor,
) -> Tensor:
    """Add weights (r) times the slopes of a function of the library to dx and dy, and return those by c (r)."""
    x, y, weights = bindings.rows(x.float()), bindings.rows(y.float()), weights.contiguous()
    dc = x.new_empty(len(x), dtype=torch.float64)
    bindings.call(name, *_shared(x, y, c, tangent), *cone, weights, dx, dx.stride(0), dy, dy.stride(0), dc)
    return dc


def row_gradients(
    name: str, grad: Tensor, x: Tensor, y: Tensor, c: Tensor, tangent: bool, *cone: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of x, y (r d) and c () from that of the values (r) of a function of the library."""
    dx, dy = (torch.zeros(t.shape, dtype=torch.float32, device=t.device) for t in (x, y))
    dc = _add(name, grad.float(), x, y, c, tangent, cone, dx, dy)
    return dx.to(x.dtype), dy.to(y.dtype), dc.sum().to(c.dtype)
