"""Backbones without weights of others: a small convolutional encoder, hand-made stain features, precomputed features."""

from __future__ import annotations

from itertools import pairwise
from math import ceil, floor

import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from hyperst.data.dataset import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["Backbone", "Convolutional", "ConvolutionalAndStain", "Precomputed", "Stain"]


class Backbone(nn.Module):
    """ImageNet-normalised images (b 3 h w) to features (b width)."""

    width: int


class Convolutional(Backbone):
    """Five 3 x 3 convolutions and global average pooling. Batch norm: group norm cost a quarter of the correlation."""

    width = 160

    def __init__(self) -> None:
        super().__init__()
        channels, layers = (3, 32, 64, 96, 128, 160), []
        for number, (n_in, n_out) in enumerate(pairwise(channels)):
            stride = 2 if number < 4 else 1
            layers += [nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.GELU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        # with channels last in memory a CPU convolves in two thirds of the time
        return reduce(self.layers(x.contiguous(memory_format=torch.channels_last)), "b c h w -> b c", "mean")


class Stain(Backbone):
    """Optical density per channel: moments, quantiles, texture at four scales, and a histogram of darkness."""

    _BINS = 16
    _SCALES = (1, 2, 4, 8)
    width = 3 * (2 + 5 + 2 * len(_SCALES)) + _BINS
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", rearrange(torch.tensor(IMAGENET_MEAN), "rgb -> rgb 1 1"), persistent=False)
        self.register_buffer("std", rearrange(torch.tensor(IMAGENET_STD), "rgb -> rgb 1 1"), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        density = -torch.log((x.float() * self.std + self.mean).clamp(0.02, 1))
        flat = rearrange(density, "b c h w -> b c (h w)")
        quantiles = _quantiles(flat, (0.05, 0.25, 0.5, 0.75, 0.95))
        spread = _spread(flat)
        parts = [flat.mean(2), spread, *quantiles]
        for scale in self._SCALES:
            pooled = density if scale == 1 else F.avg_pool2d(density, scale)
            slopes = [reduce(pooled.diff(dim=dim).abs(), "b c h w -> b c", "mean") for dim in (2, 3)]
            parts += [
                spread if scale == 1 else _spread(rearrange(pooled, "b c h w -> b c (h w)")),
                slopes[0] + slopes[1],
            ]
        darkness = reduce(density, "b c h w -> b (h w)", "mean")
        bins = (darkness / 2 * self._BINS).long().clamp(0, self._BINS - 1)
        counts = darkness.new_zeros(len(darkness), self._BINS).scatter_add_(1, bins, torch.ones_like(darkness))
        parts.append(counts / darkness.shape[1])
        return torch.cat(parts, dim=1)


def _spread(x: Tensor) -> Tensor:
    """Standard deviations (b c) of ``x`` (b c n); what torch.std gives, but in a twentieth of the time on a CPU."""
    n = x.shape[2]
    return torch.linalg.vector_norm(x - x.mean(2, keepdim=True), dim=2) / (n - 1) ** 0.5


def _quantiles(x: Tensor, levels: tuple[float, ...]) -> list[Tensor]:
    """Quantiles (b c) of ``x`` (b c n), each between its neighbours in order; what torch.quantile gives, but sooner."""
    # on a CPU NumPy sorts many times as fast
    ordered = torch.from_numpy(np.sort(x.numpy(), axis=2)) if x.device.type == "cpu" else x.sort(dim=2).values
    places = [level * (x.shape[2] - 1) for level in levels]
    return [torch.lerp(ordered[..., floor(place)], ordered[..., ceil(place)], place % 1) for place in places]


class ConvolutionalAndStain(Backbone):
    """Learnt features beside the hand-made ones, which are standardised by their running statistics."""

    width = Convolutional.width + Stain.width

    def __init__(self) -> None:
        super().__init__()
        self.learnt, self.stain = Convolutional(), Stain()
        self.standardise = nn.BatchNorm1d(Stain.width, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.learnt(x), self.standardise(self.stain(x))], dim=1)


class Precomputed(Backbone):
    """Features that come with the section, as they are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x
