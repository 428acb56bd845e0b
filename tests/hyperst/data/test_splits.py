"""Nobody is on two sides of a patient split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hyperst.data import SplitError, leave_one_patient_out, leave_one_section_out, random_split, spot_validation_split
from hyperst.data.splits import Split, check_patients_apart


def test_leave_one_out(sections):
    assert [split.test for split in leave_one_section_out(sections)] == [(s.name,) for s in sections]
    by_patient = leave_one_patient_out(sections)
    assert [split.test for split in by_patient] == [("S1", "S3"), ("S2",)]
    with pytest.raises(SplitError, match="patient P1 has sections on two sides"):
        check_patients_apart(sections, Split(("S1", "S2"), (), ("S3",)))
    with pytest.raises(SplitError, match="not recorded"):
        leave_one_patient_out([replace(sections[0], patient=None), *sections[1:]])


def test_random_splits_fill_every_side(sections):
    many = [replace(sections[0], name=f"T{i}", patient=f"P{i // 2}") for i in range(10)]
    for split in random_split(many, (0.6, 0.2, 0.2), n_repeats=3):
        check_patients_apart(many, split)
        assert all(split)
        assert sorted(sum(split, ())) == sorted(s.name for s in many)
    with pytest.raises(SplitError, match="cannot fill"):
        random_split(sections, (0.4, 0.3, 0.3))


def test_validation_spots_are_blocks(sections):
    held_out = spot_validation_split(sections[0], 0.2, seed=1)
    assert 0.2 <= held_out.mean() <= 0.5
    assert np.array_equal(held_out, spot_validation_split(sections[0], 0.2, seed=1))
    distances = np.linalg.norm(sections[0].spot_px[:, None] - sections[0].spot_px[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(axis=1)
    assert (held_out[nearest] == held_out)[held_out].mean() > 0.6  # most held-out spots sit beside another
