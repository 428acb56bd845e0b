"""`hyperst cv`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hyperst.cli.console import SpotProgress, make_console, print_error, print_sections
from hyperst.cli.features import Features, NicheFeatures, with_features
from hyperst.cli.inputs import list_groups, read_sections
from hyperst.cli.levels import LevelFeatures, wider_features
from hyperst.cli.options import BinUm, GeneNames, Images, MinCounts, Mpp, Sections
from hyperst.cli.predict_manifest import Engine

if TYPE_CHECKING:
    from hyperst.config import RunConfig
    from hyperst.cv import CrossValidation
    from hyperst.cv.cells import Cell

__all__ = ["cv"]


def cv(
    sections: Sections,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the cells and tables; the same one goes on.")
    ] = Path("runs/cv"),
    folds: Annotated[
        str,
        typer.Option(
            "--folds",
            help="section (each left out in turn), patient, random5 (five random splits 80/10/10 of sections), or a path: "
            "a folder of train_K.csv and test_K.csv as HEST-bench's, or a .csv with columns fold, section, role.",
        ),
    ] = "section",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds: 0, 1, ...")] = 1,
    ablations: Annotated[
        list[str] | None,
        typer.Option("--ablation", help="Row of the paper's ablation; repeat for more, or all for the whole table."),
    ] = None,
    config_files: Annotated[
        list[Path] | None,
        typer.Option("--config", help="YAML configuration, a row called as the file; repeat for more."),
    ] = None,
    preset_name: Annotated[str, typer.Option("--preset", help="Starting point: cpu or paper.")] = "cpu",
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="Row that others are compared with; also ridge_own, ridge_stain, training_mean. Default: the first row.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            help="Trainings at a time, each in its own process; 0: one by one in this one. Default 1; of Ray one for each GPU, or "
            "machine.",
        ),
    ] = None,
    engine: Engine = "local",
    target: Annotated[str | None, typer.Option("--target", help="log1p_cp10k or log2.")] = None,
    n_genes: Annotated[int | None, typer.Option("--n-genes", help="Genes to predict.")] = None,
    min_counts: MinCounts = None,
    feature_key: Annotated[
        str | None, typer.Option("--feature-key", help="obsm entries with precomputed image features.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Most passes over the spots.")] = None,
    images: Images = None,
    mpp: Mpp = None,
    bin_um: BinUm = None,
    gene_names: GeneNames = None,
    features: Features = None,
    niche_features: NicheFeatures = None,
    level_features: LevelFeatures = None,
) -> None:
    """Cross-validate: folds x seeds x configurations or ablations, with intervals; goes on where it was interrupted."""
    console = make_console()
    key = "file" if features is not None and feature_key is None else feature_key
    changes: dict[str, dict[str, Any]] = {
        "data": {"target": target, "n_genes": n_genes, "min_counts": min_counts, "feature_key": key},
        # a preset's tuning is of the encoder whose place the features take
        "model": {} if key is None else {"backbone": "precomputed", "tune": "frozen"},
        "training": {"epochs": epochs},
    }
    rows = _rows(preset_name, config_files or [], ablations or [], changes)

    from hyperst.cv import cross_validate, make_folds

    key = next(iter(rows.values())).data.feature_key
    (listed,) = list_groups([sections], bin_um)
    read = read_sections(listed, images=images, mpp=mpp, gene_names=gene_names, require_image=key is None)
    read = with_features(read, features, niche_features, key, wider_features(level_features))
    print_sections(console, read, "sections")
    made = make_folds(folds, read)
    console.print(f"{len(made)} folds x {seeds} seeds x {len(rows)} rows: {', '.join(rows)}", soft_wrap=True)

    def tell(cell: Cell, error: str | None, number: int, total: int) -> None:
        progress(number, total)
        line = f"[{number}/{total}] {cell.row}, fold {cell.fold.name}, seed {cell.seed}"
        failed = Text() if error is None else Text.assemble(": ", ("failed", "red"), f", {error}")
        console.print(Text.assemble(line, failed), soft_wrap=True)

    progress = SpotProgress(console, "cells")
    progress(0, len(made) * seeds * len(rows))
    try:
        with progress:
            found = cross_validate(
                read, rows, made, range(seeds), output, against=against, workers=workers, engine=engine, on_cell=tell
            )
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            "interrupted; cells that are finished are kept, folders of unfinished ones stay, and the same command goes on with "
            "these after their last finished epoch"
        ) from error
    except RuntimeError as error:  # no cell could be finished
        print_error(error)
        raise typer.Exit(1) from error
    _print(console, found)
    if found.failures:
        raise typer.Exit(1)


def _rows(
    preset_name: str, files: list[Path], ablations: list[str], options: dict[str, dict[str, Any]]
) -> dict[str, RunConfig]:
    """Configurations by name: of every file, or of the preset, with the options, and with each ablation."""
    from hyperst.config import preset, read_config, update
    from hyperst.cv import ablation_rows

    given = {part: {name: value for name, value in keys.items() if value is not None} for part, keys in options.items()}
    base = preset(preset_name)
    names = [file.stem for file in files]
    if len(set(names)) < len(names):
        raise typer.BadParameter(
            f"two files would both be the row {max(names, key=names.count)}; rename one", param_hint="--config"
        )
    configs = {file.stem: read_config(file, base) for file in files} or {preset_name: base}
    return ablation_rows({name: update(config, given) for name, config in configs.items()}, ablations)


def _print(console: Console, found: CrossValidation) -> None:
    """The table, what may be said, what has to be known, and what failed."""
    from hyperst.cv.report import sentences, table_cells

    head, lines = table_cells(found, short=True)
    table = Table(title="mean over folds ± sd", title_justify="left", title_style="bold")
    table.add_column(head[0], overflow="fold")
    for name in head[1:]:
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(*line)
    console.print(table)
    for sentence in sentences(found):
        console.print(f"  {sentence}", soft_wrap=True)
    for note in found.notes:
        console.print(Text.assemble("  ", ("note", "yellow"), " ", note), soft_wrap=True)
    for name, error in found.failures.items():
        console.print(Text.assemble("  ", ("failed", "red"), f" {name}: {error}"), soft_wrap=True)
    files = ", ".join(str(found.folder / name) for name in ("report.md", "summary.csv", "scores.csv", "sections.csv"))
    console.print(f"files: {files}", soft_wrap=True)
