"""Sections of legacy Spatial Transcriptomics: a table of counts and a table of selected spots."""

from __future__ import annotations

import gzip
import re
import warnings
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from hyperst.data.grid import is_staggered
from hyperst.data.readers.h5ad import LEGACY_PITCH_UM, LEGACY_SPOT_UM
from hyperst.data.readers.table import (
    Scale,
    SpotTable,
    check_counts,
    check_positions,
    check_unique,
    empty_counts,
    numbers,
    yes_or_no,
)

__all__ = ["is_count_table", "is_legacy", "legacy_name", "read_legacy_table"]

_SUFFIX = re.compile(r"\.(tsv|txt)(\.gz)?$", re.IGNORECASE)
_COLUMNS = ["x", "y", "pixel_x", "pixel_y"]


def is_legacy(path: Path) -> bool:
    """Whether the file name ends like a legacy count table: .tsv, .txt, or either with .gz."""
    return _SUFFIX.search(path.name) is not None


def is_count_table(path: Path) -> bool:
    """Whether a file of a folder of sections is a legacy count table: its first line has several columns, no README or list."""
    if path.name.startswith(".") or not path.is_file() or not is_legacy(path) or path.name.endswith("_selection.tsv"):
        return False
    try:
        columns = _header(path)
    except (OSError, EOFError, ValueError, zlib.error):
        return True  # damaged: reading it says so
    return len(columns) > 2 and not {"pixel_x", "pixel_y"} <= set(columns)


def legacy_name(path: Path) -> str:
    """Name of the section: the file name without .tsv(.gz)."""
    return _SUFFIX.sub("", path.name)


def read_legacy_table(
    path: Path, name: str, *, spots: Path | None = None, counts: bool = True, gene_names: str | None = None
) -> SpotTable:
    """Read a count table (rows ``XxY`` = spots, columns = genes) and its spot selection (x, y, pixel_x, pixel_y).

    Spots are named ``NAME_XxY``; array row is y, array column is x. Only selected spots that have counts are kept. On a
    square array the pitch is that of the 1k array (200 um, spots of 100 um); on a staggered one it is unknown.

    Args:
        spots: the selection; else ``NAME_selection.tsv`` is looked for in the table's folder, ``spots`` and ``../spots``.

    Raises:
        FileNotFoundError: table or selection missing.
        ValueError: a table is damaged, they have no spot in common, or ``gene_names``, of which such a table has no choice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"section {path} does not exist")
    if gene_names is not None:
        raise ValueError(
            f"{path}: a count table names each gene once, in its first line, so there is no column {gene_names!r} to choose "
            "(--gene-names); leave it out"
        )
    selection = _selection(path, name, spots)
    table = _read(path, index_col=0)
    if table.shape[1] == 0:
        raise ValueError(
            f"{path}: no table of counts, its first line has one column; need spots (10x12) as rows and genes as columns, "
            "separated by tabs"
        )
    ids = table.index.astype(str).to_numpy()
    check_unique(ids, "spot", path, "sum or drop the repeated rows")
    genes = np.asarray(table.columns, dtype=str)
    check_unique(_header(path)[-len(genes) :], "gene", path, "sum or drop the repeated columns")
    known = np.isin(ids, selection.index.to_numpy(dtype=str))
    if not known.any():
        raise ValueError(
            f"{path}: none of its spots ({', '.join(ids[:3])} ...) is in the spot selection, which names "
            f"{', '.join(map(str, selection.index[:3]))} ...; wrong table, or genes in its rows?"
        )
    if not known.all():
        warnings.warn(
            f"{path}: {int((~known).sum())} of {len(known)} spots are not selected and are left out", stacklevel=2
        )
    here = selection.loc[ids[known]]
    index = np.rint(here[["y", "x"]].to_numpy()).astype(np.int64)
    staggered = is_staggered(index)
    if counts:
        matrix = check_counts(_counts(table[known], path), f"{path}: the count table")
    else:
        matrix, genes = empty_counts(int(known.sum()))
    return SpotTable(
        source=path,
        name=name,
        counts=matrix,
        genes=genes,
        spot_ids=np.asarray([f"{name}_{spot}" for spot in ids[known]], dtype=str),
        spot_px=check_positions(here[["pixel_x", "pixel_y"]].to_numpy(), ids[known], path),
        array_index=index,
        scale=Scale() if staggered else Scale(pitch_um=LEGACY_PITCH_UM, spot_um=LEGACY_SPOT_UM),
    )


def _counts(table: pd.DataFrame, path: Path) -> np.ndarray:
    """Values of a count table. Raises ValueError for text, and for an empty cell; the message names row and column."""
    if all(pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes):
        values = table.to_numpy()
    else:
        values = numbers(table, list(table.columns), path)
    if np.issubdtype(values.dtype, np.floating) and (empty := np.argwhere(np.isnan(values))).size:
        row, column = empty[0]
        raise ValueError(
            f"{path}: {len(empty)} cells are empty, the first in row {table.index[row]}, column {table.columns[column]}; write 0 "
            "where nothing was counted, and as many cells in each row as genes in the first line"
        )
    return values


def _selection(path: Path, name: str, spots: Path | None) -> pd.DataFrame:
    stem = legacy_name(path)
    folders = (path.parent, path.parent / "spots", path.parent.parent / "spots")
    tried = [spots] if spots is not None else [folder / f"{stem}_selection.tsv" for folder in folders]
    found = next((file for file in tried if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"{path}: no table of selected spots for section {name}; looked for {', '.join(map(str, tried))}"
        )
    table = _read(found)
    missing = [column for column in _COLUMNS if column not in table]
    if missing:
        raise ValueError(f"{found}: columns {', '.join(missing)} are missing; need {', '.join(_COLUMNS)}")
    table = table.set_index(table["x"].astype(str) + "x" + table["y"].astype(str))
    if "selected" in table:
        table = table[yes_or_no(table["selected"], table.index.to_numpy(dtype=str), "selected", found)]
    table = pd.DataFrame(numbers(table, _COLUMNS, found), index=table.index, columns=_COLUMNS)
    check_unique(table.index.to_numpy(dtype=str), "spot", found, "keep one row per array position")
    return table


def _read(path: Path, index_col: int | None = None) -> pd.DataFrame:
    try:
        return pd.read_csv(path, sep="\t", index_col=index_col)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8; save it as UTF-8, with tabs between the columns") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} is no readable tab-separated table ({error}); copy or download it again") from error


def _header(path: Path) -> np.ndarray:
    """Column names as written: pandas renames repeated ones."""
    with gzip.open(path, "rt") if path.name.lower().endswith(".gz") else path.open(encoding="utf-8") as stream:
        return np.asarray(stream.readline().rstrip("\r\n").split("\t"), dtype=str)
