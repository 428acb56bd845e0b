"""`hyperst check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyperst.cli.console import SpotProgress, make_console
from hyperst.cli.options import BinUm, GeneNames, Image, Images, MinCounts, Mpp, Sections

__all__ = ["check"]


def check(
    sections: Sections,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for a picture of each section's spots on its image, NAME_spots.png."
        ),
    ] = None,
    images: Images = None,
    image: Image = None,
    mpp: Mpp = None,
    bin_um: BinUm = None,
    gene_names: GeneNames = None,
    min_counts: MinCounts = None,
) -> None:
    """Say what is right and wrong with sections before training: counts, names, positions, tissue, image, scale."""
    console = make_console()
    from hyperst.cli.reports import draw_reports, examine_all, foretell_training, print_reports
    from hyperst.data.quality import MIN_COUNTS
    from hyperst.files import require_writable

    if image is not None and len(sections) > 1:
        raise typer.BadParameter("goes with one section; use --images FOLDER for several", param_hint="--image")
    if output is not None:
        require_writable(output / "NAME_spots.png")
    least = MIN_COUNTS if min_counts is None else min_counts
    with SpotProgress(console, "sections are looked at") as progress:
        reports = examine_all(sections, image, images, mpp, bin_um, gene_names, least, progress)
    print_reports(console, reports, together := foretell_training(reports, least))
    draw_reports(console, reports, output)
    usable = sum(report.usable for report in reports)
    console.print(f"{usable} of {len(reports)} sections can be used")
    if usable < len(reports) or any(finding.level == "error" for finding in together):
        raise typer.Exit(1)
