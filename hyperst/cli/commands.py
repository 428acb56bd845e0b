"""The ``hyperst`` command: demo, train, evaluate, predict, check."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from hyperst.cli.console import EpochProgress, SpotProgress, make_console, print_error, print_sections
from hyperst.cli.features import Features, NicheFeatures, with_features

if TYPE_CHECKING:
    from hyperst.config import RunConfig
    from hyperst.data import Section
    from hyperst.evaluation import Evaluation
    from hyperst.train import TrainingSummary

# The commands import what they need themselves: `hyperst --help` must not wait for PyTorch.

__all__ = ["app", "main"]

_USER_ERRORS = (ValueError, TypeError, OSError, ArithmeticError, ImportError, MemoryError)
_INTERRUPTED = 130  # what a shell reports for Ctrl-C


class _FriendlyGroup(TyperGroup):
    """Turns errors into one message and an exit code; ``--debug`` shows the traceback instead."""

    def invoke(self, ctx: Any) -> Any:  # typer brings its own click
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            print_error(
                error if str(error) else KeyboardInterrupt("interrupted"), hint="nothing half-written is left behind"
            )
            raise typer.Exit(_INTERRUPTED) from error
        except _USER_ERRORS as error:
            if ctx.params.get("debug"):
                raise
            print_error(error)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_FriendlyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Gene expression from histology images: train on spatial transcriptomics sections, predict on images alone.",
    epilog="Start with [bold]hyperst demo[/bold]: it needs no data and takes about two minutes.",
)

Sections = Annotated[
    list[Path],
    typer.Argument(
        help="Sections: .h5ad, Space Ranger folder, legacy counts .tsv.gz, or a folder of them.", show_default=False
    ),
]
Images = Annotated[
    Path | None, typer.Option("--images", help="Folder with the full-resolution images, named like the sections.")
]
Image = Annotated[
    Path | None, typer.Option("--image", help="Full-resolution image of the section, if there is one section.")
]
Mpp = Annotated[
    float | None, typer.Option("--mpp", help="um per pixel of the full-resolution images, if the files do not say.")
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...; default: the GPU if there is one.")]


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options that come before the command."""


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make.")] = Path("demo"),
) -> None:
    """Make synthetic sections, train on three, evaluate the fourth, draw its figure. No data needed."""
    console = make_console()
    console.print("[bold]HyperST demonstration[/bold] on synthetic tissue; about two minutes on two CPU cores.")
    from hyperst.demo import demo_config, run_demo

    started = time.perf_counter()
    config = demo_config()
    with EpochProgress(console, config.training.epochs) as progress:

        def tell(line: str) -> None:
            progress.close()
            console.print(f"[bold cyan]>[/bold cyan] {line}")

        result = run_demo(output, config=config, on_step=tell, on_epoch=progress)
    _print_training(console, result.training)
    _print_evaluation(console, result.evaluation)
    console.print(
        f"\nDone in {time.perf_counter() - started:.0f} s. Look at\n"
        f"  {result.evaluation.figure}   measured and predicted expression side by side\n"
        f"  {result.evaluation.folder}   every gene's figures (per_gene.csv), all scores (metrics.json)\n"
        f"  {result.prediction}   {result.n_predicted} predicted spots; open it with scanpy.read_h5ad\n"
        f"  {result.run}   the trained run: configuration, genes, split, checkpoints, metrics.csv\n"
        "\n[bold]What to try next[/bold] with these sections, then with yours\n"
        f"  hyperst check {result.sections[0]}\n"
        f"  hyperst train {' '.join(map(str, result.sections[:-1]))} --n-genes 60 --output runs/mine\n"
        f"  hyperst evaluate runs/mine {result.sections[-1]}\n"
        f"  hyperst predict {result.run} {result.image} --mpp {result.um_per_px:.3g} --output predicted.h5ad",
        soft_wrap=True,
    )


