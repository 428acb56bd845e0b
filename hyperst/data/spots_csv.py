"""Positions from a table: where to predict on an image."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

__all__ = ["read_spots"]

_NEEDED = (
    "a comma-separated table with columns x and y (pixels of the full-resolution image) and, if wanted, spot (names)"
)


def read_spots(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions from a .csv with columns ``x`` and ``y`` (pixels) and, if there is one, names from its column ``spot``.

    Returns:
        float64 (spot 2) positions, and str (spot,) names or None.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is empty or no table, columns are missing, a value is empty or no finite number, or a name is
            missing or stands twice. The message names the file and the line.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "spots.csv"
    ...     _ = path.write_text("spot,x,y\\nA,10,20.5\\nB,30,40\\n")
    ...     positions, names = read_spots(path)
    >>> positions.tolist(), names.tolist()
    ([[10.0, 20.5], [30.0, 40.0]], ['A', 'B'])
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"spots file {path} does not exist")
    table = _read_table(path)
    columns = list(table.columns)
    if doubled := sorted({name for name in ("x", "y", "spot") if columns.count(name) > 1}):
        raise ValueError(f"{path}: column {doubled[0]} is there {columns.count(doubled[0])} times; keep one")
    missing = [column for column in ("x", "y") if column not in columns]
    if missing:
        held = ", ".join(columns)[:200]
        raise ValueError(f"{path}: need columns x and y (pixels of the full-resolution image), got {held}")
    if table.empty:
        raise ValueError(f"{path} holds no spots, only the names of its columns; add a row with x and y for each spot")
    positions = np.stack([_numbers(table[column], path) for column in ("x", "y")], axis=1)
    return positions, _names(table["spot"], path) if "spot" in table else None


def _read_table(path: Path) -> pd.DataFrame:
    """All columns as text, so that what is no number can be shown as it stands; names of columns in lower case."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no table of text in UTF-8; need {_NEEDED}: save it as 'CSV UTF-8'") from None
    if "\0" in text:
        raise ValueError(f"{path} is no table of text (it holds zero bytes); need {_NEEDED}: save it as 'CSV UTF-8'")
    header = next((line for line in text.splitlines() if line.strip()), "")
    for separator, name in ((";", "';'"), ("\t", "tabs")):
        if separator in header and "," not in header:
            raise ValueError(
                f"{path}: its columns are separated by {name}; save it with commas between the columns, and numbers with a "
                "decimal point"
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header: nothing may be lost
            table = pd.read_csv(
                io.StringIO(text), dtype=str, keep_default_na=False, skipinitialspace=True, index_col=False, header=None
            )
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path} is empty; need {_NEEDED}") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise ValueError(
            f"{path} is no table: its rows have different numbers of cells, or a quotation mark is not closed; need {_NEEDED}, "
            "the names of the columns in its first line"
        ) from error
    names = [str(name).strip().lower() for name in table.iloc[0]]
    return table.fillna("").iloc[1:].reset_index(drop=True).set_axis(names, axis=1)


def _numbers(column: pd.Series, path: Path) -> np.ndarray:
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        first = str(column.iloc[wrong[0]]).strip()
        shown = f"{first[:40]!r}" if first else "empty"
        hint = "; write decimals with a point" if "," in first else ""
        raise ValueError(
            f"{path}: columns x and y must be numbers, but {column.name} is {shown} in row {wrong[0] + 1} below the header "
            f"({len(wrong)} such of {len(values)}); correct or remove these rows{hint}"
        )
    return values


def _names(column: pd.Series, path: Path) -> np.ndarray:
    names = column.str.strip()
    if (names == "").any():
        row = int(np.flatnonzero(names == "")[0]) + 1
        raise ValueError(
            f"{path}: no name in column spot in row {row} below the header; name every spot, or drop the column"
        )
    if names.duplicated().any():
        raise ValueError(
            f"{path}: {int(names.duplicated().sum())} spots have the name of another "
            f"({', '.join(names[names.duplicated()].unique()[:3])}); give each its own, or drop the column spot"
        )
    return names.to_numpy(dtype=str)
