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
    """Files to save and then the command to give, each with its text; a run of arrays, without files, has none."""
    sections = {role: summary.split.role(role) for role in _TABLES}
    records = [record for group in sections.values() for record in group]
    if any(record.path is None for record in records):
        return []
    command = ["hyperst", "train", _TABLES["training"]]
    if sections["validation"]:
        command += ["--validation-sections", _TABLES["validation"]]
    command += ["--config", str(summary.folder / "config.yaml")]
    if names := {record.gene_names for record in records} - {None}:
        command += ["--gene-names", str(min(map(str, names)))]
    command += _options("--features", "", [record.features for record in records])
    command += _options("--niche-features", "", [record.niche_features for record in records])
    for level in records[0].wider_features:
        places = [record.wider_features.get(level) for record in records]
        command += _options("--level-features", f"{level}=", places)
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


def _options(option: str, prefix: str, places: Sequence[str | None]) -> list[str]:
    """An option for files of features: the file of one section, else the folder of all."""
    given = [place for place in places if place is not None]
    if not given:
        return []
    return [option, prefix + (given[0] if len(places) == 1 else str(Path(given[0]).parent))]
