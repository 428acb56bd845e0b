"""What can be evaluated: a section that the run has not seen, on genes that both have, into a folder of its own."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from hyperst.data import Fingerprint, Section, fingerprint, same_section
from hyperst.data.check import require_placement
from hyperst.data.genes import gene_columns
from hyperst.run import Run
from hyperst.stain import Stain

__all__ = ["Missing", "check_drawn", "check_folder", "check_inputs", "check_unseen", "shared_genes"]

Missing = Literal["drop", "zero", "error"]
"""What to do with genes of a run that a section has not measured."""


def check_inputs(
    run: Run,
    section: Section,
    training_sections: Sequence[Section] = (),
    *,
    missing: Missing = "drop",
    genes: Sequence[str] = (),
) -> tuple[list[str], list[str]]:
    """Raise what can be told before the work; return what :func:`shared_genes` does. Arguments: see ``evaluate``.

    Raises:
        ValueError: the section took part in the training, lacks the genes, or has spots that are not those of its image.
    """
    check_unseen(run, section, training_sections)
    kept, absent = shared_genes(run, section, missing)
    check_drawn(kept, genes, run)
    if run.config.data.feature_key is None:
        require_placement(section)
    return kept, absent


def check_unseen(run: Run, section: Section, training_sections: Sequence[Section] = ()) -> None:
    """Raise where a section took part in the training: its content is compared, not its name.

    Runs of earlier versions recorded no content: there the training sections are compared where they are given, else names.

    Raises:
        ValueError: the message names the section of the run.
    """
    print_of_section = fingerprint(section)
    known = {
        record.name: Fingerprint.from_json(record.fingerprint)
        for record in run.split.sections
        if record.fingerprint is not None
    }
    known |= {each.name: fingerprint(each) for each in training_sections if each.name not in known}
    for record in run.split.sections:
        same = (
            same_section(known[record.name], print_of_section) if record.name in known else record.name == section.name
        )
        if same:
            called = "" if record.name == section.name else f" as {record.name}"
            raise ValueError(
                f"section {section.name} took part in the training of {run.folder}{called} ({record.path}); evaluate on "
                "another one: its own scores would say nothing"
            )


def shared_genes(run: Run, section: Section, missing: Missing = "drop") -> tuple[list[str], list[str]]:
    """Genes to evaluate a section on, and those of the run that it has not measured, both in the run's order.

    Raises:
        ValueError: no gene is shared, or some are missing and ``missing`` is "error".
    """
    if missing not in get_args(Missing):
        raise ValueError(f"missing (--missing): got {missing!r}, need one of {', '.join(get_args(Missing))}")
    present = np.isin(run.genes, section.genes)
    absent = [gene for gene, there in zip(run.genes, present, strict=True) if not there]
    if absent and (missing == "error" or not present.any()):
        gene_columns(section, run.genes)  # says which are missing
    return [gene for gene, there in zip(run.genes, present, strict=True) if there or missing == "zero"], absent


def check_drawn(evaluated: Sequence[str], wanted: Sequence[str], run: Run) -> None:
    """Raise ValueError unless the genes to draw are among those evaluated; before an hour's work, not after it."""
    for gene in wanted:
        if gene not in evaluated:
            near = difflib.get_close_matches(gene, evaluated, n=3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            why = (
                "is not measured in the section"
                if gene in run.genes
                else f"is none of the {len(run.genes)} genes of the run"
            )
            raise ValueError(f"gene {gene} (--gene) {why}; {hint}{run.folder / 'genes.txt'} lists those it predicts")


def check_folder(
    folder: Path,
    section: Section,
    missing: Missing = "drop",
    excluded_spots: Sequence[str] = (),
    stain: Stain = "none",
) -> None:
    """Raise where the results in ``folder`` are of another section, other spots or another stain, or treat missing genes otherwise.

    Args:
        section: with all its spots.
        excluded_spots: ids of those that are left out now.
        stain: what the image is seen with now.
    """
    file = folder / "metrics.json"
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # none, or what is there is no result
    counts = stored.get("fingerprint") if isinstance(stored, dict) else None
    if counts is not None and counts != list(fingerprint(section).counts):
        raise FileExistsError(
            f"{folder} holds the evaluation of another section named {section.name} ({stored.get('file')}); choose another "
            "--output, or give this one another name in a manifest (a .csv with columns section, name)"
        )
    before = stored.get("missing") if isinstance(stored, dict) else None  # not recorded by earlier versions
    if before is not None and before != missing and stored.get("missing_genes"):
        raise FileExistsError(
            f"{folder} holds the evaluation of {section.name} with --missing {before}, which is over other genes than with "
            f"--missing {missing}; choose another --output, or remove it"
        )
    left_out = stored.get("excluded_spots") if isinstance(stored, dict) else None  # not recorded by earlier versions
    if left_out is not None and left_out != list(excluded_spots):
        raise FileExistsError(
            f"{folder} holds the evaluation of {section.name} with --min-counts {stored.get('min_counts')}, which is over other "
            "spots; choose another --output, or remove it"
        )
    seen = stored.get("stain", "none") if isinstance(stored, dict) else stain  # earlier versions could match none
    if seen != stain:
        raise FileExistsError(
            f"{folder} holds the evaluation of {section.name} with --stain {seen}, which sees the image otherwise than with "
            f"--stain {stain}; choose another --output, or remove it"
        )
