"""Spots and their neighbours on the array: the spots of one niche, and the niche's mean counts.

A hexagonal niche is a spot and its 6 neighbours, a square niche a spot and its 8. Neighbours that were not measured (beyond
the tissue's edge) are simply absent: every spot keeps its niche, however small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from hyperst.data.grid import fit_lattice

if TYPE_CHECKING:
    from hyperst.data.crops import CropConfig
    from hyperst.data.sections import Section

__all__ = ["level_members", "mean_counts", "niche_members", "niche_size"]

_SQUARE = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
_DIAGONAL = [(0, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)]
# Reach, in pitches, of a niche on coordinates alone: between the wanted neighbours and the next ones out.
_REACH = {"square": 1.7, "hexagonal": 1.35, "none": 1.35}
_SPOTS_AT_A_TIME = 1 << 16


def niche_size(kind: str) -> int:
    """Largest number of spots in a niche: 9 on a square grid, 7 on a hexagonal one or on none."""
    return 9 if kind == "square" else 7


def niche_members(section: Section) -> sparse.csr_array:
    """Which spots form the niche of each spot.

    With array indices, hexagonal: the 4 diagonal neighbours and the closer (in pixels) of the two axis pairs; square: the
    8 surrounding positions. Without them: every spot within 1.35 (square: 1.7) pitches, at most ``niche_size``.

    Returns:
        csr_array float32 (spot spot), 1 where column is a member of the niche of row; the spot itself is always one.

    >>> from tempfile import mkdtemp
    >>> from hyperst.data import read_section
    >>> from hyperst.synthetic import write_tissue
    >>> members = niche_members(read_section(write_tissue(mkdtemp(), 0, n_rows=6, n_cols=6)))
    >>> int(members.sum(axis=1).max())
    7
    """
    n_spots = len(section.spot_px)
    if section.array_index is not None:
        rows, columns = _from_array(section.array_index, section.spot_px, section.grid.kind)
    else:
        rows, columns = _from_coordinates(section.spot_px, section.grid.pitch_px, section.grid.kind)
    ones = np.ones(len(rows), dtype=np.float32)
    return sparse.csr_array((ones, (rows, columns)), shape=(n_spots, n_spots))


def level_members(section: Section, level: str, crop: CropConfig) -> sparse.csr_array:
    """Which spots the expression of a level is the mean of: those of the niche; of a wider level those in its crop.

    Returns:
        csr_array float32 (spot spot), 1 where column is a member of the level of row; the spot itself is always one.

    Raises:
        ValueError: a wider level, and the um/px of the section are unknown.
    """
    if level == "niche":
        return niche_members(section)
    um_per_px = section.grid.um_per_px
    if um_per_px is None:
        raise ValueError(
            f"section {section.name}: level {level!r} has a width in um (crop.wider_um), but the um/px of the image are unknown; "
            "give mpp=... (--mpp)"
        )
    tree = cKDTree(section.spot_px)
    found = tree.query_ball_point(section.spot_px, crop.wider_um[level] / um_per_px / 2, p=np.inf, return_sorted=True)
    size = np.array([len(members) for members in found])
    columns = np.concatenate([np.asarray(members, dtype=np.int64) for members in found])
    ones = np.ones(len(columns), dtype=np.float32)
    return sparse.csr_array((ones, columns, np.concatenate([[0], np.cumsum(size)])), shape=(len(size), len(size)))


def mean_counts(members: sparse.csr_array, counts: sparse.csr_array) -> sparse.csr_array:
    """Mean of ``counts`` (spot gene) over the ``members`` (spot spot) of each spot: float32 csr (spot gene)."""
    size = np.diff(members.indptr)
    return sparse.csr_array(sparse.diags_array((1.0 / size).astype(np.float32)) @ members @ counts)


def _from_array(array_index: np.ndarray, spot_px: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    if kind == "square":
        offsets = _SQUARE
    else:
        fit = fit_lattice(spot_px, array_index)
        along_columns = fit is None or fit.length(0, 2) <= fit.length(2, 0)
        offsets = _DIAGONAL + ([(0, -2), (0, 2)] if along_columns else [(-2, 0), (2, 0)])
    index = np.asarray(array_index, dtype=np.int64)
    index = index - index.min(axis=0) + 2  # room for the offsets, so that no key wraps into another row
    width = int(index[:, 1].max()) + 3
    key = index[:, 0] * width + index[:, 1]
    order = np.argsort(key)
    sorted_key = key[order]
    rows, columns = [], []
    for row, column in offsets:
        wanted = key + row * width + column
        place = np.minimum(np.searchsorted(sorted_key, wanted), len(key) - 1)
        present = sorted_key[place] == wanted
        rows.append(np.flatnonzero(present))
        columns.append(order[place[present]])
    return np.concatenate(rows), np.concatenate(columns)


def _from_coordinates(spot_px: np.ndarray, pitch_px: float | None, kind: str) -> tuple[np.ndarray, np.ndarray]:
    n_spots = len(spot_px)
    if pitch_px is None or n_spots < 2:
        return np.arange(n_spots), np.arange(n_spots)
    nearest = min(niche_size(kind), n_spots)
    tree, reach = cKDTree(spot_px), _REACH[kind] * pitch_px
    rows, columns = [], []
    for start in range(0, n_spots, _SPOTS_AT_A_TIME):
        distance, neighbour = tree.query(
            spot_px[start : start + _SPOTS_AT_A_TIME], k=nearest, distance_upper_bound=reach
        )
        row, place = np.nonzero(np.isfinite(distance))
        rows.append((row + start).astype(np.int32))
        columns.append(neighbour[row, place].astype(np.int32))
    return np.concatenate(rows), np.concatenate(columns)
