"""Maps of the Lorentz model and their gradients: each kernel reads every input row once and writes every output once.

All take matrices (n d) of one dtype and c as a 0-d tensor of the geometry's dtype. Gradients of the scalars leave the
kernels as one number per row and are summed in float64, in fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.tile_math import (
    asinhc,
    asinhc_fall,
    asinhc_slope,
    dot,
    haversine,
    haversine_gradient,
    kappa,
    less_ratio,
    load_rows,
    nonzero,
    sinhc,
    sqrt_rn,
    store_each,
    store_rows,
)


@triton.jit
def block(BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows and columns of this program's block."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    return rows, tl.arange(0, BLOCK_D)


def summed(partial: Tensor, like: Tensor) -> Tensor:
    """The gradient of a 0-d tensor from one number per row."""
    return partial.sum(dtype=torch.float64).to(like.dtype)


# ------------------------------------------------------------------------------------------- the origin's two maps


@triton.jit
def _exp_map0(
    v_ptr, scale_ptr, c_ptr, out_ptr, v_stride, n, d,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, columns = block(BLOCK_ROWS, BLOCK_D)
    scale, c = tl.load(scale_ptr), tl.load(c_ptr)
    u = scale * load_rows(v_ptr, rows, columns, v_stride, n, d, DTYPE)
    store_rows(out_ptr, rows, columns, sinhc(c * dot(u, u))[:, None] * u, n, d)


@triton.jit
def _exp_map0_backward(
    grad_ptr, v_ptr, scale_ptr, c_ptr, dv_ptr, dscale_ptr, dc_ptr, v_stride, n, d,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, columns = block(BLOCK_ROWS, BLOCK_D)
    scale, c = tl.load(scale_ptr), tl.load(c_ptr)
    v = load_rows(v_ptr, rows, columns, v_stride, n, d, DTYPE)
    grad = load_rows(grad_ptr, rows, columns, d, n, d, DTYPE)
    square, along = scale * scale * dot(v, v), dot(v, grad)
    t_squared = c * square
    stretch, bend = sinhc(t_squared), kappa(t_squared)
    # out = scale sinhc v, d sinhc / d t^2 = kappa / 2, and sinhc + kappa t^2 = cosh
    dv = scale * (stretch[:, None] * grad + (c * scale * scale * bend * along)[:, None] * v)
    store_rows(dv_ptr, rows, columns, dv, n, d)
    store_each(dscale_ptr, rows, along * (stretch + bend * t_squared), n)
    store_each(dc_ptr, rows, along * scale * bend * square / 2, n)


def exp_map0(v: Tensor, scale: Tensor, c: Tensor) -> Tensor:
    """exp_map0 of scale * v: (n d) -> (n d)."""
    v, out = launch.unit_stride(v), v.new_empty(v.shape)
    launch.over_rows(_exp_map0, "map", v, v, scale, c, out, v.stride(0))
    return out


def exp_map0_backward(grad: Tensor, v: Tensor, scale: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of v (n d), scale () and c ()."""
    v, dv = launch.unit_stride(v), v.new_empty(v.shape)
    dscale, dc = launch.scalars_like(v, len(v)), launch.scalars_like(v, len(v))
    launch.over_rows(_exp_map0_backward, "map", v, grad.contiguous(), v, scale, c, dv, dscale, dc, v.stride(0))
    return dv, summed(dscale, scale), summed(dc, c)


@triton.jit
def _log_map0(
    x_ptr, c_ptr, out_ptr, x_stride, n, d,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, columns = block(BLOCK_ROWS, BLOCK_D)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, DTYPE)
    store_rows(out_ptr, rows, columns, asinhc(tl.load(c_ptr) * dot(x, x))[:, None] * x, n, d)


@triton.jit
def _log_map0_backward(
    grad_ptr, x_ptr, c_ptr, dx_ptr, dc_ptr, x_stride, n, d,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, columns = block(BLOCK_ROWS, BLOCK_D)
    c = tl.load(c_ptr)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, DTYPE)
    grad = load_rows(grad_ptr, rows, columns, d, n, d, DTYPE)
    square, along = dot(x, x), dot(x, grad)
    fall, per_norm = asinhc_fall(c * square), 1 / nonzero(tl.sqrt(square))
    dx = asinhc(c * square)[:, None] * grad - (fall * along * per_norm * per_norm)[:, None] * x
    store_rows(dx_ptr, rows, columns, dx, n, d)
    store_each(dc_ptr, rows, -along * fall / (2 * c), n)


