"""Images that Pillow decodes whole: JPEG, PNG, BMP, WebP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from hyperst.data.images.base import SlideImage

__all__ = ["DecodedImage", "to_rgb"]


class DecodedImage(SlideImage):
    """JPEG, PNG, BMP, WebP: decoded whole on the first read and kept until :meth:`close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _pil_open(path) as image:
            _check_pil_mode(image, path)
            self.width, self.height = image.size
        self._pixels: np.ndarray | None = None

    def _levels(self) -> list[float]:
        return [1.0]

    def _read_level(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        if self._pixels is None:
            try:
                with _pil_open(self.path) as image:
                    self._pixels = to_rgb(image)
            except OSError as error:
                raise ValueError(f"{self.path} is damaged or cut short ({error}); copy or export it again") from error
        return self._pixels[y0:y1, x0:x1]

    def close(self) -> None:
        self._pixels = None


def _pil_open(path: Path) -> Image.Image:
    # Pillow refuses images above 179 million pixels as a guard against hostile web uploads. Histology images are that
    # large by nature and come from the user's own disk, so the guard is lifted, for the moment of opening only.
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        return Image.open(path)
    except OSError as error:
        raise ValueError(f"{path} is no readable image ({error}); copy or export it again") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _check_pil_mode(image: Image.Image, path: Path) -> None:
    if image.mode not in {"RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"}:
        raise ValueError(
            f"image {path}: pixels of mode {image.mode!r} (16 bit or floating point) are not H&E; convert to 8 bit RGB"
        )


def to_rgb(image: Image.Image) -> np.ndarray:
    """Return uint8 (height width 3); transparency is laid over white."""
    if image.mode in {"RGBA", "LA"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
    return np.asarray(image.convert("RGB"))
