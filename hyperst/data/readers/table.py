"""What every reader returns before it becomes a Section, and the checks that all of them share."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from hyperst.data.grid import Grid

__all__ = [
    "Scale",
    "SpotTable",
    "check_counts",
    "check_positions",
    "check_unique",
    "count_problem",
    "empty_counts",
    "numbers",
    "spot_diameter",
    "unique_names",
    "yes_or_no",
]

_LARGEST_COUNT = 1 << 24  # float32 holds every whole number up to it
_WIDEST_SPOT = 1.05  # of the pitch; bins of Visium HD touch each other
_YES_OR_NO = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


@dataclass
class Scale:
    """What a file says about physical size.

    Attributes:
        mpp: declared um/px of the full-resolution image, and in ``mpp_from`` where that was found.
        pitch_um, spot_um: spacing and diameter of the spots, if file or technology tell.
        spot_px: diameter in full-resolution pixels as recorded by the file.
        staggered_only: pitch_um and spot_um were inferred from "Visium" and hold only on a hexagonal grid.
        bin_um: Visium HD bin size.
    """

    mpp: float | None = None
    mpp_from: str = ""
    pitch_um: float | None = None
    spot_um: float | None = None
    spot_px: float | None = None
    staggered_only: bool = False
    bin_um: float | None = None


@dataclass
class SpotTable:
    """The content of one section's files, checked for form but not yet joined with its image."""

    source: Path
    name: str
    counts: sparse.csr_array
    genes: np.ndarray
    spot_ids: np.ndarray
    spot_px: np.ndarray
    array_index: np.ndarray | None = None
    patient: str | None = None
    scale: Scale = field(default_factory=Scale)
    small_images: list[tuple[tuple[int, int], float]] = field(default_factory=list)
    """Size (width, height) and scale factor of every downscaled image that comes with the file."""
    images_to_try: list[Path] = field(default_factory=list)
    """Files that the section itself names as its full-resolution image."""
    symbols: np.ndarray | None = None
    """Symbols (gene,) of the genes where ``genes`` holds other identifiers and the file tells both."""


def empty_counts(n_spots: int) -> tuple[sparse.csr_array, np.ndarray]:
    """Counts (spot 0) and an empty gene list, for a section whose positions alone are wanted."""
    return sparse.csr_array((n_spots, 0), dtype=np.float32), np.empty(0, dtype=str)


def count_problem(values: np.ndarray) -> str | None:
    """What is wrong with ``values`` as raw counts, in words, or None."""
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        return f"values of dtype {values.dtype}"
    if values.dtype == np.float16:
        return "values of dtype float16, which rounds counts above 2048"
    if not np.isfinite(values).all():
        return f"{int((~np.isfinite(values)).sum())} values that are NaN or infinite"
    if (values < 0).any():
        return f"{int((values < 0).sum())} negative values (smallest {values.min():.4g})"
    fractional = values != np.rint(values)
    if fractional.any():
        return f"{int(fractional.sum())} values that are not whole numbers (such as {values[fractional][0]:.4g})"
    if n := int((values > _LARGEST_COUNT).sum()):
        return f"{n} values above {_LARGEST_COUNT} (largest {values.max():.4g}), more than a spot has"
    return None


def check_counts(counts: Any, where: str) -> sparse.csr_array:
    """Raw counts as float32 CSR without stored zeros or duplicates.

    Args:
        counts: (spot gene) dense or sparse.
        where: named in the error, such as "C3.h5ad: X".

    Raises:
        ValueError: no genes, no count above 0, or values that are text, negative, fractional, NaN or infinite.
    """
    if np.ndim(counts) == 2 and np.shape(counts)[1] == 0:
        raise ValueError(f"{where} holds no genes; check that the file was written completely")
    if getattr(counts, "dtype", None) == np.float16:  # scipy has no such matrices
        raise ValueError(f"{where} does not hold raw counts: {count_problem(np.asarray(counts))}; store whole numbers")
    try:
        matrix = sparse.csr_array(counts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} is no matrix of numbers ({error}); store the raw integer counts") from error
    problem = count_problem(matrix.data)
    if problem is not None:
        raise ValueError(
            f"{where} does not hold raw counts: {problem}. It looks normalised, log-transformed or scaled; "
            "store the raw integer counts in X, in layers['counts'] or in raw"
        )
    matrix = matrix.astype(np.float32)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    if matrix.nnz == 0 and matrix.shape[0] > 0:
        raise ValueError(f"{where} holds no count above 0; check that the file was written completely")
    return matrix


def check_unique(names: np.ndarray, what: str, source: Path, remedy: str) -> None:
    """Raise ValueError when a name occurs twice, naming some of them."""
    values, times = np.unique(names, return_counts=True)
    if (times > 1).any():
        some = ", ".join(values[times > 1][:5])
        raise ValueError(f"{source}: {int((times > 1).sum())} duplicate {what} names ({some} ...); {remedy}")


