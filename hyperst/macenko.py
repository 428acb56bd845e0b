"""Stain vectors by Macenko's method (torchstain finds them), and images whose stains are those of other tissue.

Source: Macenko et al., A method for normalizing histology slides for quantitative analysis, ISBI 2009.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from hyperst.files import atomic_path
from hyperst.validation import reason_of

__all__ = ["StainVectors", "read_tissue_pixels", "require_torchstain", "stain_vectors", "write_tissue_pixels"]

_WHITE = 255
_MOST_PIXELS = 10_000


@dataclass(frozen=True)
class StainVectors:
    """Hematoxylin and eosin of a slide.

    Attributes:
        hematoxylin, eosin: unit vectors of natural optical density: red, green, blue.
        highest: 99th percentile of the amount of each over pixels of tissue.
    """

    hematoxylin: tuple[float, ...]
    eosin: tuple[float, ...]
    highest: tuple[float, ...]

    def __str__(self) -> str:
        pairs = zip(("hematoxylin", "eosin"), (self.hematoxylin, self.eosin), self.highest, strict=True)
        return "; ".join(
            f"{name} {', '.join(f'{x:.2f}' for x in vector)}, up to {most:.2f}" for name, vector, most in pairs
        )

    def restained(self, pixels: Tensor, wanted: StainVectors) -> Tensor:
        """Pixels (b 3 h w), 0 to 1, of this slide with the stains of another, amount for amount; what is neither stain is left out.

        >>> slide = StainVectors((0.6, 0.8, 0.0), (0.0, 0.6, 0.8), (1.0, 1.0))
        >>> pixels = torch.exp(-torch.tensor([0.6, 1.4, 0.8])).reshape(1, 3, 1, 1)
        >>> torch.allclose(slide.restained(pixels, slide), pixels)
        True
        """
        own, other = (pixels.new_tensor([each.hematoxylin, each.eosin]) for each in (self, wanted))
        density = rearrange(-pixels.clamp(min=1 / _WHITE).log(), "b rgb h w -> b h w rgb")
        ratio = pixels.new_tensor(wanted.highest) / pixels.new_tensor(self.highest)
        amounts = density @ torch.linalg.pinv(own) * ratio
        return rearrange(torch.exp(-(amounts @ other)), "b h w rgb -> b rgb h w").clamp(max=1)


def require_torchstain() -> None:
    """Raise ImportError, with the remedy, without the extra `stain`."""
    try:
        import torchstain  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "--stain macenko needs torchstain, which is not installed: pip install 'hyperst-kernels[stain]'"
        ) from error


def stain_vectors(pixels: np.ndarray, name: str) -> StainVectors:
    """Find the stains of tissue ``pixels``, uint8 (pixel 3), of a slide called ``name``.

    Raises:
        ImportError: torchstain is missing.
        ValueError: the pixels do not show two stains.
    """
    require_torchstain()
    # in float64: float32's last digit changes from call to call
    from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

    normaliser = NumpyMacenkoNormalizer()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of too few pixels, which are refused below
            normaliser.fit(pixels[None], Io=_WHITE)
        found = np.stack([*normaliser.HERef.T, [*normaliser.maxCRef, 0]]).astype(np.float32).astype(float)
        hematoxylin, eosin, highest = found[0].tolist(), found[1].tolist(), found[2, :2].tolist()
    except (RuntimeError, ValueError, IndexError, np.linalg.LinAlgError) as error:
        # too few pixels dense enough, or all of one colour
        raise ValueError(f"{_NO_STAINS} {name} ({reason_of(error)})") from error
    across = np.linalg.norm(np.cross(hematoxylin, eosin))
    if not (np.isfinite([*hematoxylin, *eosin, *highest]).all() and min(highest) > 0 and across > math.sin(0.02)):
        raise ValueError(f"{_NO_STAINS} {name}")
    return StainVectors(tuple(hematoxylin), tuple(eosin), tuple(highest))


_NO_STAINS = "hematoxylin and eosin cannot be told apart around the spots of"


def write_tissue_pixels(path: Path, tissue: list[np.ndarray]) -> Path:
    """Write as many pixels of each section's ``tissue``, uint8 (pixel 3), 10,000 in all at most, to an .npz atomically."""
    most = max(1, _MOST_PIXELS // len(tissue))
    spread = [each[np.linspace(0, len(each) - 1, min(most, len(each))).round().astype(int)] for each in tissue]
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, pixels=np.concatenate(spread))
    return path


def read_tissue_pixels(path: Path) -> np.ndarray:
    """Read what :func:`write_tissue_pixels` wrote. Raises ValueError for a damaged file."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            pixels = stored["pixels"]
        if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3:
            raise ValueError(f"it holds {pixels.dtype} {pixels.shape}")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({reason_of(error)}); restore it, or leave --stain macenko out") from error
    return pixels
