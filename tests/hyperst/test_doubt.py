"""Intervals that hold what they say, and tissue that is unlike the training's."""

from __future__ import annotations

import shutil
from dataclasses import replace

import anndata
import numpy as np
import pytest
from PIL import Image

from hyperst.applicability import applicability, fit_tissue, left_out_distances
from hyperst.calibration import calibrate, half_widths, read_calibration
from hyperst.data import read_section
from hyperst.data.dataset import block_ids
from hyperst.data.quality import take_spots
from hyperst.doubt import HALF_WIDTH, add_doubt, coverage, doubt_words
from hyperst.evaluation import measured_expression
from hyperst.predict import predict_image, predict_section, predict_values
from hyperst.run import RunFolder, load_run
from hyperst.synthetic import write_tissue
from hyperst.train import fit

from .test_cli import call


@pytest.fixture(scope="module")
def run(trained):
    return load_run(trained, device="cpu")


@pytest.fixture(scope="module")
def tissue(tmp_path_factory):
    """Four sections that no run has seen, of 144 spots each."""
    folder = tmp_path_factory.mktemp("tissue")
    return [read_section(write_tissue(folder, seed=seed, n_rows=12, n_cols=12)) for seed in range(11, 15)]


def test_half_widths_are_the_order_statistic_of_split_conformal_prediction():
    random = np.random.default_rng(0)
    residuals = random.normal(size=(59, 3))
    expected = np.sort(np.abs(residuals), axis=0)[53]  # the 54th of 59: ceil(60 * 0.9)
    np.testing.assert_array_equal(half_widths(residuals), expected)
    assert half_widths(residuals[:8]) is None  # ceil(9 * 0.9) = 9 of 8
    np.testing.assert_array_equal(half_widths(residuals[:9]), np.abs(residuals[:9]).max(axis=0))


def test_coverage_of_exchangeable_values_is_what_is_promised():
    """k of n + 1 exactly in expectation, over 4000 draws: within five standard errors."""
    residuals = np.abs(np.random.default_rng(1).exponential(size=(20, 4000)))
    held = (residuals[19] <= half_widths(residuals[:19])).mean()  # k = 18 of 20
    assert abs(held - 18 / 20) < 5 * (0.9 * 0.1 / 4000) ** 0.5


@pytest.mark.parametrize("apart", ["blocks", "sections"])
def test_intervals_hold_nine_values_in_ten_of_synthetic_tissue(run, sections, tissue, apart):
    """Calibrated on half of the blocks of spots, or half of the sections, and counted on the other half."""
    predicted = [predict_values(run, each) for each in tissue]
    measured = [measured_expression(run, each) for each in tissue]
    if apart == "sections":
        found = calibrate(run, sections[:2], tissue[:2])
        assert found.n_spots == 2 * 144
        held = [coverage(*each, found.half_widths) for each in zip(predicted[2:], measured[2:], strict=True)]
    else:
        blocks = np.concatenate([block_ids(each, number, pitches=3) for number, each in enumerate(tissue)])
        chosen = np.isin(blocks, np.random.default_rng(0).permutation(np.unique(blocks))[::2])
        prediction, truth = np.concatenate(predicted), np.concatenate(measured)
        widths = half_widths((prediction - truth)[chosen])
        held = [coverage(prediction[~chosen], truth[~chosen], widths)]
    assert np.mean(held) == pytest.approx(0.9, abs=0.03)
    assert np.min(held) > 0.75  # of any gene


@pytest.fixture(scope="module")
def with_intervals(run, sections, tissue, tmp_path_factory):
    """The run with intervals: its own held-out spots are in too few blocks for any."""
    folder = tmp_path_factory.mktemp("intervals") / "run"
    shutil.copytree(run.folder, folder)
    calibrate(run, sections[:2], tissue[:1]).write(RunFolder(folder).calibration)
    return load_run(folder, device="cpu")


def test_few_blocks_have_no_interval(run, sections):
    stored = read_calibration(run)
    assert stored.n_spots == sum(map(len, run.split.validation_spots.values())) > 9
    assert stored.n_blocks < 6
    assert stored.half_widths is None
    predicted = predict_section(run, sections[2])
    assert HALF_WIDTH not in predicted.var
    said = doubt_words(predicted.uns["hyperst"], with_intervals=False)
    assert said[1] == "the run held out too few spots or blocks for intervals"


def test_a_prediction_says_how_far_it_may_be_off(with_intervals, sections):
    predicted = predict_section(with_intervals, sections[2])
    stored = read_calibration(with_intervals)
    np.testing.assert_array_equal(predicted.var[HALF_WIDTH], stored.half_widths)
    values = predicted.obs["applicability"]
    assert values.dtype == np.float32
    assert values.between(0, 1).all()
    facts = predicted.uns["hyperst"]
    assert facts["left_out"] == "patients"
    assert facts["slide_applicability"] == np.median(values)
    assert not facts["unlike_slide"]
    assert doubt_words(facts, with_intervals=True)[0].startswith("this slide is like the training tissue")


def test_another_stain_is_flagged(run, sections, tmp_path):
    """Violet to brown: red and blue exchanged. The same tissue as it is passes."""
    with Image.open(sections[2].image_path) as image:
        Image.fromarray(np.asarray(image.convert("RGB"))[..., ::-1].copy()).save(tmp_path / "brown.png")
    predicted = predict_image(
        run, tmp_path / "brown.png", spots=sections[2].spot_px, mpp=sections[2].grid.um_per_px
    ).uns["hyperst"]
    assert predicted["unlike_slide"]
    assert predicted["unlike_share"] > 0.9
    assert "Do not use these values" in doubt_words(predicted, with_intervals=True)[0]


