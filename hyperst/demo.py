"""The demonstration: synthetic sections, a short training, an honest look at the result; minutes on a CPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hyperst.config import RunConfig
from hyperst.data import read_section
from hyperst.evaluation import Evaluation, evaluate
from hyperst.files import write_h5ad_atomic, write_json_atomic
from hyperst.predict import predict_image
from hyperst.processes import refuse_several
from hyperst.report import require_report, write_report
from hyperst.run import load_run
from hyperst.synthetic import write_tissue
from hyperst.train import Epoch, TrainingSummary, fit

__all__ = ["DemoResult", "demo_config", "run_demo"]

TRAINING_SECTIONS = ("S1", "S2", "S3")
TEST_SECTION = "S4"
_MARK = "demo.json"


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration made and where it is; ``report`` is None for the reason ``no_report``."""

    sections: list[Path]
    run: Path
    training: TrainingSummary
    evaluation: Evaluation
    image: Path
    um_per_px: float
    prediction: Path
    n_predicted: int
    report: Path | None
    no_report: str


def demo_config(epochs: int = 18) -> RunConfig:
    """A configuration that learns the synthetic tissue in about two minutes on two cores."""
    config = RunConfig()
    return replace(
        config,
        data=replace(config.data, n_genes=60),
        crop=replace(config.crop, image_size=64),
        model=replace(config.model, width=128, networks=1),
        training=replace(config.training, epochs=epochs, patience=8, learning_rate=1e-3),
    )


def run_demo(
    folder: str | Path,
    *,
    config: RunConfig | None = None,
    on_step: Callable[[str], None] | None = None,
    on_epoch: Callable[[Epoch, int], None] | None = None,
    on_crops: Callable[[int, int], None] | None = None,
) -> DemoResult:
    """Make four synthetic sections, train on three, evaluate and predict the fourth, and make the report.

    Args:
        folder: new or empty, or that of an earlier demonstration, which is then replaced.
        on_step: called with one line before each step. on_epoch, on_crops: see :func:`hyperst.train.fit.fit`.

    Raises:
        FileExistsError: ``folder`` holds something else.
        ValueError: one of several processes that torchrun or srun has started.
    """
    refuse_several("the demonstration")
    folder = Path(folder)
    tell = on_step or (lambda line: None)
    _clear(folder)
    write_json_atomic(folder / _MARK, {"content": "made by `hyperst demo`; a new demonstration replaces this folder"})

    tell(f"making {len(TRAINING_SECTIONS) + 1} synthetic tissue sections, each with an H&E-like image and counts")
    names = (*TRAINING_SECTIONS, TEST_SECTION)
    paths = [
        write_tissue(folder / "sections", seed=seed, name=name, patient=f"P{seed}")
        for seed, name in enumerate(names, 1)
    ]
    sections = [read_section(path) for path in paths]

    config = config or demo_config()
    tell(f"training on {', '.join(TRAINING_SECTIONS)}; blocks of their spots are held out to choose the best epoch")
    training = fit(config, sections[:-1], folder / "run", on_epoch=on_epoch, on_crops=on_crops)

    tell(f"evaluating on {TEST_SECTION}, which the model has not seen, beside simple competitors")
    run = load_run(folder / "run")
    evaluation = evaluate(run, sections[-1], training_sections=sections[:-1])

    image, um_per_px = sections[-1].image_path, sections[-1].grid.um_per_px
    assert image is not None
    assert um_per_px is not None
    tell(f"predicting {image.name} from the image alone, on a grid over the tissue")
    predicted = predict_image(run, image, mpp=um_per_px)
    prediction = write_h5ad_atomic(predicted, folder / "predicted.h5ad")
    report, no_report = None, ""
    try:
        require_report()
    except ImportError as error:  # the demonstration needs no extra
        no_report = str(error)
    else:
        report = write_report(run.folder, [prediction], folder / "report.html")
    return DemoResult(
        paths, run.folder, training, evaluation, image, um_per_px, prediction, predicted.n_obs, report, no_report
    )


def _clear(folder: Path) -> None:
    """Remove what an earlier demonstration left; refuse any other folder with something in it."""
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not _is_demo(folder)):
        raise FileExistsError(f"{folder} exists and was not made by `hyperst demo`; choose another place with --output")
    for name in ("sections", "run"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("predicted.h5ad", "report.html"):
        (folder / name).unlink(missing_ok=True)


def _is_demo(folder: Path) -> bool:
    try:
        return "hyperst demo" in json.loads((folder / _MARK).read_text(encoding="utf-8"))["content"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
