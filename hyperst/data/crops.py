"""Square crops with one centre per spot: the spot itself, its niche (the spot with its neighbours), and wider ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import field, replace
from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from hyperst.data.grid import Grid
from hyperst.data.images import SlideImage
from hyperst.data.sections import Section
from hyperst.validation import STRICT, Positive

__all__ = ["CropConfig", "crop_widths", "crop_widths_px", "read_crops", "require_extent", "resolve_crops"]

LEVELS = ("spot", "niche")
"""Levels that every model has, from narrow to wide."""

_LEVEL_NAME = re.compile(r"[a-z][a-z0-9]*")
_WIDEST = 4  # times the longer side of the slide: a wider crop is white all around, and may not fit into memory
_SMALLEST_SPOT_UM = 112.0  # 224 px at 0.5 um/px: what the common histology backbones were trained on


@dataclass(frozen=True, config=STRICT)
class CropConfig:
    """Widths of the crops of a spot, and the side to which all are resized.

    Attributes:
        spot_um: width of the spot crop in um; None = the larger of the spot's diameter and 112 um.
        niche_um: width of the niche crop in um; None = 2 pitches + 1 diameter (Visium 255, legacy ST 500 um), and at
            least twice the spot crop where spots are smaller than that (Visium HD bins).
        wider_um: levels wider than the niche, from narrow to wide: name and width in um, such as ``{region: 616.0}``.
        image_size: side of the crops in pixels after resizing.
    """

    spot_um: Positive | None = None
    niche_um: Positive | None = None
    wider_um: dict[str, Positive] = field(default_factory=dict)
    image_size: Annotated[int, Field(ge=8)] = 224

    def __post_init__(self) -> None:
        for name in self.wider_um:
            if name in LEVELS or not _LEVEL_NAME.fullmatch(name):
                raise ValueError(
                    f"crop.wider_um: {name!r} cannot be the name of a level; it needs small letters and digits, and other than "
                    "'spot' and 'niche'"
                )
        widths = [*([] if self.niche_um is None else [self.niche_um]), *self.wider_um.values()]
        if any(wide <= narrow for narrow, wide in pairwise(widths)):
            raise ValueError(f"crop.wider_um: levels go from narrow to wide, from the niche on; got {widths} um")

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels, from narrow to wide.

        >>> CropConfig(wider_um={"region": 616.0}).levels
        ('spot', 'niche', 'region')
        """
        return (*LEVELS, *self.wider_um)


def crop_widths_px(grid: Grid, spot_diameter_px: float | None, config: CropConfig) -> tuple[float, ...]:
    """Widths of the crops in full-resolution pixels: spot, niche, and those of ``config.wider_um``.

    Without a known scale the widths are in units of the grid: spot = max(diameter, pitch), niche = 2 pitches + diameter.

    Raises:
        ValueError: a width in um is asked for and um/px is unknown, or neither pitch nor width is known.

    >>> legacy = Grid("square", pitch_px=400.0, um_per_px=0.5, pitch_um=200.0)
    >>> crop_widths_px(legacy, 200.0, CropConfig())
    (224.0, 1000.0)
    """
    um_per_px = grid.um_per_px
    if um_per_px is None and (config.spot_um is not None or config.niche_um is not None or config.wider_um):
        raise ValueError(
            "crop widths are in um, but the um/px of the image are unknown; give mpp=... (--mpp), "
            "or leave spot_um, niche_um and wider_um empty so that widths follow the spot grid"
        )
    if grid.pitch_px is None and (config.niche_um is None or (config.spot_um is None and um_per_px is None)):
        raise ValueError(
            "the spacing of the spots is unknown (too few spots); give the widths crop.spot_um and crop.niche_um in a "
            "configuration (--config), and the um/px of the image (--mpp)"
        )
    pitch = grid.pitch_px or 0.0
    diameter = spot_diameter_px or 0.0
    if um_per_px is None:
        return max(diameter, pitch), 2 * pitch + diameter
    spot = max(diameter, _SMALLEST_SPOT_UM / um_per_px) if config.spot_um is None else config.spot_um / um_per_px
    niche = max(2 * pitch + diameter, 2 * spot) if config.niche_um is None else config.niche_um / um_per_px
    wider = [width / um_per_px for width in config.wider_um.values()]
    if wider and wider[0] <= niche:
        name, width = next(iter(config.wider_um.items()))
        raise ValueError(
            f"crop.wider_um: level {name!r} of {width:g} um is no wider than the niche, {niche * um_per_px:g} um; levels go from "
            "narrow to wide"
        )
    return spot, niche, *wider


