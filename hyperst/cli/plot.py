"""``hyperst plot``: figures for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hyperst.cli.console import make_console, working

__all__ = ["plot"]


def plot(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")],
    predictions: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PREDICTION",
            help="Predictions of the run (.h5ad) to draw. Default: its training and its evaluated sections.",
            show_default=False,
        ),
    ] = None,
    genes: Annotated[
        list[str] | None,
        typer.Option("--gene", help="Gene to draw; repeat for more. Default: the three best predicted."),
    ] = None,
    ending: Annotated[
        Literal["pdf", "svg", "png"],
        typer.Option("--format", help="Format of the figures, text stays text in pdf and svg."),
    ] = "pdf",
    scale: Annotated[
        Literal["shared", "z-score"],
        typer.Option(
            "--scale",
            help="Colours: shared (one range for measured and predicted) or z-score (of each, which shows its pattern).",
        ),
    ] = "shared",
    image: Annotated[
        Path | None,
        typer.Option("--image", help="Full-resolution image of the prediction, for a finer picture of the tissue."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the figures; earlier ones are replaced. Default RUN/figures."),
    ] = None,
) -> None:
    """Figures for a paper: genes over the tissue with scale bars and units, the error, and the curves of the training."""
    console = make_console()
    with working(console, "drawing"):
        from hyperst.plots.run import plot_run

        drawn = plot_run(
            run_folder, predictions or (), genes=genes or (), ending=ending, scale=scale, image=image, output=output
        )
    for path in drawn:
        console.print(f"written: {path}", soft_wrap=True)
