"""The verdict's words, from numbers made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hyperst.baselines import MEAN, NULL, OURS, RIDGE_OWN, RIDGE_STAIN
from hyperst.report.summary import SectionScores, collect
from hyperst.report.verdict import figure, section_verdict, verdicts


def scored(better: int = 163, worse: int = 5, n: int = 200) -> SectionScores:
    """A section on which so many genes are better and worse than ridge on the run's own features."""
    sign = np.concatenate([np.ones(better), -np.ones(worse), np.zeros(n - better - worse)])
    per_gene = pd.DataFrame(
        {
            "pcc": 0.4,
            "pcc_low": np.where(np.arange(n) < 150, 0.1, -0.1),
            "pcc_high": 0.6,
            "pcc_ridge_own": 0.3,
            "over_ridge_own_low": sign * 0.2 - 0.1,
            "over_ridge_own_high": sign * 0.2 + 0.1,
        },
        index=pd.Index([f"G{i}" for i in range(n)], name="gene"),
    )
    return SectionScores(
        section="S4",
        patient="P4",
        n_spots=100,
        target="log1p_cp10k",
        methods={
            OURS: {"pcc": 0.374, "mse": 1.0},
            RIDGE_OWN: {"pcc": 0.3, "mse": 1.1},
            RIDGE_STAIN: {"pcc": 0.1, "mse": 1.2},
            MEAN: {"pcc": None, "mse": 0.9},
            NULL: {"pcc": 0.004, "mse": 2.0},
        },
        intervals={
            "pcc": {"mean": 0.374, "low": 0.338, "high": 0.401},
            "differences": {
                RIDGE_OWN: {
                    "pcc": {"mean": 0.07, "low": 0.05, "high": 0.09},
                    "mse": {"mean": -0.1, "low": -0.3, "high": 0.1},
                },
                MEAN: {"mse": {"mean": 0.1, "low": 0.05, "high": 0.15}},
            },
        },
        per_gene=per_gene,
        caveats=(),
        excluded_spots=(),
        min_counts=200,
        missing_genes=(),
        stain="none",
        best_epoch=1,
        expression=None,
        doubt={"noise_ceiling": 0.7, "coverage": 0.88, "nominal_coverage": 0.9},
    )


def test_the_headline_counts_genes_whose_interval_shows_it():
    found = section_verdict(scored())
    assert (
        found.headline
        == f"S4: better than {RIDGE_OWN} on 163 of 200 genes and worse on 5, mean PCC .37 [.34, .40]; noise ceiling .70."
    )


@pytest.mark.parametrize(
    ("better", "worse", "words"),
    [
        (12, 0, f"S4: better than {RIDGE_OWN} on 12 of 200 genes, mean"),
        (3, 40, f"S4: worse than {RIDGE_OWN} on 40 of 200 genes and better on 3, mean"),
        (0, 4, f"S4: worse than {RIDGE_OWN} on 4 of 200 genes, mean"),
        (0, 0, f"S4: not shown to be better or worse than {RIDGE_OWN} on any of 200 genes, mean"),
    ],
)
def test_the_larger_count_comes_first(better, worse, words):
    assert section_verdict(scored(better, worse)).headline.startswith(words)


def test_means_are_better_or_worse_only_by_an_interval():
    assert section_verdict(scored()).points == (
        "The correlation is above 0 on 150 of 200 genes. Each gene has its own 95 % interval: by chance alone about 5 of 200 "
        "would be counted as better, and as many as worse.",
        "With images shuffled between spots the mean PCC is .00.",
        f"Mean PCC less that of {RIDGE_OWN}: +0.070 [+0.050, +0.090]: better.",
        f"Squared error less that of {RIDGE_OWN}: -0.100 [-0.300, +0.100]: not shown to be better or worse.",
        f"Squared error less that of {MEAN}: +0.100 [+0.050, +0.150]: worse.",
    )


def test_a_difference_without_an_interval_shows_nothing():
    alone = {
        "pcc": {"mean": 0.4, "low": None, "high": None},
        "differences": {RIDGE_OWN: {"pcc": {"mean": 0.4, "low": None, "high": None}}},
    }
    found = section_verdict(replace(scored(0, 0), intervals=alone))
    assert found.headline.endswith("mean PCC .37 (no interval); noise ceiling .70.")
    assert found.points[-1] == f"Mean PCC less that of {RIDGE_OWN}: +0.400: not shown to be better or worse."


def test_an_earlier_evaluation_says_what_it_lacks():
    per_gene = scored().per_gene[["pcc", "pcc_ridge_own"]]
    found = section_verdict(
        replace(scored(), per_gene=per_gene, intervals=None, doubt={}), "hyperst evaluate runs/a SECTION"
    )
    assert found.headline == "S4: not shown whether it is better than ridge, mean PCC .37 (no interval)."
    assert [line.partition(":")[0] for line in found.missing] == [
        "Intervals of single genes, which this evaluation by an earlier version has not",
        "Predicted and measured expression of the spots, for the maps",
        "The noise ceiling",
        "Whether intervals hold what they say",
    ]
    assert all("hyperst evaluate runs/a SECTION" in line for line in found.missing)


def test_without_training_sections_there_is_no_ridge():
    scores = scored()
    methods = {name: scores.methods[name] for name in (OURS, NULL)}
    found = section_verdict(replace(scores, methods=methods))
    assert found.headline == "S4: not compared with ridge, mean PCC .37 [.34, .40]; noise ceiling .70."
    assert found.missing[0].startswith("Ridge regression and the training mean, which need the files of the training")


def test_no_correlation_is_said():
    scores = scored(0, 0)
    methods = {**scores.methods, OURS: {"pcc": None, "mse": 1.0}}
    assert section_verdict(replace(scores, methods=methods)).headline.endswith(
        "no gene has a correlation; noise ceiling .70."
    )


def test_figures():
    assert [figure(value) for value in (0.374, -0.374, 0.996, -1.0, -0.004)] == [".37", "-.37", "1.00", "-1.00", ".00"]


def test_a_run_without_an_evaluation_names_the_command(trained):
    summary = collect(trained)
    (found,) = verdicts(summary)
    assert found.headline.startswith("Not compared with measurements")
    assert found.missing[0].endswith(f"hyperst evaluate {trained} SECTION")
    best = summary.curves.loc[summary.curves["validation_mse"].idxmin()]
    assert f"mean PCC {figure(best['validation_pcc'])} in epoch {summary.training['best_epoch']}" in found.points[0]