def test_the_terminal_says_it(with_intervals, sections, tmp_path):
    shown = call("predict", with_intervals.folder, sections[2].path, "-o", tmp_path / "p.h5ad").output
    assert "note this slide is like the training tissue" in shown
    stored = anndata.read_h5ad(tmp_path / "p.h5ad")
    assert not stored.uns["hyperst"]["unlike_slide"]
    assert HALF_WIDTH in stored.var


def test_without_a_calibration_nothing_is_promised(trained, sections, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    RunFolder(tmp_path / "run").calibration.unlink()
    predicted = predict_section(load_run(tmp_path / "run", device="cpu"), sections[2])
    assert HALF_WIDTH not in predicted.var
    assert "applicability" not in predicted.obs
    assert "has measured neither" in doubt_words(predicted.uns["hyperst"], with_intervals=False)[0]


def test_a_calibration_of_other_weights_is_not_used(run, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    replace(read_calibration(run), checkpoint="0" * 64).write(RunFolder(tmp_path / "run").calibration)
    with pytest.warns(UserWarning, match="was measured with other weights"):
        assert read_calibration(load_run(tmp_path / "run", device="cpu")) is None


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_damaged_calibration_is_named(run, trained, tmp_path, keep):
    shutil.copytree(trained, tmp_path / "run")
    path = RunFolder(tmp_path / "run").calibration
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"calibration\.npz is damaged .* restore it, or remove it"):
        read_calibration(load_run(tmp_path / "run", device="cpu"))


def test_it_is_read_as_it_was_written(with_intervals, tmp_path):
    found = read_calibration(with_intervals)
    (tmp_path / "run").mkdir()
    found.write(tmp_path / "run" / "calibration.npz")
    again = read_calibration(replace(with_intervals, folder=tmp_path / "run"))
    for name in ("checkpoint", "n_spots", "n_blocks", "groups"):
        assert getattr(again, name) == getattr(found, name)
    np.testing.assert_array_equal(again.half_widths, found.half_widths)
    np.testing.assert_array_equal(again.left_out, found.left_out)
    np.testing.assert_array_equal(again.tissue.axes, found.tissue.axes)


def test_a_training_that_ended_before_its_calibration_is_resumed(run, sections, tiny_config, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    place = RunFolder(tmp_path / "run")
    place.calibration.unlink()
    place.summary.unlink()
    fit(tiny_config, sections[:2], place.path, resume=True)
    assert place.summary.is_file()
    found, expected = read_calibration(load_run(place.path, device="cpu")), read_calibration(run)
    np.testing.assert_allclose(
        found.left_out, expected.left_out, rtol=1e-6
    )  # float32 features, in other batches perhaps
    assert found.checkpoint == expected.checkpoint


def test_one_section_is_compared_with_its_own_blocks(run, sections):
    found = calibrate(run, sections[:1])
    assert found.groups == "blocks"
    assert len(found.left_out) == len(run.split.validation_spots["S1"]) == found.n_spots
    named = [replace(section, patient=None) for section in sections[:2]]
    assert calibrate(run, named).groups == "sections"
    alone = [sections[0], take_spots(sections[1], np.arange(sections[1].n_spots) == 0)]
    assert calibrate(run, alone).groups == "blocks"  # one spot has no spread, by which others were far or near


def test_applicability_is_a_p_value():
    """Of spots like those left out, a share p has at most p; and no spot has 0."""
    random = np.random.default_rng(0)
    values = applicability(random.normal(size=20_000), random.normal(size=2_000))
    for p in (0.05, 0.5):
        assert np.mean(values <= p) == pytest.approx(p, abs=0.02)
    assert applicability(np.array([1e9]), np.zeros(99))[0] == np.float32(0.01)


def test_distances_are_of_mahalanobis():
    """With more spots than directions and no variance below the least one, the usual formula in float64."""
    random = np.random.default_rng(0)
    features = random.normal(size=(4000, 6)) @ np.linalg.qr(random.normal(size=(6, 6)))[0] * 3 + 5
    new = random.normal(size=(50, 6)) * 4
    centred = new - features.mean(axis=0)
    expected = np.sqrt(np.einsum("si,ij,sj->s", centred, np.linalg.inv(np.cov(features.T)), centred) / 6)
    np.testing.assert_allclose(fit_tissue(features).distances(new), expected, rtol=1e-9)


def test_what_lies_beside_the_training_features_is_far():
    """A direction in which the training does not vary at all counts."""
    random = np.random.default_rng(0)
    features = np.concatenate([random.normal(size=(300, 4)), np.zeros((300, 4))], axis=1)
    model = fit_tissue(features)
    beside = np.concatenate([np.zeros((1, 4)), np.full((1, 4), 10.0)], axis=1)
    assert model.distances(beside)[0] > 2 * model.distances(features).max()


def test_groups_are_left_out_in_at_most_five_parts():
    random = np.random.default_rng(0)
    groups = [random.normal(size=(20, 3)) for _ in range(7)]
    assert len(left_out_distances(groups)) == 140
    with pytest.raises(ValueError, match="got those of 1 groups"):
        left_out_distances(groups[:1])
    with pytest.raises(ValueError, match="got those of 1 spots"):
        fit_tissue(np.zeros((1, 3)))


def test_background_does_not_make_a_slide_unlike(run, sections):
    predicted = predict_section(run, sections[2])
    stored = read_calibration(run)
    distances = np.where(np.arange(predicted.n_obs) < 60, 1e6, 0.0)
    predicted.obs["tissue_fraction"] = np.where(np.arange(predicted.n_obs) < 60, 0.0, 1.0)
    add_doubt(predicted, stored, run.genes, distances)
    assert predicted.uns["hyperst"]["unlike_share"] == 0
    assert not predicted.uns["hyperst"]["unlike_slide"]
