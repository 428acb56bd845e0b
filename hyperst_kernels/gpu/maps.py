"""Maps of the Lorentz model and their gradients: each kernel reads every input row once and writes every output once.

All take matrices (n d) of one dtype and c as a 0-d tensor of the geometry's dtype. Gradients of the scalars leave the
kernels as one number per row and are summed in float64, in fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.pair import haversine_gradient, root_between, split
from hyperst_kernels.gpu.scalars import (
    asinh,
    asinhc_at,
    asinhc_fall,
    asinhc_slope,
    cosh,
    hypot1,
    kappa,
    nonzero,
    rounded_product,
    sign,
    sinh,
    sinhc,
    sqrt_rn,
    tanh_defect,
)
from hyperst_kernels.gpu.tile_math import block, dot, load_rows, norm, store_each, store_rows, summed


@triton.jit
def _exp_map0(
    v_ptr, scale_ptr, c_ptr, out_ptr, v_stride, n, d,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    scale, c = tl.load(scale_ptr), tl.load(c_ptr)
    u = scale * load_rows(v_ptr, rows, columns, v_stride, n, d, ROWS.DTYPE)
    store_rows(out_ptr, rows, columns, sinhc(c * dot(u, u))[:, None] * u, n, d)


@triton.jit
def _exp_map0_backward(
    grad_ptr, v_ptr, scale_ptr, c_ptr, dv_ptr, dscale_ptr, dc_ptr, v_stride, n, d,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    scale, c = tl.load(scale_ptr), tl.load(c_ptr)
    v = load_rows(v_ptr, rows, columns, v_stride, n, d, ROWS.DTYPE)
    grad = load_rows(grad_ptr, rows, columns, d, n, d, ROWS.DTYPE)
    square, along = scale * scale * dot(v, v), dot(v, grad)
    t_squared = c * square
    stretch, bend = sinhc(t_squared), kappa(t_squared)
    # out = scale sinhc v, d sinhc / d t^2 = kappa / 2, and sinhc + kappa t^2 = cosh
    dv = scale * (stretch[:, None] * grad + (c * scale * scale * bend * along)[:, None] * v)
    store_rows(dv_ptr, rows, columns, dv, n, d)
    store_each(dscale_ptr, rows, along * (stretch + bend * t_squared), n)
    store_each(dc_ptr, rows, along * scale * bend * square * 0.5, n)


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
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    store_rows(out_ptr, rows, columns, asinhc_at(sqrt_rn(tl.load(c_ptr)) * norm(x))[:, None] * x, n, d)


@triton.jit
def _log_map0_backward(
    grad_ptr, x_ptr, c_ptr, dx_ptr, dc_ptr, x_stride, n, d,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    c = tl.load(c_ptr)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    grad = load_rows(grad_ptr, rows, columns, d, n, d, ROWS.DTYPE)
    length = norm(x)
    z, a = sqrt_rn(c) * length, x * (1 / nonzero(length))[:, None]
    along, across = split(grad, a)
    fall = -tanh_defect(asinh(z)) / nonzero(z)  # of asinhc to 1 / cosh p, which is the slope along the ray
    dx = asinhc_at(z)[:, None] * across + (along / hypot1(z))[:, None] * a
    store_rows(dx_ptr, rows, columns, dx, n, d)
    store_each(dc_ptr, rows, -along * length * fall / (2 * c), n)


def log_map0(x: Tensor, c: Tensor) -> Tensor:
    """(n d) -> (n d)."""
    return map_rows(_log_map0, x, c)


def log_map0_backward(grad: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (n d) and c ()."""
    return map_rows_backward(_log_map0_backward, grad, x, c)


def map_rows(kernel: triton.JITFunction, x: Tensor, c: Tensor) -> Tensor:
    """Launch a kernel of one matrix: (n d) -> (n d)."""
    x, out = launch.unit_stride(x), x.new_empty(x.shape)
    launch.over_rows(kernel, "map", x, x, c, out, x.stride(0))
    return out


