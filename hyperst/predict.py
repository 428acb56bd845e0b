"""From an image to expression: predict at spots or on a grid over the tissue, as an AnnData."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hyperst.data import (
    Section,
    attach_features,
    image_section,
    open_image,
    read_section,
    tile_grid,
)
from hyperst.data.check import require_placement
from hyperst.data.images import DamagedTiles
from hyperst.data.images.scale import check_mpp
from hyperst.data.readers import reader_of
from hyperst.data.sections import image_name
from hyperst.data.spots_csv import read_spots
from hyperst.data.tiles import MIN_TISSUE
from hyperst.prediction_anndata import Known, describe_prediction, section_anndata
from hyperst.run import Run, has_scale, load_run
from hyperst.spot_values import predict_values, predict_with_features
from hyperst.stain import Stain

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "Run",
    "load_run",
    "predict_image",
    "predict_section",
    "predict_values",
    "prediction_path",
    "read_spots",
    "section_anndata",
]


def predict_section(
    run: Run,
    section: Section,
    *,
    skip_damaged: bool = False,
    features: str | Path | None = None,
    niche_features: str | Path | None = None,
    wider_features: Mapping[str, str | Path] | None = None,
    stain: Stain = "none",
    on_progress: Callable[[int, int], None] | None = None,
) -> AnnData:
    """Predict a section's spots and return them as AnnData; see :func:`predict_image` for what it holds, and the arguments."""
    section = prepare_section(
        run,
        section,
        skip_damaged=skip_damaged,
        features=features,
        niche_features=niche_features,
        wider_features=wider_features,
    )
    known = Known.of(run, stain)
    values, far, placed = predict_with_features(run, section, known.distances, stain=stain, on_progress=on_progress)
    return describe_prediction(run, section, values, far, placed, known)


def prepare_section(
    run: Run,
    section: Section,
    *,
    skip_damaged: bool,
    features: str | Path | None,
    niche_features: str | Path | None,
    wider_features: Mapping[str, str | Path] | None,
) -> Section:
    """The section with the features that a run takes, which notes damaged tiles where they are to be skipped; see
    :func:`predict_image`.
    """
    key = run.config.data.feature_key
    if key is not None and features is not None:
        section = attach_features(section, features, niche_features, wider_features=wider_features, key=key)
    if skip_damaged and section.damaged is None:
        section = replace(section, damaged=DamagedTiles())
    if key is None and section.path is not None:  # measured spots; positions of a user's choice may be anywhere
        require_placement(section, refuse=False)
    if key is None and run.config.crop.niche_um is None and section.grid.um_per_px is None:
        warnings.warn(
            f"the run in {run.folder} was trained without um/px: crops and grid follow the spacing of the training spots in "
            f"pixels, so {section.image_path} must have the pixel size of the training images",
            stacklevel=3,
        )
    return section


