"""Distances of all pairs of a block without curvature: one product, and differences where it has lost digits.

Where many pairs of a block have, as of an encoder that has collapsed, all of them come from differences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels.cpu.geometry import CHUNK_NUMBERS

# Of z beside the terms it is the difference of: what is left has lost six bits.
CANCELLED = 2.0**-6
MANY = 1 / 64


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """1 - cosine of unit vectors, or of 0: (r d), (w d) -> (r w)."""
    z = torch.mm(x, y.T).neg_().add_(1)
    for i, j in _pairs(z < CANCELLED, x.shape[1]):
        if j is None:
            return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_().div_(2)
        z[i, j] = (x[i] - y[j]).square().sum(1) / 2
    return z


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|: (r d), (w d) -> (r w)."""
    z, cancelled = _squares(x, y)
    for i, j in _pairs(cancelled, x.shape[1]):
        if j is None:
            return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        z[i, j] = (x[i] - y[j]).square().sum(1)
    return z.clamp_(min=0).sqrt_()


def euclidean_gradients(grad: Tensor, x: Tensor, y: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (r d) and y (w d) from that of distances (r w); 0 where vectors coincide."""
    _, cancelled = _squares(x, y)
    weights = torch.where(distance == 0, 0, grad / torch.where(distance == 0, 1, distance))
    pairs = _pairs(cancelled, x.shape[1])
    if pairs and pairs[0][1] is None:
        slopes = torch.ops.aten._cdist_backward
        dx = slopes(grad.contiguous(), x.contiguous(), y.contiguous(), 2.0, distance.contiguous())
        return dx, slopes(grad.T.contiguous(), y.contiguous(), x.contiguous(), 2.0, distance.T.contiguous())
    apart = torch.where(cancelled, 0, weights)
    dx = apart.sum(1, keepdim=True) * x - apart @ y
    dy = apart.sum(0)[:, None] * y - apart.T @ x
    for i, j in pairs:
        assert i is not None
        assert j is not None
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


def _pairs(chosen: Tensor, d: int) -> list[tuple[Tensor | None, Tensor | None]]:
    """Indices (i, j) of pairs, as many together as keep their rows in cache; (None, None) where there are many."""
    i, j = chosen.nonzero(as_tuple=True)
    if len(i) > MANY * chosen.numel() + 1024:
        return [(None, None)]
    size = max(1, CHUNK_NUMBERS // d)
    return list(zip(i.split(size), j.split(size), strict=True)) if len(i) else []
