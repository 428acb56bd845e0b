"""What exports and figures need of a prediction: where its spots are, how large, what is known of each, and its thumbnail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from hyperst.data.images import SlideImage

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["FACTS", "Spots", "blocks_of_spots", "spacing_px", "spots_of"]

FACTS = ("array_row", "array_col", "tissue_fraction", "on_damaged_tile", "nearest_training_distance", "applicability")
"""Columns of ``obs`` of a prediction that are numbers, so far as it has them."""
_BLOCK = 2000  # spots that are text at a time


@dataclass(frozen=True)
class Spots:
    """Spots of a prediction.

    Attributes:
        positions: float64 (spot 2), centres x, y in full-resolution pixels.
        diameter_px: of a spot, the same pixels.
        um_per_px: None where unknown.
        facts: columns of ``obs`` that are numbers, booleans as 0 and 1.
        thumbnail: uint8 (h w 3), the whole image, whose pixels are ``thumbnail_scale`` per full-resolution pixel; None without.
    """

    positions: np.ndarray
    diameter_px: float
    um_per_px: float | None
    facts: pd.DataFrame
    thumbnail: np.ndarray | None
    thumbnail_scale: float

    def check_image(self, image: SlideImage) -> None:
        """Raise ValueError where an image has another size than the one that was predicted."""
        if self.thumbnail is None:
            return
        pixel = 1 / self.thumbnail_scale
        height, width = (side * pixel for side in self.thumbnail.shape[:2])
        if abs(width - image.width) > pixel or abs(height - image.height) > pixel:
            raise ValueError(
                f"{image.path} has {image.width} x {image.height} px, the image of the prediction about {width:.0f} x "
                f"{height:.0f}; give the image that was predicted"
            )


def spots_of(adata: AnnData) -> Spots:
    """The spots of a prediction.

    Raises:
        ValueError: ``adata`` is no prediction.
    """
    facts: Any = adata.uns.get("hyperst", {})
    if "units" not in facts or "spatial" not in adata.obsm or not adata.n_obs:
        raise ValueError(
            "this is no prediction (no units in uns['hyperst'], no obsm['spatial'], or no spots); give what `hyperst predict` "
            "or `hyperst evaluate` has written"
        )
    positions = np.asarray(adata.obsm["spatial"], dtype=np.float64)
    entry: Any = next(iter(adata.uns.get("spatial", {}).values()), None)
    thumbnail, factor = None, 1.0
    if entry is not None:
        thumbnail, factor = np.asarray(entry["images"]["hires"]), float(entry["scalefactors"]["tissue_hires_scalef"])
        if thumbnail.dtype != np.uint8:
            thumbnail = np.round(np.clip(thumbnail, 0, 1) * 255).astype(np.uint8)
        thumbnail = thumbnail[..., :3]
    scale = facts.get("um_per_px")
    numbers = adata.obs.select_dtypes(include=["number", "bool"])
    return Spots(
        positions=positions,
        diameter_px=spacing_px(positions) / 2
        if entry is None
        else float(entry["scalefactors"]["spot_diameter_fullres"]),
        um_per_px=None if scale is None else float(scale),
        facts=numbers.astype({name: int for name in numbers if numbers[name].dtype == bool}),
        thumbnail=thumbnail,
        thumbnail_scale=factor,
    )


def blocks_of_spots(adata: AnnData) -> Iterator[tuple[slice, np.ndarray]]:
    """Slices of spots, one after another, with their expression, (spot gene): text of all at once is large."""
    for start in range(0, adata.n_obs, _BLOCK):
        part = slice(start, min(start + _BLOCK, adata.n_obs))
        values: Any = adata.X[part]
        yield part, values.toarray() if hasattr(values, "toarray") else np.asarray(values)


def spacing_px(positions: np.ndarray) -> float:
    """Median distance to the nearest other spot; 2 px of a single one.

    >>> spacing_px(np.array([[0, 0], [3, 0], [0, 4]]))
    3.0
    """
    if len(positions) < 2:
        return 2.0
    return float(np.median(KDTree(positions).query(positions, k=2)[0][:, 1]))
