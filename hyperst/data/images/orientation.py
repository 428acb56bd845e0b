"""The tag Orientation of EXIF and TIFF: whether an image is shown as it is stored."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from PIL import Image

__all__ = ["check_orientation", "exif_orientation"]

TAG = 274
_SHOWN = {
    2: "mirrored left to right",
    3: "turned by 180 degrees",
    4: "mirrored top to bottom",
    5: "mirrored along the diagonal",
    6: "turned by 90 degrees clockwise",
    7: "mirrored along the other diagonal",
    8: "turned by 90 degrees counterclockwise",
}


def check_orientation(value: Any, path: Path) -> None:
    """Return where an image is shown as it is stored: ``value`` of its tag is 1, missing (None), or none of the standard.

    Some programs follow the tag and others do not, so nothing tells whether positions of spots are those of the image as it
    is shown or as it is stored.

    Raises:
        ValueError: it is shown mirrored or turned; the message has the command that makes both the same.

    >>> check_orientation(6, Path("scan.jpg"))
    Traceback (most recent call last):
    ...
    ValueError: image scan.jpg has the tag Orientation 6: programs that follow it show the image turned by 90 degrees
    clockwise, others as it is stored, so that spots may belong to either. If their positions are those of the image as it is
    shown, or there are none yet, store it that way: vips autorot scan.jpg scan_upright.png. If they are those of the pixels as
    stored, remove the tag: exiftool -Orientation= scan.jpg
    """
    try:
        number = int(value) if value is not None else 1
    except (TypeError, ValueError):
        return
    if number not in _SHOWN:
        return
    tiled = path.suffix.lower() in {".tif", ".tiff", ".btf", ".qptiff"}
    stem = path.name.split(".")[0]
    upright = f'"{stem}_upright.tif[tile,pyramid,compression=jpeg,Q=90,bigtiff]"' if tiled else f"{stem}_upright.png"
    raise ValueError(
        f"image {path} has the tag Orientation {number}: programs that follow it show the image {_SHOWN[number]}, others as "
        "it is stored, so that spots may belong to either. If their positions are those of the image as it is shown, or there "
        f"are none yet, store it that way: vips autorot {path.name} {upright}. If they are those of the pixels as stored, "
        f"remove the tag: exiftool -Orientation= {path.name}"
    )


def exif_orientation(image: Image.Image) -> Any:
    """Value of the tag in an image's EXIF or XMP, or None; pixels are not decoded."""
    try:
        return Image.Image.getexif(image).get(TAG)  # that of PNG would decode all pixels first
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError, struct.error):
        return None  # damaged EXIF: programs show the image as it is stored
