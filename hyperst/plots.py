"""Pictures of predicted and measured expression over the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hyperst.data import Section
from hyperst.files import atomic_path
from hyperst.metrics import per_gene_pearson

__all__ = ["expression_figure"]


def expression_figure(
    section: Section,
    gene_names: Sequence[str],
    prediction: np.ndarray,
    measured: np.ndarray,
    path: str | Path,
    *,
    genes: Sequence[str] = (),
    n_best: int = 3,
) -> Path:
    """Measured and predicted expression of the best predicted genes and of ``genes``, side by side; a PNG.

    Args:
        prediction, measured: (spot gene) on one scale, columns named by ``gene_names``.

    Raises:
        ValueError: a chosen gene is not among ``gene_names``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(gene_names)
    if unknown := [gene for gene in genes if gene not in names]:
        raise ValueError(f"genes to draw must be among the predicted ones; not found: {', '.join(unknown)}")
    correlation = np.nan_to_num(per_gene_pearson(np.asarray(prediction), np.asarray(measured)), nan=-1.0)
    best = [names[i] for i in np.argsort(-correlation, kind="stable")[:n_best]]
    shown = list(dict.fromkeys([*best, *genes]))
    thumbnail, scale = _background(section)
    spots = section.spot_px * scale
    pitch = (section.grid.pitch_px or 50.0) * scale
    # the measured part of the slide, with a margin
    (left, top), (right, bottom) = spots.min(axis=0) - 1.5 * pitch, spots.max(axis=0) + 1.5 * pitch
    width, height = right - left, bottom - top

    panel = 3.4
    figure = Figure(figsize=(2 * panel + 1.6, panel * height / width * len(shown) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), 2, squeeze=False)
    points_per_pixel = panel * 72 / width
    for row, gene in zip(axes, shown, strict=True):
        column = names.index(gene)
        # one colour scale for both panels would hide the pattern of a shrunken prediction: each has its own bar
        for axis, values, what in ((row[0], measured, "measured"), (row[1], prediction, "predicted")):
            axis.imshow(thumbnail, alpha=0.35)
            drawn = axis.scatter(
                spots[:, 0], spots[:, 1], c=values[:, column], s=(0.8 * pitch * points_per_pixel) ** 2, cmap="viridis"
            )
            figure.colorbar(drawn, ax=axis, shrink=0.75)
            axis.set_xlim(left, right)
            axis.set_ylim(bottom, top)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(f"{gene}, {what}" + (f" (r = {correlation[column]:.2f})" if what == "predicted" else ""))
    figure.suptitle(f"{section.name}: best predicted genes" + (" and chosen ones" if genes else ""))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    return Path(path)


def _background(section: Section) -> tuple[np.ndarray, float]:
    """Thumbnail of the tissue and its scale; white where the section was read without an image."""
    if section.image_path is None:
        extent = section.spot_px.max(axis=0) + (section.grid.pitch_px or 50.0)
        scale = 1000 / float(np.max(extent))
        return np.full((*np.ceil(extent[::-1] * scale).astype(int), 3), 255, dtype=np.uint8), scale
    with section.open_image() as image:
        thumbnail = image.thumbnail(2000)
        return thumbnail, thumbnail.shape[1] / image.width
