"""um/px that a TIFF records: OME metadata, an Aperio description, ImageJ's unit, or the resolution tags."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from hyperst.data.images.scale import RecordedScale, recorded_scale, um_per_unit

__all__ = ["ome_image", "tiff_scale"]

_UNIT_OF_TAG = {2: "inch", 3: "cm", 4: "mm", 5: "um"}  # ResolutionUnit; 4 and 5 are of later specifications


def tiff_scale(file: Any, series: Any) -> RecordedScale:
    """The first um/px that can be true; where there is none, what the file says instead.

    Args:
        file: an open ``tifffile.TiffFile``.
        series: the one of its series that is the slide.
    """
    found = [recorded_scale(*values) for values in _recorded(file, series)]
    usable = [scale for scale in found if scale.mpp is not None]
    return next(iter(usable or found), RecordedScale())


def ome_image(file: Any, series: Any) -> ElementTree.Element | None:
    """The ``Pixels`` element of the OME metadata that describes ``series``, or None without any."""
    if not (file.is_ome and file.ome_metadata):
        return None
    try:
        root = ElementTree.fromstring(file.ome_metadata)
    except ElementTree.ParseError:
        return None  # tifffile reads the pages then, as of any TIFF
    pixels = root.findall("{*}Image/{*}Pixels")
    number = next((place for place, each in enumerate(file.series) if each is series), 0)
    return pixels[number if number < len(pixels) else 0] if pixels else None


def _recorded(file: Any, series: Any) -> Iterator[tuple[float, float, str]]:
    """(um per pixel along x, along y, where it stands) of each place that tells, the most reliable first."""
    page = series.keyframe
    pixels = ome_image(file, series)
    if pixels is not None:
        sizes = [_ome_um(pixels, axis) for axis in "XY"]
        x, y = sizes[0] or sizes[1], sizes[1] or sizes[0]
        if x is not None and y is not None:
            yield x, y, "OME PhysicalSizeX and PhysicalSizeY"
    aperio = re.search(r"\bMPP\s*=\s*(\d*\.?\d+)", page.description or "")
    if aperio:
        yield float(aperio.group(1)), float(aperio.group(1)), "Aperio MPP values"
    pixels_per_unit = [_rational(page, f"{axis}Resolution") for axis in "XY"]
    per_x, per_y = pixels_per_unit[0] or pixels_per_unit[1], pixels_per_unit[1] or pixels_per_unit[0]
    if per_x is None or per_y is None:
        return
    unit = um_per_unit(str((file.imagej_metadata or {}).get("unit", ""))) if file.is_imagej else None
    if unit is not None:  # ImageJ counts in its own unit and leaves the tag at "none"
        yield unit / per_x, unit / per_y, "ImageJ pixel width and height"
        return
    tag = page.tags.get("ResolutionUnit")
    unit = um_per_unit(_UNIT_OF_TAG.get(int(tag.value), "")) if tag is not None else None
    if unit is not None:
        yield unit / per_x, unit / per_y, "resolution tags"


def _ome_um(pixels: ElementTree.Element, axis: str) -> float | None:
    try:
        size = float(pixels.get(f"PhysicalSize{axis}", ""))
    except ValueError:
        return None
    unit = um_per_unit(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    return None if unit is None else size * unit


def _rational(page: Any, name: str) -> float | None:
    tag = page.tags.get(name)
    if tag is None:
        return None
    numerator, denominator = tag.value
    return numerator / denominator if numerator and denominator else None
