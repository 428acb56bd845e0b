"""Exponential and logarithmic maps of float32 rows in machine code (`native/maps.h`): a few sweeps over each row while it
is in cache, in float64 but for what is read and stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels.cpu.native import bindings


def exp_map0(v: Tensor, scale: Tensor, c: Tensor) -> Tensor:
    """exp_map0 of scale * v: (n d) -> (n d)."""
    return _value("exp_map0", v, None, c, float(scale))


def exp_map0_backward(grad: Tensor, v: Tensor, scale: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of v (n d), scale () and c ()."""
    dv, _, dscale, dc = _gradients("exp_map0", grad, v, None, c, float(scale))
    return dv, dscale, dc


def log_map0(x: Tensor, c: Tensor) -> Tensor:
    """(n d) -> (n d)."""
    return _value("log_map0", x, None, c)


def log_map0_backward(grad: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (n d) and c ()."""
    dx, _, _, dc = _gradients("log_map0", grad, x, None, c)
    return dx, dc


def exp_map(x: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """(n d), (n d) -> (n d)."""
    return _value("exp_map", x, v, c)


def exp_map_backward(grad: Tensor, x: Tensor, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, v (n d) and c ()."""
    dx, dv, _, dc = _gradients("exp_map", grad, x, v, c)
    return dx, dv, dc


def log_map(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """(n d), (n d) -> (n d)."""
    return _value("log_map", x, y, c)


def log_map_backward(grad: Tensor, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, y (n d) and c ()."""
    dx, dy, _, dc = _gradients("log_map", grad, x, y, c)
    return dx, dy, dc


def _shared(x: Tensor, y: Tensor | None, c: Tensor, scale: float) -> tuple:
    x = bindings.rows(x.float())
    y = None if y is None else bindings.rows(y.float())
    return x, x.stride(0), y, 0 if y is None else y.stride(0), *x.shape, float(c), scale


def _value(name: str, x: Tensor, y: Tensor | None, c: Tensor, scale: float = 1.0) -> Tensor:
    out = bindings.large(torch.empty(x.shape, dtype=torch.float32, device=x.device))
    bindings.call(name, *_shared(x, y, c, scale), out)
    return out.to(x.dtype)


def _gradients(
    name: str, grad: Tensor, x: Tensor, y: Tensor | None, c: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of x, y (or an empty tensor), scale and c."""
    grad = grad.float().contiguous()
    dx = bindings.large(grad.new_empty(x.shape))
    dy = bindings.large(grad.new_empty(0 if y is None else y.shape))
    scalars = grad.new_empty(len(x), 2, dtype=torch.float64)
    bindings.call(f"{name}_slopes", *_shared(x, y, c, scale), grad, dx, dy, scalars)
    dscale, dc = (column.sum().to(c.dtype) for column in scalars.T)  # outputs of an operator share no memory
    return dx.to(x.dtype), dy.to(x.dtype), dscale, dc
