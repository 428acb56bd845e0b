"""Folds by rule and from files."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hyperst.cv import Fold, make_folds
from hyperst.data import SplitError

SECTIONS = [SimpleNamespace(name=f"S{n}", patient=patient) for n, patient in enumerate("AABBCCDDEE", start=1)]


def test_every_section_and_every_patient_is_left_out_once():
    folds = make_folds("section", SECTIONS)
    assert [fold.test for fold in folds] == [(section.name,) for section in SECTIONS]
    assert all(set(fold.train) == {each.name for each in SECTIONS} - set(fold.test) for fold in folds)
    folds = make_folds("patient", SECTIONS)
    assert [fold.name for fold in folds] == list("ABCDE")
    assert folds[1].test == ("S3", "S4")
    assert not set(folds[1].train) & {"S3", "S4"}


def test_random_splits_are_the_papers():
    folds = make_folds("random5", SECTIONS)
    assert [fold.name for fold in folds] == [f"random{n}" for n in range(1, 6)]
    assert {(len(fold.train), len(fold.validation), len(fold.test)) for fold in folds} == {(8, 1, 1)}
    assert all(len({*fold.train, *fold.validation, *fold.test}) == 10 for fold in folds)
    assert make_folds("random5", SECTIONS) == folds


def hest(folder, pairs):
    folder.mkdir(parents=True, exist_ok=True)
    for name, samples in pairs.items():
        lines = [f"{sample},patches/{sample}.h5,adata/{sample}.h5ad" for sample in samples]
        (folder / f"{name}.csv").write_text("\n".join(["sample_id,patches_path,expr_path", *lines]) + "\n")


def test_files_of_hest_bench(tmp_path):
    pairs = {
        f"{side}_{k}": [f"S{k + 1}"] if side == "test" else ["S3", "S4"] for side in ("train", "test") for k in (0, 1)
    }
    hest(tmp_path / "COAD" / "splits", {**pairs, "train_10": ["S1"], "test_10": ["S2"]})
    expected = [Fold(f"fold{k}", ("S3", "S4"), (), (f"S{k + 1}",)) for k in (0, 1)] + [
        Fold("fold10", ("S1",), (), ("S2",))
    ]
    assert make_folds(tmp_path / "COAD", SECTIONS) == expected
    assert make_folds(str(tmp_path / "COAD" / "splits"), SECTIONS) == expected


def test_one_table(tmp_path):
    path = tmp_path / "folds.csv"
    path.write_text("fold,section,role\na,S1,train\na,S2,test\nb,S1,test\nb,S2,train\na,S3,validation\n")
    assert make_folds(path, SECTIONS) == [Fold("a", ("S1",), ("S3",), ("S2",)), Fold("b", ("S2",), (), ("S1",))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fold,section,role\na,S1,train\na,X9,test\n", "no section given is called X9; the sections are S1, S2"),
        ("fold,section,role\na,S1,train\na,S1,test\n", "section S1 stands in it more than once"),
        ("fold,section,role\na,S1,train\n", "no section to test"),
        ("fold,section,role\na,S1,trian\n", "row 2: role is 'trian'; need one of train, validation, test"),
        ("fold,section\na,S1\n", "no column role, it has fold, section"),
        ("", "no readable table of folds"),
    ],
)
def test_a_table_that_is_none(tmp_path, text, words):
    path = tmp_path / "folds.csv"
    path.write_text(text)
    with pytest.raises(SplitError, match=words):
        make_folds(path, SECTIONS)


def test_pairs_that_are_none(tmp_path):
    with pytest.raises(SplitError, match=r"holds no train_K\.csv and test_K\.csv"):
        make_folds(tmp_path, SECTIONS)
    hest(tmp_path, {"train_0": ["S1"]})
    with pytest.raises(SplitError, match=r"holds train_0\.csv without the other of the pair"):
        make_folds(tmp_path, SECTIONS)
    with pytest.raises(FileNotFoundError, match="absent does not exist; need section, patient, random5, or a folder"):
        make_folds(tmp_path / "absent", SECTIONS)
