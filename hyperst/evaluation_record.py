"""What an evaluation leaves: each gene's figures and their intervals, and the files.

Intervals are over blocks of spots, see :func:`hyperst.intervals.spot_intervals`: of other sections they say nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hyperst.baselines import MEAN, OURS, RIDGE_OWN, RIDGE_STAIN
from hyperst.data import Section
from hyperst.evaluation_doubt import Doubt
from hyperst.export.held_out import COLUMNS as HELD_OUT
from hyperst.files import atomic_path, write_h5ad_atomic, write_json_atomic
from hyperst.intervals import Interval, gene_interval, mean_interval, resampled_correlations, spot_intervals
from hyperst.metrics import per_gene_pearson
from hyperst.nearest import add_nearest, read_training_spots
from hyperst.prediction_anndata import SHORT_UNITS, section_anndata
from hyperst.run import Run

if TYPE_CHECKING:
    from hyperst.evaluation import Evaluation

__all__ = ["COLUMNS", "EXPRESSION", "gene_figures", "write_evaluation"]

COLUMNS = {OURS: "pcc", RIDGE_OWN: "pcc_ridge_own", RIDGE_STAIN: "pcc_ridge_stain"}
"""Column of `per_gene.csv` with the correlations of a method; that of a difference's interval has ``_low`` and ``_high`` behind."""
EXPRESSION = "expression.h5ad"
_N_SHUFFLES = 200
_NULL_QUANTILE = 0.95


def gene_figures(
    genes: Sequence[str], predictions: Mapping[str, np.ndarray], measured: np.ndarray, blocks: np.ndarray, seed: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """What is known of each gene, and intervals of the mean over genes.

    Args:
        genes: names of the columns. predictions: (spot gene) by method. measured: (spot gene).
        blocks: integers (spot,), the same for spots that are drawn together.
        seed: of the shuffles.

    Returns:
        A table with a row per gene, by falling correlation: ``pcc`` with its 95 % interval ``pcc_low``, ``pcc_high``;
        ``pcc_null``, which 5 % of the correlations under images shuffled between spots exceed; of each ridge regression its
        correlation and the interval of ours less that one, ``over_ridge_own_low`` and so on; NaN where undefined.
        And plain values for JSON: "pcc", the interval of our mean correlation, and "differences", of ours less each
        baseline's "pcc" and "mse".
    """
    table = pd.DataFrame(index=pd.Index(genes, name="gene"))
    resampled = {
        name: resampled_correlations(predictions[name], measured, blocks) for name in COLUMNS if name in predictions
    }
    for method in resampled:
        column = COLUMNS[method]
        table[column] = np.asarray(per_gene_pearson(predictions[method], measured), dtype=np.float64)
        over = resampled[OURS] if method == OURS else resampled[OURS] - resampled[method]
        named = column if method == OURS else column.replace("pcc", "over", 1)
        table[f"{named}_low"], table[f"{named}_high"] = gene_interval(over)
    table["pcc_null"] = _null(predictions[OURS], measured, seed)
    ours = predictions[OURS].astype(np.float64)
    table["mse"] = ((ours - measured) ** 2).mean(axis=0)
    table["measured_mean"] = measured.mean(axis=0, dtype=np.float64)
    table["measured_std"] = measured.std(axis=0, dtype=np.float64)
    table["measured_fraction_nonzero"] = (measured > 0).mean(axis=0)
    differences = {
        name: {key: asdict(each) for key, each in spot_intervals(predictions[OURS], other, measured, blocks).items()}
        for name, other in predictions.items()
        if name in (RIDGE_OWN, RIDGE_STAIN, MEAN)
    }
    intervals = {"pcc": _plain(mean_interval(resampled[OURS])), "differences": differences}
    return table.sort_values("pcc", ascending=False, kind="stable"), intervals


def _null(prediction: np.ndarray, measured: np.ndarray, seed: int) -> np.ndarray:
    """The correlation (gene,) that 5 % of 200 shuffles of the spots exceed."""
    random = np.random.default_rng(seed)
    shuffled = [per_gene_pearson(prediction[random.permutation(len(prediction))], measured) for _ in range(_N_SHUFFLES)]
    return np.quantile(np.asarray(shuffled, dtype=np.float64), _NULL_QUANTILE, axis=0)


def _plain(interval: Interval | None) -> dict[str, float | None] | None:
    return None if interval is None else asdict(interval)


def write_evaluation(
    run: Run,
    section: Section,
    evaluation: Evaluation,
    kept: Sequence[str],
    prediction: np.ndarray,
    measured: np.ndarray,
    genes: Iterable[str],
    settings: Mapping[str, Any],
    doubt: Doubt,
    placed: np.ndarray,
) -> None:
    """Write metrics.json, per_gene.csv, expression.h5ad and the figure of ``genes`` into the evaluation's folder.

    Args:
        kept: names of the columns of ``prediction`` and ``measured`` (spot gene).
        settings: what else metrics.json shall hold.
        placed: (spot width), the network's image features.
    """
    from hyperst.plots import expression_figure

    with atomic_path(evaluation.folder / "per_gene.csv") as temporary:
        evaluation.per_gene.to_csv(temporary, float_format="%.6g")
    spots = section_anndata(run, section, prediction, kept)
    spots.var = evaluation.per_gene.loc[list(kept), list(HELD_OUT)].rename(columns=HELD_OUT)
    spots.layers["measured"] = np.asarray(measured, dtype=np.float32)
    doubt.add_to(spots)
    add_nearest(spots, read_training_spots(run.folder, run.checkpoint), placed)
    spots.uns["hyperst"]["content"] = "X predicted from the image; layers['measured'] measured, on the same scale"
    write_h5ad_atomic(spots, evaluation.folder / EXPRESSION)
    record = {
        "section": evaluation.section,
        "patient": section.patient,
        "file": None if section.path is None else str(Path(section.path).resolve()),
        **settings,
        "n_spots": evaluation.n_spots,
        "excluded_spots": list(section.excluded_spots),
        "n_genes": len(evaluation.per_gene),
        "missing_genes": list(evaluation.missing_genes),
        "target": evaluation.target,
        "best_epoch": run.best_epoch,
        "networks": len(run.networks),
        "training_sections": [each.name for each in run.split.role("training")],
        "methods": {name: entry.as_json() for name, entry in evaluation.scores.items()},
        "caveats": evaluation.caveats,
    }
    write_json_atomic(evaluation.folder / "metrics.json", record)
    units = SHORT_UNITS[evaluation.target]
    expression_figure(section, kept, prediction, measured, evaluation.figure, units=units, genes=list(genes), dpi=200)
