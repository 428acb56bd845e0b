"""Row-wise distances from exact differences, and their gradients."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.pair import (
    compare,
    curvature_slope,
    distance_of,
    haversine_gradient,
    per_chord,
    rapidity,
    root_between,
    slopes,
    slopes_of_distance,
)
from hyperst_kernels.gpu.scalars import asinh, div_rn, hypot1, nonzero, sqrt_rn, tanh_defect
from hyperst_kernels.gpu.tile_math import block, load_each, load_rows, norm, store_each, store_rows, summed


@triton.jit
def _distance(
    x_ptr, y_ptr, c_ptr, out_ptr, x_stride, y_stride, n, d,
    TANGENT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    k = sqrt_rn(tl.load(c_ptr))
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    y = load_rows(y_ptr, rows, columns, y_stride, n, d, ROWS.DTYPE)
    norm_x, norm_y, _, _, r, _, half_chord = compare(x, y)
    store_each(out_ptr, rows, distance_of(norm_x, norm_y, r, half_chord, k, TANGENT), n)


@triton.jit
def _distance_backward(
    grad_ptr, x_ptr, y_ptr, c_ptr, dx_ptr, dy_ptr, dc_ptr, x_stride, y_stride, n, d,
    TANGENT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    c = tl.load(c_ptr)
    k = sqrt_rn(c)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    y = load_rows(y_ptr, rows, columns, y_stride, n, d, ROWS.DTYPE)
    grad = load_each(grad_ptr, rows, n, ROWS.DTYPE)
    norm_x, norm_y, a, b, r, e, half_chord = compare(x, y)
    p, q, delta = rapidity(norm_x, norm_y, r, k, TANGENT)
    A_x, A_y, _, _, D = slopes(p, q, delta, half_chord)
    dc = curvature_slope(p, q, delta, half_chord, A_x, A_y, D, c, k)
    if not TANGENT:
        dc += (A_x * tanh_defect(p) + A_y * tanh_defect(q)) / (2 * c * k)
    along_x, across_x = slopes_of_distance(norm_x, norm_y, r, half_chord, k, TANGENT)
    along_y, across_y = slopes_of_distance(norm_y, norm_x, -r, half_chord, k, TANGENT)
    e *= per_chord(half_chord)[:, None]
    dx = (grad * along_x)[:, None] * a + (grad * across_x)[:, None] * e
    dy = (grad * along_y)[:, None] * b - (grad * across_y)[:, None] * e
    store_rows(dx_ptr, rows, columns, dx, n, d)
    store_rows(dy_ptr, rows, columns, dy, n, d)
    store_each(dc_ptr, rows, grad * dc, n)


def distance(x: Tensor, y: Tensor, c: Tensor, tangent: bool) -> Tensor:
    """(n d), (n d) -> (n)."""
    return _of_pairs(_distance, x, y, c, TANGENT=tangent)


def distance_backward(grad: Tensor, x: Tensor, y: Tensor, c: Tensor, tangent: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, y (n d) and c ()."""
    return _of_pairs_backward(_distance_backward, grad, x, y, c, TANGENT=tangent)


def _of_pairs(kernel: triton.JITFunction, x: Tensor, y: Tensor, c: Tensor, **constants) -> Tensor:
    x, y, out = launch.unit_stride(x), launch.unit_stride(y), x.new_empty(len(x))
    launch.over_rows(kernel, "pair", x, x, y, c, out, x.stride(0), y.stride(0), **constants)
    return out


def _of_pairs_backward(
    kernel: triton.JITFunction, grad: Tensor, x: Tensor, y: Tensor, c: Tensor, **constants
) -> tuple[Tensor, Tensor, Tensor]:
    x, y, dx, dy = launch.unit_stride(x), launch.unit_stride(y), x.new_empty(x.shape), y.new_empty(y.shape)
    dc = launch.scalars_like(x, len(x))
    strides = (x.stride(0), y.stride(0))
    launch.over_rows(kernel, "pair", x, grad.contiguous(), x, y, c, dx, dy, dc, *strides, **constants)
    return dx, dy, summed(dc, c)


@triton.jit
def _inner(
    x_ptr, y_ptr, c_ptr, out_ptr, x_stride, y_stride, n, d,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    c = tl.load(c_ptr)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    y = load_rows(y_ptr, rows, columns, y_stride, n, d, ROWS.DTYPE)
    k = sqrt_rn(c)
    root = div_rn(root_between(x, y, k), k)  # of which the square fits
    store_each(out_ptr, rows, -div_rn(1.0, c) - 2 * root * root, n)


@triton.jit
def _inner_backward(
    grad_ptr, x_ptr, y_ptr, c_ptr, dx_ptr, dy_ptr, dc_ptr, x_stride, y_stride, n, d,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    c = tl.load(c_ptr)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    y = load_rows(y_ptr, rows, columns, y_stride, n, d, ROWS.DTYPE)
    grad = load_each(grad_ptr, rows, n, ROWS.DTYPE)
    _, to_x, to_y, times, _ = haversine_gradient(x, y, sqrt_rn(c))
    store_rows(dx_ptr, rows, columns, -grad[:, None] * to_x, n, d)
    store_rows(dy_ptr, rows, columns, -grad[:, None] * to_y, n, d)
    store_each(dc_ptr, rows, grad * (times + 1 / times) / (2 * c * c), n)


def inner(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """(n d), (n d) -> (n)."""
    return _of_pairs(_inner, x, y, c)


def inner_backward(grad: Tensor, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, y (n d) and c ()."""
    return _of_pairs_backward(_inner_backward, grad, x, y, c)


@triton.jit
def _distance0(
    x_ptr, c_ptr, out_ptr, x_stride, n, d,
    TANGENT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    k = sqrt_rn(tl.load(c_ptr))
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    length = norm(x)
    if TANGENT:
        store_each(out_ptr, rows, length, n)
    else:
        store_each(out_ptr, rows, asinh(k * length) / k, n)


@triton.jit
def _distance0_backward(
    grad_ptr, x_ptr, c_ptr, dx_ptr, dc_ptr, x_stride, n, d,
    TANGENT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    c = tl.load(c_ptr)
    k = sqrt_rn(c)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    grad = load_each(grad_ptr, rows, n, ROWS.DTYPE)
    length = norm(x)
    X = k * length
    slope = grad
    dc = 0 * grad
    if not TANGENT:
        slope = slope / hypot1(X)
        dc = grad * tanh_defect(asinh(X)) / (2 * c * k)
    store_rows(dx_ptr, rows, columns, slope[:, None] * (x * (1 / nonzero(length))[:, None]), n, d)
    store_each(dc_ptr, rows, dc, n)


def distance0(x: Tensor, c: Tensor, tangent: bool) -> Tensor:
    """(n d) -> (n)."""
    x, out = launch.unit_stride(x), x.new_empty(len(x))
    launch.over_rows(_distance0, "map", x, x, c, out, x.stride(0), TANGENT=tangent)
    return out


def distance0_backward(grad: Tensor, x: Tensor, c: Tensor, tangent: bool) -> tuple[Tensor, Tensor]:
    """Gradients of x (n d) and c ()."""
    x, dx, dc = launch.unit_stride(x), x.new_empty(x.shape), launch.scalars_like(x, len(x))
    launch.over_rows(_distance0_backward, "map", x, grad.contiguous(), x, c, dx, dc, x.stride(0), TANGENT=tangent)
    return dx, summed(dc, c)
