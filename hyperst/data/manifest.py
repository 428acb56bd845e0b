"""A table of sections: which file, whose, on which image, at which scale."""

from __future__ import annotations

import csv
import difflib
from pathlib import Path

from hyperst.data.images.scale import PLAUSIBLE_UM_PER_PX
from hyperst.data.readers import READERS
from hyperst.data.sources import SectionSource, refuse_image_of_image

__all__ = ["COLUMNS", "is_manifest", "read_manifest"]

COLUMNS = {
    "section": "file or folder, or an image to predict on, relative to the manifest",
    "name": "what to call it; default its file's name",
    "patient": "whose it is; default what the file says",
    "image": "the full-resolution image of a section, relative to the manifest",
    "mpp": "um per pixel of that image",
    "kind": "how to read it: h5ad, spaceranger or table; default what it looks like",
}
"""Columns of a manifest and what they mean. Only ``section`` is needed; an empty cell is what the file says."""


def is_manifest(path: Path) -> bool:
    """Whether a path is a manifest, a .csv file."""
    return path.suffix.lower() == ".csv" and path.is_file()


def read_manifest(path: str | Path) -> list[SectionSource]:
    """Read a table of sections; commas, semicolons or tabs separate its columns.

    Raises:
        ValueError: the file is no such table, or a row that cannot be; the message names the row.
        FileNotFoundError: a section or an image that does not exist.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "A.h5ad").touch()
    >>> _ = (folder / "sections.csv").write_text("section,patient,mpp\\nA.h5ad,P1,0.5\\n")
    >>> [(source.path.name, source.patient, source.mpp) for source in read_manifest(folder / "sections.csv")]
    [('A.h5ad', 'P1', 0.5)]
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8; save the manifest as 'CSV UTF-8'") from error
    header = lines[0] if lines else ""
    separator = max(",;\t", key=header.count)
    try:
        rows = list(csv.reader(lines, delimiter=separator, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} is no readable CSV table ({error}); save it again as CSV") from error
    columns = [name.strip().lower() for name in rows[0]] if rows else []
    _check_columns(columns, path)
    found = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(columns):
            raise ValueError(
                f"{path}, row {number}: {len(row)} cells for {len(columns)} columns; quote what holds {separator!r}"
            )
        found.append(_source(dict(zip(columns, (cell.strip() for cell in row), strict=False)), path, number))
    if not found:
        raise ValueError(f"{path} names no section; add a row for each")
    _check_distinct(found, path)
    return found


def _check_columns(columns: list[str], path: Path) -> None:
    known = ", ".join(COLUMNS)
    if "section" not in columns:
        raise ValueError(
            f"{path}: no column section, its first line is {', '.join(columns) or 'empty'}; a manifest has columns {known}"
        )
    for name in columns:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1)
            raise ValueError(
                f"{path}: unknown column {name!r}{f', did you mean {near[0]!r}?' if near else ''}; a manifest has columns {known}"
            )
    if len(set(columns)) < len(columns):
        raise ValueError(f"{path}: a column is there twice ({', '.join(columns)}); keep one")


def _source(cells: dict[str, str], path: Path, number: int) -> SectionSource:
    where = f"{path}, row {number}"
    if not cells.get("section"):
        raise ValueError(f"{where}: no section; give its file or folder")
    name = cells.get("name") or None
    if name is not None and ("/" in name or "\\" in name or name.startswith(".")):
        raise ValueError(
            f"{where}: name {name!r} cannot name a folder of results; leave out slashes and a dot in front"
        )
    kind = cells.get("kind") or None
    if kind is not None and kind not in {reader.key for reader in READERS}:
        raise ValueError(
            f"{where}: kind is {kind!r}; need one of {', '.join(reader.key for reader in READERS)}, or nothing"
        )
    source = SectionSource(
        path=_existing(cells["section"], path.parent, f"{where}: section"),
        name=name,
        patient=cells.get("patient") or None,
        image=_existing(cells["image"], path.parent, f"{where}: image") if cells.get("image") else None,
        mpp=_mpp(cells["mpp"], where) if cells.get("mpp") else None,
        kind=kind,
    )
    refuse_image_of_image(source, where)
    return source


def _existing(cell: str, folder: Path, where: str) -> Path:
    path = folder / Path(cell).expanduser()
    if not path.exists() and "\\" in cell:  # written on Windows
        path = folder / cell.replace("\\", "/")
    if not path.exists():
        raise FileNotFoundError(f"{where} {cell} does not exist ({path}); paths are relative to the manifest")
    return path


def _mpp(cell: str, where: str) -> float:
    least, most = PLAUSIBLE_UM_PER_PX
    try:
        found = float(cell.replace(",", "."))  # a spreadsheet may write a decimal comma
    except ValueError:
        raise ValueError(
            f"{where}: mpp is {cell!r}; need the um per pixel as a number such as 0.5, or nothing"
        ) from None
    if not least <= found <= most:
        raise ValueError(f"{where}: mpp is {cell!r}; histology images have {least} to {most:g} um per pixel")
    return found


def _check_distinct(sources: list[SectionSource], path: Path) -> None:
    listed: dict[str, list[str]] = {
        "section": [str(source.path.resolve()) for source in sources],
        "name": [source.name for source in sources if source.name is not None],
    }
    for what, values in listed.items():
        doubled = [value for value in values if values.count(value) > 1]
        if doubled:
            raise ValueError(f"{path}: {what} {doubled[0]} is there twice; keep one row for each")