@app.command()
def train(
    sections: Annotated[
        list[Path] | None,
        typer.Argument(help="Training sections; not needed with --resume.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")] = Path("runs/run"),
    validation_sections: Annotated[
        list[Path] | None,
        typer.Option(
            "--validation-sections",
            help="Section that chooses the checkpoint; repeat for more. Default: spatial "
            "blocks of spots held out of the training sections.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --output.")] = False,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="YAML configuration; options below change it.")
    ] = None,
    preset_name: Annotated[str | None, typer.Option("--preset", help="Starting point: cpu (default) or paper.")] = None,
    ablation: Annotated[
        str | None,
        typer.Option("--ablation", help="Row of the paper's ablation: full, no_hea, clip, ... (see the docs)."),
    ] = None,
    target: Annotated[str | None, typer.Option("--target", help="log1p_cp10k or log2.")] = None,
    n_genes: Annotated[int | None, typer.Option("--n-genes", help="Genes to predict.")] = None,
    gene_selection: Annotated[str | None, typer.Option("--gene-selection", help="hmhvg or hvg.")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            help="conv, stain, conv+stain, precomputed; with --weights: uni, uni2-h, conch, virchow2, h-optimus-0, gigapath, "
            "phikon-v2, resnet50, or timm:NAME.",
        ),
    ] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="Local file with the backbone's weights.")] = None,
    feature_key: Annotated[
        str | None, typer.Option("--feature-key", help="obsm entries with precomputed image features.")
    ] = None,
    width: Annotated[int | None, typer.Option("--width", help="Width of the embeddings.")] = None,
    image_size: Annotated[int | None, typer.Option("--image-size", help="Side of the crops, pixels.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Most passes over the spots.")] = None,
    patience: Annotated[
        int | None, typer.Option("--patience", help="Epochs without improvement before stopping.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Spots per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Step size of AdamW.")] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="32-true, bf16-mixed, ...")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes that prepare batches.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Fixes split, weights and order.")] = None,
    images: Images = None,
    image: Image = None,
    mpp: Mpp = None,
    features: Features = None,
    niche_features: NicheFeatures = None,
) -> None:
    """Train on sections with counts and images; the best checkpoint by validation error is kept."""
    console = make_console()
    options: dict[str, dict[str, Any]] = {
        "data": {"target": target, "n_genes": n_genes, "gene_selection": gene_selection, "feature_key": feature_key},
        "crop": {"image_size": image_size},
        "model": {"backbone": backbone, "weights": weights, "width": width},
        "training": {
            "epochs": epochs,
            "patience": patience,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "precision": precision,
            "workers": workers,
            "seed": seed,
        },
    }
    changes = {
        part: given
        for part, keys in options.items()
        if (given := {key: value for key, value in keys.items() if value is not None})
    }
    if resume and (changes or config_file or preset_name or ablation or features or niche_features):
        raise typer.BadParameter(
            "a resumed run keeps its configuration; leave out every option but --output", param_hint="--resume"
        )
    if not sections and not resume:
        raise typer.BadParameter("name at least one section to train on", param_hint="SECTIONS")
    if features is not None and feature_key is None:
        changes.setdefault("data", {})["feature_key"] = "file"
    if feature_key is not None or features is not None:
        changes.setdefault("model", {}).setdefault("backbone", "precomputed")

    from hyperst.config import preset, read_config, update, with_ablation
    from hyperst.model.backbones import require_weights
    from hyperst.train import fit

    if resume:
        config, training, validation = _read_run_sections(output)
    else:
        config = preset(preset_name or "cpu")
        if config_file is not None:
            config = read_config(config_file, config)
        if ablation is not None:
            config = with_ablation(config, ablation)
        config = update(config, changes)
        require_weights(config.model.backbone, config.model.weights, config.crop.image_size)
        need_image = config.data.feature_key is None
        training = _read_sections(sections or [], images, image, mpp, need_image)
        validation = _read_sections(validation_sections or [], images, None, mpp, need_image)
        key = config.data.feature_key
        training, validation = (with_features(each, features, niche_features, key) for each in (training, validation))
    print_sections(console, training, "training sections")
    if validation:
        print_sections(console, validation, "validation sections")
    console.print(
        f"{config.data.n_genes} genes, target {config.data.target}, backbone {config.model.backbone}, "
        f"at most {config.training.epochs} epochs; reading the crops first"
    )
    try:
        with EpochProgress(console, config.training.epochs) as progress:
            summary = fit(config, training, output, validation_sections=validation, resume=resume, on_epoch=progress)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"{error or 'interrupted'}; nothing of the finished epochs is lost. Go on with: "
            f"hyperst train --resume --output {output}"
        ) from error
    _print_training(console, summary)
    console.print(f"run folder: {output}", soft_wrap=True)
    console.print(f"next: hyperst evaluate {output} SECTION   or   hyperst predict {output} IMAGE", soft_wrap=True)


