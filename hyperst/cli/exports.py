"""``--export``: a prediction in other formats, beside its .h5ad."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from hyperst.cli.console import working

if TYPE_CHECKING:
    from anndata import AnnData

    from hyperst.data import SectionSource

__all__ = ["Exports", "print_next", "write_exports"]


class Export(Enum):
    """The formats, as typer takes several of a choice."""

    csv = "csv"
    geojson = "geojson"
    zarr = "zarr"


Exports = Annotated[
    list[Export] | None,
    typer.Option(
        "--export",
        help="Write it beside the .h5ad as this too; repeat for more. csv: a table; geojson: detections for QuPath; zarr: "
        "SpatialData with the image, for napari and Vitessce.",
    ),
]


def write_exports(
    console: Console,
    predicted: AnnData,
    path: Path,
    formats: Sequence[str],
    source: SectionSource,
    *,
    skip_damaged: bool,
) -> None:
    """Write the exports of a prediction whose .h5ad is ``path``, and say where; ``source`` is what it was predicted from."""
    from hyperst.export import export_path, image_of, write_export

    for ending in formats:
        try:
            with working(console, f".{ending} is written"):
                image = image_of(source) if ending == "zarr" else None
                written = write_export(predicted, export_path(path, ending), image=image, skip_damaged=skip_damaged)
        except BaseException:
            console.print(
                f"the prediction itself is whole: {path}. Its .{ending} can be written in Python: hyperst.export.write_export("
                f"anndata.read_h5ad({str(path)!r}), {str(export_path(path, ending))!r})",
                soft_wrap=True,
            )
            raise
        console.print(f"written: {written}", soft_wrap=True)


def print_next(console: Console, run_folder: Path, predicted: AnnData, path: Path) -> None:
    """What to do with a prediction."""
    shape = "" if "spatial" in predicted.uns else ", shape=None"
    console.print(
        f"next: {shlex.join(['hyperst', 'plot', str(run_folder), str(path)])}\n"
        f"or in Python: adata = scanpy.read_h5ad(...); squidpy.pl.spatial_scatter(adata, color=adata.var_names[0]{shape})",
        soft_wrap=True,
    )
