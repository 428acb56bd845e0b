"""`hyperst features`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperst.cli.console import SpotProgress, make_console
from hyperst.cli.inputs import list_groups, one_image
from hyperst.cli.options import BinUm, Device, Image, Images, Mpp
from hyperst.progress import Count

if TYPE_CHECKING:
    from hyperst.config import RunConfig
    from hyperst.data import Section, SectionSource

__all__ = ["features"]


def features(
    sections: Annotated[
        list[Path],
        typer.Argument(
            help="Sections, folders of them, whole slide images, or a manifest (.csv).",
            show_default=False,
        ),
    ],
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help="Encoder: uni, resnet50, timm:NAME, ... with --weights; or stain."),
    ] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="Local file with the encoder's weights.")] = None,
    widths: Annotated[
        list[float] | None,
        typer.Option(
            "--width-um",
            min=1.0,
            help="Width of the crops in um; repeat for more. Default: those of all levels that training would take.",
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Side of the crops, pixels. Default 224.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder; a section's features go to ENCODER_WIDTHum/NAME.h5 in it.")
    ] = Path("features"),
    config_file: Annotated[
        Path | None, typer.Option("--config", help="YAML configuration, for model.timm_kwargs and the like.")
    ] = None,
    pitch_um: Annotated[
        float,
        typer.Option("--pitch-um", min=1.0, help="Spacing in um of the grid over the tissue of a slide without spots."),
    ] = 100.0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Crops at a time.")] = 64,
    images: Images = None,
    image: Image = None,
    mpp: Mpp = None,
    bin_um: BinUm = None,
    device: Device = None,
) -> None:
    """Compute an encoder's features once, in files that training, evaluation and prediction read with --features."""
    console = make_console()
    from hyperst.device import choose_device
    from hyperst.encode import encode_section, feature_path, load_encoder, require_widths

    config = _config(config_file, backbone, weights, image_size)
    (listed,) = list_groups([sections], bin_um)
    one_image(listed, image)
    read = [_read(source, images, image, mpp, pitch_um) for source in listed]
    chosen = sorted(set(widths)) if widths else _usual_widths(config, [section for section, _ in read])
    for section, _ in read:
        require_widths(section, chosen)
    encoder = load_encoder(config, choose_device(device))
    console.print(
        f"{encoder.name}: {encoder.backbone.width} numbers, crops of {', '.join(f'{width:g}' for width in chosen)} um "
        f"at {encoder.image_size} px, checksum {encoder.checksum[:12]}"
    )
    for section, named in read:
        for width in chosen:
            path = feature_path(output, encoder.name, width, section.name)
            with SpotProgress(console, f"{section.name}, {width:g} um") as progress:
                count = Count(progress, section.n_spots).add
                written = encode_section(
                    encoder, section, width, path, barcodes=named, batch_size=batch_size, on_batch=count
                )
            console.print(f"{section.n_spots} spots: {path}{'' if written else ' (was there)'}", soft_wrap=True)
    folders = [shlex.quote(str(feature_path(output, encoder.name, width, "NAME").parent)) for width in chosen]
    options = [f"{name} {folder}" for name, folder in zip(("--features", "--niche-features"), folders, strict=False)]
    for width, folder in zip(chosen[2:], folders[2:], strict=True):
        options.append(f"--level um{width:g}={width:g} --level-features um{width:g}={folder}")
    console.print(f"next: hyperst train SECTIONS {' '.join(options)}", soft_wrap=True)


def _config(file: Path | None, backbone: str | None, weights: str | None, image_size: int | None) -> RunConfig:
    from hyperst.config import RunConfig, read_config, update

    config = update(RunConfig(), {"crop": {"image_size": 224}})
    if file is not None:
        config = read_config(file, config)
    given: dict[str, dict[str, Any]] = {
        "model": {"backbone": backbone, "weights": weights},
        "crop": {"image_size": image_size},
    }
    changes: dict[str, Any] = {
        part: {name: value for name, value in values.items() if value is not None} for part, values in given.items()
    }
    return update(config, changes)


def _read(
    source: SectionSource, images: Path | None, image: Path | None, mpp: float | None, pitch_um: float
) -> tuple[Section, bool]:
    """A section with its spots, which have names that others know; or a slide with a grid over its tissue, whose have none."""
    from hyperst.data import image_section, open_image, tile_grid
    from hyperst.data.images import IMAGE_SUFFIXES

    if source.path.suffix.lower() not in IMAGE_SUFFIXES:
        return source.read(images_dir=images, image=image, mpp=mpp, require_counts=False), True
    with open_image(source.path) as opened:
        um_per_px = next((each for each in (source.mpp, mpp, opened.mpp) if each is not None), None)
        if um_per_px is None:
            raise ValueError(
                f"the um/px of {source.path} are not recorded in it; give them with --mpp (for example --mpp 0.5)"
            )
        pitch_px = pitch_um / um_per_px
        positions = tile_grid(opened, pitch_px)
    return image_section(source.path, positions, mpp=um_per_px, pitch_px=pitch_px, name=source.name), False


def _usual_widths(config: RunConfig, sections: list[Section]) -> list[float]:
    from hyperst.plan import common_crop

    crop = common_crop(config, sections)
    if crop.spot_um is None or crop.niche_um is None:
        raise ValueError("the um/px of the images are unknown, so that no crop has a width in um; give them with --mpp")
    return [crop.spot_um, crop.niche_um, *crop.wider_um.values()]