def predict_image(
    run: Run,
    image: str | Path,
    *,
    spots: str | Path | np.ndarray | None = None,
    mpp: float | None = None,
    skip_damaged: bool = False,
    features: str | Path | None = None,
    niche_features: str | Path | None = None,
    wider_features: Mapping[str, str | Path] | None = None,
    min_tissue: float | None = None,
    stain: Stain = "none",
    on_progress: Callable[[int, int], None] | None = None,
) -> AnnData:
    """Predict expression on an image.

    Args:
        image: the full-resolution H&E image; or a section, whose own image and spots are then used.
        spots: where to predict: a section (.h5ad, Space Ranger folder, legacy counts; its counts are not used), a .csv
            with columns x and y, or float (spot 2), in pixels of ``image``. None: a square grid over the tissue, with
            the spacing of the training sections.
        mpp: um/px of ``image``; default what the section or the image itself records.
        skip_damaged: leave tiles of the image that cannot be decoded white, like background. Their number is then
            ``damaged_tiles`` in ``uns['hyperst']``, and ``obs['on_damaged_tile']`` tells the spots whose niche they touch. By
            default such a tile is an error.
        features, niche_features: files of precomputed features, for a run that was trained on such; spots without are left
            out, see :func:`hyperst.data.attach_features`; ``wider_features`` likewise.
        min_tissue: share (0 to 1) of a square of the grid that must be tissue, default 0.15; 0 predicts on the whole image,
            glass included. Spots that are given are all predicted.
        stain: "match" or "macenko" sees the image with the stain of the training tissue, see :mod:`hyperst.stain`; it is
            recorded in ``uns['hyperst']``.

    Returns:
        AnnData with X float32 (spot gene) on the run's target scale, half-widths of intervals and the applicability of
        spots and slide (see :func:`hyperst.doubt.add_doubt`), ``obsm['spatial']`` in full-resolution pixels,
        ``obs['tissue_fraction']`` (the share of a square of one pitch around the spot that is tissue, see
        :func:`hyperst.data.find_tissue`), the training spots whose images are nearest (see :func:`hyperst.nearest.add_nearest`),
        ``var`` with what the run's evaluations found of each gene (see :func:`hyperst.export.held_out_figures`),
        ``uns['spatial']`` with a thumbnail (so that scanpy and squidpy can plot it) and ``uns['hyperst']`` with units, origin and
        the area of all tissue on the image (``tissue_mm2``, where um/px are known).

    Raises:
        FileNotFoundError: no image or no spots file.
        ValueError: unknown scale, spots outside the image, no tissue found, or ``min_tissue`` beside given spots.
    """
    check_options(run, mpp, features, niche_features, wider_features)
    section = section_on(
        run,
        Path(image),
        spots,
        mpp=mpp,
        min_tissue=min_tissue,
        skip_damaged=skip_damaged,
        with_features=features is not None,
    )
    return predict_section(
        run,
        section,
        features=features,
        niche_features=niche_features,
        wider_features=wider_features,
        stain=stain,
        on_progress=on_progress,
    )


def check_options(
    run: Run,
    mpp: float | None,
    features: str | Path | None,
    niche_features: str | Path | None,
    wider_features: Mapping[str, str | Path] | None = None,
) -> None:
    """Raise ValueError where options do not go with a run: they would have no effect."""
    if mpp is not None:
        check_mpp(mpp, "mpp (--mpp)")
    key = run.config.data.feature_key
    given = {"--features": features, "--niche-features": niche_features, "--level-features": wider_features or None}
    options = [option for option, value in given.items() if value is not None]
    if key is None and options:
        raise ValueError(f"the run in {run.folder} was trained on crops of the image; leave {options[0]} out")
    if features is None and options:
        raise ValueError(f"{options[0]} goes with --features: give both files")
    if key is None and run.config.crop.niche_um is None and mpp is not None:
        raise ValueError(
            f"the run in {run.folder} was trained without um/px, so that mpp (--mpp) has no effect: leave it out, and see that "
            "the image has the pixel size of the training images"
        )


def prediction_path(folder: str | Path, image: str | Path) -> Path:
    """Where the prediction of an image or section goes if nobody says: ``FOLDER/predictions/NAME.h5ad``.

    Raises:
        FileExistsError: a prediction of that name is there, perhaps of another image; it is not overwritten.
    """
    image = Path(image)
    name = reader_of(image).name(image) if _is_section(image) else image_name(image)
    path = Path(folder) / "predictions" / f"{name}.h5ad"
    if os.path.lexists(path):
        raise FileExistsError(
            f"{path} exists: an earlier prediction of {image.name}, or of another image of that name. It is not "
            "overwritten; name another file with --output, or remove it"
        )
    return path


def check_output(path: str | Path, inputs: Sequence[str | Path | None]) -> None:
    """Raise FileExistsError where writing a prediction would replace a file, or a link, whatever it is."""
    path = Path(path)
    if any(
        given is not None and Path(given).exists() and path.exists() and Path(given).samefile(path) for given in inputs
    ):
        raise FileExistsError(
            f"{path} is what the prediction is made from, and is not overwritten; name another --output"
        )
    if os.path.lexists(path) and not path.is_dir():
        what = "exists" if path.exists() else f"is a link to {os.readlink(path)}, which does not exist,"
        raise FileExistsError(f"{path} {what} and is not overwritten; choose another --output, or remove it")


