"""Scanner formats (.svs .ndpi .mrxs ...) through openslide, an optional package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from hyperst.data.images.base import SlideImage, plausible_mpp
from hyperst.data.images.pil import to_rgb

__all__ = ["OpenSlideImage"]


class OpenSlideImage(SlideImage):
    """A slide read by openslide.

    Raises:
        ImportError: openslide is not installed.
        ValueError: openslide cannot read the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._slide: Any = None
        self._open()
        slide: Any = self._slide
        self.width, self.height = slide.dimensions
        recorded = slide.properties.get("openslide.mpp-x")
        self.mpp = plausible_mpp(float(recorded)) if recorded else None
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
        except openslide.OpenSlideError as error:
            raise ValueError(f"openslide cannot read {self.path} ({error}); copy or export it again") from error
        self._process = os.getpid()

    def _levels(self) -> list[float]:
        return self._factors

    def _read_level(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        if self._slide is None or self._process != os.getpid():  # closed, or in a forked DataLoader worker
            self._open()
        factor = self._factors[level]
        region = self._slide.read_region((round(x0 * factor), round(y0 * factor)), level, (x1 - x0, y1 - y0))
        return to_rgb(region)

    def close(self) -> None:
        if self._slide is not None:
            self._slide.close()
            self._slide = None