def log_map0(x: Tensor, c: Tensor) -> Tensor:
    """(n d) -> (n d)."""
    return _map(_log_map0, x, c)


def log_map0_backward(grad: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (n d) and c ()."""
    return _map_backward(_log_map0_backward, grad, x, c)


def _map(kernel: triton.JITFunction, x: Tensor, c: Tensor) -> Tensor:
    x, out = launch.unit_stride(x), x.new_empty(x.shape)
    launch.over_rows(kernel, "map", x, x, c, out, x.stride(0))
    return out


def _map_backward(kernel: triton.JITFunction, grad: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    x, dx, dc = launch.unit_stride(x), x.new_empty(x.shape), launch.scalars_like(x, len(x))
    launch.over_rows(kernel, "map", x, grad.contiguous(), x, c, dx, dc, x.stride(0))
    return dx, summed(dc, c)


# --------------------------------------------------------------------------------------------------- other models


@triton.jit
def _lift(
    x_ptr, c_ptr, out_ptr, x_stride, n, d,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, columns = block(BLOCK_ROWS, BLOCK_D)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, DTYPE)
    inside = (rows < n)[:, None] & (columns < d)[None, :]
    element = out_ptr.dtype.element_ty
    tl.store(out_ptr + rows * (d + 1), tl.sqrt(1 / tl.load(c_ptr) + dot(x, x)).to(element), rows < n)
    tl.store(out_ptr + rows[:, None] * (d + 1) + columns[None, :] + 1, x.to(element), inside)


@triton.jit
def _lift_backward(
    grad_ptr, x_ptr, c_ptr, dx_ptr, dc_ptr, x_stride, n, d,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, columns = block(BLOCK_ROWS, BLOCK_D)
    c = tl.load(c_ptr)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, DTYPE)
    grad = load_rows(grad_ptr + 1, rows, columns, d + 1, n, d, DTYPE)
    grad_time = tl.load(grad_ptr + rows * (d + 1), rows < n, other=0).to(DTYPE)
    per_time = grad_time / tl.sqrt(1 / c + dot(x, x))
    store_rows(dx_ptr, rows, columns, grad + per_time[:, None] * x, n, d)
    store_each(dc_ptr, rows, -per_time / (2 * c * c), n)


def lift(x: Tensor, c: Tensor) -> Tensor:
    """(n d) -> (n d+1), time first."""
    x, out = launch.unit_stride(x), x.new_empty(x.shape[0], x.shape[1] + 1)
    launch.over_rows(_lift, "map", x, x, c, out, x.stride(0))
    return out


def lift_backward(grad: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (n d) and c () from that of the lifted points (n d+1)."""
    return _map_backward(_lift_backward, grad, x, c)


@triton.jit
def _lorentz_to_poincare(
    x_ptr, c_ptr, out_ptr, x_stride, n, d,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, columns = block(BLOCK_ROWS, BLOCK_D)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, DTYPE)
    time = tl.sqrt(1 + tl.load(c_ptr) * dot(x, x))
    store_rows(out_ptr, rows, columns, (1 / (1 + time))[:, None] * x, n, d)


@triton.jit
def _lorentz_to_poincare_backward(
    grad_ptr, x_ptr, c_ptr, dx_ptr, dc_ptr, x_stride, n, d,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, columns = block(BLOCK_ROWS, BLOCK_D)
    c = tl.load(c_ptr)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, DTYPE)
    grad = load_rows(grad_ptr, rows, columns, d, n, d, DTYPE)
    square, along = dot(x, x), dot(x, grad)
    time = tl.sqrt(1 + c * square)
    shrink = 1 / (1 + time)
    slope = along / time * shrink * shrink
    store_rows(dx_ptr, rows, columns, shrink[:, None] * grad - (c * slope)[:, None] * x, n, d)
    store_each(dc_ptr, rows, -slope * square / 2, n)


def lorentz_to_poincare(x: Tensor, c: Tensor) -> Tensor:
    """(n d) -> (n d)."""
    return _map(_lorentz_to_poincare, x, c)


def lorentz_to_poincare_backward(grad: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (n d) and c ()."""
    return _map_backward(_lorentz_to_poincare_backward, grad, x, c)


@triton.jit
def _poincare_to_lorentz(
    p_ptr, c_ptr, out_ptr, p_stride, n, d,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, columns = block(BLOCK_ROWS, BLOCK_D)
    p = load_rows(p_ptr, rows, columns, p_stride, n, d, DTYPE)
    root = sqrt_rn(tl.load(c_ptr)) * tl.sqrt(dot(p, p))
    store_rows(out_ptr, rows, columns, p * (2 / ((1 - root) * (1 + root)))[:, None], n, d)


@triton.jit
def _poincare_to_lorentz_backward(
    grad_ptr, p_ptr, c_ptr, dp_ptr, dc_ptr, p_stride, n, d,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, columns = block(BLOCK_ROWS, BLOCK_D)
    c = tl.load(c_ptr)
    p = load_rows(p_ptr, rows, columns, p_stride, n, d, DTYPE)
    grad = load_rows(grad_ptr, rows, columns, d, n, d, DTYPE)
    square, along = dot(p, p), dot(p, grad)
    root = sqrt_rn(c) * tl.sqrt(square)
    stretch = 2 / ((1 - root) * (1 + root))
    slope = along * stretch * stretch
    store_rows(dp_ptr, rows, columns, stretch[:, None] * grad + (c * slope)[:, None] * p, n, d)
    store_each(dc_ptr, rows, slope * square / 2, n)


def poincare_to_lorentz(p: Tensor, c: Tensor) -> Tensor:
    """(n d) -> (n d)."""
    return _map(_poincare_to_lorentz, p, c)


def poincare_to_lorentz_backward(grad: Tensor, p: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of p (n d) and c ()."""
    return _map_backward(_poincare_to_lorentz_backward, grad, p, c)


# ------------------------------------------------------------------------------------------- maps between two points


@triton.jit
def _exp_map(
    x_ptr, v_ptr, c_ptr, out_ptr, x_stride, v_stride, n, d,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, columns = block(BLOCK_ROWS, BLOCK_D)
    c = tl.load(c_ptr)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, DTYPE)
    v = load_rows(v_ptr, rows, columns, v_stride, n, d, DTYPE)
    t_squared, _, _, _ = _length(x, v, c)
    half = sinhc(t_squared / 4)
    out = (1 + t_squared / 2 * half * half)[:, None] * x + sinhc(t_squared)[:, None] * v
    store_rows(out_ptr, rows, columns, out, n, d)


@triton.jit
def _length(x, v, c):
    """t^2 = c |v|_L^2 without cancellation, |x|^2, <x, v>, and h with d t^2 = 2 c h . dv."""
    square, product = dot(x, x), dot(x, v)
    # v = along x + across; h leaves 1/cosh^2 p of the part along
    part = product / nonzero(square)
    across = v - part[:, None] * x
    shrink = 1 / (1 + c * square)
    h = across + (part * shrink)[:, None] * x
    return c * (dot(across, across) + part * part * square * shrink), square, product, h


@triton.jit
def _exp_map_backward(
    grad_ptr, x_ptr, v_ptr, c_ptr, dx_ptr, dv_ptr, dc_ptr, x_stride, v_stride, n, d,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, columns = block(BLOCK_ROWS, BLOCK_D)
    c = tl.load(c_ptr)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, DTYPE)
    v = load_rows(v_ptr, rows, columns, v_stride, n, d, DTYPE)
    grad = load_rows(grad_ptr, rows, columns, d, n, d, DTYPE)
    t_squared, square, product, h = _length(x, v, c)
    half, stretch = sinhc(t_squared / 4), sinhc(t_squared)
    slope = (stretch * dot(x, grad) + kappa(t_squared) * dot(v, grad)) / 2  # dL / d t^2
    shrink = 1 / (1 + c * square)
    dx = (1 + t_squared / 2 * half * half)[:, None] * grad - (2 * c * c * slope * product * shrink)[:, None] * h
    store_rows(dx_ptr, rows, columns, dx, n, d)
    store_rows(dv_ptr, rows, columns, stretch[:, None] * grad + (2 * c * slope)[:, None] * h, n, d)
    store_each(dc_ptr, rows, slope * (t_squared / c - c * product * product * shrink * shrink), n)


def exp_map(x: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """(n d), (n d) -> (n d)."""
    return _map_of_two(_exp_map, x, v, c)


def exp_map_backward(grad: Tensor, x: Tensor, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, v (n d) and c ()."""
    return _map_of_two_backward(_exp_map_backward, grad, x, v, c)


@triton.jit
def _log_map(
    x_ptr, y_ptr, c_ptr, out_ptr, x_stride, y_stride, n, d,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, columns = block(BLOCK_ROWS, BLOCK_D)
    c = tl.load(c_ptr)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, DTYPE)
    y = load_rows(y_ptr, rows, columns, y_stride, n, d, DTYPE)
    H = haversine(x, y, sqrt_rn(c))
    ratio = asinhc(H) / tl.sqrt(1 + H)  # D / sinh D
    out = ratio[:, None] * (y - x) - (2 * H * ratio)[:, None] * x
    store_rows(out_ptr, rows, columns, out, n, d)


@triton.jit
def _log_map_backward(
    grad_ptr, x_ptr, y_ptr, c_ptr, dx_ptr, dy_ptr, dc_ptr, x_stride, y_stride, n, d,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, columns = block(BLOCK_ROWS, BLOCK_D)
    c = tl.load(c_ptr)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, DTYPE)
    y = load_rows(y_ptr, rows, columns, y_stride, n, d, DTYPE)
    grad = load_rows(grad_ptr, rows, columns, d, n, d, DTYPE)
    H = haversine(x, y, sqrt_rn(c))
    to_x, to_y, _, radial = haversine_gradient(x, y, sqrt_rn(c))
    root = tl.sqrt(1 + H)
    ratio = asinhc(H) / root  # D / sinh D
    ratio_slope = asinhc_slope(H) / root - ratio / (1 + H) / 2
    back_slope = 2 * ratio - asinhc_fall(H) / root - ratio * (H / (1 + H))  # of 2 H ratio
    slope = ratio_slope * dot(y - x, grad) - back_slope * dot(x, grad)  # dL / dH
    along = (c / 2 * slope)[:, None]
    store_rows(dx_ptr, rows, columns, along * to_x - (ratio + 2 * H * ratio)[:, None] * grad, n, d)
    store_rows(dy_ptr, rows, columns, along * to_y + ratio[:, None] * grad, n, d)
    store_each(dc_ptr, rows, slope * (H - radial / 4) / c, n)


def log_map(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """(n d), (n d) -> (n d)."""
    return _map_of_two(_log_map, x, y, c)


def log_map_backward(grad: Tensor, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, y (n d) and c ()."""
    return _map_of_two_backward(_log_map_backward, grad, x, y, c)


def _map_of_two(kernel: triton.JITFunction, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    x, y, out = launch.unit_stride(x), launch.unit_stride(y), x.new_empty(x.shape)
    launch.over_rows(kernel, "pair", x, x, y, c, out, x.stride(0), y.stride(0))
    return out


def _map_of_two_backward(
    kernel: triton.JITFunction, grad: Tensor, x: Tensor, y: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    x, y, dx, dy = launch.unit_stride(x), launch.unit_stride(y), x.new_empty(x.shape), y.new_empty(y.shape)
    dc = launch.scalars_like(x, len(x))
    launch.over_rows(kernel, "pair", x, grad.contiguous(), x, y, c, dx, dy, dc, x.stride(0), y.stride(0))
    return dx, dy, summed(dc, c)


@triton.jit
def _transported(x, y, v, c):
    """<y, v>_L = <y', v> for y' = y - (y_t/x_t) x, with y', x_t, y_t and v_t = <x, v> / x_t."""
    x_t, y_t = tl.sqrt(1 / c + dot(x, x)), tl.sqrt(1 / c + dot(y, y))
    base, rest = less_ratio(y_t, x_t, dot(y - x, y + x) / (x_t + y_t))
    seen = (y - base[:, None] * x) - rest[:, None] * x
    return dot(seen, v), seen, x_t, y_t, dot(x, v) / x_t


@triton.jit
def _parallel_transport(
    x_ptr, y_ptr, v_ptr, c_ptr, out_ptr, x_stride, y_stride, v_stride, n, d,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, columns = block(BLOCK_ROWS, BLOCK_D)
    c = tl.load(c_ptr)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, DTYPE)
    y = load_rows(y_ptr, rows, columns, y_stride, n, d, DTYPE)
    v = load_rows(v_ptr, rows, columns, v_stride, n, d, DTYPE)
    H = haversine(x, y, sqrt_rn(c))
    product, _, _, _, _ = _transported(x, y, v, c)
    store_rows(out_ptr, rows, columns, v + (c * product / (2 * (1 + H)))[:, None] * (x + y), n, d)


@triton.jit
def _parallel_transport_backward(
    grad_ptr, x_ptr, y_ptr, v_ptr, c_ptr, dx_ptr, dy_ptr, dv_ptr, dc_ptr, x_stride, y_stride, v_stride, n, d,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, columns = block(BLOCK_ROWS, BLOCK_D)
    c = tl.load(c_ptr)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, DTYPE)
    y = load_rows(y_ptr, rows, columns, y_stride, n, d, DTYPE)
    v = load_rows(v_ptr, rows, columns, v_stride, n, d, DTYPE)
    grad = load_rows(grad_ptr, rows, columns, d, n, d, DTYPE)
    H = haversine(x, y, sqrt_rn(c))
    to_x, to_y, _, radial = haversine_gradient(x, y, sqrt_rn(c))
    product, seen, x_t, y_t, v_t = _transported(x, y, v, c)
    # out = v + beta (x + y), beta = c product / (2 (1 + H))
    rate = c / (2 * (1 + H))
    towards = dot(x + y, grad)
    # in this order: the reciprocal of H^2 does not fit into float32 at radius 40
    by_product, by_H = rate * towards, -(rate * product) * towards / (1 + H)
    beta = (rate * product)[:, None]
    dx = beta * grad + (c / 2 * by_H)[:, None] * to_x
    dx -= (by_product * y_t / x_t)[:, None] * (v - (v_t / x_t)[:, None] * x)
    dy = beta * grad + (c / 2 * by_H)[:, None] * to_y + by_product[:, None] * (v - (v_t / y_t)[:, None] * y)
    dv = grad + by_product[:, None] * seen
    store_rows(dx_ptr, rows, columns, dx, n, d)
    store_rows(dy_ptr, rows, columns, dy, n, d)
    store_rows(dv_ptr, rows, columns, dv, n, d)
    dc = towards * product / (2 * (1 + H)) + by_H * (H - radial / 4) / c
    dc += by_product * v_t / (2 * c * c) * (1 / y_t - y_t / (x_t * x_t))
    store_each(dc_ptr, rows, dc, n)


def parallel_transport(x: Tensor, y: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """v (n d), tangent at x (n d), carried to y (n d): (n d)."""
    x, y, v = (launch.unit_stride(t) for t in (x, y, v))
    out = v.new_empty(v.shape)
    launch.over_rows(_parallel_transport, "pair", x, x, y, v, c, out, x.stride(0), y.stride(0), v.stride(0))
    return out


def parallel_transport_backward(
    grad: Tensor, x: Tensor, y: Tensor, v: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, y, v (n d) and c ()."""
    x, y, v = (launch.unit_stride(t) for t in (x, y, v))
    dx, dy, dv = (t.new_empty(t.shape) for t in (x, y, v))
    dc = launch.scalars_like(x, len(x))
    strides = (x.stride(0), y.stride(0), v.stride(0))
    launch.over_rows(_parallel_transport_backward, "pair", x, grad.contiguous(), x, y, v, c, dx, dy, dv, dc, *strides)
    return dx, dy, dv, summed(dc, c)
