"""The lattice on which spots lie: square (legacy ST, Visium HD bins) or staggered (Visium, MOB), and its pitch.

With array indices the pitch comes from a least-squares fit of array to pixel coordinates, which averages over all spots and
is steadier than nearest-neighbour distances. Without them it comes from the directions of nearest neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.spatial import cKDTree

__all__ = ["Grid", "LatticeFit", "detect_grid", "fit_lattice"]

GridKind = Literal["square", "hexagonal", "none"]

_LARGEST_RESIDUAL = 0.5  # of a pitch: above it the array indices do not describe these coordinates
_ORDER = 0.6  # |mean exp(i k angle)| of neighbour directions: 1 on a perfect k-fold lattice, about 0 without one
_SPREAD = 0.15  # relative spread of neighbour distances on a lattice


@dataclass(frozen=True)
class Grid:
    """Where spots lie relative to each other.

    Attributes:
        kind: "square" (8 neighbours), "hexagonal" (staggered rows, 6 neighbours) or "none" (no lattice found).
        pitch_px: centre-to-centre distance of nearest spots, full-resolution pixels; None if it cannot be known.
        um_per_px: scale of the image; None if unknown. Widths are then in units of the pitch.
        pitch_um: the pitch in um; None if unknown.
    """

    kind: GridKind
    pitch_px: float | None
    um_per_px: float | None = None
    pitch_um: float | None = None


@dataclass(frozen=True)
class LatticeFit:
    """Affine map from array to pixel coordinates: ``spot_px ~ origin + row * row_step + col * col_step``.

    Attributes:
        row_step, col_step: float64 (2,) pixel displacement (x, y) per array row and per array column.
        origin: float64 (2,) pixel position of array index (0, 0).
        residual_px: root mean square distance between fitted and given positions.
    """

    row_step: np.ndarray
    col_step: np.ndarray
    origin: np.ndarray
    residual_px: float

    def length(self, rows: int, columns: int) -> float:
        """Distance in pixels between spots ``rows`` and ``columns`` apart."""
        return float(np.linalg.norm(rows * self.row_step + columns * self.col_step))


def fit_lattice(spot_px: np.ndarray, array_index: np.ndarray) -> LatticeFit | None:
    """Least-squares affine fit of array (row, col) to pixel (x, y) coordinates.

    Args:
        spot_px: float (spot 2) x, y in pixels.
        array_index: int (spot 2) row, column.

    Returns:
        The fit, or None when the indices do not span two dimensions (fewer than 3 spots, or all in one line).
    """
    design = np.column_stack([array_index, np.ones(len(array_index))]).astype(np.float64)
    if len(design) < 3 or np.linalg.matrix_rank(design - design.mean(axis=0)) < 2:
        return None
    solution = np.linalg.lstsq(design, np.asarray(spot_px, dtype=np.float64), rcond=None)[0]
    residual = np.asarray(spot_px) - design @ solution
    return LatticeFit(solution[0], solution[1], solution[2], float(np.sqrt((residual**2).sum(axis=1).mean())))


def is_staggered(array_index: np.ndarray) -> bool:
    """Whether row + column has one parity for all spots: neighbouring rows are shifted by half a step."""
    parity = np.asarray(array_index).sum(axis=1) % 2
    return bool(len(parity)) and bool((parity == parity[0]).all())


def detect_grid(spot_px: np.ndarray, array_index: np.ndarray | None = None, pitch_um: float | None = None) -> Grid:
    """Find the kind of grid, its pitch and (with ``pitch_um``) the scale of the image.

    Args:
        spot_px: float (spot 2) spot centres x, y in pixels of the full-resolution image.
        array_index: int (spot 2) row, column on the array, if known. Staggered rows (row + column always even, or
            always odd) are "hexagonal", everything else is "square". The pitch is the shortest step of the lattice.
        pitch_um: centre-to-centre distance in um, if the technology is known (Visium 100, legacy ST 200).

    Returns:
        Grid with ``um_per_px = pitch_um / pitch_px``, None where unknown.

    Raises:
        ValueError: two spots share a position, or the array indices do not describe the coordinates.

    >>> row, column = np.divmod(np.arange(30), 6)
    >>> spots = np.column_stack([50.0 * column, 50.0 * row])
    >>> grid = detect_grid(spots, np.column_stack([row, column]), pitch_um=200.0)
    >>> grid.kind, round(grid.pitch_px, 6), round(grid.um_per_px, 6)
    ('square', 50.0, 4.0)
    """
    spot_px = np.asarray(spot_px, dtype=np.float64)
    if len(spot_px) > 1 and len(np.unique(spot_px, axis=0)) < len(spot_px):
        raise ValueError(
            f"{len(spot_px) - len(np.unique(spot_px, axis=0))} spots share the position of another spot; "
            "remove duplicated spots, or read one section at a time"
        )
    fit = None if array_index is None else fit_lattice(spot_px, np.asarray(array_index))
    kind: GridKind
    if fit is not None and array_index is not None:
        if is_staggered(array_index):
            kind, pitch_px = "hexagonal", (fit.length(1, 1) + fit.length(1, -1)) / 2
        else:
            kind, pitch_px = "square", (fit.length(1, 0) + fit.length(0, 1)) / 2
        if fit.residual_px > _LARGEST_RESIDUAL * pitch_px:
            raise ValueError(
                f"array rows and columns do not describe the spot positions: after the best affine fit they are "
                f"{fit.residual_px:.3g} px off with a pitch of {pitch_px:.3g} px; check that array_row / array_col and "
                "the coordinates belong to the same spots, or remove them"
            )
    else:
        kind, found = _from_geometry(spot_px)
        if found is None:
            return Grid("none", None, None, pitch_um)
        pitch_px = found
    if kind == "none" or pitch_um is None:
        return Grid(kind, pitch_px, None, pitch_um)
    return Grid(kind, pitch_px, pitch_um / pitch_px, pitch_um)


def _from_geometry(spot_px: np.ndarray) -> tuple[GridKind, float | None]:
    """Kind and pitch from nearest-neighbour distances and directions."""
    if len(spot_px) < 2:
        return "none", None
    tree = cKDTree(spot_px)
    distance, neighbour = tree.query(spot_px, k=min(7, len(spot_px)))
    pitch = float(np.median(distance[:, 1]))
    near = (distance[:, 1:] < 1.25 * pitch) & np.isfinite(distance[:, 1:])
    source, which = np.nonzero(near)
    step = spot_px[neighbour[source, which + 1]] - spot_px[source]
    length = np.linalg.norm(step, axis=1)
    if len(spot_px) < 4 or len(step) < 2 * len(spot_px) or length.std() > _SPREAD * length.mean():
        return "none", pitch
    angle = np.arctan2(step[:, 1], step[:, 0])
    order = {fold: abs(np.exp(1j * fold * angle).mean()) for fold in (4, 6)}
    best = max(order, key=lambda fold: order[fold])
    if order[best] < _ORDER:
        return "none", pitch
    return ("square" if best == 4 else "hexagonal"), float(length.mean())
