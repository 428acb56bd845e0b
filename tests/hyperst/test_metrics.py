"""Scores against SciPy, baselines against their definitions, and the figure against being blank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr

from hyperst.baselines import ridge_floor, training_mean
from hyperst.evaluation import score
from hyperst.metrics import METRICS, mae, mse, per_gene_pearson, top_k_mean


@given(st.integers(3, 30), st.integers(1, 5), st.integers(0, 1000), st.floats(-1e3, 1e3))
def test_pearson_is_scipys(n_spots, n_genes, seed, offset):
    random = np.random.default_rng(seed)
    prediction, target = random.normal(size=(2, n_spots, n_genes))
    ours = per_gene_pearson(prediction + offset, 3 * target - offset)
    theirs = [pearsonr(prediction[:, g], target[:, g])[0] for g in range(n_genes)]
    # the mean of n numbers near the offset is known to eps * offset
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_constant_genes_are_undefined_and_left_out():
    target = np.array([[1.0, 0.1], [2.0, 0.1], [4.0, 0.1]])
    found = per_gene_pearson(target[:, :1] * [1, 1], target)
    assert found[0] == pytest.approx(1)
    assert np.isnan(found[1])
    assert top_k_mean(found, 1) == pytest.approx(1)
    with pytest.raises(ValueError, match="1 defined"):
        top_k_mean(found, 2)


def test_errors():
    assert mse(np.zeros((2, 2)), np.full((2, 2), 3.0)) == 9
    assert mae(np.zeros((2, 2)), np.full((2, 2), -3.0)) == 3
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(3, 2\)"):
        mse(np.zeros((2, 2)), np.zeros((3, 2)))


def test_ridge_recovers_a_linear_relation_and_the_mean_does_not():
    random = np.random.default_rng(0)
    features, test = random.normal(size=(200, 10)), random.normal(size=(50, 10))
    weights = random.normal(size=(10, 3))
    prediction = ridge_floor(features, features @ weights, test)
    assert per_gene_pearson(prediction, test @ weights).min() > 0.99
    assert np.isnan(per_gene_pearson(training_mean(features @ weights, 50), test @ weights)).all()


def test_another_metric_is_one_entry(monkeypatch):
    monkeypatch.setitem(METRICS, "worst", lambda prediction, measured: float(abs(prediction - measured).max()))
    measured = np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 2.0]])
    wrong = measured.copy()
    wrong[1, 1] += 2
    found = score(wrong, measured)
    assert found.as_json()["worst"] == 2
