"""Random changes of staining: no two slides are stained alike, and a model that has seen few must not rely on theirs."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from hyperst.data.dataset import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["jitter_stain"]

_DARKEST = 0.02  # transmittance below which a pixel says nothing of its stain


def jitter_stain(images: list[Tensor], strength: float) -> list[Tensor]:
    """Scale and shift the optical density of each colour channel at random, alike for all crops of one spot.

    Args:
        images: crops of the same spots, each (b 3 h w), ImageNet-normalised.
        strength: densities are multiplied by 1 +- strength and shifted by +- strength / 2, uniformly; 0 changes nothing.

    >>> (changed,) = jitter_stain([torch.zeros(2, 3, 4, 4)], 0.2)
    >>> changed.shape, bool((changed[0] != changed[1]).all())
    (torch.Size([2, 3, 4, 4]), True)
    """
    if strength == 0:
        return images
    shape = (len(images[0]), 3, 1, 1)
    uniform = 2 * torch.rand(2, *shape, device=images[0].device) - 1
    gain, shift = 1 + strength * uniform[0], strength / 2 * uniform[1]
    mean, std = (rearrange(images[0].new_tensor(v), "rgb -> rgb 1 1") for v in (IMAGENET_MEAN, IMAGENET_STD))
    changed = []
    for image in images:
        density = -torch.log((image * std + mean).clamp(_DARKEST, 1))
        changed.append((torch.exp(-(density * gain + shift).clamp(min=0)) - mean) / std)
    return changed
