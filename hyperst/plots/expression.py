"""Measured and predicted expression of genes over the tissue, and the error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hyperst.data import Section
from hyperst.metrics import per_gene_pearson
from hyperst.plots.panels import check_format, draw_image, draw_spots, paper_style, save
from hyperst.plots.tissue import Tissue, tissue_of_section

__all__ = ["Scale", "error_figure", "expression_figure"]

Scale = Literal["shared", "z-score"]
"""Colours of measured and predicted: one range in the units for both, or of each the distance from its mean by its spread."""

_WIDTH = 7.2  # inches: the text width of a journal's page
_PER_ROW = 4  # panels


def expression_figure(
    section: Section | Tissue,
    gene_names: Sequence[str],
    prediction: np.ndarray,
    measured: np.ndarray | None,
    path: str | Path,
    *,
    units: str,
    genes: Sequence[str] = (),
    n_best: int = 3,
    scale: Scale = "shared",
    held_out: np.ndarray | None = None,
    dpi: int = 300,
) -> Path:
    """Draw genes over the tissue: a row for each with image, measured, predicted and error; without measurements predicted alone.

    Titles say which name is the section's and which the gene's: there is a gene C3. Spots have their true size, the image a scale
    bar in um. Measured and predicted have one colour bar for both, the error (predicted less measured, red where too high) its own.

    Args:
        prediction, measured: (spot gene) on one scale, columns named by ``gene_names``.
        path: ends in .pdf, .svg or .png; an earlier file is replaced.
        units: of both, for the colour bars.
        genes: to draw, after the ``n_best`` best predicted ones; those need measurements.
        scale: see :data:`Scale`; with "z-score" the error is the difference of both.
        held_out: correlations (gene,) on other sections, to stand under a prediction without measurements.
        dpi: of a PNG, and of the images in the others.

    Raises:
        ValueError: a chosen gene is not among ``gene_names``, there is none to draw, or another ending.
    """
    from matplotlib.figure import Figure

    check_format(path)
    names = list(gene_names)
    if unknown := [gene for gene in genes if gene not in names]:
        raise ValueError(f"genes to draw must be among the predicted ones; not found: {', '.join(unknown)}")
    correlation, best = np.full(len(names), np.nan), []
    if measured is not None:
        correlation = np.asarray(per_gene_pearson(np.asarray(prediction), np.asarray(measured)), dtype=np.float64)
        order = np.argsort(-np.nan_to_num(correlation, nan=-1.0), kind="stable")
        best = [names[i] for i in order[:n_best]]
    shown = list(dict.fromkeys([*best, *genes]))
    if not shown:
        raise ValueError("genes: got none to draw; name some")
    tissue = tissue_of_section(section) if isinstance(section, Section) else section
    with paper_style():
        if measured is None:
            columns = min(_PER_ROW, len(shown) + 1)
            rows = -(-(len(shown) + 1) // columns)
            figure = Figure(figsize=_size(tissue, rows, columns), layout="constrained")
            axes = figure.subplots(rows, columns, squeeze=False).ravel()
            draw_image(axes[0], tissue, "H&E")
            for axis, gene in zip(axes[1:], shown, strict=False):
                column = names.index(gene)
                _predicted(figure, axis, tissue, prediction[:, column], f"gene {gene}, predicted", units, scale)
                if held_out is not None and np.isfinite(held_out[column]):
                    axis.set_xlabel(f"held-out r = {held_out[column]:.2f}")
            for axis in axes[len(shown) + 1 :]:
                axis.set_axis_off()
            figure.suptitle(f"section {tissue.name}: predicted, not measured")
        else:
            figure = Figure(figsize=_size(tissue, len(shown)), layout="constrained")
            for row, gene in zip(figure.subplots(len(shown), _PER_ROW, squeeze=False), shown, strict=True):
                column = names.index(gene)
                both = (measured[:, column], prediction[:, column])
                _compared(figure, row, tissue, both, gene, float(correlation[column]), units, scale)
            of_best = f": best predicted {len(best)} of {len(names)} genes" if best else ""
            figure.suptitle(
                f"section {tissue.name}{of_best}{', and chosen ones' if best and len(shown) > len(best) else ''}"
            )
        return save(figure, path, dpi)


def error_figure(
    section: Section | Tissue,
    prediction: np.ndarray,
    measured: np.ndarray,
    path: str | Path,
    *,
    units: str,
    dpi: int = 300,
) -> Path:
    """Draw the error over all genes: the root of its mean square in each spot, and its mean (red: too high on the whole).

    Arguments and errors: see :func:`expression_figure`.
    """
    from matplotlib.figure import Figure

    check_format(path)
    tissue = tissue_of_section(section) if isinstance(section, Section) else section
    error = np.asarray(prediction, dtype=np.float64) - measured
    with paper_style():
        figure = Figure(figsize=_size(tissue, 1, panels=3), layout="constrained")
        axes = figure.subplots(1, 3)
        draw_image(axes[0], tissue, "H&E")
        size = np.sqrt((error**2).mean(axis=1))
        drawn = draw_spots(axes[1], tissue, size, "root mean squared error", cmap="magma", clim=(0, float(size.max())))
        figure.colorbar(drawn, ax=axes[1], label=units, shrink=0.8)
        _error(figure, axes[2], tissue, error.mean(axis=1), "mean error", units)
        figure.suptitle(f"section {tissue.name}: error over {error.shape[1]} genes")
        return save(figure, path, dpi)


def _size(tissue: Tissue, rows: int, panels: int = _PER_ROW) -> tuple[float, float]:
    """Inches of a figure of ``rows`` of panels, a fifth of whose width goes to colour bars."""
    left, top, right, bottom = tissue.box
    panel = 0.8 * _WIDTH / panels
    return _WIDTH, rows * (panel * (bottom - top) / (right - left) + 0.4) + 0.2


def _compared(
    figure: Any,
    row: Any,
    tissue: Tissue,
    both: tuple[np.ndarray, np.ndarray],
    gene: str,
    correlation: float,
    units: str,
    scale: Scale,
) -> None:
    """Image, measured, predicted and error of a gene."""
    measured, predicted = (_scaled(values, scale) for values in both)
    label = _label(units, scale)
    low, high = min(measured.min(), predicted.min()), max(measured.max(), predicted.max())
    draw_image(row[0], tissue, f"section {tissue.name}, H&E")
    draw_spots(row[1], tissue, measured, f"gene {gene}, measured", cmap="viridis", clim=(low, high))
    drawn = draw_spots(row[2], tissue, predicted, f"gene {gene}, predicted", cmap="viridis", clim=(low, high))
    row[2].set_xlabel(f"r = {correlation:.2f}" if np.isfinite(correlation) else "r undefined")
    figure.colorbar(drawn, ax=list(row[1:3]), label=label, shrink=0.8)
    _error(figure, row[3], tissue, predicted - measured, f"gene {gene}, error", label)


def _predicted(
    figure: Any, axis: Any, tissue: Tissue, values: np.ndarray, title: str, units: str, scale: Scale
) -> None:
    drawn = draw_spots(axis, tissue, _scaled(values, scale), title, cmap="viridis")
    figure.colorbar(drawn, ax=axis, label=_label(units, scale), shrink=0.8)


def _error(figure: Any, axis: Any, tissue: Tissue, error: np.ndarray, title: str, label: str) -> None:
    most = float(np.abs(error).max()) or 1.0  # a perfect prediction is white
    drawn = draw_spots(axis, tissue, error, title, cmap="RdBu_r", clim=(-most, most))
    figure.colorbar(drawn, ax=axis, label=f"predicted − measured\n{label}", shrink=0.8)


def _scaled(values: np.ndarray, scale: Scale) -> np.ndarray:
    """``values`` (spot,) as they are, or less their mean in standard deviations; a constant has none and is 0."""
    values = np.asarray(values, dtype=np.float64)
    if scale == "shared":
        return values
    if np.ptp(values) == 0:
        return np.zeros_like(values)
    return (values - values.mean()) / values.std()


def _label(units: str, scale: Scale) -> str:
    return units if scale == "shared" else f"z-score of {units}"
