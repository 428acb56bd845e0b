"""The table of a cross-validation, on a terminal and as a page."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hyperst.cv.tables import BETTER, grid
from hyperst.files import write_text_atomic

if TYPE_CHECKING:
    from hyperst.cv.run import CrossValidation

__all__ = ["below_the_mean", "sentences", "table_cells", "write_report"]

_SHORT = ("pcc", "pcc_10", "mse")
_SIGNED = ("pcc", "moran_pcc")


def table_cells(found: CrossValidation, *, short: bool) -> tuple[list[str], list[list[str]]]:
    """Names of the columns, and a list of cells for each row; ``short`` leaves out what a terminal has no room for."""
    metrics = [name for name in found.summary["metric"].unique() if not name.endswith("_null")]
    metrics = [name for name in metrics if name in _SHORT or not short]
    head = ["row"]
    for metric in metrics:
        head += [metric, f"{metric} - {found.reference}"] if metric in BETTER else [metric]
    lines = []
    for row in found.summary["row"].unique():
        values = {str(line["metric"]): line for line in found.summary[found.summary["row"] == row].to_dict("records")}
        line = [str(row)]
        for metric in metrics:
            line.append(_value(values, metric))
            if metric in BETTER:
                line.append(_difference(values, metric))
        lines.append(line)
    return head, lines


def _value(values: dict[str, dict[Any, Any]], metric: str) -> str:
    if metric not in values:
        return "-"
    sign = "+" if metric.startswith(_SIGNED) else ""
    mean, spread, null = values[metric]["mean"], values[metric]["sd_folds"], values.get(f"{metric}_null")
    beside = "" if null is None else f" (null {null['mean']:+.3f})"
    return f"{mean:{sign}.3f}{'' if isnan(spread) else f' ± {spread:.3f}'}{beside}"


def _difference(values: dict[str, dict[Any, Any]], metric: str) -> str:
    if metric not in values or isnan(values[metric]["difference"]):
        return "-"
    difference, low, high = (values[metric][name] for name in ("difference", "low", "high"))
    return f"{difference:+.3f}{'' if isnan(low) else f' [{low:+.3f}, {high:+.3f}]'}"


def sentences(found: CrossValidation) -> list[str]:
    """What may be said of every row, and on how many folds the reference has a smaller error than the training mean."""
    said = [comparison.sentence() for comparison in found.comparisons]
    return said + ([line] if (line := below_the_mean(found.scores, found.reference)) else [])


def below_the_mean(scores: pd.DataFrame, row: str) -> str | None:
    """On how many folds the MSE of ``row``, mean over seeds, is below that of the training mean; None where it is not known."""
    differences = (grid(scores, row, "mse") - grid(scores, "training_mean", "mse")).mean(axis=1).dropna()
    if row == "training_mean" or differences.empty:
        return None
    return f"MSE of {row} is below that of the training mean in {int((differences < 0).sum())} of {len(differences)} folds."


def write_report(found: CrossValidation, path: Path) -> Path:
    """Write the table, what may be said, and what the numbers do not say, as Markdown; atomically."""
    scores = found.scores
    n_folds, n_seeds, n_rows = (scores[name].nunique() for name in ("fold", "seed", "row"))
    head, lines = table_cells(found, short=False)
    text = [
        "# Cross-validation",
        "",
        f"{n_folds} folds, {n_seeds} seeds, {n_rows} rows. Mean over folds of the mean over seeds ± standard deviation over folds; "
        f"difference to {found.reference} with its 95 % interval over folds. PCC-k beside that of "
        "shuffled images (null).",
        "",
        *(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)),
        "",
        "## What may be said",
        "",
        *(f"- {line}" for line in sentences(found)),
        "",
        "## What has to be known",
        "",
        *(f"- {line}" for line in found.notes),
    ]
    if found.failures:
        text += ["", "## Cells that failed", "", *(f"- {name}: {error}" for name, error in found.failures.items())]
    return write_text_atomic(path, "\n".join(text) + "\n")
