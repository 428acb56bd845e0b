"""The ``hyperst`` command: demo, train, evaluate, predict, check, features, cv, report, plot."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from hyperst.cli.app import app
from hyperst.cli.check import check
from hyperst.cli.console import (
    EpochProgress,
    SpotProgress,
    make_console,
    print_evaluation,
    print_sections,
    print_training,
)
from hyperst.cli.cross_validation import cv
from hyperst.cli.demonstration import demo
from hyperst.cli.encode import features as features_command
from hyperst.cli.features import Features, NicheFeatures, with_features
from hyperst.cli.inputs import list_groups, one_image, read_run_sections, read_sections, training_sections
from hyperst.cli.levels import LevelFeatures, Levels, level_widths, wider_features
from hyperst.cli.options import BinUm, Device, Devices, GeneNames, Image, Images, MinCounts, Mpp, Sections, StainOption
from hyperst.cli.plot import plot
from hyperst.cli.prediction import predict
from hyperst.cli.report import report
from hyperst.processes import is_first

# The commands import what they need themselves: `hyperst --help` must not wait for PyTorch.

__all__ = ["app", "main"]


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options that come before the command."""


app.command()(demo)


@app.command()
def train(
    sections: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Training sections, folders of them, or a manifest (.csv); not needed with --resume.",
            show_default=False,
        ),
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
    min_counts: MinCounts = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            help="conv, stain, conv+stain, precomputed; with --weights: uni, uni2-h, conch, virchow2, h-optimus-0, gigapath, "
            "phikon-v2, resnet50, efficientnet-lite0, or timm:NAME.",
        ),
    ] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="Local file with the backbone's weights.")] = None,
    tune: Annotated[
        str | None,
        typer.Option("--tune", help="What of an encoder with weights is trained: frozen, last-block, lora or full."),
    ] = None,
    feature_key: Annotated[
        str | None, typer.Option("--feature-key", help="obsm entries with precomputed image features.")
    ] = None,
    width: Annotated[int | None, typer.Option("--width", help="Width of the embeddings.")] = None,
    levels: Levels = None,
    head: Annotated[
        str | None, typer.Option("--head", help="What predicts: network (the paper), closed-form or both.")
    ] = None,
    likelihood: Annotated[
        str | None,
        typer.Option(
            "--likelihood",
            help="What the network learns from: gaussian (the target), poisson or negative-binomial (counts).",
        ),
    ] = None,
    average: Annotated[
        str | None,
        typer.Option(
            "--average", help="Predict from the crops as they are (none) or the mean over their turns (dihedral)."
        ),
    ] = None,
    networks: Annotated[
        int | None,
        typer.Option(
            "--networks",
            help="Networks to train, whose predictions are averaged. Default: 4 of conv and conv+stain, else 1.",
        ),
    ] = None,
    image_size: Annotated[int | None, typer.Option("--image-size", help="Side of the crops, pixels.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Most passes over the spots.")] = None,
    patience: Annotated[
        int | None, typer.Option("--patience", help="Epochs without improvement before stopping.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Spots per step, over all devices.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Step size of AdamW.")] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="32-true, bf16-mixed, ...")] = None,
    devices: Devices = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes per device to prepare batches.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Fixes split, weights and order.")] = None,
    images: Images = None,
    image: Image = None,
    mpp: Mpp = None,
    bin_um: BinUm = None,
    gene_names: GeneNames = None,
    features: Features = None,
    niche_features: NicheFeatures = None,
    level_features: LevelFeatures = None,
) -> None:
    """Train on sections with counts and images; the best checkpoint by validation error is kept."""
    console = make_console(quiet=not is_first())
    options: dict[str, dict[str, Any]] = {
        "data": {
            "target": target,
            "n_genes": n_genes,
            "gene_selection": gene_selection,
            "min_counts": min_counts,
            "feature_key": feature_key,
        },
        "crop": {"image_size": image_size, "wider_um": level_widths(levels)},
        "model": {
            "backbone": backbone,
            "weights": weights,
            "tune": tune,
            "width": width,
            "head": head,
            "likelihood": likelihood,
            "average": average,
            "networks": networks,
        },
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
    if resume and (changes or config_file or preset_name or ablation or features or niche_features or level_features):
        raise typer.BadParameter(
            "a resumed run keeps its configuration; leave out every option but --output and --devices",
            param_hint="--resume",
        )
    if not sections and not resume:
        raise typer.BadParameter("name at least one section to train on", param_hint="SECTIONS")
    if features is not None and feature_key is None:
        changes.setdefault("data", {})["feature_key"] = "file"
    if feature_key is not None or features is not None:
        # a preset's tuning is of the encoder whose place the features take
        changes["model"] = {"backbone": "precomputed", "tune": "frozen", **changes.get("model", {})}

    from hyperst.config import preset, read_config, update, with_ablation
    from hyperst.model.backbones import require_weights
    from hyperst.plan import require_new
    from hyperst.train import fit

    if resume:
        config, training, validation = read_run_sections(output)
    else:
        require_new(output)
        config = preset(preset_name or "cpu")
        if config_file is not None:
            config = read_config(config_file, config)
        if ablation is not None:
            config = with_ablation(config, ablation)
        config = update(config, changes)
        require_weights(config.model.backbone, config.model.weights, config.crop.image_size)
        need_image = config.data.feature_key is None
        groups = list_groups([sections or [], validation_sections or []], bin_um)
        one_image(groups[0], image)
        read: dict[str, Any] = {"images": images, "mpp": mpp, "gene_names": gene_names, "require_image": need_image}
        training = read_sections(groups[0], image=image, **read)
        validation = read_sections(groups[1], **read)
        key = config.data.feature_key
        wider = wider_features(level_features)
        training, validation = (
            with_features(each, features, niche_features, key, wider) for each in (training, validation)
        )
    print_sections(console, training, "training sections")
    if validation:
        print_sections(console, validation, "validation sections")
    console.print(
        f"{config.data.n_genes} genes, target {config.data.target}, backbone {config.model.backbone}, "
        f"at most {config.training.epochs} epochs{'; reading the crops first' if config.data.feature_key is None else ''}"
    )
    try:
        with EpochProgress(console, config.training.epochs) as progress:
            summary = fit(
                config,
                training,
                output,
                validation_sections=validation,
                resume=resume,
                on_epoch=progress,
                on_crops=progress.crops,
                on_network=progress.network,
                devices=devices,
            )
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"{str(error) or 'interrupted'}; nothing of the finished epochs is lost. Go on with: "
            f"hyperst train --resume --output {shlex.quote(str(output))}"
        ) from error
    print_training(console, summary, config.model.n_networks, config.model.head)
    console.print(f"run folder: {output}", soft_wrap=True)
    run = shlex.quote(str(output))
    console.print(f"next: hyperst evaluate {run} SECTION   or   hyperst predict {run} IMAGE", soft_wrap=True)


