"""Distances of all pairs of a block without curvature: one product, and differences where it has lost digits.

Where many pairs of a block have, as of an encoder that has collapsed, all of them come from differences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels.blocked.repairs import chunks, too_many

# Of z beside the terms it is the difference of: what is left has lost six bits.
CANCELLED = 2.0**-6


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """1 - cosine of unit vectors, or of 0: (r d), (w d) -> (r w)."""
    z = torch.mm(x, y.T).neg_().add_(1)
    cancelled = z < CANCELLED
    if too_many(cancelled):
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_().div_(2)
    for i, j in chunks(cancelled, x.shape[1]):
        z[i, j] = (x[i] - y[j]).square().sum(1) / 2
    return z


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|: (r d), (w d) -> (r w)."""
    z, cancelled = _squares(x, y)
    if too_many(cancelled):
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    for i, j in chunks(cancelled, x.shape[1]):
        z[i, j] = (x[i] - y[j]).square().sum(1)
    return z.clamp_(min=0).sqrt_()


def euclidean_gradients(grad: Tensor, x: Tensor, y: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (r d) and y (w d) from that of distances (r w); 0 where vectors coincide."""
    _, cancelled = _squares(x, y)
    if too_many(cancelled):
        slopes = torch.ops.aten._cdist_backward
        dx = slopes(grad.contiguous(), x.contiguous(), y.contiguous(), 2.0, distance.contiguous())
        return dx, slopes(grad.T.contiguous(), y.contiguous(), x.contiguous(), 2.0, distance.T.contiguous())
    weights = torch.where(distance == 0, 0, grad / torch.where(distance == 0, 1, distance))
    apart = torch.where(cancelled, 0, weights)
    dx = apart.sum(1, keepdim=True) * x - apart @ y
    dy = apart.sum(0)[:, None] * y - apart.T @ x
    for i, j in chunks(cancelled, x.shape[1]):
        slope = weights[i, j][:, None] * (x[i] - y[j])
        # index_put adds in fixed order on a GPU too, index_add does not
        dx.index_put_((i,), slope, accumulate=True)
        dy.index_put_((j,), -slope, accumulate=True)
    return dx, dy


def _squares(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """|x|^2 + |y|^2 - 2 x.y, and where that has cancelled: (r w), (r w)."""
    terms = x.square().sum(1, keepdim=True) + y.square().sum(1)
    z = torch.addmm(terms, x, y.T, alpha=-2)
    return z, z < CANCELLED * terms
