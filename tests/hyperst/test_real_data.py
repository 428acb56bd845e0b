"""Real sections through the whole program: her2st and mouse olfactory bulb, in short runs."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from hyperst.cli import app
from hyperst.data import read_section
from hyperst.evaluation import MEAN, NULL, OURS, RIDGE_STAIN, evaluate
from hyperst.predict import predict_section
from hyperst.run import load_run

SHORT = ["--image-size", "48", "--width", "64", "--epochs", "6", "--n-genes", "60", "--networks", "1"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def mob_run(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mob") / "run"
    result = call("train", real_data / "mob" / "h5ad" / "MOB1.h5ad", "--output", folder, *SHORT)
    assert result.exit_code == 0, result.output
    assert "hexagonal" in result.output
    return folder


def test_mob_without_a_scale_from_one_section_to_the_other(mob_run, real_data):
    """No um/px anywhere: crops follow the spot grid. A short run must beat the training mean and shuffled images."""
    run = load_run(mob_run, device="cpu")
    assert run.config.crop.niche_um is None
    test, training = (read_section(real_data / "mob" / "h5ad" / f"{name}.h5ad") for name in ("MOB2", "MOB1"))
    found = evaluate(run, test, training_sections=[training])
    assert found.n_spots == 407  # every spot, edge ones too
    assert found.scores[OURS].pcc > found.scores[NULL].pcc + 0.1
    assert found.scores[RIDGE_STAIN].pcc > found.scores[NULL].pcc + 0.1
    assert found.scores[OURS].mse < 1.5 * found.scores[MEAN].mse


def test_mob_image_without_spots(mob_run, real_data, tmp_path):
    output = tmp_path / "tiles.h5ad"
    result = call("predict", mob_run, real_data / "mob" / "images" / "MOB2.jpg", "-o", output)
    assert result.exit_code == 0, result.output
    tiles = anndata.read_h5ad(output)
    assert 200 < tiles.n_obs < 1500
    assert np.isfinite(tiles.X).all()


@pytest.fixture(scope="module")
def her2st_run(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("her2st") / "run"
    sections = [real_data / "her2st" / "h5ad" / f"{name}.h5ad" for name in ("C2", "C3")]
    result = call("train", *sections, "--output", folder, *SHORT[:4], "--epochs", 1, "--n-genes", 40)
    assert result.exit_code == 0, result.output
    return folder


def test_her2st_and_its_low_resolution_section(her2st_run, real_data, tmp_path):
    """Train on C2 and C3 at their scale, predict A1, whose image has 3.19 instead of 0.69 um/px."""
    h5ad = real_data / "her2st" / "h5ad"
    image = real_data / "her2st" / "images" / "A1.png"
    result = call("predict", her2st_run, image, "--spots", h5ad / "A1.h5ad", "-o", tmp_path / "a1.h5ad")
    assert result.exit_code == 0, result.output
    predicted = anndata.read_h5ad(tmp_path / "a1.h5ad")
    assert predicted.shape == (346, 40)
    assert np.isfinite(predicted.X).all()
    result = call("evaluate", her2st_run, h5ad / "A1.h5ad", "--output", tmp_path / "evaluation")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "evaluation" / "A1" / "metrics.json").is_file()


def test_another_organ_is_flagged_and_the_next_section_is_not(her2st_run, real_data):
    """Olfactory bulb of a mouse, at the um/px that its 200 um pitch would have, for a run on breast cancer; and C4."""
    run = load_run(her2st_run, device="cpu")
    bulb = read_section(real_data / "mob" / "h5ad" / "MOB1.h5ad", mpp=6.25)
    next_one = read_section(real_data / "her2st" / "h5ad" / "C4.h5ad")
    bulb_facts, next_facts = (predict_section(run, section).uns["hyperst"] for section in (bulb, next_one))
    assert bulb_facts["unlike_slide"]
    assert not next_facts["unlike_slide"]
    assert bulb_facts["unlike_share"] > 3 * next_facts["unlike_share"]


@pytest.mark.parametrize("species", ["her2st", "mob"])
def test_check_accepts_every_real_section(real_data, species):
    """Of one species: those of two have no gene in common, and train no model together."""
    folder = real_data / species / "h5ad"
    count = len(list(folder.glob("*.h5ad")))
    result = call("check", folder)
    assert result.exit_code == 0, result.output
    assert f"{count} of {count} sections can be used" in result.output
