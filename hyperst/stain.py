"""Staining of a slide, matched to that of the training tissue: mean and spread of the optical density, or stain vectors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader

from hyperst.config import RunConfig
from hyperst.data import Section
from hyperst.data.dataset import IMAGENET_MEAN, IMAGENET_STD, collate
from hyperst.macenko import StainVectors, read_tissue_pixels, require_torchstain, stain_vectors
from hyperst.run import Run, RunFolder, as_trained, spot_dataset

__all__ = [
    "Stain",
    "StainStatistics",
    "Stains",
    "match_stain",
    "matching",
    "stain_statistics",
    "tissue_pixels",
    "with_training_stain",
]

Stain = Literal["none", "match", "macenko"]
"""Whether a slide is seen as it is, or with the training tissue's mean and spread of optical density, or with its stains."""

_SPOTS = 64
_DARKEST = 0.02  # transmittance below which a pixel says nothing of its stain
_LEAST_DENSITY = 0.05  # of green light; glass is below it


@dataclass(frozen=True)
class StainStatistics:
    """Optical density, -log10 of the transmitted share of light, of the tissue of a slide: red, green, blue.

    Attributes:
        mean, std: over pixels of tissue.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        return ", ".join(f"{mean:.2f} ± {std:.2f}" for mean, std in zip(self.mean, self.std, strict=True))


Stains = tuple[StainStatistics, StainStatistics] | tuple[StainVectors, StainVectors]
"""Of a slide and of the training tissue, which it is to be matched to."""


def stain_statistics(config: RunConfig, section: Section) -> StainStatistics:
    """Optical density of the tissue in the niche crops of 64 spots spread over a section; glass is left out.

    Raises:
        ValueError: there is no tissue in the crops, or it is of one colour.
    """
    tissue = _tissue(config, section)
    return StainStatistics(tuple(tissue.mean(dim=0).tolist()), tuple(tissue.std(dim=0).tolist()))


def tissue_pixels(config: RunConfig, section: Section) -> np.ndarray:
    """The pixels, uint8 (pixel 3), that :func:`stain_statistics` is about, with its errors."""
    return (255 * 10 ** -_tissue(config, section)).round().to(torch.uint8).numpy()


def _tissue(config: RunConfig, section: Section) -> Tensor:
    """Optical density (pixel 3), float64, of the tissue around 64 spots."""
    spots = np.unique(np.linspace(0, section.n_spots - 1, _SPOTS).round().astype(int))
    dataset = spot_dataset(config, [section], indices=[(0, int(spot)) for spot in spots])
    pixels = []
    for batch in DataLoader(dataset, 16, collate_fn=collate):
        density = rearrange(_densities(batch["niche_image"]), "b rgb h w -> (b h w) rgb")
        pixels.append(density[density[:, 1] > _LEAST_DENSITY])
    tissue = torch.cat(pixels).double()
    if len(tissue) < 2 or bool((tissue.std(dim=0) == 0).any()):
        what = "no tissue" if len(tissue) < 2 else "tissue of one colour"
        raise ValueError(
            f"there is {what} around the spots of {section.name} ({section.image_path}): no stain to match"
        )
    return tissue


def with_training_stain(config: RunConfig, sections: Sequence[Section]) -> RunConfig:
    """``config`` with the mean over training sections of the mean and spread of their optical density.

    It stays as it is on precomputed features; and with a warning where a section has no tissue to measure: training needs none.
    """
    if config.data.feature_key is not None:
        return config
    try:
        found = [stain_statistics(config, section) for section in sections]
    except ValueError as error:
        warnings.warn(f"{error}; the run records none, and cannot be used with --stain match", stacklevel=3)
        return config
    mean, std = (
        tuple(np.mean([getattr(each, name) for each in found], axis=0).round(6).tolist()) for name in ("mean", "std")
    )
    return replace(config, data=replace(config.data, stain_mean=mean, stain_std=std))


def matching(run: Run, section: Section, stain: Stain) -> Stains | None:
    """Statistics, or stain vectors, of the section and of the run's training tissue, where the one is to be matched to the other.

    Raises:
        ValueError: an unknown ``stain``, or a run that has recorded none: on precomputed features, or of an earlier version.
        ImportError: "macenko" without torchstain.
    """
    if stain == "none":
        return None
    if stain not in ("match", "macenko"):
        raise ValueError(f"stain (--stain): got {stain!r}, need match, macenko or none")
    mean, std, pixels = run.config.data.stain_mean, run.config.data.stain_std, RunFolder(run.folder).tissue_pixels
    if mean is None or std is None or (stain == "macenko" and not pixels.is_file()):
        why, remedy = "it is of an earlier version", "train again"
        if run.config.data.feature_key is not None:
            why = "it takes precomputed features"
        elif mean is not None and not RunFolder(run.folder).summary.is_file():
            why, remedy = "its training has not ended", "go on with it (hyperst train --resume)"
        raise ValueError(
            f"the run in {run.folder} has recorded no stain of its training tissue: {why}; leave --stain {stain} out, or {remedy}"
        )
    if stain == "macenko":
        require_torchstain()
        own = stain_vectors(tissue_pixels(run.config, as_trained(run, section)), section.name)
        return own, stain_vectors(read_tissue_pixels(pixels), "the training sections")
    return stain_statistics(run.config, as_trained(run, section)), StainStatistics(mean, std)


def match_stain(images: Tensor, own: StainStatistics | StainVectors, wanted: StainStatistics | StainVectors) -> Tensor:
    """Images whose optical density has another mean and spread in each colour, or other stain vectors.

    No density falls below 0, which is clear glass. Source of the first: Reinhard et al., IEEE Comput. Graph. Appl. 21(5):34
    (2001), there in another colour space; of the second see :mod:`hyperst.macenko`.

    Args:
        images: (b 3 h w), ImageNet-normalised. own: what they have. wanted: what they shall have.

    >>> plain = StainStatistics((0.2, 0.3, 0.2), (0.1, 0.1, 0.1))
    >>> images = torch.zeros(1, 3, 4, 4)
    >>> torch.allclose(match_stain(images, plain, plain), images, atol=1e-6)
    True
    """
    offset, scale = _imagenet(images)
    if isinstance(own, StainVectors) and isinstance(wanted, StainVectors):
        return (own.restained(images * scale + offset, wanted) - offset) / scale
    assert isinstance(own, StainStatistics)
    assert isinstance(wanted, StainStatistics)
    values = (
        rearrange(images.new_tensor(each), "rgb -> rgb 1 1") for each in (own.mean, own.std, wanted.mean, wanted.std)
    )
    own_mean, own_std, mean, std = values
    density = (_densities(images) - own_mean) / own_std * std + mean
    return (10 ** -density.clamp(min=0) - offset) / scale


def _densities(images: Tensor) -> Tensor:
    offset, scale = _imagenet(images)
    return -torch.log10((images * scale + offset).clamp(_DARKEST, 1))


def _imagenet(images: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (rearrange(images.new_tensor(values), "rgb -> rgb 1 1") for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std
