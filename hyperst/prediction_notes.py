"""What one has to know of a prediction beside its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["prediction_notes"]

_BACKGROUND = 0.05  # of a spot's square that is tissue


def prediction_notes(predicted: AnnData) -> list[str]:
    """Sentences about damaged tiles that were left white, and spots on background; of what :func:`predict_image` returns."""
    notes = []
    if damaged := predicted.uns["hyperst"].get("damaged_tiles"):
        touched = int(predicted.obs["on_damaged_tile"].sum())
        notes.append(
            f"damaged tiles of the image left white: {damaged}; spots on or beside them, see obs['on_damaged_tile']: {touched}"
        )
    if "tissue_fraction" in predicted.obs and (n := int((predicted.obs["tissue_fraction"] < _BACKGROUND).sum())):
        notes.append(f"{n} spots lie on background: obs['tissue_fraction'] tells which")
    return notes
