"""The example that classifies slides by their pseudo-bulk finds a label that is in the images, and none by chance."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "docs" / "examples"
SMALL = {"folds": 3, "trees": 10}


@pytest.fixture
def example(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("slide_classifier")


def test_a_label_of_slides_is_found_in_their_images(example, tmp_path):
    bulk, labels = example.predict_slides(tmp_path, n_slides=20, n_spots=5, epochs=2, batch_size=16)
    assert bulk.shape == (20, 40)
    patients = bulk.obs["patient"].astype(str)
    found = example.nested_cross_validation(bulk, labels, patients, **SMALL)
    assert (found.groupby("patient")["fold"].nunique() == 1).all()
    assert list(found["label"]) == list(labels)
    assert example.auroc(found) > 0.9  # 1.00 for seeds 0 to 2
    chance = [example.by_chance(labels, patients, seed) for seed in range(3)]
    assert all(each.sum() == labels.sum() for each in chance)
    null = [example.auroc(example.nested_cross_validation(bulk, each, patients, **SMALL)) for each in chance]
    assert np.mean(null) < 0.7  # 0.26 to 0.35


def test_slides_without_a_label_are_left_out(example):
    import anndata
    import pandas as pd

    names = [f"S{number}" for number in range(14)]
    labels = pd.Series([number % 2 == 0 for number in range(12)], names[:12])
    values = np.random.default_rng(0).normal(size=(14, 3)).astype(np.float32)
    bulk = anndata.AnnData(values, obs=pd.DataFrame(index=names))
    found = example.nested_cross_validation(bulk, labels, pd.Series(names, names), folds=2, trees=2)
    assert list(found.index) == names[:12]
    assert found["probability"].between(0, 1).all()
