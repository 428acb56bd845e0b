"""What a run starts with: its configuration, genes and split, chosen or read again, and the files that hold them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from hyperst.config import RunConfig, read_run_config, write_config
from hyperst.data import Section, excluded_spots_message, fingerprint, with_min_counts
from hyperst.data.check import require_placement
from hyperst.data.features import features_hash
from hyperst.files import write_json_atomic
from hyperst.plan import plan_run, require_new
from hyperst.run import RunFolder, Split
from hyperst.stain import with_training_stain
from hyperst.versions import code_versions

__all__ = ["check_same_sections", "enough_counts", "remove_start", "start_run", "write_start"]


def start_run(
    config: RunConfig,
    sections: Sequence[Section],
    place: RunFolder,
    validation_sections: Sequence[Section],
    resume: bool,
    first_network: bool = True,
) -> tuple[RunConfig, Split, list[str], dict[str, Any] | None]:
    """Return configuration, split and genes of the run to start or to resume, and what it has stored of its end if it has ended.

    Of spots that are left out it warns where the ``first_network`` starts, not again with each further one.

    Errors: see :func:`hyperst.train.fit.fit`.
    """
    if resume:
        place.require()
        config, split, genes = read_run_config(place.config), place.read_split(), place.read_genes()
        sections, validation_sections = enough_counts(config, sections), enough_counts(config, validation_sections)
        check_same_sections(config, split, sections, validation_sections, "cannot resume")
        return config, split, genes, place.read_summary()
    require_new(place.path)
    plan = plan_run(config, sections, validation_sections)
    for section in (*plan.sections, *plan.validation_sections) if first_network else ():
        if (message := excluded_spots_message(section, plan.config.data.min_counts)) is not None:
            warnings.warn(f"{message}; --min-counts decides", stacklevel=2)
    if plan.config.data.feature_key is None:
        for section in (*plan.sections, *plan.validation_sections):
            require_placement(section)
    return with_training_stain(plan.config, plan.sections), plan.split, plan.genes, None


def enough_counts(config: RunConfig, sections: Sequence[Section]) -> list[Section]:
    """Return the sections without the spots that the run leaves out."""
    return [with_min_counts(section, config.data.min_counts) for section in sections]


def write_start(place: RunFolder, config: RunConfig, split: Split, genes: Sequence[str]) -> None:
    """Write what a run starts with; the configuration last, when all that can fail before the first step has been done."""
    place.write_genes(genes)
    place.write_split(split)
    write_json_atomic(place.versions, code_versions())
    write_config(config, place.config)


def remove_start(place: RunFolder) -> None:
    """Remove what :func:`write_start` wrote, so that the corrected command can use the folder."""
    for file in (place.config, place.genes, place.split, place.versions):
        file.unlink(missing_ok=True)
    with suppress(OSError):  # something else is in it
        place.path.rmdir()


def check_same_sections(
    config: RunConfig, split: Split, sections: Sequence[Section], validation: Sequence[Section], problem: str
) -> None:
    """Raise ValueError, beginning with ``problem``, unless the sections are those that the run was started with."""
    given = [(section.name, "training", section.n_spots) for section in sections]
    given += [(section.name, "validation", section.n_spots) for section in validation]
    stored = [(record.name, record.role, record.n_spots) for record in split.sections]
    if given != stored:
        raise ValueError(f"{problem}: the run was started with (section, role, spots) {stored}, now given {given}")
    key, remedy = config.data.feature_key, "restore the file, or train again into another folder"
    for record, section in zip(split.sections, (*sections, *validation), strict=True):
        if record.fingerprint is not None and list(record.fingerprint["counts"]) != list(fingerprint(section).counts):
            raise ValueError(
                f"{problem}: the counts of section {section.name} ({section.path}) are not those that the run was started "
                f"with; {remedy}"
            )
        features = None if key is None else features_hash(section, key, config.crop)
        if record.features_hash is not None and record.features_hash != features:
            place = section.features_path or section.path
            raise ValueError(
                f"{problem}: the features of section {section.name} ({place}) are not those that the run was started with; {remedy}"
            )
