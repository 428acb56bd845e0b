"""``hyperst predict`` on a table of slides: one .h5ad for each, a table, and the mean of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from hyperst.cli.console import SpotProgress
from hyperst.processes import refuse_several

if TYPE_CHECKING:
    from hyperst.cohort import Options, SlideResult

__all__ = ["Again", "Engine", "Workers", "predict_listed", "refuse_for_one"]

Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        help="Slides of a manifest at a time, each in a process of its own, which share the threads; 0: one by one in this "
        "process. Default: one for each GPU, or 1; in each process of torchrun or srun 0.",
    ),
]
Engine = Annotated[
    Literal["local", "ray"],
    typer.Option("--engine", help="Workers are processes of this machine (local) or of a Ray cluster (ray)."),
]
Again = Annotated[
    bool, typer.Option("--again", help="Predict slides of a manifest once more whose prediction is there.")
]


def refuse_for_one(workers: int | None, engine: str, again: bool) -> None:
    """Refuse options of a manifest, and several processes, where one image is predicted.

    Raises:
        typer.BadParameter, ValueError: there are some.
    """
    for given, option in ((workers is not None, "--workers"), (engine != "local", "--engine"), (again, "--again")):
        if given:
            raise typer.BadParameter("is for a manifest (.csv) of slides; this is one image", param_hint=option)
    refuse_several("a prediction of one image")


def predict_listed(
    console: Console,
    run_folder: Path,
    manifest: Path,
    output: Path | None,
    options: Options,
    **place: Any,
) -> None:
    """Predict each row of a manifest, at the spots of a section or on a grid over the tissue of an image, into one folder.

    ``place`` is what :func:`hyperst.cohort.predict_cohort` takes beside ``options``.

    Raises:
        typer.Exit: 1 when slides have failed. Other errors: see :func:`hyperst.cohort.predict_cohort`.
    """
    if output is not None and output.suffix == ".h5ad":
        raise typer.BadParameter("a manifest makes one .h5ad for each row: give a folder", param_hint="--output")
    from hyperst.cli.reports import print_note
    from hyperst.cohort import predict_cohort
    from hyperst.data import read_manifest

    done = 0

    def tell(result: SlideResult, number: int, total: int) -> None:
        nonlocal done
        done = number
        progress(number, total)
        words: list[Any] = [f"[{number}/{total}] {result.slide}: "]
        if result.status == "failed":
            words += [("failed", "red"), f", {result.error}"]
        elif result.status == "kept":
            words.append(f"{result.spots} spots, predicted before")
        else:
            words.append(f"{result.spots} spots in {result.seconds:.1f} s")
        console.print(Text.assemble(*words), soft_wrap=True)
        for note in result.notes:
            print_note(console, note, about=result.slide)

    sources = read_manifest(manifest)
    try:
        with SpotProgress(console, "slides") as progress:
            found = predict_cohort(
                run_folder,
                sources,
                output or run_folder / "predictions",
                options,
                on_slide=tell,
                **place,
            )
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"interrupted; {done} of {len(sources)} slides are done, and the same command goes on with the others"
        ) from error
    if not found.results:  # one of several processes, of which the first speaks
        return
    for name, reason in found.failures.items():
        console.print(Text.assemble(("failed", "red"), f" {name}: {reason}"), soft_wrap=True)
    console.print(
        f"{len(found.results) - len(found.failures)} of {len(found.results)} slides predicted: {found.folder}",
        soft_wrap=True,
    )
    if unlike := [result.slide for result in found.results if result.unlike_slide]:
        print_note(
            console,
            f"{len(unlike)} of them unlike the training tissue, whose values are not to be used unmeasured "
            f"(unlike_slide in cohort.csv): {', '.join(unlike)}",
        )
    if found.failures:
        described = any((found.folder / "logs" / f"{name}.txt").exists() for name in found.failures)
        where = "; logs/NAME.txt says where they did" if described else ""  # none of a process that was killed
        console.print(f"the same command tries those that failed once more{where}", soft_wrap=True)
        raise typer.Exit(1)