def crop_widths(section: Section, config: CropConfig) -> tuple[float, ...]:
    """Widths of the crops of a section, see :func:`crop_widths_px`, that its slide has room for, see :func:`require_extent`."""
    widths = crop_widths_px(section.grid, section.spot_diameter_px, config)
    require_extent(section, widths)
    return widths


def require_extent(section: Section, widths: Sequence[float]) -> None:
    """Raise ValueError where a crop, its width in full-resolution pixels, is over four times as wide as the slide is long.

    Without known um/px nothing is asked for in um, and widths follow the spot grid.
    """
    um_per_px, widest = section.grid.um_per_px, max(widths)
    inside = section.spot_px.max(initial=0.0)  # spots lie in the image, which need not be opened then
    if um_per_px is None or section.image_path is None or widest <= _WIDEST * inside:
        return
    with section.open_image() as image:
        width, height = image.width, image.height
    if widest > _WIDEST * max(width, height):
        extent = f"{width * um_per_px:.0f} x {height * um_per_px:.0f} um ({section.image_path})"
        raise ValueError(
            f"section {section.name}: a crop of {widest * um_per_px:.6g} um ({widest:.0f} px at {um_per_px:.4g} um/px) is over "
            f"{_WIDEST} times as wide as the longer side of the slide, which has {extent}; give a smaller width (--width-um, "
            "--level, or crop.spot_um, crop.niche_um and crop.wider_um in a configuration), or the right um/px (--mpp)"
        )


def resolve_crops(section: Section, config: CropConfig) -> CropConfig:
    """``config`` with the widths in um that it means for ``section``, to be kept with a trained model.

    A model has to see new images at the scale it was trained on, whatever their grid. Without a known scale the config
    comes back unchanged.
    """
    if section.grid.um_per_px is None:
        return config
    spot, niche, *_ = crop_widths_px(section.grid, section.spot_diameter_px, config)
    return replace(config, spot_um=spot * section.grid.um_per_px, niche_um=niche * section.grid.um_per_px)


def read_spot_crops(image: SlideImage, center: np.ndarray, widths: Sequence[float], size: int) -> np.ndarray:
    """Crops of each width around ``center`` (x, y px) as uint8 (level size size 3); white outside the image."""
    x, y = float(center[0]), float(center[1])
    return np.stack([image.read(x - width / 2, y - width / 2, width, width, size=size) for width in widths])


def read_crops(
    section: Section, config: CropConfig, indices: np.ndarray | None = None, *, image: SlideImage | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Stream the crops of a section, one spot at a time.

    Args:
        indices: int (n,) spots to read, default all.
        image: an already open image; else the section's is opened, and closed at the end.

    Yields:
        (spot index, uint8 (level size size 3)): spot crop first, then niche crop, then wider ones.

    Raises:
        FileNotFoundError, ValueError: no image, or widths that are unknown or too wide (see :func:`crop_widths`).
    """
    widths = crop_widths(section, config)
    opened = section.open_image() if image is None else image
    try:
        for spot in range(section.n_spots) if indices is None else indices:
            yield int(spot), read_spot_crops(opened, section.spot_px[spot], widths, config.image_size)
    finally:
        if image is None:
            opened.close()
