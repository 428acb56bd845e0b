"""In which order the crops of spots are read, so that each tile of a large image is decoded about once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hyperst.data.images import SlideImage
from hyperst.data.images.base import CACHE_BYTES

__all__ = ["reading_order"]

_CHANNELS = 3
_SHARE = 0.8  # of the cache, that the tiles under a row of crops may take


def reading_order(image: SlideImage, centres: np.ndarray, widths: Sequence[float], size: int) -> np.ndarray:
    """Spots int64 (spot,) in an order in which the tiles of an image that are still wanted fit its cache.

    The image is divided into columns so narrow that all tiles under a row of crops across one are kept until the next rows have
    been read; the spots of a column come from top to bottom. Where all tiles fit, or nothing is decoded in parts, spots keep
    their order.

    Args:
        centres: (spot 2) x, y of the crops in full-resolution pixels. widths: of the crops of each spot, the same pixels.
        size: side of the crops in pixels after resizing.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from hyperst.data import open_image
    >>> from hyperst.synthetic_slide import write_slide
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with open_image(write_slide(Path(folder) / "slide.tif", 600, um_per_px=1.4, tile=64)) as image:
    ...         reading_order(image, np.array([[300.0, 500.0], [300.0, 100.0]]), [80.0, 180.0], 32)
    array([0, 1])
    """
    widest_on = {image.level_read(width / size): width for width in sorted(widths)}
    tiles = {level: image.tile_size(level) for level, _ in widest_on}
    whole = sum(image.width * image.height * _CHANNELS / factor**2 for _, factor in widest_on)
    if whole <= CACHE_BYTES or None in tiles.values():
        return np.arange(len(centres))
    per_px, around, widest = 0.0, 0.0, 1.0  # bytes of tiles for each pixel of a column's width, and at its borders
    for (level, factor), width in widest_on.items():
        across, down = (side * factor for side in tiles[level] or ())
        bytes_per_px = (width + 2 * down) * _CHANNELS / factor**2
        per_px += bytes_per_px
        around += bytes_per_px * (width + 2 * across)
        widest = max(widest, across)
    column = max((_SHARE * CACHE_BYTES - around) / per_px, widest)
    number = math.ceil(image.width / column)
    columns = np.minimum(centres[:, 0] * number // image.width, number - 1)
    return np.lexsort((centres[:, 1], columns))