def yes_or_no(values: Iterable[object], spot_ids: Sequence[str] | np.ndarray, column: str, source: Path) -> np.ndarray:
    """A column such as in_tissue as bool (spot,): 1 or 0 as numbers or text, True or False as they are or as text.

    Raises:
        ValueError: anything else, empty values (NaN) included: whether to keep such a spot is not for a reader to guess.

    >>> yes_or_no([1, 0.0, "True", "0"], list("abcd"), "in_tissue", Path("x.h5ad"))
    array([ True, False,  True, False])
    """
    read = [_YES_OR_NO.get(str(value).strip().lower()) for value in values]
    if wrong := [number for number, value in enumerate(read) if value is None]:
        values = list(values)
        what = sorted({_shown(values[number]) for number in wrong})
        raise ValueError(
            f"{source}: {column} is {' or '.join(what[:3])} for {len(wrong)} of {len(read)} spots "
            f"({', '.join(str(spot_ids[number]) for number in wrong[:3])}{' ...' if len(wrong) > 3 else ''}); "
            "write 1 for a spot to use and 0 for one to leave out"
        )
    return np.asarray(read, dtype=bool)


def _shown(value: object) -> str:
    return "empty" if str(value).strip().lower() in {"", "nan", "none", "<na>"} else repr(str(value))


def check_positions(spot_px: np.ndarray, spot_ids: Sequence[str] | np.ndarray, source: Path) -> np.ndarray:
    """Positions as float64 (spot 2).

    Raises:
        ValueError: no spots, not two columns, or coordinates that are NaN or infinite.
    """
    try:
        spot_px = np.asarray(spot_px, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: spot positions must be numbers ({error})") from error
    if spot_px.ndim != 2 or spot_px.shape[1] != 2 or len(spot_px) != len(spot_ids):
        raise ValueError(f"{source}: spot positions of shape {spot_px.shape}; need ({len(spot_ids)}, 2): x and y")
    if len(spot_px) == 0:
        raise ValueError(f"{source}: no spots under tissue; check in_tissue and that spot names match the positions")
    bad = ~np.isfinite(spot_px).all(axis=1)
    if bad.any():
        some = ", ".join(str(name) for name in np.asarray(spot_ids)[bad][:3])
        raise ValueError(
            f"{source}: {int(bad.sum())} spots have NaN or infinite coordinates ({some} ...); remove these spots"
        )
    return spot_px


def in_memory(table: Any) -> pd.DataFrame:
    """Return the table of an AnnData that was read whole; as its type has it, it may lie on disk."""
    return table


def numbers(table: pd.DataFrame, columns: Sequence[str], source: Path) -> np.ndarray:
    """Columns of a table as float64 (row column); an empty cell is NaN.

    Raises:
        ValueError: a cell holds text; the message names the column, the row and the text.
    """
    values = np.empty((len(table), len(columns)), dtype=np.float64)
    for place, name in enumerate(columns):
        column = table[name]
        found = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
        wrong = np.flatnonzero(np.isnan(found) & column.notna().to_numpy())
        if len(wrong):
            raise ValueError(
                f"{source}: column {name} holds {str(column.iloc[wrong[0]])!r} in row {table.index[wrong[0]]} where a "
                f"number is needed ({len(wrong)} of {len(column)} rows); correct the column"
            )
        values[:, place] = found
    return values


def unique_names(names: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Gene names (gene,): a name that several genes share is written NAME_ID, an empty one as the gene's id."""
    names = np.where(np.isin(names, ["", "nan", "NaN", "None", "<NA>"]), ids, names).astype(str)
    _, inverse, times = np.unique(names, return_inverse=True, return_counts=True)
    shared = (times[inverse] > 1) & (names != ids)
    return np.where(shared, np.char.add(np.char.add(names, "_"), ids.astype(str)), names).astype(str)


def spot_diameter(table: SpotTable, grid: Grid) -> float | None:
    """Return the diameter in full-resolution pixels; warn where spots would overlap, which those of no array do."""
    scale = table.scale
    diameter, said = scale.spot_px, "spot_diameter_fullres"
    if scale.spot_um is not None and grid.um_per_px is not None:
        diameter, said = scale.spot_um / grid.um_per_px, f"{scale.spot_um:g} um"
    known = diameter is not None and grid.kind != "none" and grid.pitch_px is not None
    if known and diameter > _WIDEST_SPOT * grid.pitch_px:  # type: ignore[operator]
        warnings.warn(
            f"{table.source}: spots of {diameter:.4g} px ({said}) lie {grid.pitch_px:.4g} px apart and would overlap; diameter "
            "and positions must be in pixels of the same, full-resolution image: correct one of them",
            stacklevel=2,
        )
    return diameter
