"""``hyperst demo``: the demonstration, and what to look at."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from hyperst.cli.console import EpochProgress, make_console, print_evaluation, print_training

__all__ = ["demo"]


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make.")] = Path("demo"),
) -> None:
    """Make synthetic sections, train on three, evaluate the fourth, and make the report. No data needed."""
    console = make_console()
    console.print("HyperST demonstration on synthetic tissue; about two minutes on two CPU cores.", style="bold")
    from hyperst.demo import demo_config, run_demo

    started = time.perf_counter()
    config = demo_config()
    with EpochProgress(console, config.training.epochs) as progress:

        def tell(line: str) -> None:
            progress.close()
            console.print(Text.assemble((">", "bold cyan"), " ", line))

        result = run_demo(output, config=config, on_step=tell, on_epoch=progress, on_crops=progress.crops)
    print_training(console, result.training, config.model.n_networks, config.model.head)
    print_evaluation(console, result.evaluation)
    shown = (
        f"{result.report}   the report: double-click it"
        if result.report is not None
        else f"no report: {result.no_report}"
    )
    console.print(
        f"\nDone in {time.perf_counter() - started:.0f} s. Look at\n"
        f"  {shown}\n"
        f"  {result.evaluation.figure}   measured and predicted expression side by side\n"
        f"  {result.evaluation.folder}   every gene's figures (per_gene.csv), all scores (metrics.json)\n"
        f"  {result.prediction}   {result.n_predicted} predicted spots; open it with scanpy.read_h5ad\n"
        f"  {result.run}   the trained run: configuration, genes, split, checkpoints, metrics.csv\n"
        "\nWhat to try next with these sections, then with yours\n"
        f"  hyperst check {_paths(result.sections[0])}\n"
        f"  hyperst train {_paths(*result.sections[:-1])} --n-genes 60 --output runs/mine\n"
        f"  hyperst evaluate runs/mine {_paths(result.sections[-1])}\n"
        f"  hyperst predict {_paths(result.run, result.image)} --mpp {result.um_per_px:.3g} --output predicted.h5ad\n"
        f"  hyperst report {_paths(result.run, result.prediction)}\n"
        f"  hyperst plot {_paths(result.run)}",
        soft_wrap=True,
    )


def _paths(*paths: Path) -> str:
    """Paths as a shell takes them."""
    return shlex.join(map(str, paths))
