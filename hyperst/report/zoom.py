"""Deep zoom: a pyramid of JPEG tiles of the tissue under the spots of each slide, within bytes that all slides share."""

from __future__ import annotations

import os
import warnings
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hyperst.data import SlideImage, open_image
from hyperst.data.identity import sampled_hash
from hyperst.data.images import DamagedTiles
from hyperst.report.spots import SpotMap, jpeg_base64
from hyperst.validation import reason_of

__all__ = ["LEAST_BYTES", "MOST_BYTES", "TILE_PX", "Zooms", "covered", "deep_zoom", "tile_pyramid"]

TILE_PX = 256
LEAST_BYTES, MOST_BYTES = 3_000_000, 8_000_000
"""What the tiles of all slides of a page may take as text: the least where numbers would take all, and the most."""
_QUALITY = 75  # of the JPEGs: of the same bytes, finer pixels tell more than better ones
_GAIN = 1.5  # a level has pixels so much finer than the thumbnail's, or is left out
_STEPS = 4  # resolutions to choose from, between one and half of it
_SAMPLES = 8  # tiles that tell how well a slide compresses
_MARGIN = 1.1  # of what they tell
_PLACE_BYTES = 16  # of a tile in JSON: row, column, quotes


@dataclass(frozen=True)
class Zooms:
    """Pyramids of a page, coarsest level first, as its script takes them.

    Attributes:
        slides: see :func:`tile_pyramid`. of_map: for each map the number of its slide, None without.
        words: for each map how fine its picture is, and why no finer; "" without a picture.
    """

    slides: list[dict[str, Any]]
    of_map: list[int | None]
    words: list[str]


