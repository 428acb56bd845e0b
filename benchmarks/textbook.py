"""The formulas as papers print them, in eager PyTorch (Nickel & Kiela 2018; Desai et al. 2023): what everybody writes first.

Points by space components: maps, distances, cones, the loss, whole and a block of rows at a time, and the alignment of HyperST
(Zhang et al. 2025, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hyperst_kernels.hierarchy import HYPERST_CONTRASTIVE, HYPERST_ENTAILMENT

EPS = 1e-8


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


def time(x: Tensor, c: Tensor) -> Tensor:
    return (1 / c + (x**2).sum(-1, keepdim=True)).sqrt()


def inner(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True) - time(x, c) * time(y, c)


def distance(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return (torch.acosh((-c * inner(x, y, c)).clamp(min=1 + EPS)) / c.sqrt())[..., 0]


def log_map0(x: Tensor, c: Tensor) -> Tensor:
    norm = c.sqrt() * torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.acosh((c.sqrt() * time(x, c)).clamp(min=1 + EPS)) * x / norm.clamp(min=EPS)


def exp_map(x: Tensor, v: Tensor, c: Tensor) -> Tensor:
    v_time = (x * v).sum(-1, keepdim=True) / time(x, c)
    t = (c * ((v**2).sum(-1, keepdim=True) - v_time**2).clamp(min=EPS)).sqrt()
    return torch.cosh(t) * x + torch.sinh(t) / t * v


def log_map(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    cosh = (-c * inner(x, y, c)).clamp(min=1 + EPS)
    return torch.acosh(cosh) / (cosh**2 - 1).clamp(min=EPS).sqrt() * (y - cosh * x)


def half_aperture(x: Tensor, c: Tensor, min_radius: float = 0.1) -> Tensor:
    sine = 2 * min_radius / (torch.linalg.vector_norm(x, dim=-1) * c.sqrt() + EPS)
    return torch.asin(sine.clamp(min=-1 + EPS, max=1 - EPS))


def exterior_angle(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    product = c * inner(x, y, c)
    above = time(y, c) + product * time(x, c)
    below = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * (product**2 - 1).clamp(min=EPS).sqrt() + EPS
    return torch.acos((above / below).clamp(min=-1 + EPS, max=1 - EPS))[..., 0]


def entailment_hinge(x: Tensor, y: Tensor, c: Tensor, eta: float = 1.0) -> Tensor:
    return (exterior_angle(x, y, c) - eta * half_aperture(x, c)).clamp(min=0)


def chunked_loss(image: Tensor, text: Tensor, c: Tensor, logit_scale: Tensor, rows: int = 1024) -> Tensor:
    """The symmetric loss a block of rows at a time, recomputed in the backward pass: rows x B numbers at once."""
    x, y = exp_map0(image, c), exp_map0(text, c)

    def block(some: Tensor, y: Tensor, c: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        logits = -scale * pairwise_distance(some, y, c)
        return logits.logsumexp(1), logits.logsumexp(0)

    parts = [checkpoint(block, some, y, c, logit_scale, use_reentrant=False) for some in x.split(rows)]
    positive = -logit_scale * distance(x, y, c)
    per_row, per_column = torch.cat([p[0] for p in parts]), torch.stack([p[1] for p in parts]).logsumexp(0)
    return ((per_row - positive).mean() + (per_column - positive).mean()) / 2


class Alignment(nn.Module):
    """HCA + 0.4 HEA, called like `hyperst_kernels.HierarchicalAlignmentLoss`."""

    def forward(
        self, features: Mapping[str, Tensor], c: Tensor, logit_scale: Tensor, *, exclude_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        points = {name: exp_map0(v, c) for name, v in features.items()}
        targets = torch.arange(len(next(iter(points.values()))))

        def per_row(queries: str, keys: str) -> Tensor:
            return F.cross_entropy(-logit_scale * pairwise_distance(points[queries], points[keys], c), targets)

        contrastive = torch.zeros(())
        for t in HYPERST_CONTRASTIVE:
            loss = per_row(t.queries, t.keys)
            if t.directions == "both":
                loss = (loss + per_row(t.keys, t.queries)) / 2
            contrastive = contrastive + t.weight * loss
        entailment = torch.zeros(())
        for e in HYPERST_ENTAILMENT:
            entailment = entailment + e.weight * entailment_hinge(points[e.parent], points[e.child], c, e.eta).mean()
        return {"loss": contrastive + 0.4 * entailment, "contrastive": contrastive, "entailment": entailment}
