"""`hyperst predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hyperst.cli.console import (
    SpotProgress,
    make_console,
    working,
)
from hyperst.cli.exports import Exports, print_next, write_exports
from hyperst.cli.features import Features, NicheFeatures
from hyperst.cli.levels import LevelFeatures, wider_features
from hyperst.cli.options import Device, Mpp, Readers, StainOption
from hyperst.cli.predict_manifest import Again, Engine, Workers, predict_listed, refuse_for_one
from hyperst.processes import is_first

__all__ = ["predict"]


def predict(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")],
    image: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE", help="Full-resolution H&E image, a section with one, or a manifest (.csv) of them."
        ),
    ],
    spots: Annotated[
        Path | None,
        typer.Option(
            "--spots", help="Where to predict: a section, or a .csv with columns x, y. Default: a grid over the tissue."
        ),
    ] = None,
    mpp: Mpp = None,
    skip_damaged: Annotated[
        bool,
        typer.Option("--skip-damaged", help="Leave tiles of the image that cannot be decoded white, and count them."),
    ] = False,
    features: Features = None,
    niche_features: NicheFeatures = None,
    level_features: LevelFeatures = None,
    stain: StainOption = "none",
    min_tissue: Annotated[
        float | None,
        typer.Option(
            "--min-tissue",
            min=0.0,
            max=1.0,
            help="Least share of tissue, 0 to 1, in a square of the grid; 0 takes all. Default 0.15.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The .h5ad to write, which must not exist, default RUN/predictions/IMAGE.h5ad; of a manifest the folder of its "
            "predictions.",
        ),
    ] = None,
    export: Exports = None,
    device: Device = None,
    readers: Readers = 0,
    workers: Workers = None,
    engine: Engine = "local",
    again: Again = False,
) -> None:
    """Predict expression from an image, at given spots or on a grid over the tissue, and write an .h5ad.

    The same command goes on where it was interrupted or killed; until then what it has is beside the output, in a file .part.

    Of a manifest one for each slide, a table of them (cohort.csv) and the mean expression of each (cohort.h5ad).
    """
    console = make_console(quiet=not is_first())
    formats = tuple(dict.fromkeys(each.value for each in export or ()))
    from hyperst.data.manifest import is_manifest

    if is_manifest(image):
        from hyperst.cohort import Options

        if spots is not None:
            raise typer.BadParameter("a manifest names the sections whose spots are predicted", param_hint="--spots")
        place: dict[str, Any] = {"workers": workers, "engine": engine, "device": device, "again": again}
        wider = wider_features(level_features)
        options = Options(mpp, features, niche_features, skip_damaged, stain, min_tissue, formats, wider, readers)
        predict_listed(console, run_folder, image, output, options, **place)
        return
    if image.suffix.lower() == ".csv":
        raise FileNotFoundError(f"manifest {image} {'is no file' if image.exists() else 'does not exist'}")
    refuse_for_one(workers, engine, again)
    if output is not None and output.suffix != ".h5ad":
        raise typer.BadParameter(f"{output} must end in .h5ad", param_hint="--output")
    import anndata

    from hyperst.cli.reports import print_notes
    from hyperst.data import SectionSource
    from hyperst.export import check_exports
    from hyperst.files import require_writable
    from hyperst.predict import check_output, prediction_path
    from hyperst.predict_file import image_into_part
    from hyperst.run import RunFolder, load_run

    RunFolder(run_folder).require()
    path = output or prediction_path(run_folder, image)
    check_output(path, [image, spots, features, niche_features])
    require_writable(path)
    check_exports(path, formats, RunFolder(run_folder).read_genes())
    with working(console, "the run is loaded"):
        run = load_run(run_folder, device=device)
    try:
        with (
            SpotProgress(console, "spots", before="tissue is found", after="tissue around each spot") as progress,
            image_into_part(
                run,
                image,
                path,
                spots=spots,
                mpp=mpp,
                min_tissue=min_tissue,
                skip_damaged=skip_damaged,
                features=features,
                niche_features=niche_features,
                wider_features=wider_features(level_features),
                stain=stain,
                readers=readers,
                on_progress=progress,
            ) as values,
        ):
            values.write(path)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("interrupted; the same command goes on with the spots that are left") from error
    predicted = anndata.read_h5ad(path, backed="r")
    print_notes(console, predicted)
    console.print(
        f"{predicted.n_obs} spots x {predicted.n_vars} genes predicted as {predicted.uns['hyperst']['units']}\n"
        f"written: {path}",
        soft_wrap=True,
    )
    write_exports(console, predicted, path, formats, SectionSource(image, mpp=mpp), skip_damaged=skip_damaged)
    print_next(console, run_folder, predicted, path)
