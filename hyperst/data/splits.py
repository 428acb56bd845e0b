"""Which sections, and which spots, are held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hyperst.data.sections import Section

__all__ = [
    "Split",
    "SplitError",
    "leave_one_patient_out",
    "leave_one_section_out",
    "random_split",
    "spot_validation_split",
]


class SplitError(ValueError):
    """A split that would test on patients it was trained on, or that cannot be made."""


class Split(NamedTuple):
    """Names of the sections on each side."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def leave_one_section_out(sections: Sequence[Section]) -> list[Split]:
    """One split per section. Sections of one patient may stand on both sides: this says nothing about patients."""
    names = [section.name for section in sections]
    _check_names(names)
    return [Split(tuple(name for name in names if name != test), (), (test,)) for test in names]


def leave_one_patient_out(sections: Sequence[Section]) -> list[Split]:
    """One split per patient, all of whose sections are tested.

    Raises:
        SplitError: a section without a recorded patient, or a single patient.
    """
    patients = _patients(sections)
    splits = []
    for patient in dict.fromkeys(patients.values()):
        test = tuple(name for name, owner in patients.items() if owner == patient)
        splits.append(Split(tuple(name for name in patients if name not in test), (), test))
    for split in splits:
        check_patients_apart(sections, split)
    return splits


def random_split(
    sections: Sequence[Section],
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    n_repeats: int = 5,
    seed: int = 0,
    by: str = "patient",
) -> list[Split]:
    """Independent random splits into training, validation and test, of whole patients or of sections.

    Raises:
        SplitError: fractions that do not sum to 1, or too few patients (sections) to fill every side.
    """
    if by not in ("patient", "section"):
        raise SplitError(f"by must be 'patient' or 'section', got {by!r}")
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise SplitError(f"fractions must be three numbers >= 0 that sum to 1, got {fractions}")
    owner = _patients(sections) if by == "patient" else {section.name: section.name for section in sections}
    _check_names([section.name for section in sections])
    units = list(dict.fromkeys(owner.values()))
    sizes = [max(1, round(fraction * len(units))) if fraction > 0 else 0 for fraction in fractions[1:]]
    if len(units) <= sum(sizes):
        raise SplitError(f"{len(units)} {by}s cannot fill training, validation and test; give more sections")
    splits = []
    random = np.random.default_rng(seed)
    for _ in range(n_repeats):
        order = [units[i] for i in random.permutation(len(units))]
        sides = (order[sum(sizes) :], order[: sizes[0]], order[sizes[0] : sum(sizes)])
        splits.append(Split(*(tuple(name for name, unit in owner.items() if unit in side) for side in sides)))
    return splits


def check_patients_apart(sections: Sequence[Section], split: Split) -> None:
    """Raise SplitError where one patient has sections on two sides of a split."""
    owner = _patients(sections)
    sides = {
        patient: {side for side, names in enumerate(split) for name in names if owner[name] == patient}
        for patient in owner.values()
    }
    if both := [patient for patient, where in sides.items() if len(where) > 1]:
        raise SplitError(f"patient {', '.join(both)} has sections on two sides of the split; keep each on one side")


def spot_validation_split(
    section: Section, fraction: float = 0.15, seed: int = 0, block_pitches: int = 3
) -> np.ndarray:
    """Boolean (spot,), True for the held-out spots: whole square blocks, because neighbouring spots share their image.

    Raises:
        ValueError: a fraction outside (0, 1), or a section too small to leave spots on both sides.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    pitch = section.grid.pitch_px or float(np.ptp(section.spot_px, axis=0).max()) / max(1.0, section.n_spots**0.5)
    cells = np.floor((section.spot_px - section.spot_px.min(axis=0) + pitch / 2) / (block_pitches * pitch)).astype(int)
    _, block = np.unique(cells, axis=0, return_inverse=True)
    block = block.ravel()
    held_out = np.zeros(section.n_spots, dtype=bool)
    for chosen in np.random.default_rng(seed).permutation(int(np.max(block)) + 1):
        if held_out.mean() >= fraction:
            break
        held_out |= block == chosen
    if held_out.all() or not held_out.any():
        raise ValueError(
            f"section {section.name} has too few spots ({section.n_spots}) to hold some out for validation; add larger sections "
            "to choose the checkpoint on, with --validation-sections (validation_sections=), or leave this one out"
        )
    return held_out


def _check_names(names: Sequence[str]) -> None:
    if len(set(names)) < len(names) or len(names) < 2:
        raise SplitError(f"a split needs at least two sections with different names, got {', '.join(names) or 'none'}")


def _patients(sections: Sequence[Section]) -> dict[str, str]:
    unknown = [section.name for section in sections if section.patient is None]
    if unknown:
        raise SplitError(
            f"the patient of {', '.join(unknown)} is not recorded; name it in a manifest's column patient (in Python patient=)"
        )
    owner = {section.name: str(section.patient) for section in sections}
    if len(set(owner.values())) < 2:
        raise SplitError(
            f"a split by patient needs at least two patients, got {', '.join(set(owner.values())) or 'none'}"
        )
    return owner
