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
    asinh,
    asinhc_at,
    asinhc_fall,
    asinhc_slope,
    compare,
    cosh,
    div_rn,
    dot,
    haversine_gradient,
    hyperbolic,
    hypot1,
    kappa,
    load_rows,
    nonzero,
    norm,
    root_between,
    root_of_points,
    rounded_product,
    scale_of,
    sign,
    sinh,
    sinhc,
    split,
    sqrt_rn,
    store_each,
    store_rows,
    tanh_defect,
)


@triton.jit
def block(ROWS: tl.constexpr):
    """Rows and columns of this program's block."""
    rows = tl.program_id(0).to(tl.int64) * ROWS.BLOCK_ROWS + tl.arange(0, ROWS.BLOCK_ROWS)
    return rows, tl.arange(0, ROWS.BLOCK_D)


def summed(partial: Tensor, like: Tensor) -> Tensor:
    """The gradient of a 0-d tensor from one number per row."""
    return partial.sum(dtype=torch.float64).to(like.dtype)


# ------------------------------------------------------------------------------------------- the origin's two maps


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
    return _map_backward(_lift_backward, grad, x, c)


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
    return _map(_lorentz_to_poincare, x, c)


def lorentz_to_poincare_backward(grad: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (n d) and c ()."""
    return _map_backward(_lorentz_to_poincare_backward, grad, x, c)


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
    return _map(_poincare_to_lorentz, p, c)


def poincare_to_lorentz_backward(grad: Tensor, p: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of p (n d) and c ()."""
    return _map_backward(_poincare_to_lorentz_backward, grad, p, c)


# ------------------------------------------------------------------------------------------- maps between two points


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


@triton.jit
def _carried(x, y, k):
    """a, b, b - a, sin(theta/2), sinh p, cosh p, cosh q, sinh(p - q) and h = cosh(D/2), as in ``reference.transport``;

    then sinh p, sinh q, cosh p, cosh q and sinh(p - q) over h: growing factors come divided before they are multiplied.
    """
    norm_x, norm_y, a, b, r, e, half_chord = compare(x, y)
    sinh_p, sinh_q, cosh_p, cosh_q, sinh_delta = hyperbolic(norm_x, norm_y, r, k)
    h = hypot1(root_of_points(sinh_p, sinh_q, sinh_delta, half_chord))
    over_h = sinh_p / h, sinh_q / h, cosh_p / h, cosh_q / h, sinh_delta / h
    return a, b, -e, half_chord, sinh_p, sinh_q, cosh_p, cosh_q, sinh_delta, h, over_h


@triton.jit
def _shares(v_a, v_b, turn, s, sinh_p, cosh_p, cosh_q, h, over_h):
    """mu / h, K / T, (1 + cosh q / cosh p) / h, and whether the way is across the origin."""
    sinh_p_h, sinh_q_h, _, cosh_q_h, sinh_delta_h = over_h
    less = cosh_q_h * (sinh_p / cosh_p)
    mu_h = v_a * (-sinh_delta_h / cosh_p - 2 * s * sinh_q_h) + sinh_q_h * turn
    across_origin = 2 * s * sinh_q_h > less
    mu_h = tl.where(across_origin, sinh_q_h * v_b - less * v_a, mu_h)
    times_h = (1 + cosh_q / cosh_p) / h
    return mu_h, v_a * times_h / h * 0.5 + (sinh_p_h * turn) * sinh_q_h * 0.5, times_h, across_origin


@triton.jit
def _parallel_transport(
    x_ptr, y_ptr, v_ptr, c_ptr, out_ptr, x_stride, y_stride, v_stride, n, d,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    y = load_rows(y_ptr, rows, columns, y_stride, n, d, ROWS.DTYPE)
    v = load_rows(v_ptr, rows, columns, v_stride, n, d, ROWS.DTYPE)
    a, b, chord, half_chord, sinh_p, _, cosh_p, cosh_q, _, h, over_h = _carried(x, y, sqrt_rn(tl.load(c_ptr)))
    scale, unscale = scale_of(v)  # the result is linear in v
    v *= scale[:, None]
    v_a, across = split(v, a)
    turn = dot(chord, across)
    mu_h, K_T, _, _ = _shares(v_a, dot(v, b), turn, half_chord * half_chord, sinh_p, cosh_p, cosh_q, h, over_h)
    out = across + K_T[:, None] * a + (mu_h * over_h[1] * 0.5)[:, None] * b
    store_rows(out_ptr, rows, columns, unscale[:, None] * out, n, d)


@triton.jit
def _parallel_transport_backward(
    grad_ptr, x_ptr, y_ptr, v_ptr, c_ptr, dx_ptr, dy_ptr, dv_ptr, dc_ptr, x_stride, y_stride, v_stride, n, d,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = block(ROWS)
    c = tl.load(c_ptr)
    k = sqrt_rn(c)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, ROWS.DTYPE)
    y = load_rows(y_ptr, rows, columns, y_stride, n, d, ROWS.DTYPE)
    a, b, chord, half_chord, sinh_p, sinh_q, cosh_p, cosh_q, sinh_delta, h, over_h = _carried(x, y, k)
    sinh_p_h, sinh_q_h, cosh_p_h, cosh_q_h, sinh_delta_h = over_h
    v = load_rows(v_ptr, rows, columns, v_stride, n, d, ROWS.DTYPE)
    scale, unscale = scale_of(v)
    v *= scale[:, None]
    v_a, across = split(v, a)
    s, turn = half_chord * half_chord, dot(chord, across)
    v_b = dot(v, b)
    mu_h, K_T, times_h, across_origin = _shares(v_a, v_b, turn, s, sinh_p, cosh_p, cosh_q, h, over_h)
    grad = load_rows(grad_ptr, rows, columns, d, n, d, ROWS.DTYPE)
    g_a, g_across_a = split(grad, a)
    g_b, g_across_b = split(grad, b)
    # the names and formulas are those of reference/transport.py
    G_h = sinh_p_h * g_a + sinh_q_h * g_b
    G_T, mu_T, cosh_sum_T = G_h / h * 0.5, mu_h / h * 0.5, (cosh_p_h + cosh_q_h) / h * 0.5
    cosh_delta_h, out_b = hypot1(tl.abs(sinh_delta)) / h, mu_h * sinh_q_h * 0.5
    grow = sinh_delta_h / h * 0.5 + (half_chord * cosh_p_h) * (half_chord * sinh_q_h)
    times = cosh_q / cosh_p
    by_p = -times * (v_a / cosh_p) * G_T + mu_T * (cosh_sum_T * g_a) - out_b * (grow * g_b)
    mu_q_h = v_a * (cosh_delta_h / cosh_p - 2 * s * cosh_q_h) + cosh_q_h * turn
    mu_q_h = tl.where(across_origin, cosh_q_h * v_b - sinh_q_h * (sinh_p / cosh_p) * v_a, mu_q_h)
    mixed_h = mu_q_h + v_a * (1 - 2 * s) / h / cosh_p + cosh_p_h * turn
    by_q = sinh_p_h * (mixed_h / h) / h * (g_a * 0.25) + g_b * (mu_q_h * sinh_q_h * 0.5 + mu_T * cosh_sum_T)
    store_each(dc_ptr, rows, unscale * ((sinh_p / cosh_p * by_p + sinh_q / cosh_q * by_q) / (2 * c)), n)
    # chord + 2 s a is b across a, 2 s b - chord is a across b; G comes to x across a as this of both
    along_a = 2 * s * G_h * (sinh_q_h * 0.5)
    carried_back = (G_h[:, None] * chord) * (sinh_q_h * 0.5)[:, None] + g_across_a
    dx = mu_T[:, None] * carried_back - (times * G_T)[:, None] * across
    dx = k * (dx + (by_p / cosh_p + mu_T * along_a)[:, None] * a)
    store_rows(dx_ptr, rows, columns, unscale[:, None] * dx, n, d)
    dy = mu_T[:, None] * g_across_b + G_T[:, None] * (across - K_T[:, None] * chord)
    dy = k * (dy + (by_q / cosh_q + G_T * (2 * s * K_T - turn))[:, None] * b)
    store_rows(dy_ptr, rows, columns, unscale[:, None] * dy, n, d)
    mu_unit_h = -sinh_delta_h / cosh_p - 2 * s * sinh_q_h
    along = times_h * g_a / h * 0.5 + mu_unit_h * sinh_q_h * g_b * 0.5
    store_rows(dv_ptr, rows, columns, carried_back + (along + along_a)[:, None] * a, n, d)


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
