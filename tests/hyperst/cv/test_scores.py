"""Metrics of a fold against closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from hyperst.cv.scores import MeasuredSection, method_scores, null_scores
from hyperst.data import niche_members
from hyperst.metrics import jensen_shannon, mse, per_gene_pearson, relative_variance_distance
from hyperst.moran import morans_i, neighbours
from hyperst.noise_ceiling import noise_ceiling


def ring(n: int) -> sparse.csr_array:
    return sparse.csr_array(np.roll(np.eye(n), 1, axis=1) + np.roll(np.eye(n), -1, axis=1))


def test_morans_i_of_waves_on_a_ring():
    """The neighbours of cos(2 pi k x / n) sum to 2 cos(2 pi k / n) of it."""
    n, k = 24, np.arange(1, 13)
    waves = np.cos(2 * np.pi * np.outer(np.arange(n), k) / n)
    np.testing.assert_allclose(morans_i(7 + 3 * waves, ring(n)), np.cos(2 * np.pi * k / n), atol=1e-13)


def test_morans_i_of_a_chessboard_is_minus_one():
    board = np.indices((6, 6)).sum(axis=0).ravel() % 2
    weights = sparse.csr_array(sparse.kron(ring(6), np.eye(6)) + sparse.kron(np.eye(6), ring(6)))
    assert morans_i(board[:, None], weights) == pytest.approx([-1])


def test_morans_i_is_undefined_without_variation_or_neighbours():
    values = np.array([[0.1, 1.0], [0.1, 2.0], [0.1, 4.0]])
    assert np.isnan(morans_i(values, ring(3))).tolist() == [True, False]
    assert np.isnan(morans_i(values, sparse.csr_array((3, 3)))).all()
    with pytest.raises(ValueError, match=r"of the 3 spots of values, got \(4, 4\)"):
        morans_i(values, ring(4))


def test_no_spot_is_its_own_neighbour(sections):
    weights = neighbours(sections[0]).toarray()
    assert (np.diag(weights) == 0).all()
    np.testing.assert_array_equal(weights + np.eye(81), niche_members(sections[0]).toarray())


def test_relative_variance_distance():
    random = np.random.default_rng(0)
    target = random.normal(size=(50, 3))
    found = relative_variance_distance(target * [1, 0.5, 2] + 4, target)
    np.testing.assert_allclose(found, [0, 0.75**2, 3**2], atol=1e-12)
    assert np.isnan(relative_variance_distance(target, np.full((50, 3), 0.5))).all()


def test_jensen_shannon_is_its_definition():
    random = np.random.default_rng(0)
    prediction, target = random.gamma(2, size=(2, 30, 4))
    p, q = prediction / prediction.sum(axis=0), target / target.sum(axis=0)
    middle = (p + q) / 2
    expected = (p * np.log2(p / middle) + q * np.log2(q / middle)).sum(axis=0) / 2
    np.testing.assert_allclose(jensen_shannon(prediction, 9 * target), expected, rtol=1e-10)
    prediction[0] = -1
    np.testing.assert_array_equal(jensen_shannon(prediction, target), jensen_shannon(prediction.clip(0), target))


@pytest.fixture
def poisson(sections):
    """3000 spots of Poisson counts, whose means vary by a known amount: a section, and the reliability of each gene."""
    random = np.random.default_rng(0)
    n, mean, spread = 3000, 2500.0, np.array([0.0, 10.0, 30.0, 100.0])
    means = mean + random.normal(size=(n, 4)) * spread
    counts = random.poisson(np.column_stack([means, np.full(n, 1e6)])).astype(np.float32)
    section = replace(
        sections[0],
        counts=sparse.csr_array(counts),
        genes=np.array(["A", "B", "C", "D", "rest"]),
        spot_px=np.zeros((n, 2)),
        library_size=counts.sum(axis=1),
    )
    return section, spread**2 / (spread**2 + mean)


@pytest.mark.parametrize("target", ["log2", "log1p_cp10k"])
def test_noise_ceiling_of_poisson_counts(poisson, target):
    """Counts of mean m whose means vary by v have the reliability v / (v + m); both scales are straight over so small a range."""
    section, reliability = poisson
    found = noise_ceiling(section, ["A", "B", "C", "D"], target)
    # a correlation of 3000 spots has a standard error of (1 - r^2) / 55, at most .02; the root magnifies it where r is near 0
    np.testing.assert_allclose(found[1:], np.sqrt(reliability[1:]), atol=0.05)
    assert found[0] < 0.25
    np.testing.assert_array_equal(found, noise_ceiling(section, ["A", "B", "C", "D"], target))


def test_noise_ceiling_of_a_gene_that_is_never_seen(sections):
    counts = sections[0].counts.toarray()
    counts[:, 0] = 0
    found = noise_ceiling(replace(sections[0], counts=sparse.csr_array(counts)), sections[0].genes[:2], "log2")
    assert np.isnan(found).tolist() == [True, False]


def part(name: str, measured: np.ndarray) -> MeasuredSection:
    return MeasuredSection(name, measured, ring(len(measured)))


def test_scores_of_a_fold_are_means_over_sections_or_over_all_spots():
    random = np.random.default_rng(1)
    measured = [random.normal(size=(n, 12)) + shift for n, shift in ((20, 0), (40, 3))]
    predictions = [values + random.normal(size=values.shape) for values in measured]
    found = method_scores(predictions, [part(name, values) for name, values in zip("AB", measured, strict=True)])
    single = [per_gene_pearson(*pair).mean() for pair in zip(predictions, measured, strict=True)]
    assert [found[name]["pcc"] for name in "AB"] == pytest.approx(single)
    assert found[""]["pcc"] == pytest.approx(np.mean(single))
    together = per_gene_pearson(np.concatenate(predictions), np.concatenate(measured))
    assert found[""]["pcc_pooled"] == pytest.approx(together.mean())
    assert found[""]["pcc_pooled"] > found[""]["pcc"] + 0.05  # the shift between the sections is predicted too
    assert found[""]["pcc_10"] == pytest.approx(np.sort(together)[2:].mean())
    assert "pcc_50" not in found[""]
    assert found[""]["mse"] == pytest.approx(mse(np.concatenate(predictions), np.concatenate(measured)))
    assert found[""]["rvd"] == pytest.approx(
        np.mean([relative_variance_distance(*pair).mean() for pair in zip(predictions, measured, strict=True)])
    )
    ours, theirs = (morans_i(values, ring(20)) for values in (predictions[0], measured[0]))
    assert found["A"]["moran_pcc"] == pytest.approx(np.corrcoef(ours, theirs)[0, 1])
    assert found["A"]["moran_mae"] == pytest.approx(np.abs(ours - theirs).mean())


def test_a_constant_prediction_has_errors_and_no_correlation():
    found = method_scores([np.ones((9, 3))], [part("A", np.random.default_rng(0).normal(size=(9, 3)))])[""]
    assert [found[name] for name in ("pcc", "pcc_pooled", "moran_pcc", "moran_mae")] == [None] * 4
    assert found["rvd"] == pytest.approx(1)
    assert found["mse"] > 0


def test_the_null_knows_nothing_within_a_section():
    random = np.random.default_rng(1)
    measured = [random.normal(size=(200, 12)) for _ in range(2)]
    parts = [part(name, values) for name, values in zip("AB", measured, strict=True)]
    found = null_scores(measured, parts, seed=0)
    # 240 independent correlations of 400 spots, standard error .05 each
    assert abs(found["pcc_pooled_null"]) < 5 * 0.05 / 240**0.5
    assert found["pcc_10_null"] > found["pcc_pooled_null"]
    assert found == null_scores(measured, parts, seed=0)
