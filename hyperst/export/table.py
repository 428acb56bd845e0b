"""Predictions as one table of text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from hyperst.export.spots import blocks_of_spots, spots_of
from hyperst.files import atomic_path

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["check_columns", "write_csv"]

_PLACE = ("spot", "x", "y", "x_um", "y_um")


def check_columns(genes: Iterable[str], others: Iterable[str] = ()) -> None:
    """Raise ValueError where a gene has the name of another column."""
    if both := set(genes) & {*_PLACE, *others}:
        raise ValueError(
            f"gene {min(both)} has the name of a column of the table; export as zarr, where genes stand apart"
        )


def write_csv(adata: AnnData, path: str | Path) -> Path:
    """Write a row per spot, atomically: spot, x, y in full-resolution pixels, x_um, y_um where um/px are known, obs, genes.

    `hyperst predict --spots` reads the places of such a table.

    Raises:
        ValueError: ``adata`` is no prediction, or a gene has the name of another column.
        OSError: see :func:`hyperst.files.atomic_path`.
    """
    spots = spots_of(adata)
    check_columns(adata.var_names, map(str, spots.facts.columns))
    places = pd.DataFrame(spots.positions, columns=["x", "y"], index=pd.Index(adata.obs_names, name="spot"))
    if spots.um_per_px is not None:
        places[["x_um", "y_um"]] = spots.positions * spots.um_per_px
    facts = pd.concat([places, spots.facts.set_axis(places.index)], axis=1)
    path = Path(path)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        for part, values in blocks_of_spots(adata):
            genes = pd.DataFrame(values, index=places.index[part], columns=adata.var_names)
            rows = pd.concat([facts.iloc[part], genes], axis=1)
            rows.to_csv(file, header=part.start == 0, float_format="%.7g", lineterminator="\n")
    return path