@app.command(name="evaluate")
def evaluate_command(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")],
    sections: Sections,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; default RUN/evaluation.")] = None,
    genes: Annotated[
        list[str] | None, typer.Option("--gene", help="Gene to draw; repeat for more. Default: the best predicted.")
    ] = None,
    missing: Annotated[
        Literal["drop", "zero", "error"],
        typer.Option(
            "--missing",
            help="Genes that a section has not measured: drop (evaluate on the others), zero (measured and never seen) or error.",
        ),
    ] = "drop",
    min_counts: MinCounts = None,
    images: Images = None,
    image: Image = None,
    mpp: Mpp = None,
    bin_um: BinUm = None,
    gene_names: GeneNames = None,
    features: Features = None,
    niche_features: NicheFeatures = None,
    level_features: LevelFeatures = None,
    stain: StainOption = "none",
    device: Device = None,
) -> None:
    """Compare predictions with measured expression, beside ridge regression, the training mean and shuffled images."""
    console = make_console()
    from hyperst.data import with_min_counts
    from hyperst.evaluation import evaluate, summarise
    from hyperst.evaluation_inputs import check_inputs
    from hyperst.run import load_run

    run = load_run(run_folder, device=device)
    (listed,) = list_groups([sections], bin_um)
    one_image(listed, image)
    key = run.config.data.feature_key
    test = read_sections(listed, images=images, image=image, mpp=mpp, gene_names=gene_names, require_image=key is None)
    test = with_features(test, features, niche_features, key, wider_features(level_features))
    for section in test:  # all that can be refused is refused before the first hour of work
        check_inputs(run, section, missing=missing, genes=genes or ())
        with_min_counts(section, run.config.data.min_counts if min_counts is None else min_counts)
    training, unread = training_sections(run_folder)
    if unread:
        console.print(Text.assemble(("ridge regression left out:", "yellow"), " ", unread), soft_wrap=True)
    print_sections(console, test, "sections to evaluate")
    results = []
    for section in test:
        with SpotProgress(console, f"{section.name}: image features", after=f"{section.name}: scores") as progress:
            results.append(
                evaluate(
                    run,
                    section,
                    training_sections=training,
                    output=output,
                    genes=genes or (),
                    missing=missing,
                    min_counts=min_counts,
                    stain=stain,
                    on_progress=progress,
                )
            )
        print_evaluation(console, results[-1])
        console.print(f"files: {results[-1].folder}", soft_wrap=True)
        console.print(f"figure: {results[-1].figure}", soft_wrap=True)
    if len(results) > 1:
        path = summarise(results, (output or run_folder / "evaluation") / "summary.json")
        console.print(f"means over the {len(results)} sections: {path}", soft_wrap=True)
    if output is None:
        console.print(f"next: hyperst report {shlex.quote(str(run_folder))}", soft_wrap=True)


app.command()(predict)
app.command()(check)
app.command(name="features")(features_command)
app.command()(cv)
app.command()(report)
app.command()(plot)


def main() -> None:
    """Entry point of the ``hyperst`` command."""
    try:
        app()
    except SystemExit as ended:
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_initialized():
            # an error in one of several processes: the group's threads would abort this one when Python ends it
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended.code if isinstance(ended.code, int) else 1)
        raise


if __name__ == "__main__":
    main()
