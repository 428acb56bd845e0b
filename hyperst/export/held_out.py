"""How well each gene is predicted on sections that a run has not seen, to stand beside what it predicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from hyperst.stain import Stain

__all__ = ["COLUMNS", "held_out_figures"]

COLUMNS = {"pcc": "held_out_pcc", "mse": "held_out_mse", "pcc_null": "held_out_pcc_null"}
"""Columns of ``var`` by those of `per_gene.csv` that they are means of."""


def held_out_figures(
    folder: str | Path, genes: Sequence[str], best_epoch: int, stain: Stain = "none", networks: int = 1
) -> tuple[pd.DataFrame, list[str]]:
    """What evaluations in ``folder/evaluation`` found of each gene, and the sections they are of.

    Args:
        folder: of a run. genes: rows of the result.
        best_epoch: of the weights that predict; evaluations of others are left out.
        stain: as the images are seen; evaluations of images seen otherwise are left out.
        networks: how many predict; evaluations of fewer, before all were trained, are left out.

    Returns:
        A table by gene: ``held_out_pcc``, ``held_out_mse``, and ``held_out_pcc_null``, the correlation that 5 % of shuffles of
        the images exceed; each the mean over the sections where it is defined, NaN where it is in none. Without columns where
        no section has been evaluated.

    Raises:
        ValueError: the files of an evaluation are damaged.
    """
    from hyperst.report.summary import read_evaluations

    index = pd.Index(genes, name="gene")
    found = [
        each
        for each in read_evaluations(folder)
        if each.stain == stain and each.best_epoch in (None, best_epoch) and each.networks == networks
    ]
    if not found:
        return pd.DataFrame(index=index), []
    tables = pd.concat([each.per_gene[[name for name in COLUMNS if name in each.per_gene]] for each in found])
    means = tables.groupby(level=0).mean().reindex(index=index, columns=list(COLUMNS))
    return means.rename(columns=COLUMNS).astype(float), [each.section for each in found]
