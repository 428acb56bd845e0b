"""The sections that the arguments of a command name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from hyperst.config import RunConfig
    from hyperst.data import Section, SectionSource

__all__ = ["list_groups", "one_image", "read_run_sections", "read_sections", "require_bin", "training_sections"]


def list_groups(groups: Sequence[Sequence[Path]], bin_um: int | None) -> list[list[SectionSource]]:
    """Sections of each group of arguments (training, validation), with names that tell all of them apart."""
    from hyperst.data import distinct_names, list_sections

    found = [list_sections(paths, bin_um=bin_um) if paths else [] for paths in groups]
    together = [source for sources in found for source in sources]
    require_bin(together, bin_um)
    places = [source.path.resolve() for source in together]
    for source, place in zip(together, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(
                f"section {source.path} is given more than once; each section has one role, training or validation"
            )
    named = iter(distinct_names(together))
    return [[next(named) for _ in sources] for sources in found]


def require_bin(sources: Sequence[SectionSource], bin_um: int | None) -> None:
    """Raise where --bin-um chooses nothing."""
    if bin_um is not None and not any(source.path.name == f"square_{bin_um:03d}um" for source in sources):
        raise typer.BadParameter(
            "none of the sections is a Visium HD folder of several binnings", param_hint="--bin-um"
        )


def one_image(sources: Sequence[SectionSource], image: Path | None) -> None:
    """Raise where --image is given for several sections."""
    if image is not None and len(sources) > 1:
        raise typer.BadParameter("goes with one section; use --images FOLDER for several", param_hint="--image")


def read_sections(
    sources: Sequence[SectionSource],
    *,
    images: Path | None = None,
    image: Path | None = None,
    mpp: float | None = None,
    gene_names: str | None = None,
    require_image: bool = True,
) -> list[Section]:
    """Read sections; what a manifest says of one comes before the options."""
    return [
        source.read(image=image, images_dir=images, mpp=mpp, gene_names=gene_names, require_image=require_image)
        for source in sources
    ]


def read_run_sections(folder: Path) -> tuple[RunConfig, list[Section], list[Section]]:
    """Configuration, training and validation sections of a started run."""
    from hyperst.config import read_run_config
    from hyperst.run import RunFolder

    place = RunFolder(folder)
    place.require()
    split = place.read_split()
    config = read_run_config(place.config)
    training, validation = (
        [record.read(config.data.feature_key) for record in split.role(role)] for role in ("training", "validation")
    )
    return config, training, validation


def training_sections(folder: Path) -> tuple[list[Section], str]:
    """The training sections of a run, or none and the reason."""
    try:
        return read_run_sections(folder)[1], ""
    except (OSError, ValueError) as error:
        return [], f"it needs the training sections again, and {error}"
