"""Intervals against what can be counted, and against SciPy's bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap, ttest_1samp

from hyperst.evaluation import score
from hyperst.intervals import gene_interval, mean_interval, paired_interval, resampled_correlations, spot_intervals


def test_few_folds_have_students_interval():
    found = paired_interval(np.array([[0.25], [0.75]]))
    margin = 12.7062 * 0.25  # the quantile of Student's distribution with one degree of freedom, and the standard error
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5 - margin, 0.5 + margin), abs=1e-4)
    assert not found.excludes_zero
    assert paired_interval(np.array([[0.25], [0.26]])).excludes_zero


def test_the_outer_ends_of_scipys_two_intervals():
    values = np.random.default_rng(3).exponential(1, 12)  # skewed: either has one of the ends
    found = paired_interval(values.reshape(12, 1))
    drawn = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=0).confidence_interval
    student = ttest_1samp(values, 0).confidence_interval()
    # quantiles of 10,000 and 20,000 draws: standard errors of .008 and .006 of a mean whose own is about .3
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(min(drawn.low, student.low), abs=0.05)
    assert found.high == pytest.approx(max(drawn.high, student.high), abs=0.05)


@pytest.mark.parametrize("n_folds", [2, 3, 5])
def test_rows_that_do_not_differ_are_told_apart_as_often_as_the_interval_says(n_folds, monkeypatch):
    monkeypatch.setattr("hyperst.intervals._RESAMPLES", 400)
    random, draws = np.random.default_rng(1), 400
    wrong = sum(
        paired_interval(random.normal(size=(n_folds, 1)) + 0.3 * random.normal(size=(n_folds, 3))).excludes_zero
        for _ in range(draws)
    )
    # at most 5 %, and three standard errors of a share over so many draws
    assert wrong / draws < 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)


def test_folds_count_once_whatever_their_number_of_seeds():
    """A fold with a missing seed weighs as much as another."""
    found = paired_interval(np.array([[1.0, 1.0, 1.0], [3.0, np.nan, np.nan]]))
    assert found == pytest.approx(paired_interval(np.array([[1.0], [3.0]])))
    assert found.mean == 2.0


def test_spread_over_folds_is_not_hidden_by_many_seeds():
    random = np.random.default_rng(0)
    folds = random.normal(0, 1, (6, 1)) + random.normal(0, 0.01, (6, 50))
    found, of_folds = paired_interval(folds), paired_interval(folds.mean(axis=1, keepdims=True))
    assert found.high - found.low == pytest.approx(of_folds.high - of_folds.low, rel=0.05)


def test_too_little_for_an_interval():
    assert paired_interval(np.full((2, 2), np.nan)) is None
    found = paired_interval(np.array([[0.25, 0.75], [np.nan, np.nan]]))  # one fold
    assert (found.mean, found.low, found.high) == (0.5, None, None)
    assert not found.excludes_zero


def test_scores_of_resampled_spots_are_those_of_the_spots(monkeypatch):
    """Every resample scored once more, by the scores of a section made of the drawn blocks."""
    monkeypatch.setattr("hyperst.intervals._RESAMPLES_OF_SPOTS", 8)
    random = np.random.default_rng(0)
    measured = random.normal(3, 1, (30, 5))
    one, other = (measured + random.normal(size=(30, 5)) for _ in range(2))
    one[:, 2] = 0.1  # no correlation of this gene
    blocks = np.repeat(np.arange(10) * 7, 3)
    differences = []
    for counts in np.random.default_rng(0).multinomial(10, np.full(10, 0.1), size=8):
        spots = np.concatenate([np.flatnonzero(blocks == 7 * block) for block in np.repeat(np.arange(10), counts)])
        differences.append([score(each[spots], measured[spots]) for each in (one, other)])
    found = spot_intervals(one, other, measured, blocks)
    for metric in ("pcc", "mse"):
        ends = np.quantile([getattr(a, metric) - getattr(b, metric) for a, b in differences], [0.025, 0.975])
        assert (found[metric].low, found[metric].high) == pytest.approx(tuple(ends), rel=1e-10)
        whole = getattr(score(one, measured), metric) - getattr(score(other, measured), metric)
        assert found[metric].mean == pytest.approx(whole, rel=1e-10)


def test_intervals_over_spots_that_cannot_be():
    measured = np.arange(6.0)[:, None]
    found = spot_intervals(measured, measured * 0 + 2, measured, np.zeros(6))
    assert set(found) == {"mse"}  # a constant has no correlation
    assert (found["mse"].low, found["mse"].excludes_zero) == (None, False)


@pytest.mark.parametrize(("n_blocks", "shown"), [(5, False), (6, True)])
def test_blocks_that_may_agree_by_chance_have_no_interval(n_blocks, shown):
    """Of five, all favour one of two predictions that do not differ in 1 of 16 sections."""
    random = np.random.default_rng(4)
    measured = random.normal(size=(60, 1))
    one, other = measured + 0.1 * random.normal(size=(60, 1)), measured + random.normal(size=(60, 1))
    blocks = np.arange(60) % n_blocks
    assert all(interval.excludes_zero == shown for interval in spot_intervals(one, other, measured, blocks).values())
    resampled = resampled_correlations(one, measured, blocks)
    assert np.isfinite(gene_interval(resampled)).all() == shown
    assert mean_interval(resampled).excludes_zero == shown


def test_each_gene_has_the_interval_of_its_own_correlation():
    """With every spot a block of its own: SciPy's percentile bootstrap of each gene's correlation."""
    random = np.random.default_rng(2)
    measured = random.normal(size=(60, 2))
    prediction = measured + [[1.0, 3.0]] * random.normal(size=(60, 2))
    resampled = resampled_correlations(prediction, measured, np.arange(60))
    low, high = gene_interval(resampled)
    for gene in range(2):
        pair = (prediction[:, gene], measured[:, gene])
        assert resampled[0, gene] == pytest.approx(np.corrcoef(*pair)[0, 1])
        theirs = bootstrap(
            pair, lambda x, y: np.corrcoef(x, y)[0, 1], paired=True, vectorized=False, n_resamples=2000,
            method="percentile", rng=0,
        ).confidence_interval  # fmt: skip
        # quantiles of 1000 and 2000 draws, whose own standard errors are below a tenth of the spread (at most .13)
        assert low[gene] == pytest.approx(theirs.low, abs=0.04)
        assert high[gene] == pytest.approx(theirs.high, abs=0.04)


def test_genes_without_a_correlation_or_a_second_block_have_no_interval():
    measured = np.random.default_rng(0).normal(size=(9, 2))
    constant = measured.copy()
    constant[:, 1] = 1
    low, high = gene_interval(resampled_correlations(constant, measured * 2, np.arange(9)))
    assert np.isnan([low[1], high[1]]).all()
    alone = resampled_correlations(measured + 1, measured**3, np.zeros(9, int))
    assert np.isnan(gene_interval(alone)).all()
    assert (mean_interval(alone).low, mean_interval(alone).high) == (None, None)
    assert mean_interval(np.full((1001, 2), np.nan)) is None
