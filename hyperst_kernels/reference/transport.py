"""Parallel transport along geodesics, in polar coordinates: the textbook form takes e^(p-q) off what it adds.

With x = sinh(p)/sqrt(c) a and y = sinh(q)/sqrt(c) b, v = v_a a + w with w across a, and n = b - a:

    mu  = sqrt(c) <y, v>_L = v_a (sinh(q - p)/cosh p - 2 s sinh q) + sinh q n.w         s = sin^2(theta/2) = -n.a / 2
    T   = 2 (1 + H) = 1 + cosh(p - q) + 2 s sinh p sinh q
    out = v + mu/T (sinh p a + sinh q b) = w + K/T a + mu/T sinh q b,    K = v_a (1 + cosh q/cosh p) + sinh p sinh q n.w

and K has no term that cancels; mu = sinh q b.v - cosh q tanh p v_a where that is made of smaller terms. The gradient is
written out for the same reason, with G = sinh p a.g + sinh q b.g for an upstream gradient g.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels.reference import pair as pairs
from hyperst_kernels.reference.distance import _haversine_gradient, haversine, near_or_far


class Transport(torch.autograd.Function):
    """v at x carried to y."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, v: Tensor, c: Tensor) -> Tensor:
        t = _Carried(x, y, v, c)
        return (t.across + t.K_T * t.pair.a + t.mu_h * t.sinh_q_h / 2 * t.pair.b) / t.scale

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, y, v, c = ctx.saved_tensors
        t = _Carried(x, y, v, c)
        dx, dy, dv, dc = t.gradients(grad, c)
        if torch.is_grad_enabled():  # the direction of the origin has no derivative, and there nothing cancels
            at_origin = (t.pair.norm_u == 0) | (t.pair.norm_v == 0)
            smooth = _textbook_gradients(grad, x, y, v, c)
            dx, dy, dv, dc = (torch.where(at_origin, *two) for two in zip(smooth, (dx, dy, dv, dc), strict=True))
        total = dc.sum(dtype=torch.float64).to(c.dtype) if ctx.needs_input_grad[3] else None
        return dx, dy, dv, total


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)


