"""Curves of a training."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from hyperst.plots.panels import check_format, paper_style, save

__all__ = ["curves_figure"]


def curves_figure(
    curves: pd.DataFrame, path: str | Path, *, name: str, units: str, best_epoch: int | None = None, dpi: int = 300
) -> Path:
    """Draw error and correlation by epoch; a line marks the epoch whose weights are kept.

    Args:
        curves: rows of ``metrics.csv``: epoch, training_mse, validation_mse, validation_pcc.
        path: ends in .pdf, .svg or .png; an earlier file is replaced.
        name: of the run. units: of the expression.

    Raises:
        ValueError: no epoch, or another ending.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    check_format(path)
    if curves.empty:
        raise ValueError("curves: got no epoch; the run has finished none")
    with paper_style():
        figure = Figure(figsize=(7.2, 2.4), layout="constrained")
        error, correlation = figure.subplots(1, 2)
        epochs, marker = curves["epoch"], "o" if len(curves) == 1 else ""
        error.plot(epochs, curves["training_mse"], marker=marker, label="training spots", color="0.5")
        error.plot(epochs, curves["validation_mse"], marker=marker, label="validation spots", color="#4477aa")
        correlation.plot(epochs, curves["validation_pcc"], marker=marker, label="validation spots", color="#4477aa")
        error.set_ylabel(f"mean squared error, ({units})²")
        correlation.set_ylabel("mean over genes of Pearson's r")
        for axis in (error, correlation):
            if best_epoch is not None:
                axis.axvline(best_epoch, color="black", linewidth=0.6, linestyle=":", label=f"kept epoch, {best_epoch}")
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.legend(frameon=False)
        figure.suptitle(f"{name}: training")
        return save(figure, path, dpi)