@app.command(name="evaluate")
def evaluate_command(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")],
    sections: Sections,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; default RUN/evaluation.")] = None,
    genes: Annotated[
        list[str] | None, typer.Option("--gene", help="Gene to draw; repeat for more. Default: the best predicted.")
    ] = None,
    images: Images = None,
    image: Image = None,
    mpp: Mpp = None,
    features: Features = None,
    niche_features: NicheFeatures = None,
    device: Device = None,
) -> None:
    """Compare predictions with measured expression, beside ridge regression, the training mean and shuffled images."""
    console = make_console()
    from hyperst.evaluation import evaluate, summarise
    from hyperst.run import load_run

    run = load_run(run_folder, device=device)
    key = run.config.data.feature_key
    test = with_features(_read_sections(sections, images, image, mpp, key is None), features, niche_features, key)
    training, missing = _training_sections(run_folder)
    if missing:
        console.print(f"[yellow]ridge regression left out:[/yellow] {missing}", soft_wrap=True)
    print_sections(console, test, "sections to evaluate")
    results = []
    for section in test:
        with SpotProgress(console, f"{section.name}: image features") as progress:
            results.append(
                evaluate(
                    run, section, training_sections=training, output=output, genes=genes or (), on_progress=progress
                )
            )
        _print_evaluation(console, results[-1])
        console.print(f"files: {results[-1].folder}", soft_wrap=True)
        console.print(f"figure: {results[-1].figure}", soft_wrap=True)
    if len(results) > 1:
        path = summarise(results, (output or run_folder / "evaluation") / "summary.json")
        console.print(f"means over the {len(results)} sections: {path}", soft_wrap=True)


