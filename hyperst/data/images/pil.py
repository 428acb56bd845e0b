"""Images that Pillow decodes whole: JPEG, PNG, BMP, WebP, JPEG 2000."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from hyperst.data.images.base import SlideImage
from hyperst.data.images.memory import check_fits
from hyperst.data.images.orientation import check_orientation, exif_orientation
from hyperst.data.images.scale import RecordedScale, recorded_scale
from hyperst.data.images.wrong_kind import actual_kind

__all__ = ["DecodedImage", "to_rgb"]

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "JPEG2000")
_MODES = {"RGB", "RGBA", "L", "LA", "P", "PA"}
_UM_PER_INCH = 25_400.0
_BYTES_PER_PIXEL = 4 + 3  # Pillow keeps RGB in 4 bytes, and the array that is kept takes 3 beside it


class DecodedImage(SlideImage):
    """JPEG, PNG, BMP, WebP, JPEG 2000: decoded whole on the first read and kept until :meth:`close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _pil_open(path) as image:
            _check_pil_mode(image, path)
            check_orientation(exif_orientation(image), path)
            self.width, self.height = image.size
            self.scale = _recorded(image)
        self._pixels: np.ndarray | None = None

    def _levels(self) -> list[float]:
        return [1.0]

    def _level_size(self, level: int) -> tuple[int, int]:
        return self.width, self.height

    def _read_level(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        if self._pixels is None:
            check_fits(self.width * self.height * _BYTES_PER_PIXEL, self.path, self.width, self.height)
            try:
                with _pil_open(self.path) as image:
                    pixels = to_rgb(image)
                    orientation = exif_orientation(image)  # a PNG may have it behind its pixels
            except MemoryError as error:
                raise MemoryError(str(error) or f"{self.path} is too large for memory") from error
            except Exception as error:  # each of Pillow's decoders has errors of its own for damaged data
                raise ValueError(f"{self.path} is damaged or cut short ({error}); copy or export it again") from error
            check_orientation(orientation, self.path)
            self._pixels = pixels
        return self._pixels[y0:y1, x0:x1]

    def close(self) -> None:
        self._pixels = None


def _pil_open(path: Path) -> Image.Image:
    # Pillow refuses images above 179 million pixels as a guard against hostile web uploads. Histology images are that
    # large by nature and come from the user's own disk, so the guard is lifted, for the moment of opening only.
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        return Image.open(path, formats=_FORMATS)
    except (OSError, SyntaxError, ValueError) as error:
        reason = "damaged or of another format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        remedy = actual_kind(path) or "copy or export it again"
        raise ValueError(f"{path} is no readable image ({reason}); {remedy}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _check_pil_mode(image: Image.Image, path: Path) -> None:
    tiles = getattr(image, "tile", [])
    raw_mode = tiles[0][3] if tiles and isinstance(tiles[0][3], str) else ""
    to_srgb = f"vips colourspace {path.name} {path.stem}_rgb.png srgb"
    if image.mode == "CMYK":
        raise ValueError(f"image {path} holds printing inks (CMYK); convert to RGB: {to_srgb}")
    if image.mode not in _MODES or ";16" in raw_mode:
        kind = {"1": "1 bit"}.get(image.mode, f"16 bit or floating point (mode {raw_mode or image.mode})")
        raise ValueError(
            f"image {path} holds pixels of {kind}; HyperST needs the brightfield (H&E) scan in RGB with 8 bit per channel: "
            f"{to_srgb}; look whether the result is too dark"
        )


def _recorded(image: Image.Image) -> RecordedScale:
    per_inch = image.info.get("dpi")
    if per_inch is None or not all(per_inch):
        return RecordedScale()
    return recorded_scale(_UM_PER_INCH / float(per_inch[0]), _UM_PER_INCH / float(per_inch[1]), "dots per inch")


def to_rgb(image: Image.Image) -> np.ndarray:
    """Return uint8 (height width 3); transparency is laid over white."""
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
    return np.asarray(image.convert("RGB"))
