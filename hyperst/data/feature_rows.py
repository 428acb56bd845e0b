"""Rows of precomputed features that stay on the disk until a batch asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

__all__ = ["FeatureRows", "FeatureTable", "MappedTable", "MemberMeans", "in_memory"]


class MappedTable:
    """A float32 table (row width) inside a file, memory-mapped; another process gets where it lies, not its numbers.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "numbers"
    ...     np.arange(6, dtype=np.float32).tofile(path)
    ...     table = MappedTable(path, 8, (2, 2))
    ...     table.read(np.array([1, 0]))
    array([[4., 5.],
           [2., 3.]], dtype=float32)
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, int]) -> None:
        self.path, self.offset, self.shape = path, offset, shape
        self._values = np.memmap(path, np.float32, "r", offset, shape)

    def __getstate__(self) -> tuple[Path, int, tuple[int, int]]:
        return self.path, self.offset, self.shape

    def __setstate__(self, state: tuple[Path, int, tuple[int, int]]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Rows, int64 (n,), as float32 (n width) in memory."""
        return np.asarray(self._values[rows])


@dataclass(frozen=True)
class FeatureRows:
    """Features of spots, in a table in memory or on the disk.

    Attributes:
        table: float32 (row width).
        rows: int64 (spot,), the row of each spot.
    """

    table: np.ndarray | MappedTable
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(spot, width)."""
        return len(self.rows), self.table.shape[1]

    def take(self, keep: np.ndarray) -> FeatureRows:
        """The features of some spots, bool (spot,) or int64 (n,); nothing is read."""
        return FeatureRows(self.table, self.rows[keep])

    def read(self, spots: np.ndarray | None = None) -> np.ndarray:
        """Features of ``spots``, int64 (n,), default all: float32 (n width) in memory."""
        rows = self.rows if spots is None else self.rows[spots]
        return self.table[rows] if isinstance(self.table, np.ndarray) else self.table.read(rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All features, for NumPy."""
        return self.read() if dtype is None else self.read().astype(dtype, copy=False)


@dataclass(frozen=True)
class MemberMeans:
    """Means of features over the members of each spot's niche, computed as they are asked for.

    Attributes:
        of: features of the spots.
        members: csr_array (spot spot), 1 where column is a member of the niche of row.
    """

    of: FeatureRows
    members: sparse.csr_array

    @property
    def shape(self) -> tuple[int, int]:
        """(spot, width)."""
        return self.of.shape

    def read(self, spots: np.ndarray | None = None) -> np.ndarray:
        """Means of ``spots``, int64 (n,), default all: float32 (n width)."""
        some = self.members if spots is None else self.members[spots]
        used, columns = np.unique(some.indices, return_inverse=True)
        compact = sparse.csr_array((some.data, columns, some.indptr), shape=(some.shape[0], len(used)))
        return np.asarray((compact @ self.of.read(used)) / np.diff(some.indptr)[:, None], dtype=np.float32)


FeatureTable = FeatureRows | MemberMeans
"""Features of a section's spots at one level."""


def in_memory(table: FeatureTable) -> FeatureRows:
    """The same features, read into memory."""
    values = table.read()
    return FeatureRows(values, np.arange(len(values)))
