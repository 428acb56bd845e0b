"""``hyperst predict`` on a table of sections or images: one .h5ad for each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
from rich.console import Console

from hyperst.cli.console import SpotProgress

if TYPE_CHECKING:
    from anndata import AnnData

    from hyperst.data import SectionSource
    from hyperst.run import Run

__all__ = ["Options", "predict_listed"]


@dataclass(frozen=True)
class Options:
    """What goes for every row of a manifest; features are folders with NAME.h5."""

    mpp: float | None = None
    features: Path | None = None
    niche_features: Path | None = None
    skip_damaged: bool = False
    stain: Literal["none", "match"] = "none"
    wider_features: Mapping[str, Path] = field(default_factory=dict)


def predict_listed(
    console: Console, run_folder: Path, manifest: Path, options: Options, output: Path | None, device: str | None
) -> None:
    """Predict each row of a manifest, at the spots of a section or on a grid over the tissue of an image, into one folder.

    Raises:
        FileExistsError: a file that would be written exists; said before the work, as all that can be said then.
    """
    if output is not None and output.suffix == ".h5ad":
        raise typer.BadParameter("a manifest makes one .h5ad for each row: give a folder", param_hint="--output")
    from hyperst.cli.reports import print_notes
    from hyperst.data import distinct_names, read_manifest
    from hyperst.data.readers.features import find_features
    from hyperst.files import require_writable, write_h5ad_atomic
    from hyperst.predict import check_options
    from hyperst.run import load_run

    run = load_run(run_folder, device=device)
    check_options(run, options.mpp, options.features, options.niche_features)
    folder = output or run_folder / "predictions"
    sources = distinct_names(read_manifest(manifest))
    places = [(options.features, "--features"), (options.niche_features, "--niche-features")]
    places += [(place, "--level-features") for place in options.wider_features.values()]
    for given, option in places:
        if given is not None and given.is_file() and len(sources) > 1:
            raise typer.BadParameter(
                f"{given} is one file for {len(sources)} rows; give a folder with NAME.h5 for each", param_hint=option
            )
    files = []
    for source in sources:
        if os.path.lexists(path := folder / f"{source.name}.h5ad"):
            raise FileExistsError(f"{path} exists and is not overwritten; choose another --output, or remove it")
        found = [
            None if given is None else find_features(given, str(source.name))
            for given in (options.features, options.niche_features)
        ]
        wider = {level: find_features(place, str(source.name)) for level, place in options.wider_features.items()}
        files.append(replace(options, features=found[0], niche_features=found[1], wider_features=wider))
    require_writable(folder / "NAME.h5ad")
    for source, each in zip(sources, files, strict=True):
        with SpotProgress(console, str(source.name)) as progress:
            predicted = _predict(run, source, each, progress)
        path = write_h5ad_atomic(predicted, folder / f"{source.name}.h5ad")
        print_notes(console, predicted)
        console.print(f"{source.name}: {predicted.n_obs} spots x {predicted.n_vars} genes: {path}", soft_wrap=True)


def _predict(run: Run, source: SectionSource, options: Options, progress: SpotProgress) -> AnnData:
    from hyperst.data.images import IMAGE_SUFFIXES
    from hyperst.predict import predict_image, predict_section

    common: dict[str, Any] = {
        "features": options.features,
        "niche_features": options.niche_features,
        "wider_features": options.wider_features,
        "skip_damaged": options.skip_damaged,
        "stain": options.stain,
        "on_progress": progress,
    }
    if source.path.suffix.lower() in IMAGE_SUFFIXES:
        um_per_px = source.mpp if source.mpp is not None else options.mpp
        return predict_image(run, source.path, mpp=um_per_px, **common)
    need_image = run.config.data.feature_key is None
    section = source.read(mpp=options.mpp, require_counts=False, require_image=need_image)
    return predict_section(run, section, **common)
