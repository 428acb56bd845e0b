"""``hyperst report``: a run and its predictions as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyperst.cli.console import make_console, working

__all__ = ["report"]


def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")],
    predictions: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PREDICTION",
            help="Predictions of the run (.h5ad) to show beside its evaluated sections.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The .html to write; an earlier report is replaced. Default RUN/report.html."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            help="Folder of slides that are no longer where they were predicted. Where a slide is found, its map can be "
            "zoomed into.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """One HTML file that opens anywhere without a network: whether to believe a run, its scores, maps and provenance."""
    from hyperst.report import write_report

    console = make_console()
    with working(console, "the page is made"):
        path = write_report(run_folder, predictions or (), output, images)
    console.print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser", soft_wrap=True)
