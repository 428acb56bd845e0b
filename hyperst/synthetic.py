"""A small tissue with a real hierarchy, for demonstrations and tests: regions > niches > cell types.

Regions are large smooth areas, niches smaller neighbourhoods inside them with their own mixture of cell types. Nuclei are
drawn cell by cell, their density, size and stain set by the type; counts are negative binomial around the expression of
the cells under the spot times a library size. The biology (programmes of the cell types) is the same for every seed; the
anatomy differs, so that a model trained on some sections can predict another.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.spatial import KDTree

from hyperst.files import atomic_path, write_h5ad_atomic

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["make_tissue", "write_tissue"]

PITCH_UM, SPOT_UM = 100.0, 55.0  # Visium
_BIOLOGY_SEED = 20251121
_N_TYPES, _N_NICHES, _N_REGIONS = 5, 6, 3
_DOMINANCE = 20.0  # times as likely as without
# per cell type: nuclei per 100 um square, radius in um, nucleus colour, colour of what surrounds it
_DENSITY = np.array([50.0, 22.0, 10.0, 30.0, 14.0])
_RADIUS_UM = np.array([3.2, 5.2, 3.6, 2.4, 6.5])
_NUCLEUS = np.array([[70, 45, 120], [105, 70, 150], [120, 85, 140], [50, 35, 95], [140, 95, 165]], float)
_MATRIX = np.array([[205, 160, 200], [225, 165, 190], [240, 185, 205], [215, 175, 215], [232, 150, 175]], float)


def make_tissue(
    seed: int,
    *,
    n_rows: int = 16,
    n_cols: int = 16,
    n_genes: int = 120,
    um_per_px: float = 1.4,
    dominant: int | None = None,
    name: str | None = None,
) -> tuple[AnnData, np.ndarray]:
    """One section: AnnData of raw counts on a hexagonal grid, and its image, uint8 (height width 3).

    Args:
        dominant: a cell type, 0 to 4, of which there are more than of others everywhere, for slides of different kinds; type 3
            has the smallest nuclei, 4 the largest.

    >>> adata, image = make_tissue(1, n_rows=4, n_cols=4)
    >>> adata.shape, image.dtype
    ((16, 120), dtype('uint8'))
    """
    from anndata import AnnData

    name = f"S{seed}" if name is None else name
    random = np.random.default_rng(seed)
    pitch = PITCH_UM / um_per_px
    row, column = (index.ravel() for index in np.indices((n_rows, n_cols)))
    array_col = 2 * column + row % 2
    margin = 1.5 * pitch
    spots = np.stack([margin + array_col * pitch / 2, margin + row * pitch * 3**0.5 / 2], axis=1)
    width, height = (int(np.ceil(side)) for side in spots.max(axis=0) + margin)

    cells, types = _cells(random, width, height, um_per_px, dominant)
    image = _draw(random, cells, types, width, height, um_per_px)
    counts = _counts(random, spots, cells, types, n_genes, SPOT_UM / um_per_px)
    ids = [f"{name}_{r}x{c}" for r, c in zip(row, array_col, strict=True)]
    obs = pd.DataFrame({"in_tissue": 1, "array_row": row, "array_col": array_col, "section": name}, index=ids)
    adata = AnnData(
        sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"GENE{i:03d}" for i in range(n_genes)])
    )
    adata.obsm["spatial"] = spots.astype(np.float32)
    step = max(1, round(width / 600))
    adata.uns["spatial"] = {
        name: {
            "images": {"lowres": np.ascontiguousarray(image[::step, ::step])},
            "scalefactors": {"tissue_lowres_scalef": 1 / step, "spot_diameter_fullres": SPOT_UM / um_per_px},
            "metadata": {"mpp": um_per_px, "source_image": f"images/{name}.png", "technology": "synthetic"},
        }
    }
    return adata, image


def write_tissue(
    folder: str | Path, seed: int, name: str | None = None, patient: str | None = None, **options: float | None
) -> Path:
    """Write a section to ``folder/NAME.h5ad``, its image to ``folder/images/NAME.png``, and return the first path."""
    from PIL import Image

    name = f"S{seed}" if name is None else name
    adata, image = make_tissue(seed, name=name, **options)  # type: ignore[arg-type]
    if patient is not None:
        adata.obs["patient"] = patient
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "images" / f"{name}.png") as temporary:
        Image.fromarray(image).save(temporary, format="png")
    path = folder / f"{name}.h5ad"
    write_h5ad_atomic(adata, path)
    return path


def _smooth_labels(
    random: np.random.Generator, points: np.ndarray, n: int, spacing: float, extent: float
) -> np.ndarray:
    """Label of the nearest of randomly placed, randomly labelled seeds: Voronoi cells about ``spacing`` wide."""
    n_seeds = max(n, round((extent / spacing) ** 2))
    seeds = random.uniform(0, extent, (n_seeds, 2))
    labels = random.permutation(np.arange(n_seeds) % n)
    return labels[KDTree(seeds).query(points)[1]]


def _within(points: np.ndarray, centres: np.ndarray, radius: float) -> np.ndarray:
    """How many of the points lie within a radius of each centre."""
    if not len(points):
        return np.zeros(len(centres), dtype=int)
    return KDTree(points).query_ball_point(centres, radius, return_length=True)


def _cells(
    random: np.random.Generator, width: int, height: int, um_per_px: float, dominant: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (cell 2) and types (cell,): candidates at the highest density, thinned to that of their niche's type."""
    biology = np.random.default_rng(_BIOLOGY_SEED)
    mixtures = biology.dirichlet(np.full(_N_TYPES, 0.35), (_N_REGIONS, _N_NICHES))
    if dominant is not None:
        mixtures[..., dominant] *= _DOMINANCE
        mixtures /= mixtures.sum(axis=-1, keepdims=True)
    pitch = PITCH_UM / um_per_px
    n = round(_DENSITY.max() * width * height / pitch**2)
    points = random.uniform(0, (width, height), (n, 2))
    extent = float(max(width, height))
    region = _smooth_labels(random, points, _N_REGIONS, 7 * pitch, extent)
    niche = _smooth_labels(random, points, _N_NICHES, 2.5 * pitch, extent)
    cumulative = mixtures[region, niche].cumsum(axis=1)
    types = (random.random((n, 1)) > cumulative).sum(axis=1).clip(max=_N_TYPES - 1)
    kept = random.random(n) < _DENSITY[types] / _DENSITY.max()
    return points[kept], types[kept]


