"""Other coordinates of points, and their gradients: with the time, and in the Poincare ball. As `maps` in all they take."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.maps import map_rows, map_rows_backward
from hyperst_kernels.gpu.pair import split
from hyperst_kernels.gpu.scalars import (
    div_rn,
    hypot1,
    nonzero,
    sign,
    sqrt_rn,
)
from hyperst_kernels.gpu.tile_math import block, dot, load_rows, norm, store_each, store_rows


@triton.jit
def time_of(length, k):
    """x_t = sqrt(1/c + |x|^2), k = sqrt(c)."""
    return hypot1(k * length) / k


@triton.jit
def _lift(
    x_ptr, c_ptr, out_ptr, x_stride, n, d,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    inside = (rows < n)[:, None] & (columns < d)[None, :]
    element = out_ptr.dtype.element_ty
    tl.store(out_ptr + rows * (d + 1), time_of(norm(x), sqrt_rn(tl.load(c_ptr))).to(element), rows < n)
    tl.store(out_ptr + rows[:, None] * (d + 1) + columns[None, :] + 1, x.to(element), inside)


@triton.jit
def _lift_backward(
    grad_ptr, x_ptr, c_ptr, dx_ptr, dc_ptr, x_stride, n, d,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    c = tl.load(c_ptr)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    grad = load_rows(grad_ptr + 1, rows, columns, d + 1, n, d, ROWS.DTYPE)
    grad_time = tl.load(grad_ptr + rows * (d + 1), rows < n, other=0).to(ROWS.DTYPE)
    per_time = grad_time / time_of(norm(x), sqrt_rn(c))
    store_rows(dx_ptr, rows, columns, grad + per_time[:, None] * x, n, d)
    store_each(dc_ptr, rows, -per_time / (2 * c * c), n)


def lift(x: Tensor, c: Tensor) -> Tensor:
    """(n d) -> (n d+1), time first."""
    x, out = launch.unit_stride(x), x.new_empty(x.shape[0], x.shape[1] + 1)
    launch.over_rows(_lift, "map", x, x, c, out, x.stride(0))
    return out


def lift_backward(grad: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (n d) and c () from that of the lifted points (n d+1)."""
    return map_rows_backward(_lift_backward, grad, x, c)


@triton.jit
def _lorentz_to_poincare(
    x_ptr, c_ptr, out_ptr, x_stride, n, d,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    time = hypot1(sqrt_rn(tl.load(c_ptr)) * norm(x))
    store_rows(out_ptr, rows, columns, div_rn(1.0, 1 + time)[:, None] * x, n, d)


@triton.jit
def _lorentz_to_poincare_backward(
    grad_ptr, x_ptr, c_ptr, dx_ptr, dc_ptr, x_stride, n, d,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    c = tl.load(c_ptr)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    grad = load_rows(grad_ptr, rows, columns, d, n, d, ROWS.DTYPE)
    length = norm(x)
    X, a = sqrt_rn(c) * length, x * (1 / nonzero(length))[:, None]
    if x.shape[1] == 1:
        a = sign(x)
    cosh_p = hypot1(X)
    along, across = split(grad, a)
    shrink = 1 / (1 + cosh_p)
    store_rows(dx_ptr, rows, columns, shrink[:, None] * (across + (along / cosh_p)[:, None] * a), n, d)
    store_each(dc_ptr, rows, -along * (length * shrink) * (length * shrink) * (length / cosh_p) * 0.5, n)


def lorentz_to_poincare(x: Tensor, c: Tensor) -> Tensor:
    """(n d) -> (n d)."""
    return map_rows(_lorentz_to_poincare, x, c)


def lorentz_to_poincare_backward(grad: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (n d) and c ()."""
    return map_rows_backward(_lorentz_to_poincare_backward, grad, x, c)


@triton.jit
def _poincare_to_lorentz(
    p_ptr, c_ptr, out_ptr, p_stride, n, d,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    p = load_rows(p_ptr, rows, columns, p_stride, n, d, ROWS.DTYPE)
    root = sqrt_rn(tl.load(c_ptr)) * sqrt_rn(dot(p, p))
    store_rows(out_ptr, rows, columns, p * (2 / ((1 - root) * (1 + root)))[:, None], n, d)


@triton.jit
def _poincare_to_lorentz_backward(
    grad_ptr, p_ptr, c_ptr, dp_ptr, dc_ptr, p_stride, n, d,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    c = tl.load(c_ptr)
    p = load_rows(p_ptr, rows, columns, p_stride, n, d, ROWS.DTYPE)
    grad = load_rows(grad_ptr, rows, columns, d, n, d, ROWS.DTYPE)
    square, along = dot(p, p), dot(p, grad)
    root = sqrt_rn(c) * sqrt_rn(square)
    stretch = 2 / ((1 - root) * (1 + root))
    slope = along * stretch * stretch
    store_rows(dp_ptr, rows, columns, stretch[:, None] * grad + (c * slope)[:, None] * p, n, d)
    store_each(dc_ptr, rows, slope * square * 0.5, n)


def poincare_to_lorentz(p: Tensor, c: Tensor) -> Tensor:
    """(n d) -> (n d)."""
    return map_rows(_poincare_to_lorentz, p, c)


def poincare_to_lorentz_backward(grad: Tensor, p: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of p (n d) and c ()."""
    return map_rows_backward(_poincare_to_lorentz_backward, grad, p, c)
