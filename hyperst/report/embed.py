"""Numbers of a page as text: 8 bits for each, so that 20,000 spots x 200 genes, predicted and measured, take 11 MB."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from hyperst.applicability import UNLIKE
from hyperst.metrics import per_gene_pearson
from hyperst.report.spots import SpotMap

__all__ = ["DATA_BYTES", "embed", "quantise"]

DATA_BYTES = 12_000_000
"""What the numbers and pictures of all maps of a page may take as text: with script and tables the page stays under 15 MB."""
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


def embed(spots: SpotMap, budget: int) -> dict[str, Any]:
    """Plain values for the page's script; genes by falling correlation, as many as ``budget`` bytes hold.

    Returns:
        "genes": of each gene its name, ``r`` (correlation over the spots of the whole numbers, None where undefined or not
        measured) and "predicted" and "measured" as :func:`quantise` gives them; "n_genes": how many the file has;
        "applicability" as :func:`quantise` gives it, and "unlike", a byte for each spot, 1 where it is unlike the training tissue;
        both None where that is not recorded; "half_width" of each gene, None likewise;
        "positions": little-endian float32 (spot 2) as base64; and what else a map needs.
    """
    correlation = np.full(len(spots.genes), np.nan)
    if spots.measured is not None and len(spots.positions) > 1:
        correlation = np.asarray(per_gene_pearson(spots.predicted, spots.measured), dtype=np.float64)
    positions = base64.b64encode(spots.positions.astype("<f4").tobytes()).decode("ascii")
    left = budget - len(positions) - sum(len(name.encode()) + 3 for name in spots.spot_ids)
    like = None if spots.applicability is None else quantise(spots.applicability)
    left -= 0 if like is None else 2 * len(like[0])
    each = (4 * (len(spots.positions) // 3 + 1) + 60) * (1 if spots.measured is None else 2) + 130
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
        "genes": genes,
    }


def _mask(marked: np.ndarray) -> str:
    return base64.b64encode(np.asarray(marked, dtype=np.uint8).tobytes()).decode("ascii")