def _draw(
    random: np.random.Generator, cells: np.ndarray, types: np.ndarray, width: int, height: int, um_per_px: float
) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFilter

    image = Image.new("RGB", (width, height), (236, 200, 215))
    draw = ImageDraw.Draw(image)
    for layer, colours, radii in (("matrix", _MATRIX, 3.0 * _RADIUS_UM), ("nucleus", _NUCLEUS, _RADIUS_UM)):
        for (x, y), kind in zip(cells, types, strict=True):
            radius = radii[kind] / um_per_px * random.uniform(0.8, 1.2)
            colour = tuple(int(v) for v in np.clip(colours[kind] + random.normal(0, 8, 3), 0, 255))
            stretch = random.uniform(0.75, 1.3)
            draw.ellipse(
                (x - radius * stretch, y - radius / stretch, x + radius * stretch, y + radius / stretch), colour
            )
        if layer == "matrix":
            image = image.filter(ImageFilter.GaussianBlur(2))
            draw = ImageDraw.Draw(image)
    stain = random.normal(1, 0.03, 3)  # every slide is stained a little differently
    noisy = np.asarray(image, dtype=np.float32) * stain + random.normal(0, 4, (height, width, 1))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _counts(
    random: np.random.Generator, spots: np.ndarray, cells: np.ndarray, types: np.ndarray, n_genes: int, diameter: float
) -> np.ndarray:
    """Negative-binomial counts float32 (spot gene) of the cells under each spot."""
    biology = np.random.default_rng(_BIOLOGY_SEED + 1)
    base = biology.lognormal(0.0, 0.8, n_genes)
    programmes = base * np.exp(
        biology.normal(0, 1.2, (_N_TYPES, n_genes)) * (biology.random((_N_TYPES, n_genes)) < 0.5)
    )
    composition = np.stack(  # a spot gathers a little beyond its rim
        [_within(cells[types == kind], spots, diameter) for kind in range(_N_TYPES)], axis=1
    )
    expression = (composition + 0.2) @ programmes
    expression /= expression.sum(axis=1, keepdims=True)
    mean = expression * random.lognormal(np.log(4000), 0.25, (len(spots), 1))
    dispersion = 10.0
    return random.negative_binomial(dispersion, dispersion / (dispersion + mean)).astype(np.float32)