def map_rows_backward(kernel: triton.JITFunction, grad: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the kernel of its gradients: of x (n d) and c (), from that of the result, whose rows may be longer."""
    x, dx, dc = launch.unit_stride(x), x.new_empty(x.shape), launch.scalars_like(x, len(x))
    launch.over_rows(kernel, "map", x, grad.contiguous(), x, c, dx, dc, x.stride(0))
    return dx, summed(dc, c)


@triton.jit
def _exp_map(
    x_ptr, v_ptr, c_ptr, out_ptr, x_stride, v_stride, n, d,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    c = tl.load(c_ptr)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    v = load_rows(v_ptr, rows, columns, v_stride, n, d, ROWS.DTYPE)
    k = sqrt_rn(c)
    a, across, _, _, _, t_squared, _, R, _ = _geodesic(x, v, k)
    out = (R / k)[:, None] * a + sinhc(t_squared)[:, None] * across
    store_rows(out_ptr, rows, columns, out, n, d)


@triton.jit
def _geodesic(x, v, k):
    """a, v across a, sinh p, cosh p, nu, t^2, whether inwards, R and E of ``reference.exponential``."""
    length = norm(x)
    sinh_p, a = k * length, rounded_product(x, (1 / nonzero(length))[:, None])
    if x.shape[1] == 1:
        a = sign(x)
    cosh_p = hypot1(sinh_p)
    v_a, across = split(v, a)
    nu, w2 = k * v_a / cosh_p, k * k * dot(across, across)
    t_squared = nu * nu + w2
    inwards = (nu < 0) & (t_squared > 1) & (4 * nu * nu > t_squared)
    half, stretch = sinhc(t_squared * 0.25), sinhc(t_squared)
    cosh_t = 1 + t_squared * 0.5 * half * half
    t = sqrt_rn(tl.where(inwards, t_squared, 1))
    apart, rest = asinh(sinh_p) - t, w2 / (t - tl.where(inwards, nu, 0))
    # where the other is taken, factors may be too large for their product
    outward = tl.where(inwards, 0, nu) * stretch
    inward_R = tl.where(apart < 0, -1, 1) * sinh(tl.abs(apart)) + stretch * (cosh_p * rest)
    R = tl.where(inwards, inward_R, cosh_t * sinh_p + outward * cosh_p)
    inward_E = cosh(tl.abs(apart)) + stretch * (sinh_p * rest)
    E = tl.where(inwards, inward_E, cosh_t * cosh_p + outward * sinh_p)
    return a, across, sinh_p, cosh_p, nu, t_squared, inwards, R, E


@triton.jit
def _exp_map_backward(
    grad_ptr, x_ptr, v_ptr, c_ptr, dx_ptr, dv_ptr, dc_ptr, x_stride, v_stride, n, d,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    c = tl.load(c_ptr)
    k = sqrt_rn(c)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    v = load_rows(v_ptr, rows, columns, v_stride, n, d, ROWS.DTYPE)
    grad = load_rows(grad_ptr, rows, columns, d, n, d, ROWS.DTYPE)
    a, across, sinh_p, cosh_p, nu, t_squared, inwards, _, E = _geodesic(x, v, k)
    g_a, g_across = split(grad, a)
    half, stretch, bend = sinhc(t_squared * 0.25), sinhc(t_squared), kappa(t_squared)
    w2, tanh_p = k * k * dot(across, across), sinh_p / cosh_p
    bent, turned = bend * w2, bend * k * dot(across, g_across)
    # dL/dt / t, that times nu, and dL/dp, in units of 1 / sqrt(c)
    by_t = g_a * (stretch * sinh_p + bend * nu * cosh_p) + turned
    by_nu = tl.where(inwards, g_a * (E - cosh_p * (stretch + bent)) + nu * turned, nu * by_t)
    by_p = g_a * (E * (1 - nu * tanh_p) + nu * sinh_p * bent) - nu * tanh_p * (nu * turned)
    dx = (by_p / cosh_p)[:, None] * a + (1 + t_squared * 0.5 * half * half)[:, None] * g_across
    store_rows(dx_ptr, rows, columns, dx - (by_nu * tanh_p * k)[:, None] * across, n, d)
    along = g_a * (E / cosh_p - bent) + nu * turned / cosh_p
    dv = along[:, None] * a + stretch[:, None] * g_across + (by_t * k)[:, None] * across
    store_rows(dv_ptr, rows, columns, dv, n, d)
    store_each(dc_ptr, rows, (by_t * w2 + nu * by_nu / cosh_p / cosh_p) / (2 * c * k), n)


def exp_map(x: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """(n d), (n d) -> (n d)."""
    return _map_of_two(_exp_map, x, v, c)


def exp_map_backward(grad: Tensor, x: Tensor, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, v (n d) and c ()."""
    return _map_of_two_backward(_exp_map_backward, grad, x, v, c)


@triton.jit
def _log_map(
    x_ptr, y_ptr, c_ptr, out_ptr, x_stride, y_stride, n, d,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    c = tl.load(c_ptr)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    y = load_rows(y_ptr, rows, columns, y_stride, n, d, ROWS.DTYPE)
    root = root_between(x, y, sqrt_rn(c))  # sinh(D/2)
    cosh_half, half = hypot1(root), asinhc_at(root)
    out = (half / cosh_half)[:, None] * (y - x) - (2 * (half * root) * (root / cosh_half))[:, None] * x
    store_rows(out_ptr, rows, columns, out, n, d)


@triton.jit
def _log_map_backward(
    grad_ptr, x_ptr, y_ptr, c_ptr, dx_ptr, dy_ptr, dc_ptr, x_stride, y_stride, n, d,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    c = tl.load(c_ptr)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    y = load_rows(y_ptr, rows, columns, y_stride, n, d, ROWS.DTYPE)
    grad = load_rows(grad_ptr, rows, columns, d, n, d, ROWS.DTYPE)
    root, to_x, to_y, _, radial = haversine_gradient(x, y, sqrt_rn(c))
    # What H is a factor of, or divides, goes by its root, once for each: far apart H does not fit.
    near, tanh_half, cosh_half, half = root < 1, root / hypot1(root), hypot1(root), asinhc_at(root)
    small, far = tl.where(near, root * root, 0), tl.where(near, 1, root)
    ratio, back = half / cosh_half, (half * root) * tanh_half  # D / sinh D, and that times H
    # from here on times far^2, and the slope of ratio times far^4
    R = tl.where(near, ratio, back)
    fall = tl.where(near, asinhc_fall(small) / cosh_half, back - tanh_half * tanh_half)
    bent = R * tanh_half * tanh_half
    ratio_slope = tl.where(near, asinhc_slope(small) / cosh_half - ratio / (1 + small) * 0.5, -(fall + bent) * 0.5)
    slope = ratio_slope * dot(y - x, grad) / far / far - (2 * R - fall - bent) * dot(x, grad)  # dL / dH
    along = (c * 0.5 * (slope / far / far))[:, None]
    store_rows(dx_ptr, rows, columns, along * to_x - (ratio + 2 * back)[:, None] * grad, n, d)
    store_rows(dy_ptr, rows, columns, along * to_y + ratio[:, None] * grad, n, d)
    store_each(dc_ptr, rows, slope * (tl.where(near, small, 1) - radial * 0.25 / far / far) / c, n)


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
