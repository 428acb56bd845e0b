"""What every image can do: size, scale, and a region resized to what a network needs."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from hyperst.data.images.scale import RecordedScale

__all__ = ["CACHE_BYTES", "SlideImage"]

CACHE_BYTES = 256 << 20
"""Decoded tiles that an image keeps, in each process that reads it."""

_WHITE = 255
_BAND_PIXELS = 1 << 25  # read at a time: 100 MB


class SlideImage(ABC):
    """An image with ``width`` and ``height`` in pixels of full resolution, and what it records about their size.

    Use it as a context manager, or call :meth:`close` to free the decoded pixels and the file.
    """

    path: Path
    width: int
    height: int
    scale: RecordedScale = RecordedScale()

    @property
    def mpp(self) -> float | None:
        """um/px as the file records it, or None."""
        return self.scale.mpp

    @abstractmethod
    def _levels(self) -> list[float]:
        """Downsampling factor of each stored resolution, finest (1.0) first."""

    @abstractmethod
    def _level_size(self, level: int) -> tuple[int, int]:
        """Width and height of a stored resolution in its own pixels."""

    @abstractmethod
    def _read_level(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """RGB uint8 (y1-y0, x1-x0, 3) of a box that lies inside level ``level``, in pixels of that level."""

    def tile_size(self, level: int) -> tuple[int, int] | None:
        """Width and height of what is decoded at a time, in pixels of a stored resolution; None where that is the whole image."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Free the decoded pixels and close the file. Reading again reopens it."""

    def read(
        self, x0: float, y0: float, width: float, height: float, size: int | tuple[int, int] | None = None
    ) -> np.ndarray:
        """Read a region of the image as RGB uint8.

        Args:
            x0, y0: left and upper edge in full-resolution pixels; fractions and negative values are allowed.
            width, height: extent in full-resolution pixels, > 0.
            size: side of the result (or its height and width); the region is resized with antialiasing, exactly at its
                fractional borders, from the coarsest stored resolution that is still finer than the result. None
                returns the pixels as they are, with origin and extent rounded.

        Returns:
            uint8 (h w 3); what lies outside the image is white.

        Raises:
            ValueError: an extent is not positive, or a number is not finite.
        """
        if not all(math.isfinite(value) for value in (x0, y0, width, height)) or min(width, height) <= 0:
            raise ValueError(f"read: need finite x0, y0 and positive width, height; got {(x0, y0, width, height)}")
        if size is None:
            left, top = math.floor(x0 + 0.5), math.floor(y0 + 0.5)
            return self._padded(0, left, top, left + max(1, round(width)), top + max(1, round(height)))
        out_height, out_width = (size, size) if isinstance(size, int) else size
        wanted = min(width / out_width, height / out_height)
        level, factor = self.level_read(wanted)
        # A margin of the filter's support keeps the edge pixels of the crop identical to those of a larger crop.
        box = (x0 / factor, y0 / factor, (x0 + width) / factor, (y0 + height) / factor)
        margin = math.ceil(max(1.0, wanted / factor)) + 1
        left, top = math.floor(box[0]) - margin, math.floor(box[1]) - margin
        right, bottom = math.ceil(box[2]) + margin, math.ceil(box[3]) + margin
        region = Image.fromarray(self._padded(level, left, top, right, bottom))
        shifted = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
        return np.asarray(region.resize((out_width, out_height), Image.Resampling.BILINEAR, box=shifted))

    def level_read(self, wanted: float) -> tuple[int, float]:
        """The coarsest stored resolution still finer than ``wanted`` full-resolution pixels a pixel, and its downsampling."""
        return max((k, factor) for k, factor in enumerate(self._levels()) if factor <= max(wanted, 1.0) * 1.001)

    def thumbnail(self, longest_side: int = 1000) -> np.ndarray:
        """The whole image as uint8 (h w 3), at most ``longest_side`` pixels long (never enlarged)."""
        scale = min(1.0, longest_side / max(self.width, self.height))
        height, width = max(1, round(self.height * scale)), max(1, round(self.width * scale))
        return self.read_in_bands(0, 0, self.width, self.height, (height, width))

    def read_in_bands(self, x0: float, y0: float, width: float, height: float, size: tuple[int, int]) -> np.ndarray:
        """A region as :meth:`read` returns it; in bands, so that a whole slide of one resolution is never in memory."""
        rows, columns = size
        factor = max(each for each in self._levels() if each <= max(1.0, min(width / columns, height / rows)))
        bands = max(1, math.ceil(width * height / factor**2 / _BAND_PIXELS))
        edges = np.linspace(0, rows, min(bands, rows) + 1).round().astype(int)
        step = height / rows
        return np.concatenate(
            [
                self.read(x0, y0 + upper * step, width, (lower - upper) * step, size=(int(lower - upper), columns))
                for upper, lower in itertools.pairwise(edges)
            ]
        )

    def _padded(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        width, height = self._level_size(level)
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        if (left, top, right, bottom) == (x0, y0, x1, y1):
            return self._read_level(level, x0, y0, x1, y1)
        out = np.full((y1 - y0, x1 - x0, 3), _WHITE, dtype=np.uint8)
        if left < right and top < bottom:
            out[top - y0 : bottom - y0, left - x0 : right - x0] = self._read_level(level, left, top, right, bottom)
        return out

    def __enter__(self) -> SlideImage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        scale = "um/px unknown" if self.mpp is None else f"{self.mpp:.4g} um/px"
        return f"{type(self).__name__}({self.path.name}, {self.width} x {self.height} px, {scale})"
