"""The exponential map at a point, in polar coordinates: the textbook form takes e^(p+t) off itself on the way inwards.

With x = sinh(p)/sqrt(c) a, v = v_a a + v' with v' across a, nu = sqrt(c) v_a / cosh p, w = sqrt(c) v' and t^2 = nu^2 + |w|^2:

    out = R/sqrt(c) a + sinhc(t) v',    R = cosh t sinh p + sinhc(t) nu cosh p,    E = dR/dp at fixed nu

Inwards, for nu < -t/2, both are sums of positive terms once |nu| = t - |w|^2 / (t + |nu|) is put in:

    R = sinh(p - t) + sinhc(t) cosh p |w|^2 / (t + |nu|),    E = cosh(p - t) + sinhc(t) sinh p |w|^2 / (t + |nu|)
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels.reference import pair as pairs
from hyperst_kernels.reference.scalars import asinh, cosh_minus_1, kappa, sinhc


class ExpMap(torch.autograd.Function):
    """The point that the geodesic from x reaches with velocity v."""

    @staticmethod
    def forward(x: Tensor, v: Tensor, c: Tensor) -> Tensor:
        t = _Polar(x, v, c)
        return t.R / c.sqrt() * t.a + t.stretch * t.across

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, v, c = ctx.saved_tensors
        t = _Polar(x, v, c)
        dx, dv, dc = t.gradients(grad, c)
        if torch.is_grad_enabled():  # the direction of the origin has no derivative, and close to it nothing cancels
            smooth = _textbook_gradients(grad, x, v, c)
            dx, dv, dc = (torch.where(t.sinh_p < 1, *two) for two in zip(smooth, (dx, dv, dc), strict=True))
        return dx, dv, dc.sum(dtype=torch.float64).to(c.dtype) if ctx.needs_input_grad[2] else None


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)


class _Polar:
    """What value and gradient share."""

    def __init__(self, x: Tensor, v: Tensor, c: Tensor):
        k, norm = c.sqrt(), pairs.norm(x)
        self.a, self.sinh_p = pairs.direction(x, norm), k * norm
        self.cosh_p = torch.hypot(torch.ones_like(norm), self.sinh_p)
        v_a, self.across = pairs.split(v, self.a)
        self.nu, self.w = k * v_a / self.cosh_p, k * self.across
        self.w2 = _dot(self.w, self.w)
        t2 = self.nu**2 + self.w2
        self.stretch, self.bend, self.cosh_t = sinhc(t2), kappa(t2), 1 + cosh_minus_1(t2)
        self.inwards = (self.nu < 0) & (t2 > 1) & (4 * self.nu**2 > t2)
        t = torch.where(self.inwards, t2, torch.ones_like(t2)).sqrt()
        apart, rest = asinh(self.sinh_p) - t, self.w2 / (t - self.nu.clamp(max=0))
        R, E = self.stretch * (self.cosh_p * rest), self.stretch * (self.sinh_p * rest)
        # where the other is taken, factors may be too large for their product
        outward = torch.where(self.inwards, torch.zeros_like(self.nu), self.nu) * self.stretch
        self.R = torch.where(self.inwards, torch.sinh(apart) + R, self.cosh_t * self.sinh_p + outward * self.cosh_p)
        self.E = torch.where(self.inwards, torch.cosh(apart) + E, self.cosh_t * self.cosh_p + outward * self.sinh_p)

    def gradients(self, grad: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x, v (... d), and of c row by row (... 1)."""
        nu, w, w2, cosh_p, E = self.nu, self.w, self.w2, self.cosh_p, self.E
        tanh_p, bent = self.sinh_p / cosh_p, self.bend * w2
        g_a, g_across = pairs.split(grad, self.a)
        turned = self.bend * _dot(w, g_across)
        # dL/dt / t, and that times nu, in units of 1 / sqrt(c)
        by_t = g_a * (self.stretch * self.sinh_p + self.bend * nu * cosh_p) + turned
        by_nu = torch.where(self.inwards, g_a * (E - cosh_p * (self.stretch + bent)) + nu * turned, nu * by_t)
        by_p = g_a * (E * (1 - nu * tanh_p) + nu * self.sinh_p * bent) - nu * tanh_p * (nu * turned)
        dx = by_p / cosh_p * self.a + self.cosh_t * g_across - by_nu * tanh_p * w
        dv = (g_a * (E / cosh_p - bent) + nu * turned / cosh_p) * self.a + self.stretch * g_across + by_t * w
        return dx, dv, (by_t * w2 + nu * by_nu / cosh_p / cosh_p) / (2 * c * c.sqrt())


def _textbook_gradients(grad: Tensor, x: Tensor, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those of cosh(t) x + sinhc(t) v, t^2 = c (|v|^2 - c <x, v>^2 / (1 + c |x|^2)): differentiable at the origin."""
    product, shrink = _dot(x, v), 1 / (1 + c * _dot(x, x))
    h = v - c * product * shrink * x
    t2 = c * _dot(h, v)
    stretch = sinhc(t2)
    slope = (stretch * _dot(x, grad) + kappa(t2) * _dot(v, grad)) / 2  # dL / d t^2
    dx = (1 + cosh_minus_1(t2)) * grad - 2 * c * c * slope * product * shrink * h
    return dx, stretch * grad + 2 * c * slope * h, slope * (t2 / c - c * (product * shrink) ** 2)
