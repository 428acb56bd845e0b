"""TIFF and pyramidal TIFF (OME-TIFF, BigTIFF, HEST-1k slides): only the tiles under a region are decoded."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hyperst.data.images.base import CACHE_BYTES, SlideImage
from hyperst.data.images.damage import DamagedTiles
from hyperst.data.images.memory import check_fits
from hyperst.data.images.orientation import check_orientation
from hyperst.data.images.tiff_pixels import RgbConverter, UnsuitablePixelsError, rgb_converter
from hyperst.data.images.tiff_scale import ome_image, tiff_scale
from hyperst.data.images.wrong_kind import actual_kind

__all__ = ["TiffImage"]

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # without a handler its texts go to the terminal

_AXES = {"YX", "YXS", "SYX", "CYX"}
_WHITE = 255


@dataclass(frozen=True)
class _Level:
    """One resolution: its pages (several when each holds one channel), its size, and how many times coarser it is."""

    pages: list[Any]
    width: int
    height: int
    factor: float
    to_rgb: RgbConverter


class TiffImage(SlideImage):
    """A TIFF read segment by segment (tile or strip), the latest 256 MiB of decoded segments kept.

    A TIFF stored as one huge compressed strip is one segment and has to be decoded whole, like a JPEG.

    Args:
        damaged: where to note segments that cannot be decoded, which are then white; None raises ValueError.
    """

    def __init__(self, path: Path, damaged: DamagedTiles | None = None) -> None:
        self.path = path
        self._damaged = damaged
        self._process = os.getpid()
        self._file: Any = None
        self._cache: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        import tifffile

        try:
            self._file = tifffile.TiffFile(self.path)
            series = _slide(self._file.series)
            self._resolutions: list[_Level] = []
            for level in series.levels:
                self._resolutions.append(self._level(series, level))
            self._factors = [level.factor for level in self._resolutions]
            self.scale = tiff_scale(self._file, series)
        except UnsuitablePixelsError as error:
            remedy = error.remedy.replace("IN.tif", self.path.name).replace("OUT.tif", f"{self.path.stem}_rgb.tif")
            raise ValueError(f"image {self.path} holds {error.holds}; {remedy}") from error
        except MemoryError:
            raise
        except Exception as error:  # a damaged directory of tags makes tifffile raise anything
            remedy = actual_kind(self.path) or "it is damaged, cut short or of another kind: copy or export it again"
            raise ValueError(f"{self.path} is no readable TIFF; {remedy}") from error
        tag = series.keyframe.tags.get("Orientation")
        check_orientation(None if tag is None else tag.value, self.path)
        self._process = os.getpid()

    def _level(self, series: Any, level: Any) -> _Level:
        axes, shape = _squeeze(level.axes, level.shape)
        if axes not in _AXES:
            raise UnsuitablePixelsError(
                f"several images or planes (axes {level.axes}, {tuple(level.shape)})",
                "save the one brightfield (H&E) plane in RGB as a file of its own",
            )
        # "CYX" may keep one page per channel; in every other layout one page holds all samples.
        several = "C" in axes and len(level.pages) > 1
        pages = [page.aspage() for page in level.pages] if several else [level.pages[0].aspage()]
        described = ome_image(self._file, series) if several else None
        channels = [] if described is None else described.findall("{*}Channel")
        to_rgb = rgb_converter(pages[0], len(pages), [channel.get("Name", "") for channel in channels])
        _check_codec(pages[0])
        height, width = int(shape[axes.index("Y")]), int(shape[axes.index("X")])
        for page in pages:
            tile = _tile_size(page)
            if (page.imagewidth, page.imagelength) != (width, height) or min(width, height, *tile) < 1:
                raise ValueError(f"{page.imagewidth} x {page.imagelength} px in segments of {tile[0]} x {tile[1]}")
        if not self._resolutions:
            self.width, self.height = width, height
        return _Level(pages, width, height, max(1.0, self.width / width, self.height / height), to_rgb)

    def _levels(self) -> list[float]:
        return self._factors

    def _level_size(self, level: int) -> tuple[int, int]:
        return self._resolutions[level].width, self._resolutions[level].height

    def tile_size(self, level: int) -> tuple[int, int]:
        return _tile_size(self._resolutions[level].pages[0])

    def _read_level(self, level: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        with self._lock:
            if self._file is None or self._process != os.getpid():  # closed, or in a forked DataLoader worker
                self._open()
            resolution = self._resolutions[level]
            planes, white = [], np.zeros((y1 - y0, x1 - x0), dtype=bool)
            for plane, page in enumerate(resolution.pages):
                planes.append(self._read_page(level, plane, page, (x0, y0, x1, y1), white))
        pixels = resolution.to_rgb(planes[0] if len(planes) == 1 else np.concatenate(planes, axis=-1))
        if white.any():
            pixels = pixels.copy()
            pixels[white] = _WHITE
        return pixels

    def _read_page(
        self, level: int, plane: int, page: Any, box: tuple[int, int, int, int], white: np.ndarray
    ) -> np.ndarray:
        """Samples (h w s) of a box of a page; ``white`` is set where a segment is empty (sparse TIFF) or damaged."""
        x0, y0, x1, y1 = box
        out = np.empty((y1 - y0, x1 - x0, page.samplesperpixel), dtype=np.uint8)
        for sample, index, (left, top, right, bottom) in _segments(page, box):
            first_x, first_y = max(left, x0), max(top, y0)
            target = (slice(first_y - y0, min(bottom, y1) - y0), slice(first_x - x0, min(right, x1) - x0))
            pixels = self._segment(level, plane, page, index, (left, top, right, bottom))
            if pixels is None:
                white[target] = True
                continue
            piece = pixels[first_y - top : y1 - top, first_x - left : x1 - left]
            if sample is None:
                out[target] = piece
            else:
                out[..., sample][target] = piece[..., 0]
        return out

    def _segment(
        self, level: int, plane: int, page: Any, index: int, box: tuple[int, int, int, int]
    ) -> np.ndarray | None:
        key = (level, plane, index)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        left, top, right, bottom = box
        height, width = bottom - top, right - left
        try:
            # Whatever is looked up in the page may be read from the file first: all of it comes before the seek.
            decode, tables, header = page.decode, page.jpegtables, page.jpegheader
            offset, size, handle = page.dataoffsets[index], page.databytecounts[index], page.parent.filehandle
            if size == 0 or offset == 0:
                return None
            rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (height, width)
            check_fits(rows * columns * page.samplesperpixel, self.path, self.width, self.height)
            handle.seek(offset)
            decoded, _, shape = decode(handle.read(size), index, jpegtables=tables, jpegheader=header)
            pixels = decoded[0, : shape[1], : shape[2]]
            if pixels.shape[0] < height or pixels.shape[1] < width:
                raise ValueError(f"{pixels.shape[1]} x {pixels.shape[0]} px instead of {width} x {height}")
        except MemoryError as error:  # some codecs say nothing with it
            raise MemoryError(
                str(error) or f"{self.path}: tile {index} of level {level} is too large for memory"
            ) from error
        except Exception as error:  # a codec has its own exception class; all of them mean the same here
            if self._damaged is not None:
                factor = self._factors[level]
                self._damaged.add(level, index, (left * factor, top * factor, right * factor, bottom * factor))
                return None
            raise ValueError(
                f"{self.path}: {'tile' if page.is_tiled else 'strip'} {index} of level {level} at x {left}, y {top} cannot be "
                f"decoded ({error}); the file is damaged or cut short: copy or export it again, or let `hyperst predict "
                "--skip-damaged` leave such tiles white"
            ) from error
        self._cache[key] = pixels
        self._cached_bytes += pixels.nbytes
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.nbytes
        return pixels

    def close(self) -> None:
        self._cache.clear()
        self._cached_bytes = 0
        if self._file is not None:
            self._file.close()
            self._file = None


def _tile_size(page: Any) -> tuple[int, int]:
    return (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)


def _segments(page: Any, box: tuple[int, int, int, int]) -> Iterator[tuple[int | None, int, tuple[int, int, int, int]]]:
    """Tiles or strips of a page under a box: (sample if they hold one each, number, box cut at the page's border)."""
    x0, y0, x1, y1 = box
    width, height = page.imagewidth, page.imagelength
    tile_width, tile_height = _tile_size(page)
    across, down = -(-width // tile_width), -(-height // tile_height)
    samples = range(page.samplesperpixel) if page.planarconfig == 2 else (None,)
    for sample in samples:
        for row in range(y0 // tile_height, -(-y1 // tile_height)):
            for column in range(x0 // tile_width, -(-x1 // tile_width)):
                left, top = column * tile_width, row * tile_height
                number = ((sample or 0) * down + row) * across + column
                yield sample, number, (left, top, min(left + tile_width, width), min(top + tile_height, height))


def _slide(images: Any) -> Any:
    """The largest of the images of a file; the others are a label, an overview, or resolutions that no tag ties to it.

    Raises:
        UnsuitablePixelsError: another one has at least half its pixels: two scenes, and nothing tells which is meant.
    """
    largest = max(images, key=lambda each: each.size)
    alike = [each for each in images if 2 * each.size >= largest.size]
    if len(alike) > 1:
        shown = ", ".join(f"{each.name or 'without a name'}: {' x '.join(map(str, each.shape))}" for each in alike[:4])
        raise UnsuitablePixelsError(
            f"{len(alike)} images of much the same size ({shown})",
            "save the one that the spots lie on as a file of its own (QuPath: File > Export images > OME TIFF)",
        )
    return largest


def _check_codec(page: Any) -> None:
    import tifffile

    try:
        _ = tifffile.TIFF.DECOMPRESSORS[page.compression]
    except KeyError as error:
        name = getattr(page.compression, "name", page.compression)
        raise UnsuitablePixelsError(
            f"pixels in compression {name}, which needs `pip install imagecodecs` or has no decoder here",
            "export it again with JPEG, LZW or deflate compression",
        ) from error


def _squeeze(axes: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Drop axes of length one other than Y and X."""
    kept = [(axis, size) for axis, size in zip(axes, shape, strict=True) if axis in "YX" or size > 1]
    return "".join(axis for axis, _ in kept), tuple(size for _, size in kept)
