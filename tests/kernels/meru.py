"""The textbook formulas of Desai et al. 2023 in eager PyTorch, the peer to compare with: acosh of a clamped product."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def exp_map0(v: Tensor, c: Tensor, eps: float = 1e-8) -> Tensor:
    t = c.sqrt() * torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    bounded = t.clamp(min=eps, max=math.asinh(2.0**15))
    return torch.sinh(bounded) * v / t.clamp(min=eps)


def pairwise_distance(x: Tensor, y: Tensor, c: Tensor, eps: float = 1e-8) -> Tensor:
    x_t, y_t = ((1 / c + (p**2).sum(-1, keepdim=True)).sqrt() for p in (x, y))
    product = x @ y.T - x_t @ y_t.T
    return torch.acosh((-c * product).clamp(min=1 + eps)) / c.sqrt()


def contrastive_loss(image: Tensor, text: Tensor, c: Tensor, logit_scale: Tensor) -> Tensor:
    image, text = exp_map0(image, c), exp_map0(text, c)
    targets = torch.arange(len(image), device=image.device)
    per_image = -logit_scale * pairwise_distance(image, text, c)
    per_text = -logit_scale * pairwise_distance(text, image, c)
    return (F.cross_entropy(per_image, targets) + F.cross_entropy(per_text, targets)) / 2


def single_matrix_loss(image: Tensor, text: Tensor, c: Tensor, logit_scale: Tensor) -> Tensor:
    """The same loss with the distances computed once for both directions."""
    targets = torch.arange(len(image), device=image.device)
    logits = -logit_scale * pairwise_distance(exp_map0(image, c), exp_map0(text, c), c)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
