"""What is drawn under and around the spots: the image of the part of the slide where they are, and its scale."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hyperst.data import Section, open_image
from hyperst.data.images import SlideImage
from hyperst.export.spots import spacing_px, spots_of

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Tissue", "tissue_of_prediction", "tissue_of_section"]

_LONGEST_SIDE = 1000  # of the picture: a panel in print has half of that at 300 dpi
_MARGIN = 1.5  # spacings of spots around them


@dataclass(frozen=True)
class Tissue:
    """Spots and the tissue around them.

    Attributes:
        name: of the section or image.
        spot_px: float64 (spot 2), centres x, y in full-resolution pixels.
        diameter_px: of a spot, the same pixels.
        um_per_px: None where unknown.
        box: left, top, right, bottom of what is drawn, the same pixels.
        picture: uint8 (h w 3), the image within ``box``; None where there is none.
    """

    name: str
    spot_px: np.ndarray
    diameter_px: float
    um_per_px: float | None
    box: tuple[float, float, float, float]
    picture: np.ndarray | None


def tissue_of_section(section: Section) -> Tissue:
    """The tissue of a section, its picture read from the full-resolution image; without an image it has none."""
    pitch = section.grid.pitch_px or spacing_px(section.spot_px)
    box = _box(section.spot_px, pitch)
    picture = None
    if section.image_path is not None:
        with section.open_image() as image:
            picture = _region(image, box)
    diameter = section.spot_diameter_px or pitch / 2
    return Tissue(section.name, section.spot_px, diameter, section.grid.um_per_px, box, picture)


def tissue_of_prediction(adata: AnnData, name: str, image: str | Path | None = None) -> Tissue:
    """The tissue of a prediction, its picture from the thumbnail in ``adata``, or from the full-resolution ``image``.

    Raises:
        ValueError: ``adata`` is no prediction, or ``image`` is not the one it is of.
    """
    spots = spots_of(adata)
    box = _box(spots.positions, spacing_px(spots.positions))
    picture = None
    if image is not None:
        with open_image(image) as slide:
            spots.check_image(slide)
            picture = _region(slide, box)
    elif spots.thumbnail is not None:
        picture = _part(spots.thumbnail, spots.thumbnail_scale, box)
    return Tissue(name, spots.positions, spots.diameter_px, spots.um_per_px, box, picture)


def _box(spot_px: np.ndarray, pitch: float) -> tuple[float, float, float, float]:
    (left, top), (right, bottom) = spot_px.min(axis=0) - _MARGIN * pitch, spot_px.max(axis=0) + _MARGIN * pitch
    return float(left), float(top), float(right), float(bottom)


def _region(image: SlideImage, box: tuple[float, float, float, float]) -> np.ndarray:
    """What ``image`` shows in ``box``, white beyond its edges."""
    left, top, right, bottom = box
    scale = min(1.0, _LONGEST_SIDE / max(right - left, bottom - top))
    size = max(1, round((bottom - top) * scale)), max(1, round((right - left) * scale))
    return image.read_in_bands(left, top, right - left, bottom - top, size)


def _part(thumbnail: np.ndarray, scale: float, box: tuple[float, float, float, float]) -> np.ndarray:
    """The part of a thumbnail in ``box``, white beyond its edges."""
    from PIL import Image

    left, top, right, bottom = (side * scale for side in box)
    size: Any = (max(1, round(right - left)), max(1, round(bottom - top)))
    matrix = ((right - left) / size[0], 0, left, 0, (bottom - top) / size[1], top)
    picture = Image.fromarray(thumbnail)
    return np.asarray(
        picture.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(255, 255, 255))
    )
