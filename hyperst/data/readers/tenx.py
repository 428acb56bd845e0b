"""Count matrices in the two formats of 10x Genomics: HDF5, and a Matrix Market file with its lists of genes and barcodes."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.io import mmread

from hyperst.data.readers.table import check_unique, unique_names

__all__ = ["Matrix", "read_matrix"]

_GENES = "Gene Expression"
_NAMES = {None: "name", "name": "name", "gene_name": "name", "id": "id", "gene_id": "id", "gene_ids": "id"}


class Matrix(NamedTuple):
    """Counts (spot gene), names of genes, their symbols where the names are ids, and barcodes."""

    counts: sparse.csr_array
    genes: np.ndarray
    symbols: np.ndarray | None
    barcodes: np.ndarray


def read_matrix(file: Path, prefix: str = "", gene_names: str | None = None) -> Matrix:
    """Read the genes of a 10x matrix; antibodies, guides and other features are left out.

    Args:
        file: ``.h5``, ``matrix.mtx(.gz)``, or the folder that holds the latter.
        prefix: of the names of the lists beside a ``matrix.mtx``.
        gene_names: "name" (default), a symbol that several genes share being written SYMBOL_ID; or "id".

    Raises:
        FileNotFoundError: a list is missing.
        ValueError: the file is damaged, or an unknown ``gene_names``.
    """
    if gene_names not in _NAMES:
        raise ValueError(f"{file}: no column {gene_names!r} for the genes' names (--gene-names); it holds name and id")
    counts, features, barcodes = _read_h5(file) if file.suffix == ".h5" else _read_mtx(file, prefix)
    wanted = np.flatnonzero((features["kind"] == _GENES).to_numpy())
    names, ids = (features[column].to_numpy(dtype=str)[wanted] for column in ("name", "id"))
    check_unique(ids, "gene", file, "restore the matrix of Space Ranger, which has each id once")
    counts = counts[:, wanted]
    if _NAMES[gene_names] == "id":
        return Matrix(counts, ids, names, barcodes)
    return Matrix(counts, unique_names(names, ids), names, barcodes)


def _read_h5(file: Path) -> tuple[sparse.csr_array, pd.DataFrame, np.ndarray]:
    import h5py

    try:
        with h5py.File(file) as handle:
            group = handle["matrix"]
            n_features, n_barcodes = (int(size) for size in group["shape"][:])
            parts = (group["data"][:], group["indices"][:], group["indptr"][:])
            features = group["features"]
            columns = {"id": "id", "name": "name", "kind": "feature_type"}
            table = pd.DataFrame({name: features[key][:].astype(str) for name, key in columns.items()})
            barcodes = group["barcodes"][:].astype(str)
        matrix = sparse.csr_array(parts, shape=(n_barcodes, n_features))
        matrix.check_format(full_check=True)
        if (n_barcodes, n_features) != (len(barcodes), len(table)):
            raise ValueError(f"{n_barcodes} x {n_features} counts for {len(barcodes)} barcodes and {len(table)} genes")
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{file} cannot be read: it is cut short, damaged or no 10x matrix ({error}); copy or download it again"
        ) from error
    return matrix, table, barcodes


def _read_mtx(file: Path, prefix: str) -> tuple[sparse.csr_array, pd.DataFrame, np.ndarray]:
    """A Matrix Market file has genes as rows; version 2 of Cell Ranger called the list genes.tsv and gave no kind."""
    if file.is_dir():
        file, prefix = next(file / name for name in ("matrix.mtx.gz", "matrix.mtx") if (file / name).is_file()), ""
    lists = {kind: _list(file, prefix, kind) for kind in ("features", "barcodes")}
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            kind = (stream.readline().decode("ascii").lower().split() + [""] * 4)[
                3
            ]  # %%MatrixMarket matrix layout KIND
            stream.seek(0)
            counts = sparse.csr_array(mmread(stream)).T.tocsr()
    except (OSError, EOFError, ValueError, OverflowError, TypeError, zlib.error) as error:
        raise ValueError(f"{file} is no readable Matrix Market file ({error}); copy or download it again") from error
    if kind == "pattern":
        raise ValueError(
            f"{file} holds no counts: its first line says 'pattern', so it tells which are not zero and not how large they are; "
            "export it again with its values (integer)"
        )
    features, barcodes = lists["features"], lists["barcodes"]
    if counts.shape != (len(barcodes), len(features)):
        raise ValueError(
            f"{file}: {counts.shape[1]} genes and {counts.shape[0]} spots, but the lists beside it name {len(features)} "
            f"genes and {len(barcodes)} spots; they belong to another matrix"
        )
    columns = {0: "id", 1: "name", 2: "kind"}
    table = features.rename(columns=columns).reindex(columns=list(columns.values()))
    table["name"] = table["name"].fillna(table["id"])
    return counts, table.fillna({"kind": _GENES}), barcodes[0].to_numpy(dtype=str)


def _list(file: Path, prefix: str, kind: str) -> pd.DataFrame:
    names = ("features.tsv", "genes.tsv") if kind == "features" else ("barcodes.tsv",)
    places = [file.with_name(f"{prefix}{name}{end}") for name in names for end in (".gz", "")]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{file}: no list of its {kind} beside it; looked for {places[0].name} and without .gz")
    try:
        table = pd.read_csv(found, sep="\t", header=None, dtype=str, keep_default_na=False)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{found} is no readable list of {kind} ({error}); copy or download it again") from error
    if table.shape[1] == 1 and table[0].str.contains(",").all():
        raise ValueError(
            f"{found}: its columns are separated by commas ({table[0].iloc[0][:60]}); save it with tabs between the columns"
        )
    return table
