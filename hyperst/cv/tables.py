"""The cells of a cross-validation as tidy tables, and rows compared with a named one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hyperst.cv.scores import METHODS
from hyperst.intervals import Interval, paired_interval

__all__ = ["BETTER", "Comparison", "compare", "sections_table", "summarise_rows", "tidy_table"]

BETTER = {"pcc": 1, "mse": -1}
"""Metrics that rows are compared by, and the sign of a better one."""


def tidy_table(results: Sequence[dict[str, Any]], first: str) -> pd.DataFrame:
    """One line per fold, seed, row and metric: columns fold, seed, row, metric, value; value is empty where it is not defined.

    Args:
        results: what :func:`hyperst.cv.cells.run_cell` returned for each finished cell.
        first: the row whose cells give the baselines: ``ridge_own``, on the features of that row's runs, ``ridge_stain``,
            ``training_mean`` and ``noise_ceiling``. Those of the other rows are in the cells.
    """
    return _lines(results, first, fold=True).drop(columns="section")


def sections_table(results: Sequence[dict[str, Any]], first: str) -> pd.DataFrame:
    """The same for each test section: columns fold, seed, row, section, metric, value."""
    return _lines(results, first, fold=False)


def _lines(results: Sequence[dict[str, Any]], first: str, *, fold: bool) -> pd.DataFrame:
    lines = [
        (result["fold"]["name"], result["seed"], result["row"] if method == "model" else method, section, metric, value)
        for result in results
        for method in METHODS
        if method in result["scores"] and (method == "model" or result["row"] == first)
        for section, scores in result["scores"][method].items()
        if (section == "") == fold
        for metric, value in scores.items()
    ]
    table = pd.DataFrame(lines, columns=["fold", "seed", "row", "section", "metric", "value"])
    order = [*dict.fromkeys(result["row"] for result in results), *METHODS[1:]]
    return table.astype({"value": float}).sort_values("row", key=lambda rows: rows.map(order.index), kind="stable")


def grid(table: pd.DataFrame, row: str, metric: str) -> pd.DataFrame:
    """Values of one row and metric, (fold seed) with their names, NaN where there is none."""
    chosen = table[(table["row"] == row) & (table["metric"] == metric)]
    values = chosen.pivot(index="fold", columns="seed", values="value")
    return values.reindex(index=table["fold"].unique(), columns=table["seed"].unique())


@dataclass(frozen=True)
class Comparison:
    """A row beside the reference by one metric; ``interval`` is of row minus reference, None without a common cell."""

    row: str
    reference: str
    metric: str
    interval: Interval | None

    def sentence(self) -> str:
        """What may be said: which is better only where the interval excludes 0."""
        name = self.metric.upper()
        if self.interval is None:
            return f"{name} of {self.row} and {self.reference} have no fold and seed in common."
        mean, low, high = self.interval.mean, self.interval.low, self.interval.high
        if low is None or high is None:
            return (
                f"{name} of {self.row} less that of {self.reference} is {mean:+.4f} in the only fold that both have: nothing can "
                "be said of others."
            )
        found = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
        if not self.interval.excludes_zero:
            return f"{name}: no difference of {self.row} and {self.reference} is shown, {found}."
        better = (mean > 0) == (BETTER[self.metric] > 0)
        return f"{name}: {self.row} is {'better' if better else 'worse'} than {self.reference}, {found}."


def compare(table: pd.DataFrame, reference: str) -> list[Comparison]:
    """Every other row but the noise ceiling beside ``reference``, by each metric of :data:`BETTER` that both have.

    Args:
        table: of :func:`tidy_table`.
    """
    found = []
    for row in [name for name in table["row"].unique() if name not in (reference, "noise_ceiling")]:
        for metric in BETTER:
            ours, theirs = grid(table, row, metric), grid(table, reference, metric)
            if ours.notna().to_numpy().any() and theirs.notna().to_numpy().any():
                difference = ours - theirs
                found.append(Comparison(row, reference, metric, paired_interval(difference.to_numpy())))
    return found


def summarise_rows(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    """One line per row and metric, with columns row, metric, n_cells, mean, sd_folds, sd_seeds, difference, low, high.

    ``mean`` is over folds of the mean over seeds, ``sd_folds`` the standard deviation (n - 1) of these over folds, ``sd_seeds`` the
    root mean over folds of the variance (n - 1) over seeds. ``difference`` is that to the reference row, with its 95 %
    interval, see :func:`hyperst.intervals.paired_interval`. Empty where there are too few cells, or no reference.
    """
    lines = []
    for row in table["row"].unique():
        for metric in table["metric"][table["row"] == row].unique():
            values = grid(table, row, metric)
            if not values.notna().to_numpy().any():
                continue
            folds = values.mean(axis=1)
            interval = (
                paired_interval((values - grid(table, reference, metric)).to_numpy()) if row != reference else None
            )
            difference = (None,) * 3 if interval is None else (interval.mean, interval.low, interval.high)
            spread = float(np.sqrt(values.var(axis=1, ddof=1).mean()))
            cells = int(values.notna().to_numpy().sum())
            lines.append((row, metric, cells, folds.mean(), folds.std(ddof=1), spread, *difference))
    columns = ["row", "metric", "n_cells", "mean", "sd_folds", "sd_seeds", "difference", "low", "high"]
    return pd.DataFrame(lines, columns=columns).astype({name: float for name in columns[3:]})
