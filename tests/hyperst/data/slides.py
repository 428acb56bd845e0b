"""A small synthetic tissue on a larger piece of glass, off its middle, and what else is found on slides."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
from PIL import Image, ImageDraw

from hyperst.synthetic import make_tissue

GLASS = (236, 220, 235)
LEFT, TOP, RIGHT, BOTTOM = 500, 150, 1198, 736
MARGIN = 62  # of the synthetic tissue, cut away
WIDTH, HEIGHT = 1500, 1300


def glass(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Glass with a camera's noise, uint8 (h w 3)."""
    noise = np.random.default_rng(0).normal(0, 2, (height, width, 3))
    return np.clip(np.asarray(GLASS) + noise, 0, 255).astype(np.uint8)


def slide() -> tuple[anndata.AnnData, np.ndarray]:
    """A section of 81 spots and its image, whose tissue is the box (LEFT, TOP, RIGHT, BOTTOM), 45 px wider than the array."""
    adata, tissue = make_tissue(1, n_rows=9, n_cols=9, name="S")
    tissue = tissue[MARGIN:-MARGIN, MARGIN:-MARGIN]
    image = glass()
    image[TOP:BOTTOM, LEFT:RIGHT] = tissue
    adata.obsm["spatial"] = adata.obsm["spatial"] + np.array([LEFT - MARGIN, TOP - MARGIN])
    adata.obs["patient"] = "P"
    del adata.uns["spatial"]["S"]["images"]
    return adata, image


def write_slide(folder: Path, adata: anndata.AnnData, image: np.ndarray, name: str = "S") -> Path:
    """Write both and return the path of the section."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / "images" / f"{name}.png", compress_level=1)
    adata.write_h5ad(folder / f"{name}.h5ad")
    return folder / f"{name}.h5ad"


def with_pen(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The image with four strokes of a pen across its lower part."""
    drawn = Image.fromarray(image)
    draw = ImageDraw.Draw(drawn)
    height, width = image.shape[:2]
    for row in (0.72, 0.8, 0.88, 0.96):
        draw.line([(0.05 * width, row * height), (0.95 * width, (row - 0.05) * height)], fill=colour, width=25)
    return np.asarray(drawn)
