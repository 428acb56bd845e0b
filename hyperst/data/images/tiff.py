"""TIFF and pyramidal TIFF (OME-TIFF, BigTIFF, HEST-1k slides): only the tiles under a region are decoded."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from einops import repeat

from hyperst.data.images.base import SlideImage, plausible_mpp

__all__ = ["TiffImage"]

_CACHE_BYTES = 256 << 20
_AXES = {"YX", "YXS", "SYX", "CYX"}
_MINISWHITE, _PALETTE = 0, 3


class TiffImage(SlideImage):
    """A TIFF read segment by segment (tile or strip), the latest 256 MiB of decoded segments kept.

    A TIFF stored as one huge compressed strip is one segment and has to be decoded whole, like a JPEG.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process = os.getpid()
        self._file: Any = None
        self._cache: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()
        self._open()
        self.mpp = _mpp(self._file)

    def _open(self) -> None:
        import tifffile

        try:
            self._file = tifffile.TiffFile(self.path)
            series = max(self._file.series, key=lambda series: series.size)
        except (tifffile.TiffFileError, OSError, ValueError, IndexError) as error:
            raise ValueError(f"{self.path} is no readable TIFF ({error}); copy or export it again") from error
        self._process = os.getpid()
        self._pages: list[list[Any]] = []
        self._factors: list[float] = []
        for level in series.levels:
            self._add_level(level)

    def _add_level(self, level: Any) -> None:
        axes, shape = _squeeze(level.axes, level.shape)
        page = level.keyframe
        channels = shape[axes.index("S")] if "S" in axes else shape[axes.index("C")] if "C" in axes else 1
        if axes not in _AXES or channels not in (1, 3, 4) or page.dtype != np.uint8 or page.photometric == _PALETTE:
            raise ValueError(
                f"image {self.path}: {page.dtype} pixels with axes {level.axes} {tuple(level.shape)} are not H&E; "
                "convert to one 8 bit grey, RGB or RGBA plane"
            )
        height, width = shape[axes.index("Y")], shape[axes.index("X")]
        if not self._factors:
            self.width, self.height = int(width), int(height)
        # "CYX" keeps one page per channel; in every other layout one page holds all samples.
        planes = list(level.pages)[:3] if "C" in axes and len(level.pages) > 1 else [level.pages[0]]
        self._pages.append(planes)
        self._factors.append(max(1.0, max(self.width / width, self.height / height)))

    def _levels(self) -> list[float]:
        return self._factors

    def _read_level(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        with self._lock:
            if self._file is None or self._process != os.getpid():  # closed, or in a forked DataLoader worker
                self._open()
            planes = [self._read_page(level, plane, x0, y0, x1, y1) for plane in range(len(self._pages[level]))]
        return _to_rgb(np.concatenate(planes, axis=-1))

    def _read_page(self, level: int, plane: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        page = self._pages[level][plane].aspage()
        out = np.full((y1 - y0, x1 - x0, page.samplesperpixel), 255, dtype=np.uint8)
        tile_height, tile_width = (
            (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        )
        across, down = -(-page.imagewidth // tile_width), -(-page.imagelength // tile_height)
        separate = page.samplesperpixel if page.planarconfig == 2 else 1
        for sample in range(separate):
            for row in range(y0 // tile_height, -(-y1 // tile_height)):
                for column in range(x0 // tile_width, -(-x1 // tile_width)):
                    index = (sample * down + row) * across + column
                    pixels = self._segment(level, plane, page, index)
                    if pixels is None:
                        continue  # an empty segment (sparse TIFF): stays white
                    top, left = row * tile_height, column * tile_width
                    bottom, right = min(top + pixels.shape[0], y1), min(left + pixels.shape[1], x1)
                    first_y, first_x = max(top, y0), max(left, x0)
                    if bottom <= first_y or right <= first_x:
                        continue
                    piece = pixels[first_y - top : bottom - top, first_x - left : right - left]
                    target = out[first_y - y0 : bottom - y0, first_x - x0 : right - x0]
                    if separate > 1:
                        target[..., sample] = piece[..., 0]
                    else:
                        target[...] = piece
        return out

    def _segment(self, level: int, plane: int, page: Any, index: int) -> np.ndarray | None:
        key = (level, plane, index)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        size = page.databytecounts[index]
        if size == 0:
            return None
        try:
            handle = page.parent.filehandle
            handle.seek(page.dataoffsets[index])
            decoded, _, shape = page.decode(handle.read(size), index, jpegtables=page.jpegtables)
        except Exception as error:  # a codec has its own exception class; all of them mean the same here
            raise ValueError(
                f"{self.path}: cannot decode segment {index} ({error}); the file is damaged or cut short, or its "
                'compression needs `pip install "hyperst-kernels[st]"`'
            ) from error
        if decoded is None:
            return None
        pixels = decoded[0, : shape[1], : shape[2]]
        if page.photometric == _MINISWHITE:
            pixels = 255 - pixels
        self._cache[key] = pixels
        self._cached_bytes += pixels.nbytes
        while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.nbytes
        return pixels

    def close(self) -> None:
        self._cache.clear()
        self._cached_bytes = 0
        if self._file is not None:
            self._file.close()
            self._file = None


def _squeeze(axes: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Drop axes of length one other than Y and X."""
    kept = [(axis, size) for axis, size in zip(axes, shape, strict=True) if axis in "YX" or size > 1]
    return "".join(axis for axis, _ in kept), tuple(size for _, size in kept)


def _to_rgb(pixels: np.ndarray) -> np.ndarray:
    """(h w 1|3|4) uint8 -> RGB; grey is repeated, transparency laid over white."""
    channels = pixels.shape[-1]
    if channels == 1:
        return repeat(pixels, "h w 1 -> h w rgb", rgb=3)
    if channels == 4:
        alpha = pixels[..., 3:].astype(np.float32) / 255
        return np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return pixels


def _mpp(file: Any) -> float | None:
    """um/px from OME metadata, an Aperio description or the resolution tags; None when absent or implausible."""
    import re

    page = file.pages[0]
    if file.is_ome and file.ome_metadata:
        size = re.search(r'PhysicalSizeX="([\d.eE+-]+)"', file.ome_metadata)
        unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', file.ome_metadata)
        scale = {"nm": 1e-3, "mm": 1e3}.get(unit.group(1) if unit else "", 1.0)
        if size:
            return plausible_mpp(float(size.group(1)) * scale)
    aperio = re.search(r"\bMPP\s*=\s*([\d.]+)", page.description or "")
    if aperio:
        return plausible_mpp(float(aperio.group(1)))
    resolution, unit_tag = page.tags.get("XResolution"), page.tags.get("ResolutionUnit")
    if resolution is None or unit_tag is None or int(unit_tag.value) not in (2, 3):
        return None
    numerator, denominator = resolution.value
    um_per_unit = 25_400.0 if int(unit_tag.value) == 2 else 10_000.0
    return plausible_mpp(um_per_unit * denominator / numerator) if numerator else None
