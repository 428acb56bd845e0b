"""Stand-ins for a data set and its encoders, small enough for a test: pairs that share a hidden code."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CODE, DIGITS = 6, 9


def image_encoder(dim: int) -> nn.Module:
    """Images (b, 3, 8, 8) to features (b, dim)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 32), nn.GELU(), nn.Linear(32, dim))


def text_encoder(dim: int) -> nn.Module:
    """Tokens (b, any length) to features (b, dim)."""
    return nn.Sequential(nn.EmbeddingBag(CODE * DIGITS, 32), nn.GELU(), nn.Linear(32, dim))


def pairs(rows: int) -> tuple[Tensor, Tensor]:
    """Images (rows, 3, 8, 8), each half of which mixes half of a code, and texts (rows, 6) that spell its digits."""
    mixing = torch.randn(2, CODE // 2, 3 * 8 * 4, generator=torch.Generator().manual_seed(0))
    code = torch.randn(rows, CODE)
    halves = [half @ mix for half, mix in zip(code.chunk(2, dim=1), mixing, strict=True)]
    image = torch.cat([half.view(rows, 3, 8, 4) for half in halves], dim=3)
    text = (2 * code).round().clamp(-4, 4).long() + DIGITS // 2 + DIGITS * torch.arange(CODE)
    return image, text


def boxes(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """The left half of each image, the rest blank, and the words for it."""
    blank = torch.zeros_like(image[..., 4:])
    return torch.cat([image[..., :4], blank], dim=3), text[:, : CODE // 2]
