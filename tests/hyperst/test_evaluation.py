"""Evaluation: right numbers, honest neighbours, and the caveats that belong to them."""

from __future__ import annotations

import json
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest

from hyperst.evaluation import (
    MEAN,
    NETWORK,
    NULL,
    OURS,
    RIDGE_OWN,
    RIDGE_STAIN,
    _comparisons,
    evaluate,
    measured_expression,
    score,
    summarise,
)
from hyperst.evaluation_record import gene_figures
from hyperst.predict import predict_values
from hyperst.run import load_run


@pytest.fixture(scope="module")
def run(trained):
    return load_run(trained, device="cpu")


@pytest.fixture(scope="module")
def evaluation(run, sections, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluation")
    return evaluate(run, sections[2], training_sections=sections[:2], output=output, genes=run.genes[:1])


def test_scores_agree_with_numpy():
    random = np.random.default_rng(0)
    measured = random.normal(size=(40, 30)).astype(np.float32)
    prediction = (measured + random.normal(size=(40, 30))).astype(np.float32)
    prediction[:, 3] = 1.0
    found = score(prediction, measured)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.array([np.corrcoef(prediction[:, g], measured[:, g])[0, 1] for g in range(30)])
    defined = np.sort(correlation[np.isfinite(correlation)])
    assert found.n_undefined == 1
    assert set(found.pcc_top) == {10}
    np.testing.assert_allclose(found.pcc, defined.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.pcc_top[10], defined[-10:].mean(), rtol=1e-5)
    np.testing.assert_allclose(found.mse, ((prediction - measured) ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(found.mae, np.abs(prediction - measured).mean(), rtol=1e-5)


def test_a_constant_prediction_has_no_correlation():
    found = score(np.ones((5, 3), np.float32), np.arange(15, dtype=np.float32).reshape(5, 3))
    assert (found.pcc, found.pcc_top, found.n_undefined) == (None, {}, 3)


def test_every_competitor_stands_beside_the_run(evaluation):
    assert list(evaluation.scores) == [OURS, NETWORK, RIDGE_OWN, RIDGE_STAIN, MEAN, NULL]
    assert evaluation.scores[MEAN].pcc is None
    assert all(np.isfinite([entry.mse, entry.mae]).all() for entry in evaluation.scores.values())


def test_our_row_is_the_prediction_of_the_run(evaluation, run, sections):
    expected = score(predict_values(run, sections[2]), measured_expression(run, sections[2]))
    assert evaluation.scores[OURS] == expected


def test_shuffled_images_know_nothing_but_pick_genes(evaluation):
    null = evaluation.scores[NULL]
    assert abs(null.pcc) < 0.1
    assert null.pcc_top[10] > null.pcc


def test_the_training_mean_is_of_all_training_spots(evaluation, run, sections):
    mean = np.concatenate([measured_expression(run, section) for section in sections[:2]]).mean(axis=0)
    error = ((mean - measured_expression(run, sections[2])) ** 2).mean()
    assert evaluation.scores[MEAN].mse == pytest.approx(error, rel=1e-5)


def test_files_hold_the_same_numbers(evaluation, run):
    stored = json.loads((evaluation.folder / "metrics.json").read_text())
    assert stored["methods"][OURS]["pcc"] == evaluation.scores[OURS].pcc
    assert stored["training_sections"] == ["S1", "S2"]
    table = pd.read_csv(evaluation.folder / "per_gene.csv", index_col="gene")
    assert set(table.index) == set(run.genes)
    assert table["pcc"].is_monotonic_decreasing
    assert table["pcc"].mean() == pytest.approx(evaluation.scores[OURS].pcc, abs=1e-5)
    assert evaluation.figure.stat().st_size > 10_000
    assert evaluation.figure.read_bytes().startswith(b"\x89PNG")


def test_genes_are_better_than_a_baseline_by_an_interval():
    """The first gene is predicted better than ridge, the second worse, the third alike; shuffled images know nothing."""
    random = np.random.default_rng(0)
    measured = random.normal(size=(400, 3))
    noise = random.normal(size=(400, 3))
    ours = measured + noise * [0.3, 3.0, 1.0]
    ridge = measured + noise * [3.0, 0.3, 1.0]
    predictions = {OURS: ours, RIDGE_OWN: ridge}
    table, intervals = gene_figures(["A", "B", "C"], predictions, measured, np.arange(400), seed=0)
    assert list(table.index) == ["A", "C", "B"]
    assert table.loc["A", "over_ridge_own_low"] > 0 > table.loc["B", "over_ridge_own_high"]
    assert np.isnan(table.loc["C", "over_ridge_own_low"])
    assert (table["pcc_low"] < table["pcc"]).all()
    assert (table["pcc"] < table["pcc_high"]).all()
    # the 95 % quantile for independent numbers; that of 200 shuffles has a standard error of .008
    np.testing.assert_allclose(table["pcc_null"], 1.645 / np.sqrt(399), atol=0.036)
    assert intervals["pcc"]["mean"] == pytest.approx(table["pcc"].mean())
    assert set(intervals["differences"]) == {RIDGE_OWN}
    assert intervals["differences"][RIDGE_OWN]["mse"]["mean"] == pytest.approx(
        ((ours - measured) ** 2).mean() - ((ridge - measured) ** 2).mean()
    )


def test_spots_are_kept_with_what_was_measured(evaluation, run, sections):
    stored = anndata.read_h5ad(evaluation.folder / "expression.h5ad")
    np.testing.assert_array_equal(stored.layers["measured"], measured_expression(run, sections[2]))
    np.testing.assert_allclose(stored.X, predict_values(run, sections[2]), rtol=1e-5, atol=1e-6)
    assert list(stored.var_names) == run.genes
    assert list(stored.obs_names) == list(sections[2].spot_ids)
    assert "measured, on the same scale" in stored.uns["hyperst"]["content"]


def test_the_table_shows_every_method(evaluation):
    from rich.console import Console

    console = Console(width=120, record=True)
    console.print(evaluation.table())
    text = console.export_text()
    assert all(name in text for name in evaluation.scores)
    assert "PCC-10" in text


def test_caveats_name_the_null_and_the_patient(evaluation):
    text = " ".join(evaluation.caveats)
    assert f"{evaluation.scores[NULL].pcc_top[10]:+.3f}" in text
    assert "from patient P1, as are training sections" in text


def test_unknown_patients_and_depth_are_said(run, sections, tmp_path):
    log2 = replace(run, config=replace(run.config, data=replace(run.config.data, target="log2")))
    found = evaluate(log2, replace(sections[2], patient=None), output=tmp_path)
    text = " ".join(found.caveats)
    assert "not recorded" in text
    assert "total count" in text
    assert list(found.scores) == [OURS, NETWORK, NULL]  # without training sections there is nothing to fit ridge on


def test_training_sections_are_no_test(run, sections):
    with pytest.raises(ValueError, match="S1 took part in the training"):
        evaluate(run, sections[0])


def test_missing_genes_are_named(run, sections, tmp_path):
    renamed = replace(sections[2], genes=np.array([f"X{gene}" for gene in sections[2].genes]))
    with pytest.raises(ValueError, match="S3"):
        evaluate(run, renamed, output=tmp_path)


def test_summary_is_mean_and_spread_over_sections(evaluation, tmp_path):
    worse = replace(evaluation.scores[OURS], errors={"mse": evaluation.scores[OURS].mse + 2, "mae": 0.0})
    other = replace(evaluation, section="S9", scores={**evaluation.scores, OURS: worse})
    stored = json.loads(summarise([evaluation, other], tmp_path / "summary.json").read_text())
    assert stored["sections"] == ["S3", "S9"]
    assert stored["methods"][OURS]["mse"]["mean"] == pytest.approx(evaluation.scores[OURS].mse + 1)
    assert stored["methods"][OURS]["mse"]["std"] == pytest.approx(1)
    assert stored["methods"][MEAN]["pcc"] == {"mean": None, "std": None}


def test_few_spots_and_undefined_correlations_are_said(run, sections, tmp_path):
    """Of one spot there is no correlation, and none that ridge regression could be better on."""
    kept = {
        name: getattr(sections[2], name)[:1]
        for name in ("counts", "spot_ids", "spot_px", "array_index", "library_size")
    }
    result = evaluate(run, replace(sections[2], **kept), training_sections=sections[:2], output=tmp_path)
    said = " ".join(result.caveats)
    assert result.scores[OURS].pcc is None
    assert "S3 has 1 spots: correlations over so few are mostly chance" in said
    assert "there is no correlation to compare" in said
    assert "on S3 is not shown: MSE" in said  # one block of spots has no interval
    assert "not shown: PCC" not in said


def test_which_is_better_is_said_by_an_interval(evaluation, run, sections):
    """The prediction itself beats ridge regression, and is worse than what is measured."""
    measured = measured_expression(run, sections[2])
    ours = evaluation.scores[OURS]
    for ridge, words in (
        (
            measured,
            [
                f"worse than {RIDGE_OWN} on S3, PCC -",
                "learnt nothing beyond it",
                f"worse than {RIDGE_OWN} on S3, MSE +",
            ],
        ),
        (np.roll(measured, 40, axis=0) + 5, []),
        (
            predict_values(run, sections[2]),
            [f"better than {RIDGE_OWN} on S3 is not shown: PCC +0.000 [+0.000, +0.000]"],
        ),
    ):
        predictions = {OURS: predict_values(run, sections[2]), RIDGE_OWN: ridge}
        said = _comparisons(sections[2], predictions, measured, {OURS: ours, RIDGE_OWN: score(ridge, measured)})
        assert all(each in " ".join(said) for each in words)
        assert bool(said) == bool(words)


def test_another_treatment_of_missing_genes_needs_another_folder(run, sections, tmp_path):
    columns = np.flatnonzero(sections[2].genes != run.genes[0])
    lacking = replace(sections[2], counts=sections[2].counts[:, columns], genes=sections[2].genes[columns])
    evaluate(run, lacking, output=tmp_path, missing="drop")
    before = (tmp_path / "S3" / "metrics.json").read_bytes()
    with pytest.raises(
        FileExistsError, match="S3 with --missing drop, which is over other genes than with --missing zero"
    ):
        evaluate(run, lacking, output=tmp_path, missing="zero")
    assert (tmp_path / "S3" / "metrics.json").read_bytes() == before
    evaluate(run, lacking, output=tmp_path, missing="drop")  # the same again replaces itself
