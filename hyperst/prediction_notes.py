"""What one has to know of a prediction beside its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hyperst.data.placement import BACKGROUND
from hyperst.doubt import HALF_WIDTH, doubt_words

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["prediction_notes"]


def prediction_notes(predicted: AnnData) -> list[str]:
    """Sentences about likeness to the training tissue, damaged tiles that were left white, and spots on background.

    Args:
        predicted: what :func:`hyperst.predict.predict_image` returns.
    """
    notes = doubt_words(predicted.uns["hyperst"], with_intervals=HALF_WIDTH in predicted.var)
    if damaged := predicted.uns["hyperst"].get("damaged_tiles"):
        touched = int(predicted.obs["on_damaged_tile"].sum())
        notes.append(
            f"damaged tiles of the image left white: {damaged}; spots on or beside them, see obs['on_damaged_tile']: {touched}"
        )
    if "tissue_fraction" in predicted.obs and (n := int((predicted.obs["tissue_fraction"] < BACKGROUND).sum())):
        notes.append(f"{n} spots lie on background: obs['tissue_fraction'] tells which")
    return notes
