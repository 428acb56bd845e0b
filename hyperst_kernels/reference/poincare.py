"""Points to the Poincare ball, with the slope along the ray written out: 1 / (1 + cosh p) less nearly all of itself.

    out = x / m,    m = 1 + cosh p            dL/dx = g' / m + g_a / (m cosh p) a

for an upstream gradient g = g_a a + g' with g' across the direction a of x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels.reference import pair as pairs


class ToBall(torch.autograd.Function):
    """x / (1 + cosh p), sinh p = sqrt(c) |x|."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, c: Tensor) -> Tensor:
        return x / (1 + _cosh(c.sqrt() * pairs.norm(x)))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, c = ctx.saved_tensors
        norm = pairs.norm(x)
        a, cosh_p = pairs.direction(x, norm), _cosh(c.sqrt() * norm)
        m = 1 + cosh_p
        g_a, across = pairs.split(grad, a)
        dx = (across + g_a / cosh_p * a) / m
        dc = -g_a * (norm / m) ** 2 * (norm / cosh_p) / 2
        if torch.is_grad_enabled():  # the direction of the origin has no derivative, and close to it nothing cancels
            near = cosh_p < 1.5
            close = torch.where(near, x, torch.zeros_like(x))
            square, along = (close * close).sum(-1, keepdim=True), (close * grad).sum(-1, keepdim=True)
            cosh_p = torch.sqrt(1 + c * square)
            m = 1 + cosh_p
            dx = torch.where(near, grad / m - c * along / (m * m * cosh_p) * close, dx)
            dc = torch.where(near, -along * square / (2 * m * m * cosh_p), dc)
        return dx, dc.sum(dtype=torch.float64).to(c.dtype) if ctx.needs_input_grad[1] else None


def _cosh(sinh_p: Tensor) -> Tensor:
    return torch.hypot(torch.ones_like(sinh_p), sinh_p)