@app.command()
def predict(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Full-resolution H&E image, or a section with one.")],
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
            "--output", "-o", help="The .h5ad to write; default RUN/predictions/IMAGE.h5ad, which must not exist."
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Predict expression from an image, at given spots or on a grid over the tissue, and write an .h5ad."""
    console = make_console()
    if output is not None and output.suffix != ".h5ad":
        raise typer.BadParameter(f"{output} must end in .h5ad", param_hint="--output")
    from hyperst.files import require_writable, write_h5ad_atomic
    from hyperst.predict import predict_image, prediction_path
    from hyperst.run import RunFolder, load_run

    RunFolder(run_folder).require()
    path = output or prediction_path(run_folder, image)
    require_writable(path)
    run = load_run(run_folder, device=device)
    with SpotProgress(console, "spots") as progress:
        predicted = predict_image(
            run,
            image,
            spots=spots,
            mpp=mpp,
            min_tissue=min_tissue,
            skip_damaged=skip_damaged,
            features=features,
            niche_features=niche_features,
            on_progress=progress,
        )
    write_h5ad_atomic(predicted, path)
    if skip_damaged and predicted.uns["hyperst"].get("damaged_tiles"):
        console.print(
            f"[yellow]note[/yellow] damaged tiles of the image left white: {predicted.uns['hyperst']['damaged_tiles']}; spots "
            f"on or beside them, see obs['on_damaged_tile']: {int(predicted.obs['on_damaged_tile'].sum())}",
            soft_wrap=True,
        )
    if "tissue_fraction" in predicted.obs and (n := int((predicted.obs["tissue_fraction"] < 0.05).sum())):
        console.print(f"[yellow]note[/yellow] {n} spots lie on background: obs['tissue_fraction'] tells which")
    console.print(
        f"{predicted.n_obs} spots x {predicted.n_vars} genes predicted as {predicted.uns['hyperst']['units']}\n"
        f"written: {path}\n"
        "next: adata = scanpy.read_h5ad(...); scanpy.pl.spatial(adata, color=adata.var_names[0])",
        soft_wrap=True,
    )


@app.command()
def check(
    sections: Sections,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for a picture of each section's spots on its image, NAME_spots.png."
        ),
    ] = None,
    images: Images = None,
    image: Image = None,
    mpp: Mpp = None,
) -> None:
    """Say what is right and wrong with sections before training: counts, names, positions, tissue, image, scale."""
    console = make_console()
    from hyperst.cli.reports import examine_all, print_reports
    from hyperst.files import distinct_names, require_writable

    if image is not None and len(sections) > 1:
        raise typer.BadParameter("goes with one section; use --images FOLDER for several", param_hint="--image")
    if output is not None:
        require_writable(output / "NAME_spots.png")
    reports = examine_all(sections, image, images, mpp)
    print_reports(console, reports)
    drawn = [report for report in reports if report.section is not None and report.picture is not None]
    if output is not None:
        from hyperst.overlay import draw_overlay

        names = distinct_names(
            [report.section.name for report in drawn if report.section is not None], [report.path for report in drawn]
        )
        for name, report in zip(names, drawn, strict=True):
            console.print(f"spots on the image: {draw_overlay(report, output / f'{name}_spots.png')}", soft_wrap=True)
    elif drawn:
        console.print("look at the spots on the images: --output FOLDER draws them")
    wrong = sum(not report.usable for report in reports)
    console.print(f"{len(reports) - wrong} of {len(reports)} sections can be used")
    if wrong:
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the ``hyperst`` command."""
    app()


def _read_sections(
    paths: Sequence[Path], images: Path | None, image: Path | None, mpp: float | None, need_image: bool
) -> list[Section]:
    """Read sections, folders standing for the sections in them."""
    if not paths:
        return []
    from hyperst.data import find_sections, read_section

    found = find_sections(paths)
    if image is not None and len(found) > 1:
        raise typer.BadParameter("goes with one section; use --images FOLDER for several", param_hint="--image")
    return [read_section(path, image=image, images_dir=images, mpp=mpp, require_image=need_image) for path in found]


def _read_run_sections(folder: Path) -> tuple[RunConfig, list[Section], list[Section]]:
    """Configuration, training and validation sections of a started run."""
    from hyperst.config import read_config
    from hyperst.run import RunFolder

    place = RunFolder(folder)
    place.require()
    split = place.read_split()
    config = read_config(place.config)
    training, validation = (
        [record.read(config.data.feature_key) for record in split.role(role)] for role in ("training", "validation")
    )
    return config, training, validation


def _training_sections(folder: Path) -> tuple[list[Section], str]:
    """The training sections of a run, or none and the reason."""
    try:
        return _read_run_sections(folder)[1], ""
    except (OSError, ValueError) as error:
        return [], f"it needs the training sections again, and {error}"


def _print_training(console: Console, summary: TrainingSummary) -> None:
    console.print(
        f"trained for {summary.epochs} epochs in {summary.seconds:.0f} s"
        f"{', stopped early' if summary.stopped_early else ''}; kept epoch {summary.best_epoch}: "
        f"validation MSE {summary.validation_mse:.4f}, mean PCC {summary.validation_pcc:+.3f}"
    )


def _print_evaluation(console: Console, evaluation: Evaluation) -> None:
    console.print(evaluation.table())
    for caveat in evaluation.caveats:
        console.print(f"  [yellow]note[/yellow] {escape(caveat)}", soft_wrap=True)


if __name__ == "__main__":
    main()
