"""The lattice on which spots lie: square (legacy ST, Visium HD bins) or staggered (Visium, MOB), and its pitch.

With array indices the pitch comes from a least-squares fit of array to pixel coordinates, which averages over all spots and
is steadier than nearest-neighbour distances. Without them it comes from the directions of nearest neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.spatial import cKDTree

__all__ = ["Grid", "LatticeFit", "contradicting_spots", "detect_grid", "fit_lattice"]

GridKind = Literal["square", "hexagonal", "none"]

_LARGEST_RESIDUAL = 0.5  # of a pitch: above it the array indices do not describe these coordinates
_ORDER = 0.6  # |mean exp(i k angle)| of neighbour directions: 1 on a perfect k-fold lattice, about 0 without one
_SPREAD = 0.15  # relative spread of neighbour distances on a lattice
_SAME_PARITY = 0.9  # share of spots on a staggered array whose row + column agree; about 0.5 on a square one
_OFF = 0.3  # of a pitch from its place: an array column wrong by 1 on a staggered array moves a spot by 0.5
_FEWEST = 8  # spots among which a majority means something
_REMEDY = "check that array_row / array_col and the coordinates belong to the same spots, or remove them"


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

    def distance(self, spot_px: np.ndarray, array_index: np.ndarray) -> np.ndarray:
        """Distances, float64 (spot,), in pixels between given and fitted positions."""
        fitted = self.origin + np.asarray(array_index) @ np.stack([self.row_step, self.col_step])
        return np.linalg.norm(np.asarray(spot_px) - fitted, axis=1)


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
    """Whether row + column has one parity for (nearly) all spots: neighbouring rows are shifted by half a step.

    One wrong index among many must not turn a staggered array into a square one, so nine of ten decide.
    """
    parity = np.asarray(array_index).sum(axis=1) % 2
    return bool(len(parity)) and bool(max(parity.mean(), 1 - parity.mean()) >= _SAME_PARITY)


def contradicting_spots(spot_px: np.ndarray, array_index: np.ndarray) -> np.ndarray:
    """Numbers, int64 (n,), of the spots whose array index and position contradict those of the majority.

    The majority is the largest set of spots that one affine map from array to pixel coordinates describes (RANSAC); a spot
    more than 0.3 pitches from where that map puts it contradicts it. Fewer than 8 spots have no majority.

    >>> row, column = np.divmod(np.arange(81), 9)
    >>> spots = np.column_stack([100.0 * column + 50 * (row % 2), 86.6 * row])
    >>> index = np.column_stack([row, 2 * column + row % 2])
    >>> index[40, 1] += 1
    >>> contradicting_spots(spots, index)
    array([40])
    """
    spot_px, array_index = np.asarray(spot_px, dtype=np.float64), np.asarray(array_index)
    none = np.empty(0, dtype=np.int64)
    fit = fit_lattice(spot_px, array_index)
    if fit is None or len(spot_px) < _FEWEST:
        return none
    allowed = _OFF * float(np.median(cKDTree(spot_px).query(spot_px, k=2)[0][:, 1]))
    # A spot's own error draws the fit towards it, most at a corner: a third of the bound already asks for a closer look.
    if fit.distance(spot_px, array_index).max() <= allowed / 3:
        return none
    from sklearn.linear_model import LinearRegression, RANSACRegressor

    search = RANSACRegressor(
        LinearRegression(), min_samples=3, residual_threshold=allowed, max_trials=500, loss=_distances, random_state=0
    )
    try:
        search.fit(array_index.astype(np.float64), spot_px)
    except ValueError:  # no three spots describe any fourth
        return np.arange(len(spot_px))
    majority = fit_lattice(spot_px[search.inlier_mask_], array_index[search.inlier_mask_])
    return none if majority is None else np.flatnonzero(majority.distance(spot_px, array_index) > allowed)


def _distances(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    return np.linalg.norm(wanted - found, axis=1)


def detect_grid(spot_px: np.ndarray, array_index: np.ndarray | None = None, pitch_um: float | None = None) -> Grid:
    """Find the kind of grid, its pitch and (with ``pitch_um``) the scale of the image.

    Args:
        spot_px: float (spot 2) spot centres x, y in pixels of the full-resolution image.
        array_index: int (spot 2) row, column on the array, if known. Staggered rows (row + column always even, or
            always odd, but for one in ten) are "hexagonal", everything else is "square". The pitch is the shortest step
            of the lattice. The majority decides: :func:`contradicting_spots` are left out.
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
    fit = None
    if array_index is not None:
        odd = contradicting_spots(spot_px, array_index)
        if 2 * len(odd) > len(spot_px):
            raise ValueError(
                f"array rows and columns do not describe the spot positions: those of {len(odd)} of {len(spot_px)} spots "
                f"contradict each other; {_REMEDY}"
            )
        spot_px, array_index = np.delete(spot_px, odd, axis=0), np.delete(array_index, odd, axis=0)
        fit = fit_lattice(spot_px, array_index)
    kind: GridKind
    if fit is not None and array_index is not None:
        if is_staggered(array_index):
            kind, pitch_px = "hexagonal", (fit.length(1, 1) + fit.length(1, -1)) / 2
        else:
            kind, pitch_px = "square", (fit.length(1, 0) + fit.length(0, 1)) / 2
        if fit.residual_px > _LARGEST_RESIDUAL * pitch_px:
            raise ValueError(
                f"array rows and columns do not describe the spot positions: after the best affine fit they are "
                f"{fit.residual_px:.3g} px off with a pitch of {pitch_px:.3g} px; {_REMEDY}"
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
