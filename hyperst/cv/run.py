"""Folds x seeds x rows: what is still to be done is done, and all of it compared."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from hyperst.config import RunConfig
from hyperst.cv.cells import Cell, finished, require_same
from hyperst.cv.folds import Fold
from hyperst.cv.notes import notes
from hyperst.cv.processes import run_cells
from hyperst.cv.report import write_report
from hyperst.cv.rows import require_comparable
from hyperst.cv.scores import METHODS
from hyperst.cv.tables import Comparison, compare, sections_table, summarise_rows, tidy_table
from hyperst.data import Section, check_distinct
from hyperst.feature_check import feature_width
from hyperst.files import atomic_path, require_writable
from hyperst.locks import take
from hyperst.model.backbones import require_weights
from hyperst.processes import refuse_several
from hyperst.run import SectionRecord

__all__ = ["CrossValidation", "cross_validate"]


@dataclass(frozen=True)
class CrossValidation:
    """What a cross-validation has found.

    Attributes:
        scores: one line per fold, seed, row and metric, see :func:`hyperst.cv.tables.tidy_table`.
        summary: one line per row and metric, see :func:`hyperst.cv.tables.summarise_rows`.
        comparisons: every row beside the reference.
        notes: what the numbers do not say.
        failures: what went wrong, by the name of the cell; these are not in the tables.
        folder: where scores.csv, sections.csv, summary.csv and report.md are.
    """

    scores: pd.DataFrame
    summary: pd.DataFrame
    comparisons: list[Comparison]
    reference: str
    notes: list[str]
    failures: dict[str, str]
    folder: Path


def cross_validate(
    sections: Sequence[Section],
    rows: dict[str, RunConfig],
    folds: Sequence[Fold],
    seeds: Sequence[int],
    output: str | Path,
    *,
    against: str | None = None,
    workers: int | None = 0,
    engine: Literal["local", "ray"] = "local",
    on_cell: Callable[[Cell, str | None, int, int], None] | None = None,
) -> CrossValidation:
    """Train and score every row on every fold with every seed, and compare the rows.

    Each fold, seed and row is a cell with a folder of its own, which is there whole or not at all: called again, this runs only
    the cells that are missing. A cell that fails stops no other. More folds, seeds or rows can be added to one ``output``; one
    call at a time, a second one is refused.

    Args:
        sections: read from files, which every cell reads again.
        rows: configurations by name; the first one's cells also give the baselines, see :func:`hyperst.cv.tables.tidy_table`.
        folds: see :func:`hyperst.cv.folds.make_folds`.
        seeds: of `training.seed`.
        against: the row that others are compared with; default the first of ``rows``.
        workers: cells at a time, each in a process of its own; 0 runs one after another in this process. None is 1, or of Ray
            one for each GPU or machine.
        engine: "local" for processes of this machine, "ray" for those of a Ray cluster, see :mod:`hyperst.on_ray`.
        on_cell: called as each cell ends with the cell, what went wrong or None, and (cells done, cells in all).

    Raises:
        ValueError: rows, folds or seeds that cannot be, sections that are one tissue, or that were not read from a file; one of
            several processes that torchrun or srun has started.
        FileExistsError: ``output`` holds cells of another configuration, of other folds, or on other data.
        BlockingIOError: another process works in ``output``.
        RuntimeError: no cell could be finished.
        ImportError: no Ray where it is asked for.
        KeyboardInterrupt: interrupted; the same call goes on.
    """
    refuse_several("a cross-validation, which has processes of its own (workers),")
    output = Path(output)
    if engine not in ("local", "ray"):
        raise ValueError(f"engine (--engine): got {engine!r}, need local or ray")
    reference = _check(rows, folds, seeds, against)
    if unread := [section.name for section in sections if section.path is None]:
        raise ValueError(f"section {', '.join(unread)} was not read from a file, so a process cannot read it again")
    check_distinct(sections)
    require_writable(output / "scores.csv")
    for config in rows.values():
        require_weights(config.model.backbone, config.model.weights, config.crop.image_size)
        feature_width(config, sections)
    records = {
        row: {each.name: SectionRecord.of(each, "section", config.data.feature_key, config.crop) for each in sections}
        for row, config in rows.items()  # whose levels may differ
    }
    cells = [
        Cell(
            fold,
            row,
            replace(config, training=replace(config.training, seed=seed)),
            tuple(records[row][name] for side in (fold.train, fold.validation, fold.test) for name in side),
            output / "cells",
        )
        for row, config in rows.items()
        for fold in folds
        for seed in seeds
    ]
    require_same(cells)
    with _alone(output):
        failures = _run_waiting(cells, workers, engine, on_cell)
        results = [result for cell in cells if (result := finished(cell)) is not None]
    if not results:
        raise RuntimeError(
            f"none of the {len(cells)} cells could be finished; the first: {next(iter(failures.values()))}"
        )
    first = next(iter(rows))
    scores = tidy_table(results, first)
    found = CrossValidation(
        scores,
        summarise_rows(scores, reference),
        compare(scores, reference),
        reference,
        notes(results, {section.name: section.patient for section in sections}),
        failures,
        output,
    )
    for name, table in (
        ("scores.csv", found.scores),
        ("sections.csv", sections_table(results, first)),
        ("summary.csv", found.summary),
    ):
        with atomic_path(output / name) as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g")
    write_report(found, output / "report.md")
    return found


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Keep other processes' cross-validations out of ``output``."""
    folder = output / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    if os.name == "nt":  # where a folder cannot be opened
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        take(
            descriptor,
            f"{output}: another cross-validation works there; wait for it, end it, or choose another --output",
        )
        yield
    finally:
        os.close(descriptor)


def _run_waiting(
    cells: Sequence[Cell],
    workers: int | None,
    engine: Literal["local", "ray"],
    on_cell: Callable[[Cell, str | None, int, int], None] | None,
) -> dict[str, str]:
    """Run the cells that are not finished; return what went wrong by the name of the cell."""
    waiting = sorted((cell for cell in cells if finished(cell) is None), key=lambda cell: cell.seed)
    failures = {}
    for number, (cell, error) in enumerate(run_cells(waiting, workers, engine), start=len(cells) - len(waiting) + 1):
        if error is not None:
            failures[cell.name] = error
        if on_cell is not None:
            on_cell(cell, error, number, len(cells))
    return failures


def _check(rows: dict[str, RunConfig], folds: Sequence[Fold], seeds: Sequence[int], against: str | None) -> str:
    """The row that others are compared with; raises where the cells cannot be."""
    for what, given in (("rows", rows), ("folds", folds), ("seeds", seeds)):
        if not given:
            raise ValueError(f"{what}: got none, need at least one")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: got {list(seeds)}, need numbers that differ")
    if taken := [name for name in rows if name in METHODS]:
        raise ValueError(f"a row is called {taken[0]}, which is the name of a baseline; give it another one")
    require_comparable(rows)
    reference = next(iter(rows)) if against is None else against
    known = [*rows, *(method for method in METHODS[1:] if method != "noise_ceiling")]
    if reference not in known:
        raise ValueError(f"against (--against): no row is called {reference!r}; choose one of {', '.join(known)}")
    return reference
