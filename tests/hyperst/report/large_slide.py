"""A prediction on a slide so large that its thumbnail shows little of it, with marks where two of the spots are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

MARKED, STRIPED = 12, 40
"""Spots on a blue square of 40 px, and on stripes of 4 px, black and white, in a square of 120 px."""


def write_large_slide(folder: Path, genes: Sequence[str]) -> Path:
    """Write a prediction of ``genes`` without measurements, and the slide beside it; 6000 px wide, of 0.5 um."""
    import tifffile

    from hyperst.data import open_image
    from hyperst.data.identity import sampled_hash

    rows, columns = np.divmod(np.arange(81), 9)
    positions = np.stack([1000 + 200 * columns, 1500 + 200 * rows], axis=1).astype(np.float64)
    pixels = np.full((6000, 6000, 3), 243, dtype=np.uint8)
    pixels[1400:3500, 900:2800] = (200, 140, 180)
    x, y = positions[MARKED].astype(int)
    pixels[y - 20 : y + 20, x - 20 : x + 20] = (0, 0, 255)
    x, y = positions[STRIPED].astype(int)
    pixels[y - 60 : y + 60, x - 60 : x + 60] = np.where(np.arange(120) // 4 % 2, 255, 0)[None, :, None]
    slide = folder / "large.tif"
    tifffile.imwrite(slide, pixels, tile=(256, 256), compression="deflate", photometric="rgb")
    with open_image(slide) as image:
        thumbnail = image.thumbnail()
    values = np.random.default_rng(0).normal(size=(81, len(genes))).astype(np.float32)
    stored = anndata.AnnData(
        values, obs=pd.DataFrame(index=[f"spot_{i}" for i in range(81)]), var=pd.DataFrame(index=list(genes))
    )
    stored.obsm["spatial"] = positions
    scales = {"tissue_hires_scalef": len(thumbnail) / 6000, "spot_diameter_fullres": 110.0}
    stored.uns["spatial"] = {"large": {"images": {"hires": thumbnail}, "scalefactors": scales}}
    stored.uns["hyperst"] = {
        "units": "log",
        "content": "predicted",
        "um_per_px": 0.5,
        "image": slide.name,
        "image_path": str(slide),
        "image_checksum": sampled_hash(slide),
    }
    stored.write_h5ad(folder / "large.h5ad")
    return folder / "large.h5ad"
