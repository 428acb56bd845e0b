"""Positions of segmented cells: Space Ranger 4 keeps their outlines as GeoJSON beside the counts of each cell."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["cell_positions"]

_OUTLINES = ("cell_segmentations.geojson", "graphclust_annotated_cell_segmentations.geojson")
_BARCODE = re.compile(r"cellid_(\d+)(-\d+)?")


def cell_positions(root: Path, barcodes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, float]:
    """Centroids of cells' outlines in pixels of the full-resolution image.

    Args:
        barcodes: of the count matrix, "cellid_000000001-1"; None for all cells of the file.

    Returns:
        Barcodes (cell,) of cells with an outline; centroids float64 (cell 2); median diameter of a disc of a cell's area.

    Raises:
        FileNotFoundError: no file of outlines.
        ValueError: the file is damaged, or no barcode has an outline.
    """
    file = next((root / name for name in _OUTLINES if (root / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{root}: no outlines of the segmented cells; looked for {', '.join(_OUTLINES)}")
    try:
        features = json.loads(file.read_text(encoding="utf-8"))["features"]
        outlines = {int(each["properties"]["cell_id"]): _centroid(each["geometry"]) for each in features}
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{file} is no readable GeoJSON of cells ({error}); copy or download it again") from error
    if barcodes is None:
        barcodes = np.asarray([f"cellid_{number:09d}-1" for number in outlines], dtype=str)
    matches = [_BARCODE.fullmatch(str(barcode)) for barcode in barcodes]
    known = [(place, int(m.group(1))) for place, m in enumerate(matches) if m and int(m.group(1)) in outlines]
    if not known:
        raise ValueError(f"{file}: no outline for any of the {len(barcodes)} cells of the count matrix; wrong file?")
    found = np.asarray([outlines[number] for _, number in known], dtype=np.float64)
    diameter = float(np.median(2 * np.sqrt(found[:, 2] / np.pi)))
    return barcodes[[place for place, _ in known]], found[:, :2], diameter


def _centroid(geometry: dict[str, Any]) -> tuple[float, float, float]:
    """Centroid x, y and area of a polygon, of the largest one where a cell has several; of its corners where it has no area."""
    parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    found = []
    for rings in parts:
        corners = np.asarray(rings[0], dtype=np.float64)[:, :2]
        centre = corners.mean(axis=0)
        x, y = (corners - centre).T  # about the mean: no cancellation far from the origin
        cross = x * np.roll(y, -1) - np.roll(x, -1) * y
        area = cross.sum() / 2
        if area != 0:
            centre = centre + np.array([((x + np.roll(x, -1)) * cross).sum(), ((y + np.roll(y, -1)) * cross).sum()]) / (
                6 * area
            )
        found.append((float(centre[0]), float(centre[1]), abs(float(area))))
    return max(found, key=lambda part: part[2])
