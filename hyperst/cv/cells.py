"""One cell of a cross-validation: a fold, a seed and a row, trained and scored in a folder that is there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hyperst.config import RunConfig
from hyperst.cv.folds import Fold
from hyperst.data import Section, with_min_counts
from hyperst.data.identity import sampled_hash
from hyperst.evaluation_inputs import check_inputs
from hyperst.files import write_json_atomic
from hyperst.run import RunFolder, SectionRecord, load_run

__all__ = ["Cell", "finished", "require_same", "run_cell"]

_RESULT = "scores.json"
_CONFIG = TypeAdapter(RunConfig)


@dataclass(frozen=True)
class Cell:
    """What is trained and scored.

    Attributes:
        row: name of the configuration.
        config: with the cell's seed in ``training.seed``.
        records: where the sections of the fold come from.
        cells: the folder that holds the folders of all cells.
    """

    fold: Fold
    row: str
    config: RunConfig
    records: tuple[SectionRecord, ...]
    cells: Path

    @property
    def seed(self) -> int:
        """The seed of training."""
        return self.config.training.seed

    @property
    def name(self) -> str:
        """Name of the cell's folder."""
        return "__".join(re.sub(r"[^\w.+-]", "_", part) for part in (self.fold.name, self.row, f"seed{self.seed}"))

    @property
    def folder(self) -> Path:
        """Where the finished cell is."""
        return self.cells / self.name

    @property
    def work(self) -> Path:
        """Where the cell is while it is worked on; a reader of folders passes over it."""
        return self.cells / f".{self.name}"

    def identity(self) -> str:
        """A hash of all that determines the scores: configuration, weights, sides of the fold, and what the sections hold."""
        contents = {
            r.name: [r.patient, r.fingerprint, r.um_per_px, r.pitch_px, r.spot_diameter_px, r.features_hash]
            for r in self.records
        }
        sides, weights = asdict(replace(self.fold, name="")), self.config.model.weights
        weights = None if weights is None else sampled_hash(Path(weights))
        text = json.dumps([_CONFIG.dump_python(self.config, mode="json"), sides, contents, weights], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, names: Sequence[str]) -> list[Section]:
        """Read these sections of the fold again."""
        place = {record.name: record for record in self.records}
        return [place[name].read(self.config.data.feature_key) for name in names]


def finished(cell: Cell) -> dict[str, Any] | None:
    """The stored result of a cell, None where it has not been finished.

    Raises:
        FileExistsError: the folder holds the result of another configuration, fold or data.
        ValueError: the result is damaged, or missing from its folder.
    """
    path = cell.folder / _RESULT
    if not cell.folder.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        identity = stored["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is missing or damaged ({error}); remove {cell.folder}, and the cell is run again"
        ) from error
    if identity != cell.identity():
        raise FileExistsError(
            f"{cell.folder} was run with another configuration, on other sides of the fold (or in another order) or on other data; "
            "choose another --output, or remove it"
        )
    return stored


def require_same(cells: Sequence[Cell]) -> None:
    """Raise where two cells would have one folder, or a finished one is of something else; see :func:`finished`."""
    names = [cell.name for cell in cells]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"two cells would both be called {doubled[0]}; give folds and rows names that differ in letters"
        )
    for cell in cells:
        finished(cell)


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train and score a cell, move its folder to its place in one step, and return the result.

    A training that was interrupted goes on after its last finished epoch. Checkpoints are removed in the end.

    Errors: whatever training and evaluation raise.
    """
    from hyperst.cv.scores import fold_scores
    from hyperst.train import fit

    started = time.perf_counter()
    place = RunFolder(cell.work / "run")
    training, validation, test = (cell.read(names) for names in (cell.fold.train, cell.fold.validation, cell.fold.test))
    _clear_other(cell)
    summary = fit(cell.config, training, place.path, validation_sections=validation, resume=place.exists())
    run = load_run(place.path)
    absent: dict[str, list[str]] = {}
    for section in test:
        absent[section.name] = check_inputs(run, section, training)[1]
    lacking = {gene for genes in absent.values() for gene in genes}
    genes = [gene for gene in run.genes if gene not in lacking]
    if not genes:
        raise ValueError(
            f"none of the {len(run.genes)} genes is measured in every test section of fold {cell.fold.name}"
        )
    kept = [[with_min_counts(each, run.config.data.min_counts) for each in group] for group in (training, test)]
    result = {
        "identity": cell.identity(),
        "fold": asdict(cell.fold),
        "seed": cell.seed,
        "row": cell.row,
        "n_genes": len(genes),
        "missing_genes": absent,
        "n_spots": {section.name: section.n_spots for section in kept[1]},
        "excluded_spots": {section.name: list(section.excluded_spots) for group in kept for section in group},
        "best_epoch": summary.best_epoch,
        "epochs": summary.epochs,
        "scores": fold_scores(run, kept[0], kept[1], genes),
        "seconds": time.perf_counter() - started,
    }
    write_json_atomic(cell.work / _RESULT, result)
    os.replace(cell.work, cell.folder)
    for checkpoints in list((cell.folder / "run").rglob("checkpoints")):  # of further networks too
        shutil.rmtree(checkpoints)  # the cell is done, whether this is or not
    return result


def _clear_other(cell: Cell) -> None:
    """Make the cell's folder of work, without what an interrupted cell of another configuration left in it."""
    mark = cell.work / "identity"
    if cell.work.exists() and not (mark.is_file() and mark.read_text(encoding="utf-8") == cell.identity()):
        shutil.rmtree(cell.work)
    cell.work.mkdir(parents=True, exist_ok=True)
    mark.write_text(cell.identity(), encoding="utf-8")
