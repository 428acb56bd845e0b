"""Scanner formats (.svs .ndpi .mrxs .dcm ...) through openslide, an optional package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from hyperst.data.images.base import CACHE_BYTES, SlideImage
from hyperst.data.images.damage import DamagedTiles
from hyperst.data.images.pil import to_rgb
from hyperst.data.images.scale import RecordedScale, recorded_scale
from hyperst.data.images.wrong_kind import actual_kind

__all__ = ["OpenSlideImage"]

_WHITE = 255
_BLOCK = 256  # side of what is given up where a file does not tell the size of its tiles
_COMPANIONS = {
    ".mrxs": "the folder of the same name belongs beside it",
    ".vms": "the images that it lists belong beside it",
    ".dcm": "every .dcm file of the slide belongs into the folder, and it must be a whole-slide image",
}


class OpenSlideImage(SlideImage):
    """A slide read by openslide.

    Args:
        damaged: where to note tiles that cannot be decoded, which are then white; None raises ValueError.

    Raises:
        ImportError: openslide is not installed.
        ValueError: openslide cannot read the file.
    """

    def __init__(self, path: Path, damaged: DamagedTiles | None = None) -> None:
        self.path = path
        self._damaged = damaged
        self._given_up: dict[int, set[int]] = {}
        self._slide: Any = None
        self._open()
        slide: Any = self._slide
        self.width, self.height = slide.dimensions
        self.scale = _recorded(slide.properties)
        self._sizes = [(int(width), int(height)) for width, height in slide.level_dimensions]
        self._factors = [max(1.0, float(factor)) for factor in slide.level_downsamples]

    def _open(self) -> None:
        try:
            import openslide
        except ImportError as error:
            raise ImportError(
                f'reading {self.path} needs openslide: pip install "hyperst-kernels[openslide]" '
                "(or convert the slide to pyramidal TIFF)"
            ) from error
        try:
            self._slide = openslide.OpenSlide(str(self.path))
            self._slide.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
        except openslide.OpenSlideError as error:
            hint = _COMPANIONS.get(self.path.suffix.lower(), "")
            remedy = actual_kind(self.path) or "copy or export it again"
            raise ValueError(
                f"openslide cannot read {self.path} ({error}); {hint + ', or ' if hint else ''}{remedy}"
            ) from error
        self._process = os.getpid()

    def _levels(self) -> list[float]:
        return self._factors

    def _level_size(self, level: int) -> tuple[int, int]:
        return self._sizes[level]

    def _read_level(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        if self._damaged is None:
            return self._region(level, x0, y0, x1, y1)
        if not self._given_up.get(level):
            try:
                return self._region(level, x0, y0, x1, y1)
            except ValueError:
                pass  # some of it can be read: tile by tile
        return self._readable_tiles(self._damaged, level, x0, y0, x1, y1)

    def _region(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        import openslide

        if self._slide is None or self._process != os.getpid():  # closed, or in a forked DataLoader worker
            self._open()
        factor = self._factors[level]
        try:
            region = self._slide.read_region((round(x0 * factor), round(y0 * factor)), level, (x1 - x0, y1 - y0))
        except openslide.OpenSlideError as error:
            self.close()  # after an error openslide refuses every further read
            raise ValueError(
                f"{self.path}: level {level} cannot be decoded between x {x0}, y {y0} and x {x1}, y {y1} ({error}); the file is "
                "damaged or cut short: copy or export it again, or let `hyperst predict --skip-damaged` leave such tiles white"
            ) from error
        return to_rgb(region)

    def _readable_tiles(self, damaged: DamagedTiles, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        out = np.full((y1 - y0, x1 - x0, 3), _WHITE, dtype=np.uint8)
        width, height = self.tile_size(level)
        across = -(-self._sizes[level][0] // width)
        given_up = self._given_up.setdefault(level, set())
        for row in range(y0 // height, -(-y1 // height)):
            for column in range(x0 // width, -(-x1 // width)):
                left, top = max(column * width, x0), max(row * height, y0)
                right, bottom = min((column + 1) * width, x1), min((row + 1) * height, y1)
                tile = row * across + column
                if tile in given_up:
                    continue
                try:
                    out[top - y0 : bottom - y0, left - x0 : right - x0] = self._region(level, left, top, right, bottom)
                except ValueError:
                    given_up.add(tile)
                    box = (column * width, row * height, (column + 1) * width, (row + 1) * height)
                    left_, top_, right_, bottom_ = (value * self._factors[level] for value in box)
                    damaged.add(level, tile, (left_, top_, right_, bottom_))
        return out

    def tile_size(self, level: int) -> tuple[int, int]:
        if self._slide is None:
            self._open()
        properties = self._slide.properties
        width, height = (
            int(properties.get(f"openslide.level[{level}].tile-{side}", 0)) for side in ("width", "height")
        )
        return width or _BLOCK, height or _BLOCK

    def close(self) -> None:
        if self._slide is not None:
            self._slide.close()
            self._slide = None


def _recorded(properties: Any) -> RecordedScale:
    x, y = (properties.get(f"openslide.mpp-{axis}") for axis in "xy")
    try:
        return recorded_scale(float(x), float(y), "scanner's um per pixel") if x and y else RecordedScale()
    except ValueError:
        return RecordedScale()
