"""Training of HyperST end to end: where the time of a step goes, spots per second beside other loops, operations beside TRIPLEX's.

python -m benchmarks.training --section A.h5ad --section B.h5ad     # prints the tables
python -m benchmarks.training --docs                                # puts them into docs/notes/training.md

Without --section: C2 to C5 of her2st in the folder that HYPERST_DATA names.
"""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import training_loops as loops
from benchmarks.markdown import markdown, replace_between
from benchmarks.problem import OURS
from benchmarks.results import REPOSITORY, Row, append, commit, device_name, path_for, versions
from benchmarks.tables import find, number, ratio
from benchmarks.training_products import TRIPLEX
from benchmarks.training_spans import AFTER, OF_EPOCH, OF_RUN, Times, before_training, traced
from hyperst.config import RunConfig
from hyperst.data import Section, read_section
from hyperst.train import Epoch, fit
from hyperst.train.step import TrainingStep

PAGE = REPOSITORY / "docs" / "notes" / "training.md"
STEP, COUNTED = "HyperST step by part", "operations of training"
OF_STEP = "step"


def wide(config: RunConfig) -> RunConfig:
    """Width and batch of the paper."""
    training = replace(config.training, batch_size=128, averaging=0.0)
    return replace(config, model=replace(config.model, width=1024), training=training)


def breakdown(config: RunConfig, sections: Sequence[Section], epochs: int) -> list[Row]:
    """Wall and processor time of each part of a step (per step), an epoch and the run, after an epoch to warm up."""
    sizes: dict[str, int] = {}
    once: list[Times] = []
    repeated: list[Times] = []

    def prepare(trainer: Any, module: TrainingStep, loader: DataLoader) -> None:
        sizes.update(batch=int(loader.batch_size or 0), steps=len(loader))

    chosen = replace(config, training=replace(config.training, epochs=epochs + 1, patience=epochs + 1))
    with tempfile.TemporaryDirectory() as folder, before_training(prepare), traced() as spans:

        def on_epoch(row: Epoch, best: int) -> None:
            if row["epoch"] == 1:
                once.append(spans.taken())
            elif row["epoch"] == epochs + 1:
                repeated.append(spans.taken())
                spans.rest_is(AFTER)

        fit(chosen, sections, Path(folder) / "run", on_epoch=on_epoch)
        end = spans.taken()
    setting = "crops" if config.data.feature_key is None else "features"
    about: dict[str, Any] = {"n": sizes["batch"], "d": config.model.width, "dtype": "float32", "operation": STEP}
    of_run = {name: taken for name, taken in {**once[0], AFTER: end[AFTER]}.items() if name in OF_RUN}
    per = {"run": (of_run, 1), "epoch": ({}, epochs), OF_STEP: ({}, epochs * sizes["steps"])}
    for name, taken in repeated[0].items():
        per["epoch" if name in OF_EPOCH else OF_STEP][0][name] = taken
    found = []
    for scope, (parts, count) in per.items():
        for name, both in parts.items():
            for metric, seconds in zip(("wall s", "processor s"), both, strict=True):
                where = {**about, "provider": name, "metric": metric, "setting": f"{setting}, {scope}"}
                found.append(replace(Row.of([seconds / count], **where), repeats=count))
    return found


def operations(config: RunConfig, sections: Sequence[Section], name: str) -> Row:
    """Operations of a training step for each of its spots, as PyTorch counts them; without those of the alignment's kernels."""
    totals: list[tuple[int, int]] = []

    class Done(Exception):
        pass

    def prepare(trainer: Any, module: TrainingStep, loader: DataLoader) -> None:
        batch = next(iter(loader))
        totals.append((count(module, batch), len(batch["target"])))
        raise Done

    with tempfile.TemporaryDirectory() as folder, before_training(prepare), suppress(Done):
        fit(config, sections, Path(folder) / "run")
    total, batch = totals[0]
    about: dict[str, Any] = {"operation": COUNTED, "n": batch, "d": config.model.width, "dtype": "float32"}
    return Row.of([total / batch], provider=name, metric="operations per spot", **about)


