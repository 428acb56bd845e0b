"""What the numbers of a cross-validation do not say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["notes"]

_FEW_FOLDS, _FEW_PATIENTS = 5, 5


def notes(results: Sequence[dict[str, Any]], patients: dict[str, str | None]) -> list[str]:
    """Sentences about patients, few folds, and the spots and genes that were left out.

    Args:
        results: of the finished cells.
        patients: of every section, None where it is not recorded.
    """
    folds = {result["fold"]["name"]: result["fold"] for result in results}
    said = [_about_patients(list(folds.values()), patients)]
    tested = [name for fold in folds.values() for name in fold["test"]]
    if len(set(tested)) < len(tested):
        said.append(
            "Some sections are tested in several folds: these are not independent, and intervals are too narrow."
        )
    if len(folds) < _FEW_FOLDS:
        said.append(
            f"There {'is one fold' if len(folds) == 1 else f'are {len(folds)} folds'}: over so few, intervals are wide, if there "
            "are any, and rest on differences that are normal over folds."
        )
    said.append(
        "Each interval is of one comparison: among twenty rows that do not differ, about one interval excludes 0 by chance."
    )
    excluded = {name: ids for result in results for name, ids in result["excluded_spots"].items() if ids}
    if excluded:
        counted = ", ".join(f"{len(ids)} of {name}" for name, ids in sorted(excluded.items()))
        said.append(f"Spots left out for too few counts (--min-counts): {counted}.")
    missing = {
        (fold, name): len(genes)
        for result in results
        for fold in [result["fold"]["name"]]
        for name, genes in result["missing_genes"].items()
        if genes
    }
    if missing:
        counted = ", ".join(f"{n} in {name} (fold {fold})" for (fold, name), n in missing.items())
        said.append(f"Genes that a test section has not measured, left out of all scores of its fold: {counted}.")
    return said


def _about_patients(folds: Sequence[dict[str, Any]], patients: dict[str, str | None]) -> str:
    used = {name: patients[name] for fold in folds for side in ("train", "validation", "test") for name in fold[side]}
    if unknown := [name for name, patient in used.items() if patient is None]:
        return f"The patient of {', '.join(unknown)} is not recorded, so this supports no claim about new patients."
    shared = [
        fold["name"]
        for fold in folds
        if {used[name] for name in fold["test"]}
        & {used[name] for side in ("train", "validation") for name in fold[side]}
    ]
    if shared:
        return (
            f"In {len(shared)} of {len(folds)} folds a patient of the test sections has training sections too: this supports no "
            "claim about new patients."
        )
    n = len(set(used.values()))
    few = ": too few for a claim about patients in general" if n < _FEW_PATIENTS else ""
    return f"Test patients are never trained on; there are {n} patients{few}."
