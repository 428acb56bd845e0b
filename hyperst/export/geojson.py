"""Predictions as detections of QuPath.

QuPath reads a GeoJSON FeatureCollection whose features say in ``properties`` what kind of object they are, and whose
``measurements`` are names and numbers (an object since QuPath 0.4). A ring marked ``isEllipse`` is the ellipse it is inscribed in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hyperst.export.spots import blocks_of_spots, spots_of
from hyperst.files import atomic_path

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["write_geojson"]

_CORNERS = 24
_CLASS = {
    "name": "Predicted spot",
    "color": [68, 119, 170],
}  # measurements of a pathologist's objects must not be mixed up


def write_geojson(adata: AnnData, path: str | Path) -> Path:
    """Write a QuPath detection per spot, atomically: its circle in full-resolution pixels; as measurements obs and every gene.

    Raises:
        ValueError: ``adata`` is no prediction, or a gene has the name of a column of obs.
        OSError: see :func:`hyperst.files.atomic_path`.
    """
    spots = spots_of(adata)
    angles = np.linspace(0, 2 * np.pi, _CORNERS + 1)
    ring = spots.diameter_px / 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ring[-1] = ring[0]
    names = [*map(str, spots.facts.columns), *map(str, adata.var_names)]
    if both := set(map(str, spots.facts.columns)) & set(map(str, adata.var_names)):
        raise ValueError(f"gene {min(both)} has the name of a column of obs; export as zarr, where genes stand apart")
    facts = spots.facts.to_numpy(dtype=np.float64)
    path = Path(path)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for part, values in blocks_of_spots(adata):
            for number, genes in zip(range(part.start, part.stop), values, strict=True):
                row = np.concatenate([facts[number], genes])
                properties = {
                    "objectType": "detection",
                    "name": str(adata.obs_names[number]),
                    "classification": _CLASS,
                    # JSON has no NaN; QuPath takes what is missing as NaN
                    "measurements": {
                        name: float(f"{value:.7g}")
                        for name, value in zip(names, row, strict=True)
                        if np.isfinite(value)
                    },
                }
                circle = np.round(spots.positions[number] + ring, 2).tolist()
                geometry = {"type": "Polygon", "coordinates": [circle], "isEllipse": True}
                feature = {"type": "Feature", "geometry": geometry, "properties": properties}
                file.write(("," if number else "") + "\n" + json.dumps(feature, allow_nan=False))
        file.write("\n]}\n")
    return path