def deep_zoom(maps: Sequence[SpotMap], images: Path | None, n_bytes: int) -> Zooms:
    """Tiles for each map with a thumbnail whose slide is where its prediction says, or in the folder ``images``.

    Slides share the bytes equally; what a slide does not need the next ones have. Maps of one slide have one pyramid.

    Args:
        n_bytes: for the tiles of all slides.
    """
    left = n_bytes
    reasons = [""] * len(maps)
    of_slide: dict[Path, list[int]] = {}
    for number, spots in enumerate(maps):
        if spots.picture_px is not None and spots.picture_px >= _GAIN:
            path = _find(spots, images)
            reasons[number] = "" if path else f"the slide {spots.facts.get('image', '')} is not at hand"
            if path is not None:
                of_slide.setdefault(path.resolve(), []).append(number)
    slides: list[dict[str, Any]] = []
    of_map: list[int | None] = [None] * len(maps)
    waiting = sorted(of_slide.items(), key=lambda each: sum(len(maps[number].positions) for number in each[1]))
    for place, (path, numbers) in enumerate(waiting):
        shown = [maps[number] for number in numbers]
        try:
            pyramid = _of_file(path, shown, left // (len(waiting) - place))
            reason = "" if pyramid else "none finer fits into the page"
        except (OSError, ValueError, ImportError, MemoryError) as error:
            pyramid, reason = None, reason_of(error)
        for number in numbers:
            reasons[number], of_map[number] = reason, len(slides) if pyramid else None
        if pyramid:
            slides.append(pyramid)
            left -= _size(pyramid)
    levels = [None if slide is None else slides[slide]["levels"] for slide in of_map]
    finest = [None if each is None else each[-1]["factor"] for each in levels]
    return Zooms(slides, of_map, [_words(*each) for each in zip(maps, finest, reasons, strict=True)])


def covered(positions: np.ndarray, reach: float, side: float, size: tuple[int, int]) -> np.ndarray:
    """int64 (tile 2): row and column of each tile under a square around a spot, in order.

    Args:
        positions: (spot 2), x, y. reach: half the width of the squares. side: of a tile. size: width and height of the
            image; what lies outside has no tiles. All in full-resolution pixels.

    >>> covered(np.array([[100.0, 10.0], [300.0, 10.0]]), reach=20, side=110, size=(320, 200)).tolist()
    [[0, 0], [0, 1], [0, 2]]
    """
    most = np.ceil(np.array(size) / side).astype(np.int64) - 1
    first = np.floor((positions - reach) / side).astype(np.int64).clip(0)
    last = np.minimum(np.floor((positions + reach) / side).astype(np.int64), most)
    across, down = (last - first).max(axis=0).tolist()
    tiles = []
    for offset in np.ndindex(across + 1, down + 1):
        tile = first + np.array(offset)
        tiles.append(tile[(tile <= last).all(axis=1)])
    return np.unique(np.concatenate(tiles)[:, ::-1], axis=0)


def tile_pyramid(
    slide: SlideImage, positions: np.ndarray, reach: float, coarsest: float, n_bytes: int
) -> dict[str, Any] | None:
    """The pyramid of the finest resolution whose tiles take ``n_bytes`` as text; None where none is fine enough.

    Each next level halves the pixels of the one before. Tiles are read once, one at a time, from the finest level up.

    Args:
        positions, reach: of the spots, see :func:`covered`.
        coarsest: width of the largest pixels that are of use, in full-resolution pixels.

    Returns:
        "side" of a tile in its pixels, and "levels", coarsest first: "factor" (full-resolution pixels a pixel), "rows",
        "columns" (tile,) and "jpegs" (tile,), base64. A tile's left edge is at column * side * factor.
    """
    size = (slide.width, slide.height)
    steps = int(np.floor(np.log2(max(coarsest, 1.0)) * _STEPS + 1e-9))
    factors = [2.0 ** (step / _STEPS) for step in range(steps + 1)] if coarsest >= 1 else []

    def grids(factor: float) -> list[np.ndarray]:
        """Tiles of each level, the finest first."""
        found = [covered(positions, reach, TILE_PX * factor, size)]
        while factor * 2 ** len(found) <= coarsest * (1 + 1e-9):
            found.append(np.unique(found[-1] // 2, axis=0))
        return found

    def fits(factor: float) -> bool:
        levels = grids(factor)
        tiles = levels[0][np.unique(np.linspace(0, len(levels[0]) - 1, _SAMPLES).round().astype(np.int64))]
        mean = np.mean([len(_jpeg(_read(slide, factor, row, column))) for row, column in tiles.tolist()])
        return bool(sum(map(len, levels)) * (mean + _PLACE_BYTES) * _MARGIN <= n_bytes)

    for factor in factors[bisect_left(factors, True, key=fits) :]:
        pyramid = _encoded(slide, factor, grids(factor), n_bytes)
        if pyramid is not None:
            return pyramid
    return None


def _encoded(slide: SlideImage, finest: float, grids: list[np.ndarray], n_bytes: int) -> dict[str, Any] | None:
    """The pyramid with these tiles, the finest level first; None where they take more bytes."""
    wanted = [set(map(tuple, grid.tolist())) for grid in grids]
    jpegs: list[dict[tuple[int, int], str]] = [{} for _ in grids]
    taken = 0

    def picture(level: int, row: int, column: int) -> np.ndarray:
        """Of a tile; it and all below it are encoded."""
        nonlocal taken
        if level == 0:
            pixels = _read(slide, finest, row, column)
        else:
            half, factor = TILE_PX // 2, finest * 2**level
            pixels = np.empty((TILE_PX, TILE_PX, 3), dtype=np.uint8)
            for down, right in np.ndindex(2, 2):
                child = 2 * row + down, 2 * column + right
                if child in wanted[level - 1]:
                    quarter = np.asarray(Image.fromarray(picture(level - 1, *child)).reduce(2))
                else:
                    quarter = _read(slide, factor, *child, half)
                pixels[down * half :, right * half :][:half, :half] = quarter
        if taken <= n_bytes:
            jpegs[level][row, column] = _jpeg(pixels)
            taken += len(jpegs[level][row, column]) + _PLACE_BYTES
        return pixels

    for row, column in grids[-1].tolist():
        picture(len(grids) - 1, row, column)
        if taken > n_bytes:
            return None
    levels = [
        {
            "factor": finest * 2**level,
            "rows": [row for row, _ in sorted(tiles)],
            "columns": [column for _, column in sorted(tiles)],
            "jpegs": [tiles[place] for place in sorted(tiles)],
        }
        for level, tiles in enumerate(jpegs)
    ]
    return {"side": TILE_PX, "levels": levels[::-1]}


def _read(slide: SlideImage, factor: float, row: int, column: int, side: int = TILE_PX) -> np.ndarray:
    """The tile of ``side`` pixels, each ``factor`` full-resolution ones wide."""
    width = side * factor
    return slide.read_in_bands(column * width, row * width, width, width, (side, side))


def _jpeg(pixels: np.ndarray) -> str:
    return jpeg_base64(pixels, _QUALITY)


def _find(spots: SpotMap, images: Path | None) -> Path | None:
    recorded, known = spots.facts.get("image_path"), spots.facts.get("image_checksum")
    paths = [Path(recorded)] if recorded else []
    if images is not None and spots.facts.get("image"):
        paths.insert(0, images / Path(spots.facts["image"]).name)
    here = [path for path in paths if os.path.isfile(path) and os.access(path, os.R_OK)]
    # another file of that name is looked at too, which then says so
    return next((path for path in here if known in (None, sampled_hash(path))), here[0] if here else None)


def _of_file(path: Path, maps: Sequence[SpotMap], n_bytes: int) -> dict[str, Any] | None:
    """The pyramid under the spots of maps of one slide. Raises ValueError where the file is another one than was predicted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an image that prediction has warned about
        with open_image(path, damaged=DamagedTiles()) as slide:  # white, as the prediction may have left them
            for spots in maps:
                pixel, (width, height) = spots.picture_px or 0.0, spots.extent
                known = spots.facts.get("image_checksum")
                if max(abs(width - slide.width), abs(height - slide.height)) > pixel or (
                    known is not None and known != sampled_hash(path)
                ):
                    raise ValueError(f"{path} is another file than the one that was predicted")
            coarsest = min(spots.picture_px or 1.0 for spots in maps) / _GAIN
            positions = np.concatenate([spots.positions for spots in maps]).astype(np.float64)
            return tile_pyramid(slide, positions, max(spots.diameter_px for spots in maps), coarsest, n_bytes)


def _size(pyramid: dict[str, Any]) -> int:
    return sum(len(jpeg) + _PLACE_BYTES for level in pyramid["levels"] for jpeg in level["jpegs"])


def _words(spots: SpotMap, finest: float | None, reason: str) -> str:
    if spots.picture_px is None:
        return ""
    scale, unit = (1.0, "px of the full image") if spots.um_per_px is None else (spots.um_per_px, "µm")
    whole = f"{spots.picture_px * scale:.3g}"
    if finest is not None:
        return f"Finest picture: {finest * scale:.3g} {unit} per pixel where spots are, {whole} elsewhere."
    return f"Finest picture: {whole} {unit} per pixel{f' ({reason})' if reason else ''}."
