"""Tiles of a slide that could not be decoded and were left white."""

from __future__ import annotations

import numpy as np

__all__ = ["DamagedTiles"]


class DamagedTiles:
    """Where the damaged tiles of one image lie, each counted once however often it was read.

    >>> damaged = DamagedTiles()
    >>> for _ in range(2):
    ...     damaged.add(level=0, tile=7, box=(512, 0, 768, 256))
    >>> len(damaged), damaged.touched(np.array([[500.0, 100.0], [100.0, 100.0]]), width=50).tolist()
    (1, [True, False])
    """

    def __init__(self) -> None:
        self._boxes: dict[tuple[int, int], tuple[float, float, float, float]] = {}

    def add(self, level: int, tile: int, box: tuple[float, float, float, float]) -> None:
        """Remember a tile of a level and its box (left, upper, right, lower) in full-resolution pixels."""
        self._boxes[level, tile] = box

    def table(self) -> np.ndarray:
        """float64 (tile 6): level, tile and box of each."""
        return np.array([[*key, *box] for key, box in self._boxes.items()], dtype=np.float64).reshape(-1, 6)

    def add_table(self, table: np.ndarray) -> None:
        """Remember what :meth:`table` has returned elsewhere."""
        for level, tile, left, upper, right, lower in table.tolist():
            self.add(int(level), int(tile), (left, upper, right, lower))

    def __len__(self) -> int:
        return len(self._boxes)

    def touched(self, centres: np.ndarray, width: float) -> np.ndarray:
        """bool (n,): whether the square of side ``width`` around each of the centres (n 2) overlaps a damaged tile."""
        x, y = np.asarray(centres, dtype=np.float64).T
        touched = np.zeros(len(x), dtype=bool)
        for left, upper, right, lower in self._boxes.values():
            half = width / 2
            touched |= (x + half > left) & (x - half < right) & (y + half > upper) & (y - half < lower)
        return touched
