"""What a run fixes before it starts: genes, split, widths of crops; and what `hyperst check` foretells of it. No Lightning."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hyperst.config import DataConfig, RunConfig
from hyperst.data import (
    Section,
    check_distinct,
    crop_widths_px,
    resolve_crops,
    select_genes,
    spot_validation_split,
    with_min_counts,
)
from hyperst.data.check import Finding
from hyperst.data.crops import CropConfig, require_extent
from hyperst.data.genes import TooFewGenesError
from hyperst.data.quality import MIN_COUNTS
from hyperst.feature_check import require_same_encoder
from hyperst.files import require_writable
from hyperst.model.backbones import declared_normalisation, require_weights
from hyperst.run import RunFolder, SectionRecord, Split, section_indices

__all__ = ["Plan", "common_crop", "foretell", "plan_run", "require_new"]


@dataclass(frozen=True)
class Plan:
    """Configuration with all that depends on the sections, which spots teach, and the genes in the order of the outputs.

    The sections are those given, without the spots that have fewer counts than `data.min_counts`.
    """

    config: RunConfig
    split: Split
    genes: list[str]
    sections: list[Section]
    validation_sections: list[Section]


def plan_run(config: RunConfig, sections: Sequence[Section], validation_sections: Sequence[Section] = ()) -> Plan:
    """Fix genes, split, crop widths, how many networks, and the encoder's normalisation of a new run.

    Raises:
        FileNotFoundError, ValueError: what cannot be trained on: weights that are missing, sections of one name, two that are
            one tissue, genes that cannot be chosen, too few spots (with enough counts), or crops that cannot be sized.
    """
    require_weights(config.model.backbone, config.model.weights, config.crop.image_size)
    names = [section.name for section in (*sections, *validation_sections)]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"section {', '.join(doubled)} is given more than once; each section has one role, training or validation"
        )
    check_distinct([*sections, *validation_sections])
    sections, validation_sections = (
        [with_min_counts(section, config.data.min_counts) for section in group]
        for group in (sections, validation_sections)
    )
    genes = select_genes(sections, config.data.n_genes, config.data.gene_selection)
    config = replace(config, model=replace(config.model, networks=config.model.n_networks))
    declared = config.model.normalisation or declared_normalisation(config.model.backbone)
    if declared is not None:
        config = replace(config, model=replace(config.model, image_mean=declared[0], image_std=declared[1]))
    if config.data.feature_key is None:
        config = replace(config, crop=common_crop(config, sections))
        for section in (*sections, *validation_sections):
            _widths(section, config.crop)
    held_out: dict[str, list[str]] = {}
    if not validation_sections:
        for number, section in enumerate(sections):
            chosen = spot_validation_split(section, config.training.validation_fraction, config.training.seed + number)
            held_out[section.name] = [str(name) for name in section.spot_ids[chosen]]
    left = len(section_indices(sections, held_out, inside=False))
    if left < 2:
        raise ValueError(
            f"{left} of the spots of {', '.join(names[: len(sections)])} are left to train on; contrastive training needs at "
            "least 2: give larger or more sections"
        )
    chosen_on = sum(section.n_spots for section in validation_sections) or sum(map(len, held_out.values()))
    if chosen_on < 2:
        raise ValueError(
            f"{chosen_on} spot of {', '.join(names)} is left to choose the checkpoint on, over which no correlation is defined; "
            "give larger or more sections (--validation-sections)"
        )
    seen = (config.data.feature_key, config.crop)
    records = [SectionRecord.of(section, "training", *seen) for section in sections]
    records += [SectionRecord.of(section, "validation", *seen) for section in validation_sections]
    for section in (*sections[1:], *validation_sections):
        require_same_encoder(config, section, records[0].feature_sources, f"section {names[0]}")
    return Plan(config, Split(tuple(records), held_out), [str(gene) for gene in genes], sections, validation_sections)


def require_new(folder: str | Path) -> None:
    """Raise FileExistsError where ``folder`` holds a run, or any file that one would replace; OSError where none can be written."""
    place = RunFolder(folder)
    if place.exists():
        raise FileExistsError(
            f"{place.path} already holds a run: continue it with --resume, or choose another --output"
        )
    checkpoints = place.best.parent
    files = [place.config, place.genes, place.split, place.versions, place.metrics, place.summary, place.calibration]
    taken = [file.name for file in files if os.path.lexists(file)]  # a link that leads nowhere is replaced too
    for part in (checkpoints, place.networks):
        if os.path.lexists(part) and not (part.is_dir() and not any(part.iterdir())):
            taken.append(f"{part.name}/")
    if taken:
        raise FileExistsError(
            f"{place.path} holds {', '.join(taken)}, which a run writes, but no run that can be continued (no "
            f"{place.config.name}); nothing is overwritten: choose another --output, or move these away"
        )
    require_writable(place.config)


def foretell(sections: Sequence[Section], min_counts: int = MIN_COUNTS) -> list[Finding]:
    """What `hyperst train` on these sections would refuse before it starts, with its own words; empty if nothing.

    Fewer genes than the usual number are a warning: ``--n-genes`` asks for fewer.
    """
    config = RunConfig(data=DataConfig(min_counts=min_counts))
    findings = []
    try:
        try:
            plan_run(config, sections)
        except TooFewGenesError as error:
            if not error.usable:
                raise
            findings.append(
                Finding("warning", f"training would find {error.usable} genes to predict", f"--n-genes {error.usable}")
            )
            plan_run(replace(config, data=replace(config.data, n_genes=error.usable)), sections)
    except (OSError, ValueError) as error:
        findings.append(Finding("error", f"training would refuse: {error}"))
    return findings


def common_crop(config: RunConfig, sections: Sequence[Section]) -> CropConfig:
    """One width of each crop in um for all sections (their median), where all have a known scale."""
    known = [section for section in sections if section.grid.um_per_px is not None]
    if not known:
        return config.crop
    if len(known) < len(sections):
        unknown = ", ".join(section.name for section in sections if section.grid.um_per_px is None)
        raise ValueError(
            f"the um/px of section {unknown} are unknown, those of the others are known; give all of them (--mpp)"
        )
    widths = []
    for section in sections:
        _widths(section, config.crop)
        crop = resolve_crops(section, config.crop)
        widths.append((crop.spot_um, crop.niche_um))
    spot_um, niche_um = np.median(np.asarray(widths, dtype=np.float64), axis=0)
    return replace(config.crop, spot_um=round(float(spot_um), 3), niche_um=round(float(niche_um), 3))


def _widths(section: Section, crop: CropConfig) -> None:
    """Raise, naming the section, where its crops cannot be sized."""
    try:
        widths = crop_widths_px(section.grid, section.spot_diameter_px, crop)
    except ValueError as error:
        raise ValueError(f"section {section.name}: {error}") from error
    require_extent(section, widths)
