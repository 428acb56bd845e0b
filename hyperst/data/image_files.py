"""Which file is a section's full-resolution image."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from hyperst.data.images import IMAGE_SUFFIXES
from hyperst.data.readers.spaceranger_files import sample_folder
from hyperst.data.readers.table import SpotTable

__all__ = ["find_image", "image_stem", "is_image"]

_SHOWN = 5


def find_image(
    table: SpotTable, names: Iterable[str], image: str | Path | None, images_dir: str | Path | None, required: bool
) -> Path | None:
    """The image of a section: ``image``, else one in ``images_dir``, else one that the file names or beside it.

    Args:
        names: what the image may be called, without its ending (which may be in any case, and .ome.tif).
        required: False returns None where there is none.

    Raises:
        FileNotFoundError: no such image. With ``images_dir`` no other place is looked at: an image of another place would be
            taken silently.
    """
    if image is not None:
        if not Path(image).is_file():
            raise FileNotFoundError(f"image {image} (given for section {table.name}) does not exist")
        return Path(image)
    stems = list(dict.fromkeys([table.name, *names]))
    beside = _beside(table, stems)
    if images_dir is None:
        if beside is not None or not required:
            return beside
        small = "; the downscaled images that come with it are too coarse for spots" if table.small_images else ""
        raise FileNotFoundError(
            f"{table.source}: no full-resolution image {_called(stems)} in {_folder(table)}, in images or wsis in or beside "
            f"it, or where the file names one{small}. Give the image with --image FILE or its folder with --images FOLDER "
            "(in Python image= and images_dir=)"
        )
    folder = Path(images_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} (--images) is no folder")
    named = [folder / path.name for path in table.images_to_try]
    found = _first(folder, stems) or next((path for path in named if os.path.isfile(path)), None)
    if found is not None or not required:
        return found
    held = [path.name for path in sorted(folder.iterdir()) if is_image(path)]
    holds = ", ".join(held[:_SHOWN]) + (" ..." if len(held) > _SHOWN else "") if held else "no image"
    other = "" if beside is None else f", or leave --images out to use {beside}"
    raise FileNotFoundError(
        f"{table.source}: no full-resolution image {_called(stems)} in {folder} (--images), which holds {holds}. Name the "
        f"image like the section, give it with --image FILE or in a manifest's column image{other}"
    )


def _beside(table: SpotTable, stems: list[str]) -> Path | None:
    for path in table.images_to_try:
        # a name of another machine that cannot be looked at here is no error
        if os.path.isfile(path):
            return path
    folder = _folder(table)
    places = [folder, folder / "images", folder.parent / "images", folder.parent / "wsis"]
    if table.source.is_dir():  # Space Ranger's: beside outs and the sample's folder, above a binning of Visium HD
        sample = sample_folder(folder)
        places += [parent for parent in folder.parents if parent.is_relative_to(sample.parent)]
    for place in places:
        if (found := _first(place, stems)) is not None:
            return found
    return None


def _folder(table: SpotTable) -> Path:
    return table.source if table.source.is_dir() else table.source.parent


def _first(folder: Path, stems: list[str]) -> Path | None:
    """The image in ``folder`` with the first of ``stems``; of several the one whose ending comes first in IMAGE_SUFFIXES."""
    if not folder.is_dir():
        return None
    files = [
        (stem, path) for path in sorted(folder.iterdir()) if is_image(path) and (stem := image_stem(path)) in stems
    ]
    order = [(stems.index(stem), IMAGE_SUFFIXES.index(path.suffix.lower()), path) for stem, path in files]
    return min(order)[2] if order else None


def is_image(path: Path) -> bool:
    """Whether a file is called like an image that can be opened; dotfiles are not."""
    return not path.name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def image_stem(path: Path) -> str:
    """An image's name without its ending.

    >>> image_stem(Path("case1.slide1.ome.tif")), image_stem(Path("S3.Tif"))
    ('case1.slide1', 'S3')
    """
    stem = path.stem
    return stem[: -len(".ome")] if stem.lower().endswith(".ome") and len(stem) > len(".ome") else stem


def _called(stems: list[str]) -> str:
    return f"named {' or '.join(stems)} ({', '.join(IMAGE_SUFFIXES[:5])} ...)"
