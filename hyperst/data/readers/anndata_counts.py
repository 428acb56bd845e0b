"""Where the raw counts of an AnnData are, and what its genes are called."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from hyperst.data.readers.table import check_counts, check_unique, count_problem, in_memory, unique_names

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Counts", "read_counts"]

_LAYERS = ("counts", "raw_counts", "raw_count", "count", "raw", "umi", "umis", "umi_counts")
_SYMBOLS = (
    "gene_symbols",
    "gene_symbol",
    "symbol",
    "symbols",
    "gene_name",
    "gene_names",
    "feature_name",
    "gene_short_name",
)


class Counts(NamedTuple):
    """Raw counts float32 (spot gene), the genes' names (gene,), and their symbols (gene,) where the names are others."""

    matrix: sparse.csr_array
    genes: np.ndarray
    symbols: np.ndarray | None


class _Place(NamedTuple):
    where: str
    matrix: Any
    genes: pd.DataFrame
    problem: str | None


def read_counts(adata: AnnData, path: Path, gene_names: str | None = None) -> Counts:
    """Find the raw counts in X, in a layer of a usual name or in raw, in this order; raw first where it has more genes.

    Args:
        gene_names: column of ``var`` with the genes' names; default the index.

    Raises:
        ValueError: no place holds raw counts (the message says what each holds), no such column, or names that repeat.
    """
    places = list(_places(adata))
    if not places:
        raise ValueError(f"{path}: X is empty and there is no layers['counts']; store the raw integer counts in X")
    good = [place for place in places if place.problem is None]
    if not good:
        said = "; ".join(f"{place.where}: {place.problem}" for place in places)
        raise ValueError(
            f"{path}: no place holds raw counts ({said}). They look normalised, log-transformed or scaled; store the raw "
            f"integer counts in X, in layers['counts'] or in raw{_other_layers(adata)}"
        )
    chosen = good[0]
    fuller = next((place for place in good if place.where == "raw" and len(place.genes) > len(chosen.genes)), None)
    if fuller is not None and chosen.genes.index.isin(fuller.genes.index).all():
        warnings.warn(
            f"{path}: raw holds the raw counts of {len(fuller.genes)} genes and {chosen.where} of {len(chosen.genes)} of "
            "them, so raw is used: a spot's total count is over all measured genes",
            stacklevel=2,
        )
        chosen = fuller
    elif chosen.where != "X":
        why = "is empty" if adata.X is None else "does not hold raw counts"
        warnings.warn(f"{path}: X {why}, so {chosen.where} is used", stacklevel=2)
    others = [place.where for place in good if place is not chosen and _differ(place, chosen)]
    if others:
        warnings.warn(
            f"{path}: {chosen.where} and {' and '.join(others)} all hold whole numbers, and not the same; {chosen.where} is used. "
            "Make sure that it holds the raw counts, and remove or rename what does not",
            stacklevel=2,
        )
    genes = _gene_names(chosen.genes, gene_names, path)
    check_unique(genes, "gene", path, "sum or drop them, e.g. adata.var_names_make_unique()")
    return Counts(check_counts(chosen.matrix, f"{path}: {chosen.where}"), genes, _symbols(chosen.genes))


def _places(adata: AnnData) -> Iterator[_Place]:
    if adata.X is not None:
        yield _Place("X", adata.X, in_memory(adata.var), _problem(adata.X))
    layers = _layers(adata)
    known = {str(name).lower(): name for name in layers}
    for name in _LAYERS:
        if name in known:
            matrix = layers[known[name]]
            yield _Place(f"layers[{known[name]!r}]", matrix, in_memory(adata.var), _problem(matrix))
    if adata.raw is not None:
        yield _Place("raw", adata.raw.X, adata.raw.var, _problem(adata.raw.X))


def _layers(adata: AnnData) -> dict[str, Any]:
    """Matrices by name, without X, which anndata 0.13 lists among them under None."""
    return {name: matrix for name, matrix in dict(adata.layers).items() if name is not None}


def _problem(matrix: Any) -> str | None:
    values = np.asarray(matrix.data if hasattr(matrix, "indptr") else matrix)
    if matrix.shape[1] == 0:
        return "no genes"
    problem = count_problem(values)
    return "no count above 0" if problem is None and not values.any() else problem


def _differ(one: _Place, other: _Place) -> bool:
    """Whether two places of the same genes hold other values; of others they may."""
    if not one.genes.index.equals(other.genes.index):
        return False
    return bool((sparse.csr_array(one.matrix) != sparse.csr_array(other.matrix)).nnz)


def _other_layers(adata: AnnData) -> str:
    layers = _layers(adata)
    names = [name for name in layers if str(name).lower() not in _LAYERS and _problem(layers[name]) is None]
    if not names:
        return ""
    shown = ", ".join(map(repr, names))
    return f". Layers of other names hold whole numbers ({shown}): rename one to 'counts' if it holds the raw counts"


def _gene_names(var: pd.DataFrame, column: str | None, path: Path) -> np.ndarray:
    ids = np.asarray(var.index, dtype=str)
    if column is None:
        return ids
    if column not in var:
        held = ", ".join(map(str, var.columns)) or "nothing"
        raise ValueError(f"{path}: no column {column!r} in var for the genes' names (--gene-names); var holds {held}")
    return unique_names(var[column].astype(object).fillna("").astype(str).to_numpy(), ids)


def _symbols(var: pd.DataFrame) -> np.ndarray | None:
    known = {str(column).lower(): column for column in var.columns}
    found = next((known[name] for name in _SYMBOLS if name in known), None)
    return None if found is None else var[found].astype(object).fillna("").astype(str).to_numpy(dtype=str)
