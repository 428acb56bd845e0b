"""Where to predict on an image without spots: a square grid over the tissue."""

from __future__ import annotations

import numpy as np
from einops import rearrange, reduce

from hyperst.data.images import SlideImage

__all__ = ["tile_grid"]

_LEAST_TISSUE = 0.25  # share of a tile that must be tissue


def tile_grid(image: SlideImage, pitch_px: float, tissue_only: bool = True) -> np.ndarray:
    """Centres (tile 2), x, y in full-resolution pixels, of square tiles of side ``pitch_px``.

    Tissue is told from glass by its colour saturation, with Otsu's threshold on a thumbnail.

    Raises:
        ValueError: pitch_px not positive or larger than the image, or no tissue found.
    """
    if not 0 < pitch_px <= min(image.width, image.height):
        raise ValueError(f"pitch_px must be positive and at most the image's side, got {pitch_px} for {image}")
    columns, rows = int(image.width // pitch_px), int(image.height // pitch_px)
    xy = np.meshgrid((np.arange(columns) + 0.5) * pitch_px, (np.arange(rows) + 0.5) * pitch_px)
    centres = rearrange(list(xy), "xy row column -> (row column) xy")
    if not tissue_only:
        return centres
    thumbnail = image.thumbnail(1500).astype(np.float32)
    scale = thumbnail.shape[1] / image.width
    saturation = reduce(thumbnail, "h w rgb -> h w", "max") - reduce(thumbnail, "h w rgb -> h w", "min")
    tissue = saturation > _otsu(saturation)
    kept = [centre for centre in centres if _window(tissue, centre * scale, pitch_px * scale).mean() >= _LEAST_TISSUE]
    if not kept:
        raise ValueError(f"no tissue found on {image.path}; give the positions with --spots")
    return np.asarray(kept)


def _window(mask: np.ndarray, centre: np.ndarray, side: float) -> np.ndarray:
    x0, y0 = (int(max(0, value - side / 2)) for value in centre)
    return mask[y0 : int(y0 + max(1, round(side))), x0 : int(x0 + max(1, round(side)))]


def _otsu(values: np.ndarray) -> float:
    """The threshold that separates two classes best (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=256)
    middle = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    mass = np.cumsum(counts * middle)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return float(middle[np.nanargmax(np.nan_to_num(between[:-1], nan=-1.0))])
