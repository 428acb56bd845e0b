"""What a run folder holds, as the report needs it; no weights are loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from hyperst.baselines import OURS
from hyperst.config import RunConfig, read_run_config
from hyperst.evaluation_record import EXPRESSION
from hyperst.evaluation_space import read_space
from hyperst.files import sha256
from hyperst.run import RunFolder, Split

__all__ = ["RunSummary", "SectionScores", "collect", "read_evaluations"]

_CURVES = ("epoch", "training_mse", "validation_mse", "validation_pcc")
_AGAIN = "evaluate the section again with `hyperst evaluate`, or remove the folder"


@dataclass(frozen=True)
class SectionScores:
    """What `hyperst evaluate` left of one section.

    Attributes:
        section, patient, n_spots, target: see :class:`hyperst.evaluation.Evaluation`.
        methods: scores by name ("pcc", "pcc_10", "mse", ...) of each method by name, ours first; None where undefined.
        intervals: see :func:`hyperst.evaluation_record.gene_figures`; None in evaluations of earlier versions.
        per_gene: a row per gene, by falling correlation.
        caveats: what the numbers do not say.
        excluded_spots: ids of those left out for fewer counts than ``min_counts``, which is None where it is not recorded.
        best_epoch: of the weights that predicted; None where it is not recorded.
        networks: how many predicted.
        doubt: mean noise ceiling ("noise_ceiling") and "coverage" of the intervals, "nominal_coverage"; empty in evaluations of
            earlier versions.
        space: see :func:`hyperst.evaluation_space.hyperbolic_space`; None where there is none.
        expression: file with predicted and measured expression of the spots; None in evaluations of earlier versions.
    """

    section: str
    patient: str | None
    n_spots: int
    target: str
    methods: dict[str, dict[str, float | None]]
    intervals: dict[str, Any] | None
    per_gene: pd.DataFrame
    caveats: tuple[str, ...]
    excluded_spots: tuple[str, ...]
    min_counts: int | None
    missing_genes: tuple[str, ...]
    stain: str
    best_epoch: int | None
    expression: Path | None
    doubt: dict[str, float | None] = field(default_factory=dict)
    space: dict[str, Any] | None = None
    networks: int = 1


@dataclass(frozen=True)
class RunSummary:
    """What a run folder holds.

    Attributes:
        folder, config, genes, split, versions: of the run.
        training: how it ended, see ``summary.json``; None while it has not. Of the first of ``networks`` that are trained.
        curves: rows of ``metrics.csv``, an epoch each; empty before the first.
        evaluations: one per section, by name.
        checksums: SHA-256, hexadecimal, of the files that determine predictions, by their names in the folder.
    """

    folder: Path
    config: RunConfig
    genes: list[str]
    split: Split
    versions: dict[str, str]
    training: dict[str, Any] | None
    curves: pd.DataFrame
    evaluations: tuple[SectionScores, ...]
    checksums: dict[str, str]
    networks: int


def collect(folder: str | Path) -> RunSummary:
    """Read what a run folder holds.

    Raises:
        FileNotFoundError: ``folder`` holds no run, or one of its files is missing.
        ValueError: a file of the run or of an evaluation is damaged.
    """
    place = RunFolder(folder)
    place.require()
    further = place.trained_networks()
    weights = [each.best for each in (place, *further)]
    files = [path for path in (place.config, place.genes, place.split, *weights) if path.is_file()]
    return RunSummary(
        folder=place.path,
        config=read_run_config(place.config),
        genes=place.read_genes(),
        split=place.read_split(),
        versions=place.read_versions(),
        training=place.read_summary(),
        curves=_table(place.metrics, _CURVES, "restore it, or train again into another folder")
        if place.metrics.is_file()
        else pd.DataFrame(),
        evaluations=read_evaluations(folder),
        checksums={path.relative_to(place.path).as_posix(): sha256(path) for path in files},
        networks=1 + len(further),
    )


def read_evaluations(folder: str | Path) -> tuple[SectionScores, ...]:
    """What `hyperst evaluate` left in ``evaluation`` of a run folder, by section.

    Raises:
        ValueError: a file of an evaluation is damaged.
    """
    return tuple(_scores(path) for path in sorted((Path(folder) / "evaluation").glob("*/metrics.json")))


def _scores(path: Path) -> SectionScores:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        methods = {str(name): dict(entry) for name, entry in stored["methods"].items()}
        methods = {OURS: methods.pop(OURS), **methods}
        expression = path.parent / EXPRESSION
        per_gene = _table(path.parent / "per_gene.csv", ("gene", "pcc"), _AGAIN).set_index("gene")
        cut_short = not (path.parent / "per_gene.csv").read_bytes().endswith(b"\n")
        if cut_short or len(per_gene) != int(stored["n_genes"]):
            raise ValueError(
                f"{path.parent / 'per_gene.csv'} is cut short ({len(per_gene)} genes{', the last one incomplete' * cut_short}; "
                f"metrics.json has {stored['n_genes']}); {_AGAIN}"
            )
        return SectionScores(
            section=str(stored["section"]),
            patient=stored["patient"],
            n_spots=int(stored["n_spots"]),
            target=str(stored["target"]),
            methods=methods,
            intervals=stored.get("intervals"),
            per_gene=per_gene,
            caveats=tuple(map(str, stored["caveats"])),
            excluded_spots=tuple(map(str, stored.get("excluded_spots", ()))),
            min_counts=stored.get("min_counts"),
            missing_genes=tuple(map(str, stored.get("missing_genes", ()))),
            stain=str(stored.get("stain", "none")),
            best_epoch=stored.get("best_epoch"),
            expression=expression if expression.is_file() else None,
            doubt=dict(stored.get("doubt", {})),
            space=read_space(path.parent),
            networks=int(stored.get("networks", 1)),
        )
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); {_AGAIN}") from error


def _table(path: Path, needed: tuple[str, ...], remedy: str) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)  # a gene may be called NA
        numbers = [name for name in table.columns if name != "gene"]
        table[numbers] = table[numbers].apply(pd.to_numeric)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {remedy}") from error
    if missing := [name for name in needed if name not in table]:
        raise ValueError(f"{path} is damaged (it has no column {missing[0]}); {remedy}")
    return table
