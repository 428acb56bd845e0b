"""``hyperst predict`` on a table of sections or images: one .h5ad for each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from hyperst.cli.console import SpotProgress

if TYPE_CHECKING:
    from anndata import AnnData

    from hyperst.data import SectionSource
    from hyperst.run import Run

__all__ = ["predict_listed"]


def predict_listed(
    console: Console, run_folder: Path, manifest: Path, mpp: float | None, output: Path | None, device: str | None
) -> None:
    """Predict each row of a manifest, at the spots of a section or on a grid over the tissue of an image, into one folder.

    Raises:
        FileExistsError: a file that would be written exists; said before the work.
    """
    if output is not None and output.suffix == ".h5ad":
        raise typer.BadParameter("a manifest makes one .h5ad for each row: give a folder", param_hint="--output")
    from hyperst.data import distinct_names, read_manifest
    from hyperst.files import write_h5ad_atomic
    from hyperst.run import load_run

    run = load_run(run_folder, device=device)
    folder = output or run_folder / "predictions"
    sources = distinct_names(read_manifest(manifest))
    for source in sources:
        if (path := folder / f"{source.name}.h5ad").exists():
            raise FileExistsError(f"{path} exists and is not overwritten; choose another --output, or remove it")
    for source in sources:
        with SpotProgress(console, str(source.name)) as progress:
            predicted = _predict(run, source, mpp, progress)
        path = write_h5ad_atomic(predicted, folder / f"{source.name}.h5ad")
        console.print(f"{source.name}: {predicted.n_obs} spots x {predicted.n_vars} genes: {path}", soft_wrap=True)


def _predict(run: Run, source: SectionSource, mpp: float | None, progress: SpotProgress) -> AnnData:
    from hyperst.data.images import IMAGE_SUFFIXES
    from hyperst.predict import predict_image, predict_section

    if source.path.suffix.lower() in IMAGE_SUFFIXES:
        um_per_px = source.mpp if source.mpp is not None else mpp
        return predict_image(run, source.path, mpp=um_per_px, on_progress=progress)
    need_image = run.config.data.feature_key is None
    section = source.read(mpp=mpp, require_counts=False, require_image=need_image)
    return predict_section(run, section, on_progress=progress)