def _is_section(image: Path) -> bool:
    return image.is_dir() or image.name.lower().endswith((".h5ad", ".tsv", ".tsv.gz", ".txt.gz"))


def section_on(
    run: Run,
    image: Path,
    spots: str | Path | np.ndarray | None,
    *,
    mpp: float | None,
    min_tissue: float | None,
    skip_damaged: bool,
    with_features: bool,
) -> Section:
    """The positions to predict, as a section on ``image``; see :func:`predict_image`."""
    damaged = DamagedTiles() if skip_damaged else None
    section = _section_on(run, image, spots, mpp, min_tissue, damaged, with_features=with_features)
    return replace(section, damaged=damaged)


def _section_on(
    run: Run,
    image: Path,
    spots: str | Path | np.ndarray | None,
    mpp: float | None,
    min_tissue: float | None,
    damaged: DamagedTiles | None,
    *,
    with_features: bool,
) -> Section:
    if min_tissue is not None and (spots is not None or _is_section(image)):
        raise ValueError(
            "min_tissue (--min-tissue) chooses squares of a grid over the tissue; spots that are given are all predicted. "
            "Leave it out, and choose by obs['tissue_fraction'] of the result"
        )
    if _is_section(image):
        if spots is not None:
            raise ValueError(f"{image} is a section with spots of its own; leave out --spots, or give the image alone")
        return read_section(image, mpp=mpp, require_counts=False, require_image=run.config.data.feature_key is None)
    key = run.config.data.feature_key
    if key is not None and not with_features:
        raise ValueError(
            f"the run in {run.folder} uses precomputed features {key!r}; give those of {image} with "
            "--features FILE, or a section (.h5ad) that has them in obsm"
        )
    if spots is None:
        return _tiled(run, image, mpp, MIN_TISSUE if min_tissue is None else min_tissue, damaged)
    if not isinstance(spots, np.ndarray) and Path(spots).suffix.lower() != ".csv":
        return read_section(spots, image=image, mpp=mpp, require_counts=False)
    positions, names = (spots, None) if isinstance(spots, np.ndarray) else read_spots(spots)
    section = image_section(image, positions, mpp=mpp, source="spots" if isinstance(spots, np.ndarray) else spots)
    record = run.split.role("training")[0]
    if key is None and run.config.crop.niche_um is None:
        # Crops follow the spacing of the training spots: positions of a user's choice have a spacing of their own, or none.
        grid = replace(section.grid, pitch_px=record.pitch_px)
        section = replace(section, grid=grid, spot_diameter_px=record.spot_diameter_px)
    elif section.grid.um_per_px and record.um_per_px and record.spot_diameter_px:
        diameter_um = record.spot_diameter_px * record.um_per_px
        section = replace(section, spot_diameter_px=diameter_um / section.grid.um_per_px)
    return section if names is None else replace(section, spot_ids=names)


def _tiled(run: Run, image: Path, mpp: float | None, min_tissue: float, damaged: DamagedTiles | None) -> Section:
    """A grid over the tissue with the spacing of the first training section, in um where the run has a scale."""
    record = run.split.role("training")[0]
    if record.pitch_px is None:
        raise ValueError("the run was trained on scattered spots without a spacing; give the positions with --spots")
    if not has_scale(run):
        pitch_px, diameter_px = record.pitch_px, record.spot_diameter_px
    else:
        with open_image(image) as opened:
            um_per_px = mpp if mpp is not None else opened.mpp
            ignored = f" ({opened.scale.problem})" if opened.scale.problem else ""
        if um_per_px is None or record.um_per_px is None:
            raise ValueError(
                f"the um/px of {image} are not recorded in it{ignored}; give them with --mpp (for example --mpp 0.5)"
            )
        zoom = record.um_per_px / um_per_px
        pitch_px = record.pitch_px * zoom
        diameter_px = None if record.spot_diameter_px is None else record.spot_diameter_px * zoom
    with open_image(image, damaged=damaged) as opened:
        positions = tile_grid(opened, pitch_px, min_tissue=min_tissue)
    return image_section(image, positions, mpp=mpp, pitch_px=pitch_px, spot_diameter_px=diameter_px)
