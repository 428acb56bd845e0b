"""The figures of a run: its training, its evaluated sections, and predictions."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from hyperst.files import distinct_file_names
from hyperst.plots.curves import curves_figure
from hyperst.plots.expression import Scale, error_figure, expression_figure
from hyperst.plots.panels import require_figure
from hyperst.plots.tissue import tissue_of_prediction
from hyperst.prediction_anndata import SHORT_UNITS
from hyperst.report.spots import read_prediction
from hyperst.report.summary import collect
from hyperst.run import RunFolder

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Format", "plot_run"]

Format = Literal["pdf", "svg", "png"]
_N_BEST = 3


def plot_run(
    folder: str | Path,
    predictions: Sequence[str | Path] = (),
    *,
    genes: Sequence[str] = (),
    ending: Format = "pdf",
    scale: Scale = "shared",
    image: str | Path | None = None,
    output: str | Path | None = None,
) -> list[Path]:
    """Draw predictions of a run, or without any its training and evaluated sections, and return the files.

    ``NAME_expression`` shows genes over the tissue, measured and predicted, ``NAME_error`` the error over all genes;
    ``NAME_predicted`` shows genes of a prediction without measurements, ``training_curves`` error and correlation by epoch.

    Args:
        folder: of the run.
        predictions: .h5ad files that `hyperst predict` or `hyperst evaluate` has written.
        genes: to draw; default the three best predicted, by the measurements in the file, or else by ``var['held_out_pcc']``,
            or else those that vary most.
        ending: format of the files.
        scale: see :data:`hyperst.plots.Scale`.
        image: full-resolution image of the only prediction; default the thumbnail in the file.
        output: folder of the figures, default ``figures`` in the run; earlier figures are replaced.

    Raises:
        FileNotFoundError: no run, or no such prediction.
        ValueError: a damaged file, a prediction of other genes, a gene that is none of the run's, ``image`` beside several
            predictions, or nothing to draw.
        FileExistsError: a file of that name is there and is no figure.
    """
    place = RunFolder(folder)
    place.require()
    if image is not None and len(predictions) != 1:
        raise ValueError(f"image (--image) goes with one prediction, got {len(predictions)}")
    summary = collect(folder)
    _check_genes(genes, summary.genes, place)
    out = place.path / "figures" if output is None else Path(output)
    evaluated = [] if predictions else [each for each in summary.evaluations if each.expression is not None]
    files = [*map(Path, predictions), *(each.expression for each in evaluated if each.expression is not None)]
    found = [read_prediction(file, summary.genes) for file in files]
    called = [each.section for each in evaluated] or [
        _name(adata, path) for adata, path in zip(found, files, strict=True)
    ]
    names = distinct_file_names(called, files)
    curves = out / f"training_curves.{ending}"
    drawn = [] if predictions or summary.curves.empty else [curves]
    if not found and (genes or not drawn):
        raise ValueError(
            f"{place.path} has no evaluated section to draw; run `hyperst evaluate` first, or give a prediction (.h5ad)"
        )
    for name, adata in zip(names, found, strict=True):
        drawn += [out / f"{name}_{what}.{ending}" for what in _figures(adata)]
    for path in drawn:
        require_figure(path)
    if curves in drawn:
        best = None if summary.training is None else summary.training.get("best_epoch")
        units = SHORT_UNITS[summary.config.data.target]
        curves_figure(summary.curves, curves, name=place.path.resolve().name, units=units, best_epoch=best)
    for name, adata in zip(names, found, strict=True):
        _draw(adata, name, out, ending, genes, scale, image)
    return drawn


def _figures(adata: AnnData) -> tuple[str, ...]:
    return ("expression", "error") if "measured" in adata.layers else ("predicted",)


def _draw(
    adata: AnnData,
    name: str,
    out: Path,
    ending: Format,
    genes: Sequence[str],
    scale: Scale,
    image: str | Path | None,
) -> None:
    tissue = tissue_of_prediction(adata, name, image)
    units = SHORT_UNITS[adata.uns["hyperst"]["target"]]
    predicted, measured = np.asarray(adata.X), adata.layers.get("measured")
    what = _figures(adata)[0]
    if measured is None:
        genes = genes or _promising(adata)
    else:
        error_figure(tissue, predicted, measured, out / f"{name}_error.{ending}", units=units)
    expression_figure(
        tissue,
        list(adata.var_names),
        predicted,
        measured,
        out / f"{name}_{what}.{ending}",
        units=units,
        genes=genes,
        n_best=0 if genes else _N_BEST,
        scale=scale,
        held_out=_held_out(adata),
    )


def _promising(adata: AnnData) -> list[str]:
    """Genes to draw of a prediction without measurements: those that evaluations found best, else those that vary most."""
    scores = _held_out(adata)
    values = np.asarray(adata.X).std(axis=0) if scores is None else np.nan_to_num(scores, nan=-1.0)
    return [str(adata.var_names[i]) for i in np.argsort(-values, kind="stable")[:_N_BEST]]


def _held_out(adata: AnnData) -> np.ndarray | None:
    scores = adata.var.get("held_out_pcc")
    return None if scores is None else scores.to_numpy(dtype=np.float64)


def _name(adata: AnnData, path: Path) -> str:
    return str(next(iter(adata.uns.get("spatial", {})), path.stem))


def _check_genes(genes: Sequence[str], known: Sequence[str], place: RunFolder) -> None:
    for gene in genes:
        if gene not in known:
            near = difflib.get_close_matches(gene, known, n=3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(
                f"gene {gene} (--gene) is none of the {len(known)} genes of the run; {hint}{place.genes} lists those it predicts"
            )
