"""Stain of the training tissue: measured, recorded, and what a slide stained otherwise is matched to."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import anndata
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hyperst.cli import app
from hyperst.data import image_section, read_crops, read_section
from hyperst.data.dataset import normalise_image
from hyperst.evaluation import OURS, evaluate
from hyperst.predict import predict_image, predict_values
from hyperst.run import load_run
from hyperst.stain import StainStatistics, match_stain, stain_statistics, with_training_stain


@pytest.fixture(scope="module")
def run(trained):
    return load_run(trained, device="cpu")


@pytest.fixture(scope="module")
def restained(sections, tmp_path_factory):
    """The third section, its density 0.7 times as high and shifted: another day in the laboratory."""
    folder = tmp_path_factory.mktemp("restained")
    (folder / "images").mkdir()
    with Image.open(sections[2].image_path) as image:
        density = -np.log10(np.asarray(image).clip(1) / 255)
    pixels = 255 * 10 ** -(0.7 * density + [0.08, 0.05, 0.1])
    Image.fromarray(pixels.round().astype(np.uint8)).save(folder / "images" / "S3.png")
    return read_section(shutil.copy(sections[2].path, folder))


def test_statistics_are_those_of_the_tissue_around_the_spots(run, sections):
    spots = np.unique(np.linspace(0, 80, 64).round().astype(int))
    niches = np.concatenate([crops[1].reshape(-1, 3) for _, crops in read_crops(sections[2], run.config.crop, spots)])
    density = -np.log10(niches.astype(np.float64).clip(0.02 * 255) / 255)
    tissue = density[density[:, 1] > 0.05]
    found = stain_statistics(run.config, sections[2])
    # densities are computed in float32
    np.testing.assert_allclose(found.mean, tissue.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.std, tissue.std(axis=0, ddof=1), rtol=1e-5)


def test_a_run_records_the_mean_over_its_training_sections(run, sections):
    each = [stain_statistics(run.config, section) for section in sections[:2]]
    np.testing.assert_allclose(run.config.data.stain_mean, np.mean([one.mean for one in each], axis=0), atol=1e-6)
    np.testing.assert_allclose(run.config.data.stain_std, np.mean([one.std for one in each], axis=0), atol=1e-6)


def test_matched_images_have_the_density_that_is_wanted():
    density = 0.4 + 0.03 * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    own = StainStatistics((0.4,) * 3, (0.03,) * 3)
    wanted = StainStatistics((0.2, 0.5, 0.3), (0.03, 0.06, 0.01))
    transmitted = (10**-density).permute(0, 2, 3, 1).numpy()
    offset, scale = -normalise_image(np.zeros((1, 1, 3), np.uint8)), None
    white = normalise_image(np.full((1, 1, 3), 255, np.uint8))
    scale = white + offset  # the normalisation is (share of light) * scale - offset
    images = torch.from_numpy(transmitted).permute(0, 3, 1, 2) * scale - offset
    shares = (match_stain(images, own, wanted) + offset) / scale
    found = -torch.log10(shares)
    expected = (density - 0.4) / 0.03 * torch.tensor(wanted.std)[:, None, None] + torch.tensor(wanted.mean)[
        :, None, None
    ]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    lighter = match_stain(images, own, StainStatistics((-9.0,) * 3, (0.03,) * 3))  # no glass lets through more than all
    torch.testing.assert_close(lighter, white.expand_as(lighter), rtol=1e-5, atol=1e-5)


def test_a_slide_stained_otherwise_is_seen_as_if_it_were_not(run, sections, restained):
    usual, other = (
        [predict_values(run, section, stain=stain) for section in (sections[2], restained)]
        for stain in ("match", "none")
    )
    matched, unmatched = (np.abs(one - two).mean() for one, two in (usual, other))
    assert unmatched > 0.01
    assert matched < 0.1 * unmatched  # what rounding to 8 bits leaves


def test_evaluation_and_prediction_match_and_say_so(run, trained, sections, restained, tmp_path):
    found = evaluate(run, restained, output=tmp_path / "e", stain="match")
    plain = evaluate(run, restained, output=tmp_path / "plain")
    assert found.scores[OURS] != plain.scores[OURS]
    with pytest.raises(
        FileExistsError, match="with --stain none, which sees the image otherwise than with --stain match"
    ):
        evaluate(run, restained, output=tmp_path / "plain", stain="match")
    (said,) = [caveat for caveat in found.caveats if "stain of S3 was matched" in caveat]
    assert str(StainStatistics(run.config.data.stain_mean, run.config.data.stain_std)) in said
    assert not any("was matched" in caveat for caveat in plain.caveats)
    assert json.loads((found.folder / "metrics.json").read_text())["stain"] == "match"
    image = restained.image_path
    arguments = ["predict", trained, image, "--spots", restained.path, "--stain", "match", "-o", tmp_path / "p.h5ad"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    written = anndata.read_h5ad(tmp_path / "p.h5ad")
    assert written.uns["hyperst"]["stain"] == "match"
    np.testing.assert_array_equal(written.X, predict_image(run, image, spots=restained.path, stain="match").X)
    result = CliRunner().invoke(
        app, list(map(str, ["evaluate", trained, restained.path, "--stain", "match", "-o", tmp_path / "c"]))
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "c" / "S3" / "metrics.json").read_text())["stain"] == "match"


def test_what_cannot_be_matched_is_said(run, sections, tmp_path):
    older = replace(run, config=replace(run.config, data=replace(run.config.data, stain_mean=None, stain_std=None)))
    with pytest.raises(ValueError, match=r"has recorded no stain of its training tissue: it is of an earlier version"):
        predict_values(older, sections[2], stain="match")
    with pytest.raises(ValueError, match="got 'vahadane', need match, macenko or none"):
        predict_values(run, sections[2], stain="vahadane")
    for colour, words in (
        (255, "no tissue around the spots of blank"),
        (120, "tissue of one colour around the spots of blank"),
    ):
        Image.fromarray(np.full((900, 900, 3), colour, np.uint8)).save(tmp_path / "blank.png")
        blank = image_section(tmp_path / "blank.png", np.array([[400.0, 400], [500, 400]]), mpp=1.4)
        with pytest.raises(ValueError, match=words):
            predict_values(run, blank, stain="match")


def test_training_needs_no_stain(tiny_config, sections, monkeypatch):
    monkeypatch.setattr("hyperst.stain._LEAST_DENSITY", 2.0)  # nothing is so dense
    with pytest.warns(UserWarning, match="no tissue around the spots of S1 .*; the run records none"):
        assert with_training_stain(tiny_config, sections[:2]) is tiny_config


def test_features_have_no_stain(tiny_config, sections):
    config = replace(
        tiny_config,
        data=replace(tiny_config.data, feature_key="file"),
        model=replace(tiny_config.model, backbone="precomputed"),
    )
    assert with_training_stain(config, sections) is config
