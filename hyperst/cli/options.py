"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = [
    "BinUm",
    "Device",
    "Devices",
    "GeneNames",
    "Image",
    "Images",
    "MinCounts",
    "Mpp",
    "Readers",
    "Sections",
    "StainOption",
]

Sections = Annotated[
    list[Path],
    typer.Argument(
        help="Sections: .h5ad, Space Ranger folder, legacy counts .tsv.gz, a folder of them, or a manifest (.csv with columns "
        "section, name, patient, image, mpp, kind).",
        show_default=False,
    ),
]
Images = Annotated[
    Path | None, typer.Option("--images", help="Folder with the full-resolution images, named like the sections.")
]
Image = Annotated[
    Path | None, typer.Option("--image", help="Full-resolution image of the section, if there is one section.")
]
Mpp = Annotated[
    float | None, typer.Option("--mpp", help="um per pixel of the full-resolution images, if the files do not say.")
]
BinUm = Annotated[
    int | None, typer.Option("--bin-um", min=1, help="Which binning of a Visium HD folder: 2, 8 or 16 um.")
]
GeneNames = Annotated[
    str | None,
    typer.Option("--gene-names", help="Column of var with the genes' names; of a Space Ranger folder name or id."),
]
MinCounts = Annotated[
    int | None,
    typer.Option(
        "--min-counts",
        min=0,
        help="Least total count (UMI) of a spot; those below are left out, 0 keeps all. Default 200.",
    ),
]
StainOption = Annotated[
    Literal["none", "match", "macenko"],
    typer.Option(
        "--stain",
        help="match: see the image with the stain of the training tissue (mean and spread of optical density); macenko: with its "
        "hematoxylin and eosin (extra stain).",
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...; default: the GPU if there is one.")]
Readers = Annotated[
    int,
    typer.Option(
        "--readers",
        min=0,
        help="Processes that read and decode each image, beside the one that predicts; 0: that one does. Values are the same.",
    ),
]
Devices = Annotated[
    int | None,
    typer.Option(
        "--devices",
        min=1,
        help="Processes to train in, one for each GPU, or that many on the CPU. Default: one, or those of torchrun or srun.",
    ),
]