class _Carried:
    """What value and gradient share; ``_h`` is over cosh(D/2) = sqrt(T/2), and a product of two growing factors over T."""

    def __init__(self, x: Tensor, y: Tensor, v: Tensor, c: Tensor):
        self.pair = pairs.compare(x, y)
        self.sinh_p, self.sinh_q, self.cosh_p, self.cosh_q, self.sinh_delta = pairs.hyperbolic(self.pair, c)
        root = pairs.root_of_points(self.pair, c)
        self.cosh_half = torch.hypot(torch.ones_like(root), root)
        if torch.is_grad_enabled():
            # the root has no slope where it is 0; cosh of D, which has one, errs by D roundings
            near, H, D = near_or_far(x, y, c)
            far = torch.cosh(D / 2)
            self.cosh_half = torch.where(near, torch.sqrt(1 + H), far * (self.cosh_half / far).detach())
        # growing factors, each over cosh(D/2) before anything is multiplied with it
        self.sinh_p_h, self.sinh_q_h, self.cosh_p_h, self.cosh_q_h, self.sinh_delta_h = (
            z / self.cosh_half for z in (self.sinh_p, self.sinh_q, self.cosh_p, self.cosh_q, self.sinh_delta)
        )
        self.chord, self.s = -self.pair.e, self.pair.half_chord**2
        self.scale = pairs.scale_of(v)  # the result is linear in v
        v = self.scale * v
        self.v_a, self.across = pairs.split(v, self.pair.a)
        self.turn = _dot(self.chord, self.across)  # n.w
        # from a point near the origin and across, mu is what it is made of, and s has the rounding of a right angle
        self.v_b, self.tanh_p = _dot(v, self.pair.b), self.sinh_p / self.cosh_p
        less = self.cosh_q_h * self.tanh_p
        self.across_origin = 2 * self.s * self.sinh_q_h > less
        plain = self.sinh_q_h * self.v_b - less * self.v_a
        self.mu_h = torch.where(self.across_origin, plain, self.mu_h_by(self.v_a, self.turn))
        times_h = (1 + self.cosh_q / self.cosh_p) / self.cosh_half
        self.K_T = self.v_a * times_h / self.cosh_half / 2 + (self.sinh_p_h * self.turn) * self.sinh_q_h / 2
        self.times_h = times_h

    def mu_h_by(self, v_a: Tensor | float, turn: Tensor | float) -> Tensor:
        """mu / cosh(D/2)."""
        return v_a * (-self.sinh_delta_h / self.cosh_p - 2 * self.s * self.sinh_q_h) + self.sinh_q_h * turn

    def gradients(self, grad: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of x, y, v (... d), and of c row by row (... 1)."""
        k, (a, b), s, v_a, n, h = c.sqrt(), self.pair[2:4], self.s, self.v_a, self.chord, self.cosh_half
        sinh_p_h, sinh_q_h, cosh_p_h, cosh_q_h = self.sinh_p_h, self.sinh_q_h, self.cosh_p_h, self.cosh_q_h
        cosh_p, cosh_q, turn = self.cosh_p, self.cosh_q, self.turn
        cosh_delta_h = torch.hypot(torch.ones_like(s), self.sinh_delta) / h
        (g_a, g_across_a), (g_b, g_across_b) = pairs.split(grad, a), pairs.split(grad, b)
        G_h = sinh_p_h * g_a + sinh_q_h * g_b
        G_T, mu_T, cosh_sum_T = G_h / h / 2, self.mu_h / h / 2, (cosh_p_h + cosh_q_h) / h / 2
        out_b = self.mu_h * sinh_q_h / 2
        # dT/dp / T
        half_chord = self.pair.half_chord
        grow = self.sinh_delta_h / h / 2 + (half_chord * cosh_p_h) * (half_chord * sinh_q_h)
        by_p = -cosh_q / cosh_p * (v_a / cosh_p) * G_T + mu_T * (cosh_sum_T * g_a) - out_b * (grow * g_b)
        # of mu by q, and v.b (cosh p + cosh q) - tanh p v.a (sinh q + sinh p cos theta)
        mu_q_h = v_a * (cosh_delta_h / cosh_p - 2 * s * cosh_q_h) + cosh_q_h * turn
        plain = cosh_q_h * self.v_b - sinh_q_h * self.tanh_p * v_a
        mu_q_h = torch.where(self.across_origin, plain, mu_q_h)
        mixed_h = mu_q_h + v_a * (1 - 2 * s) / h / cosh_p + cosh_p_h * turn
        by_q = sinh_p_h * (mixed_h / h) / h * (g_a / 4) + g_b * (mu_q_h * sinh_q_h / 2 + mu_T * cosh_sum_T)

        b_across_a, a_across_b = n + 2 * s * a, 2 * s * b - n
        carried_back = G_h * b_across_a * (sinh_q_h / 2) + g_across_a  # of g to x, across a
        turned_x = mu_T * carried_back - cosh_q / cosh_p * G_T * self.across
        turned_y = G_T * (self.K_T * a_across_b + (self.across - turn * b)) + mu_T * g_across_b
        dx, dy = k * (by_p / cosh_p * a + turned_x), k * (by_q / cosh_q * b + turned_y)
        along = self.times_h * g_a / h / 2 + self.mu_h_by(1, 0) * sinh_q_h * g_b / 2
        dc = (self.sinh_p / cosh_p * by_p + self.sinh_q / cosh_q * by_q) / (2 * c)
        # the result depends on sqrt(c) x and sqrt(c) y alone
        return dx / self.scale, dy / self.scale, carried_back + along * a, dc / self.scale


def _textbook_gradients(g: Tensor, x: Tensor, y: Tensor, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Those of v + beta (x + y), beta = c <y, v>_L / (2 (1 + H)): differentiable everywhere."""
    H = haversine(x, y, c)[..., None]
    to_x, to_y, _, radial = _haversine_gradient(x, y, c)
    x_t, y_t = (torch.sqrt(1 / c + _dot(z, z)) for z in (x, y))
    product, v_t, towards = -_dot(to_x, v), _dot(x, v) / x_t, _dot(x + y, g)
    rate = c / (2 * (1 + H))
    by_product, by_H = rate * towards, -(rate * product) * towards / (1 + H)
    dx = rate * product * g + c / 2 * by_H * to_x - by_product * y_t / x_t * (v - v_t / x_t * x)
    dy = rate * product * g + c / 2 * by_H * to_y + by_product * (v - v_t / y_t * y)
    dc = by_product * product / c + by_H * (H - radial / 4) / c
    dc = dc + by_product * v_t / (2 * c * c) * (1 / y_t - y_t / (x_t * x_t))
    return dx, dy, g - by_product * to_x, dc
