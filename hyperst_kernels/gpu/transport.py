"""Parallel transport along the geodesic of two points, and its gradient. As `maps` in all it takes."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.pair import compare, hyperbolic, root_of_points, split
from hyperst_kernels.gpu.scalars import (
    hypot1,
    sqrt_rn,
)
from hyperst_kernels.gpu.tile_math import block, dot, load_rows, scale_of, store_each, store_rows, summed


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
