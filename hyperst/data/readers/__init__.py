"""Readers of section files: each turns one kind of file into a :class:`~hyperst.data.readers.table.SpotTable`.

Another kind is a module beside these and an entry in `READERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hyperst.data.readers.h5ad import read_h5ad_table
from hyperst.data.readers.legacy import is_legacy, legacy_name, read_legacy_table
from hyperst.data.readers.spaceranger import read_spaceranger_table, spaceranger_name
from hyperst.data.readers.spaceranger_files import is_matrix_file
from hyperst.data.readers.table import SpotTable

__all__ = ["READERS", "Reader", "reader_of"]


class Reader(NamedTuple):
    """A kind of section file.

    Attributes:
        kind: what an error calls it.
        accepts: whether a path, which exists, is of this kind.
        name: the section's name, from the path.
        read: (path, name, spots, counts, gene_names) to the table; ``spots`` is the file of spots, for kinds that have one, or
            None; without ``counts`` the table has none; ``gene_names`` is where the genes' names are, or None.
        key: what a manifest calls it.
    """

    kind: str
    accepts: Callable[[Path], bool]
    name: Callable[[Path], str]
    read: Callable[[Path, str, Path | None, bool, str | None], SpotTable]
    key: str = ""


READERS = (
    Reader(
        "a Space Ranger folder",
        lambda path: path.is_dir() or is_matrix_file(path),
        spaceranger_name,
        lambda path, name, spots, counts, gene_names: read_spaceranger_table(
            path, name, counts=counts, gene_names=gene_names
        ),
        "spaceranger",
    ),
    Reader(
        ".h5ad",
        lambda path: path.suffix.lower() == ".h5ad",
        lambda path: path.stem,
        lambda path, name, spots, counts, gene_names: read_h5ad_table(path, name, counts=counts, gene_names=gene_names),
        "h5ad",
    ),
    Reader(
        "counts as .tsv(.gz)",
        is_legacy,
        legacy_name,
        lambda path, name, spots, counts, gene_names: read_legacy_table(
            path, name, spots=spots, counts=counts, gene_names=gene_names
        ),
        "table",
    ),
)
"""The first that accepts a path reads it."""


def reader_of(path: Path, kind: str | None = None) -> Reader:
    """Return the reader of a file or folder, the first that accepts it or the one whose key is ``kind``.

    Raises:
        FileNotFoundError: ``path`` does not exist.
        ValueError: no reader accepts it.
    """
    if not path.exists():
        raise FileNotFoundError(f"section {path} does not exist")
    if kind is not None:
        if (named := next((reader for reader in READERS if reader.key == kind), None)) is None:
            raise ValueError(f"{path}: unknown kind {kind!r}; need one of {', '.join(each.key for each in READERS)}")
        return named
    for reader in READERS:
        if reader.accepts(path):
            return reader
    *others, last = (reader.kind for reader in READERS)
    raise ValueError(f"{path}: unknown kind of section; need {', '.join(others)}, or {last}")
