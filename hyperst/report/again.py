"""How a run is trained again: tables of its sections and the command, from what the run has recorded."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from pathlib import Path

from hyperst.data.manifest import COLUMNS
from hyperst.records import SectionRecord
from hyperst.report.summary import RunSummary

__all__ = ["train_again"]

_TABLES = {"training": "training.csv", "validation": "validation.csv"}


def train_again(summary: RunSummary) -> list[tuple[str, str]]:
    """Files to save and then the command to give, each with its text.

    None of a run of arrays, which has no files, or of one whose sections were read in ways that options of one command cannot say:
    features in several folders, or genes named by several columns.
    """
    sections = {role: summary.split.role(role) for role in _TABLES}
    records = [record for group in sections.values() for record in group]
    if any(record.path is None for record in records):
        return []
    command = ["hyperst", "train", _TABLES["training"]]
    if sections["validation"]:
        command += ["--validation-sections", _TABLES["validation"]]
    command += ["--config", str(summary.folder / "config.yaml")]
    given = {("--gene-names", ""): {record.gene_names for record in records}}
    given["--features", ""] = _places([record.features for record in records])
    given["--niche-features", ""] = _places([record.niche_features for record in records])
    for level in sorted({level for record in records for level in record.wider_features}):
        given["--level-features", f"{level}="] = _places([record.wider_features.get(level) for record in records])
    for (option, prefix), values in given.items():
        if len(values) > 1:
            return []
        command += [part for value in values - {None} for part in (option, f"{prefix}{value}")]
    tables = [(f"save as {_TABLES[role]}", _manifest(group)) for role, group in sections.items() if group]
    return [*tables, ("command", shlex.join([*command, "--output", "NEW_RUN"]))]


def _manifest(records: Sequence[SectionRecord]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for record in records:
        cells = {
            "section": record.path,
            "name": record.name,
            "patient": record.patient,
            "image": record.image,
            "mpp": None if record.um_per_px is None else f"{record.um_per_px:.17g}",
            "kind": record.kind,
        }
        table.writerow([cells[column] for column in COLUMNS])
    return text.getvalue()


def _places(files: Sequence[str | None]) -> set[str | None]:
    """What files of features are named by: the file of one section, the folder of several."""
    return set(files) if len(files) == 1 else {None if file is None else str(Path(file).parent) for file in files}
