"""A whole-slide image of any size in seconds: pyramidal JPEG TIFF whose tissue repeats one piece of synthetic tissue."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from hyperst.files import atomic_path
from hyperst.synthetic import PITCH_UM, make_tissue

__all__ = ["write_slide"]

_GLASS = 243
_QUALITY = 85


def write_slide(
    path: str | Path, side: int, *, um_per_px: float = 0.5, tile: int = 512, factors: tuple[int, ...] = (1, 4, 16)
) -> Path:
    """Write a square slide of ``side`` px: a disc of tissue on glass, in squares of 4 tiles, all with the same picture.

    Each different tile is encoded once, so that 100,000 x 100,000 px take seconds; decoding them takes what it takes.

    Args:
        tile: side of the tiles. factors: downsampling of each level, the first 1; powers of 2 up to ``tile``.

    >>> import tempfile
    >>> from hyperst.data import open_image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with open_image(write_slide(Path(folder) / "slide.tif", 600, um_per_px=1.4, tile=64)) as image:
    ...         image
    TiffImage(slide.tif, 600 x 600 px, 1.4 um/px)
    """
    import imagecodecs
    import tifffile

    square = 4 * tile
    n = -(-side // square)
    centre = (np.arange(n) + 0.5) * square - side / 2
    tissue = np.hypot(centre, centre[:, None]) < 0.45 * side
    pitches = int(np.ceil(square * um_per_px / PITCH_UM)) + 1
    _, picture = make_tissue(1, n_rows=pitches, n_cols=pitches, um_per_px=um_per_px)
    picture = picture[:square, :square]
    glass = np.full_like(picture, _GLASS)

    @cache
    def encoded(factor: int, row: int, column: int, squares: bytes, across: int) -> bytes:
        """A tile from its place in the first of the squares under it, and which of these are tissue."""
        under = np.frombuffer(squares, dtype=bool).reshape(-1, across)
        rows = [[_smaller(picture if each else glass, factor) for each in line] for line in under]
        whole = np.concatenate([np.concatenate(line, axis=1) for line in rows])
        return bytes(
            imagecodecs.jpeg8_encode(
                np.ascontiguousarray(whole[row : row + tile, column : column + tile]),
                level=_QUALITY,
                colorspace="RGB",
                outcolorspace="YCBCR",
                subsampling="420",
            )
        )

    def tiles(factor: int) -> Iterator[bytes]:
        small = square // factor
        reach = -(-tile // small)
        for top in range(0, -(-side // factor), tile):
            for left in range(0, -(-side // factor), tile):
                first, last = (top // small, left // small), (top // small + reach, left // small + reach)
                under = np.zeros((reach, reach), dtype=bool)
                part = tissue[first[0] : last[0], first[1] : last[1]]
                under[: part.shape[0], : part.shape[1]] = part
                yield encoded(factor, top % small, left % small, under.tobytes(), reach)

    path = Path(path)
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True) as file:
        for level, factor in enumerate(factors):
            file.write(
                tiles(factor),
                shape=(-(-side // factor), -(-side // factor), 3),
                dtype=np.uint8,
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                tile=(tile, tile),
                resolution=(1e4 / um_per_px / factor, 1e4 / um_per_px / factor),
                resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0,
                subifds=len(factors) - 1 if not level else None,
                metadata=None,
            )
    return path


def _smaller(picture: np.ndarray, factor: int) -> np.ndarray:
    from PIL import Image

    return picture if factor == 1 else np.asarray(Image.fromarray(picture).reduce(factor))
