"""One way to each format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hyperst.data import SectionSource
from hyperst.data.images import IMAGE_SUFFIXES
from hyperst.export.geojson import write_geojson
from hyperst.export.spatial_data import require_spatialdata, write_spatialdata
from hyperst.export.spots import FACTS
from hyperst.export.table import check_columns, write_csv
from hyperst.files import require_writable

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["FORMATS", "check_exports", "check_formats", "export_path", "image_of", "write_export"]

FORMATS = ("csv", "geojson", "zarr")
"""Endings of the exports: a table, detections of QuPath, SpatialData."""


def export_path(prediction: str | Path, ending: str) -> Path:
    """Where an export of a prediction goes: beside it, under its name.

    >>> export_path("predictions/case1.slide2.h5ad", "csv").as_posix()
    'predictions/case1.slide2.csv'
    """
    return Path(prediction).with_suffix(f".{ending}")


def check_exports(prediction: str | Path, formats: Sequence[str], genes: Sequence[str]) -> None:
    """Raise what can be told before the work of a prediction of ``genes`` that is to be exported.

    Raises:
        ImportError: the extra `spatialdata` is needed and not installed.
        FileExistsError: a file or folder that would be written exists.
        ValueError: there is no such format, or a gene has the name of another column of the table or measurement.
        OSError: the folder cannot be written to.
    """
    check_formats(formats, genes)
    for ending in formats:
        path = export_path(prediction, ending)
        if os.path.lexists(path):
            raise FileExistsError(f"{path} exists and is not overwritten; choose another --output, or remove it")
        require_writable(path)


def check_formats(formats: Sequence[str], genes: Sequence[str]) -> None:
    """Raise what :func:`check_exports` does of formats, wherever the exports go."""
    for ending in formats:
        if ending not in FORMATS:
            raise ValueError(f"formats: got {ending!r}, need some of {', '.join(FORMATS)}")
        if ending == "zarr":
            require_spatialdata()
        if ending in ("csv", "geojson"):
            check_columns(genes, FACTS)


def image_of(source: SectionSource) -> Path | None:
    """The full-resolution image of what was predicted: the image itself, or that of a section, None where it has none."""
    if source.path.suffix.lower() in IMAGE_SUFFIXES:
        return source.path
    return source.read(require_counts=False, require_image=False).image_path


def write_export(
    adata: AnnData, path: str | Path, *, image: str | Path | None = None, skip_damaged: bool = False
) -> Path:
    """Write a prediction in the format that the ending of ``path`` names, atomically, and return the path.

    Args:
        adata: as :func:`hyperst.predict_image` returns it, or read from what `hyperst predict` or `hyperst evaluate` wrote.
        path: ends in .csv, .geojson or .zarr; an earlier .csv or .geojson is replaced.
        image: full-resolution image for a .zarr, default the thumbnail in ``adata``.
        skip_damaged: leave tiles of ``image`` that cannot be decoded white.

    Raises:
        ValueError: another ending, ``adata`` is no prediction, or ``image`` is not the one it is of.
        FileExistsError: the .zarr exists.
        ImportError: a .zarr needs the extra `spatialdata`.
        OSError: see :func:`hyperst.files.atomic_path`.
    """
    path = Path(path)
    if path.suffix == ".csv":
        return write_csv(adata, path)
    if path.suffix == ".geojson":
        return write_geojson(adata, path)
    if path.suffix == ".zarr":
        return write_spatialdata(adata, path, image=image, skip_damaged=skip_damaged)
    raise ValueError(f"{path} must end in one of {', '.join(f'.{each}' for each in FORMATS)}")