def count(module: TrainingStep, batch: dict[str, Any]) -> int:
    """Operations of forward and backward of a batch in products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        outputs = module.model(batch)
        error = nn.functional.mse_loss(outputs["prediction"], batch["target"])
        (error + module.alignment(outputs)["loss"]).backward()
    return counter.get_total_flops()


def counted(config: RunConfig, sections: Sequence[Section], featured: Sequence[Section]) -> list[Row]:
    """Operations of HyperST on crops and on features, and of TRIPLEX with these sections, 128 spots a step."""
    found = [
        operations(config, sections, "HyperST, default, crops"),
        operations(loops.on_features(config), featured, "HyperST, default, features"),
        operations(wide(loops.on_features(config)), featured, "HyperST, 1024 wide, features"),
    ]
    spots, about = [section.n_spots for section in sections], {"operation": COUNTED, "n": 128, "dtype": "float32"}
    for name, model in TRIPLEX.items():
        per_spot = model.flops(spots, 128, config.data.n_genes)
        found.append(Row.of([per_spot], provider=name, d=model.width, metric="operations per spot", **about))
    return found


def step_table(rows: Sequence[Row], setting: str) -> str:
    """Parts of a step, the longest first, with their sum; then those of an epoch and of the run."""
    here = [row for row in rows if row.operation == STEP and row.setting.startswith(setting)]
    lines = []
    for scope, when in ((OF_STEP, ""), ("epoch", ", each epoch"), ("run", ", once")):
        cpu, wall = (
            {row.provider: row.median for row in here if row.setting.endswith(scope) and row.metric == metric}
            for metric in ("processor s", "wall s")
        )
        totals = sum(cpu.values()), sum(wall.values())
        for name in sorted(cpu, key=lambda each: -cpu[each]):
            line = [name + when]
            for seconds, total in zip((cpu[name], wall[name]), totals, strict=True):
                line += [number(1e3 * seconds), f"{100 * seconds / total:.1f} %" if scope == OF_STEP else ""]
            lines.append(line)
        if scope == OF_STEP:
            lines.append(["**step**", number(1e3 * totals[0]), "100 %", number(1e3 * totals[1]), "100 %"])
    batch = next(row.n for row in here)
    return markdown([f"{setting}, batch {batch}", "processor, ms", "of the step", "wall, ms", "of the step"], lines)


def speed_table(rows: Sequence[Row]) -> str:
    """Spots per second and time over ours of each way."""
    here = [row for row in rows if row.operation == loops.EPOCH]
    lines = []
    for row in here:
        if row.metric != "spots/s":
            continue
        about = {"provider": row.provider, "n": row.n, "d": row.d, "setting": row.setting}
        compared = "1" if row.provider == OURS else ratio(find(here, metric="ratio both", **about))
        lines.append([f"{row.setting}, {row.d} wide, batch {row.n}: {row.provider}", number(row.median), compared])
    return markdown(["", "spots/s", "time / ours"], lines)


def operation_table(rows: Sequence[Row]) -> str:
    """Operations per spot of a step of training."""
    here = [row for row in rows if row.operation == COUNTED]
    return markdown(
        ["", "batch", "10^9 operations per spot"],
        [[row.provider, str(row.n), number(row.median / 1e9)] for row in here],
    )


def tables(rows: Sequence[Row]) -> dict[str, str]:
    """The tables by the name of their place on the page."""
    return {
        "training step": step_table(rows, "crops"),
        "training step on features": step_table(rows, "features"),
        "training speed": speed_table(rows),
        "training operations": operation_table(rows),
    }


def measure(config: RunConfig, sections: Sequence[Section], rounds: int) -> list[Row]:
    """All rows, on the processor."""
    one = replace(config.model, networks=1)
    config = replace(config, model=one, training=replace(config.training, accelerator="cpu"))
    with tempfile.TemporaryDirectory() as folder:
        featured = loops.with_features(sections, Path(folder))
        features = loops.on_features(config)
        found = [*breakdown(config, sections, rounds), *breakdown(features, featured, rounds)]
        found += loops.rows(config, sections, rounds)
        for each in (features, wide(features)):
            found += loops.rows(each, featured, rounds)
        return found + counted(config, sections, featured)


def _sections(paths: Sequence[Path]) -> list[Section]:
    if not paths:
        folder = os.environ.get("HYPERST_DATA")
        if folder is None:
            raise SystemExit("give sections with --section FILE.h5ad, or the folder that holds her2st in HYPERST_DATA")
        paths = [Path(folder) / "her2st" / "h5ad" / f"{name}.h5ad" for name in ("C2", "C3", "C4", "C5")]
    return [read_section(path) for path in paths]


def main(arguments: list[str] | None = None, page: Path = PAGE, config: RunConfig | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", action="append", default=[], type=Path, help="training section; repeat for more")
    parser.add_argument("--rounds", type=int, default=6, help="epochs of each way")
    parser.add_argument("--output", type=Path, help="CSV to add the rows to")
    parser.add_argument("--docs", action="store_true", help="write docs/notes/training.md and benchmarks/results")
    options = parser.parse_args(arguments)
    sections = _sections(options.section)
    found = measure(config or RunConfig(), sections, options.rounds)
    made = tables(found)
    print("\n\n".join(made.values()))
    run = datetime.datetime.now().isoformat(" ", "seconds")
    if options.output is not None:
        append(found, options.output, run)
    if options.docs:
        spots = ", ".join(f"{section.name} ({section.n_spots} spots)" for section in sections)
        where = f"{device_name()}; {versions()}; sections {spots}; commit {commit()}, {datetime.date.today()}."
        for name, text in {"training where": where, **made}.items():
            replace_between(page, name, text)
        append(found, path_for().with_stem(f"{path_for().stem}-training"), run)


if __name__ == "__main__":
    main()
