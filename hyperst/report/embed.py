"""Numbers of a page as text: 8 bits for each, so that 20,000 spots x 200 genes, predicted and measured, take 11 MB."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import numpy as np

from hyperst.applicability import UNLIKE
from hyperst.export.spots import spacing_px
from hyperst.metrics import per_gene_pearson
from hyperst.report.spots import SpotMap

__all__ = ["DATA_BYTES", "MOST_SPOTS", "embed", "quantise", "thinned", "wanted_bytes"]

DATA_BYTES = 12_000_000
"""What the numbers and pictures of all maps of a page may take as text: with script and tables the page stays under 15 MB."""
MOST_SPOTS = 50_000
"""Of one map, so that a whole slide has room for most of 200 genes."""
_LEVELS = 255


def quantise(values: np.ndarray) -> tuple[str, float, float]:
    """``values`` (spot,) as 8-bit steps between their smallest and largest, base64, with both.

    A step is 1/255 of the range, so that no value is off by more than 1/510 of it. A constant is exact.

    >>> quantise(np.array([0.0, 1.0, 0.5]))
    ('AP+A', 0.0, 1.0)
    """
    low, high = float(values.min()), float(values.max())
    width = high - low
    steps = np.round((values.astype(np.float64) - low) / width * _LEVELS) if width > 0 else np.zeros(len(values))
    return base64.b64encode(steps.astype(np.uint8).tobytes()).decode("ascii"), low, high


def thinned(positions: np.ndarray, most: int) -> np.ndarray:
    """int64 (kept,): at most ``most`` spots, spread evenly over all (spot 2): of a grid every second, third ... row and column.

    >>> grid = np.stack([each.ravel() for each in np.meshgrid(np.arange(4), np.arange(4))], axis=1)
    >>> thinned(grid, 4).tolist(), len(thinned(grid, 16))
    ([0, 2, 8, 10], 16)
    """
    kept = np.arange(len(positions))
    side = spacing_px(positions) or 1.0
    step = 1
    while len(kept) > most:
        step = max(step + 1, step * 11 // 10)  # where spots lie in pairs, their distance says little of the pitch
        # half a pitch, so that rounding puts no row of a grid into the square of its neighbour
        squares = np.floor((positions - positions.min(axis=0)) / side / step + 0.5 / step).astype(np.int64)
        kept = np.sort(np.unique(squares, axis=0, return_index=True)[1])
    return kept


def wanted_bytes(spots: SpotMap, n_genes: int) -> int:
    """What :func:`embed` takes for so many genes, rather too much."""
    n = min(len(spots.positions), MOST_SPOTS)
    names = sum(len(name.encode()) + 3 for name in spots.spot_ids) * n // len(spots.positions)
    return int(1.02 * (20 * n + names + n_genes * _gene_bytes(n, spots.measured is not None))) + 1000


def _gene_bytes(n_spots: int, measured: bool) -> int:
    return (4 * (n_spots // 3 + 1) + 60) * (2 if measured else 1) + 130


def embed(spots: SpotMap, budget: int) -> dict[str, Any]:
    """Plain values for the page's script; genes by falling correlation, as many as ``budget`` bytes hold.

    Of more than 50,000 spots some are kept, see :func:`thinned`.

    Returns:
        "genes": of each gene its name, ``r`` (correlation over the spots of the whole numbers, None where undefined or not
        measured) and "predicted" and "measured" as :func:`quantise` gives them; "n_genes" and "n_spots": how many the file has;
        "applicability" as :func:`quantise` gives it, and "unlike", a byte for each spot, 1 where it is unlike the training tissue;
        both None where that is not recorded; "half_width" of each gene, None likewise;
        "positions": little-endian float32 (spot 2) as base64; and what else a map needs.
    """
    correlation = np.full(len(spots.genes), np.nan)
    if spots.measured is not None and len(spots.positions) > 1:
        correlation = np.asarray(per_gene_pearson(spots.predicted, spots.measured), dtype=np.float64)
    n_spots = len(spots.positions)
    if n_spots > MOST_SPOTS:
        spots = _some(spots, thinned(spots.positions, MOST_SPOTS))
    positions = base64.b64encode(spots.positions.astype("<f4").tobytes()).decode("ascii")
    left = budget - len(positions) - sum(len(name.encode()) + 3 for name in spots.spot_ids)
    like = None if spots.applicability is None else quantise(spots.applicability)
    left -= 0 if like is None else 2 * len(like[0])
    each = _gene_bytes(len(spots.positions), spots.measured is not None)
    held = np.argsort(-np.nan_to_num(correlation, nan=-2.0), kind="stable")[: max(1, left // each)]
    genes = []
    for column in held:
        value = correlation[column]
        gene: dict[str, Any] = {
            "name": spots.genes[column],
            "r": round(float(value), 4) if np.isfinite(value) else None,
        }
        gene["predicted"] = quantise(spots.predicted[:, column])
        gene["measured"] = None if spots.measured is None else quantise(spots.measured[:, column])
        gene["half_width"] = None if spots.half_widths is None else round(float(spots.half_widths[column]), 4)
        genes.append(gene)
    return {
        "name": spots.name,
        "title": spots.title,
        "units": spots.units,
        "spots": spots.spot_ids,
        "positions": positions,
        "picture": spots.picture,
        "extent": spots.extent,
        "um_per_px": spots.um_per_px,
        "diameter_px": spots.diameter_px,
        "applicability": like,
        "unlike": None if spots.applicability is None else _mask(spots.applicability <= UNLIKE),
        "n_genes": len(spots.genes),
        "n_spots": n_spots,
        "genes": genes,
    }


def _some(spots: SpotMap, kept: np.ndarray) -> SpotMap:
    return replace(
        spots,
        spot_ids=[spots.spot_ids[spot] for spot in kept],
        positions=spots.positions[kept],
        predicted=spots.predicted[kept],
        measured=None if spots.measured is None else spots.measured[kept],
        applicability=None if spots.applicability is None else spots.applicability[kept],
    )


def _mask(marked: np.ndarray) -> str:
    return base64.b64encode(np.asarray(marked, dtype=np.uint8).tobytes()).decode("ascii")
