"""`hyperst check` over folders, and `hyperst predict` where nothing may be lost."""

from __future__ import annotations

import shutil

import anndata
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from hyperst.cli import app
from tests.hyperst.data.slides import slide, write_slide


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_check_of_a_folder_is_one_table(section_paths, tmp_path):
    result = call("check", section_paths[0].parent, "--output", tmp_path / "pictures")
    assert result.exit_code == 0, result.output
    assert "3 of 3 sections can be used" in result.output
    rows = [line.split() for line in result.output.splitlines() if line.startswith("│")]
    assert [[row[1], row[3], row[5], row[-4], row[-2]] for row in rows] == [
        [f"S{n}", patient, "81", "0", "ok"] for n, patient in ((1, "P1"), (2, "P2"), (3, "P1"))
    ]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [f"S{n}_spots.png" for n in (1, 2, 3)]


def test_check_counts_what_is_wrong_in_a_folder(tmp_path):
    adata, image = slide()
    write_slide(tmp_path, adata, image, "right")
    write_slide(tmp_path / "other", adata, image, "right")
    adata.obsm["spatial"] = adata.obsm["spatial"][:, ::-1].copy()
    write_slide(tmp_path, adata, image, "wrong")
    (tmp_path / "empty").mkdir()
    places = (tmp_path, tmp_path / "other", tmp_path / "empty", tmp_path / "absent.h5ad")
    result = call("check", *places, "-o", tmp_path / "p")
    assert result.exit_code == 1
    assert "2 of 5 sections can be used" in result.output
    assert "exchanging x and y would leave 0 there" in result.output
    assert "no section in this folder" in result.output
    assert "absent.h5ad does not exist" in result.output
    # two sections of one name do not overwrite each other's picture
    names = sorted(path.name for path in (tmp_path / "p").iterdir())
    assert names == sorted([f"{tmp_path.name}_right_spots.png", "other_right_spots.png", "wrong_spots.png"])


def test_check_of_one_section_says_everything(tmp_path):
    result = call("check", write_slide(tmp_path, *slide()))
    for words in ("81 spots", "every spot lies on tissue", "crops of 12 spots", "hexagonal grid", "--output FOLDER"):
        assert words in result.output
    assert "│" not in result.output


def test_check_draws_on_the_small_image_where_there_is_no_other(tmp_path):
    adata, image = slide()
    small = Image.fromarray(image).reduce(4)
    adata.uns["spatial"]["S"]["images"] = {"hires": np.asarray(small)}
    adata.uns["spatial"]["S"]["scalefactors"]["tissue_hires_scalef"] = 0.25
    path = write_slide(tmp_path, adata, image)
    shutil.rmtree(tmp_path / "images")
    result = call("check", path, "-o", tmp_path / "p")
    assert result.exit_code == 1
    assert "no full-resolution image" in result.output
    assert "every spot lies on tissue" in result.output
    assert (tmp_path / "p" / "S_spots.png").is_file()


@pytest.fixture(scope="module")
def images(section_paths, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    with Image.open(next((section_paths[2].parent / "images").glob("S3.*"))) as image:
        for name in ("case1.slide1.png", "case1.slide2.png", "other/case1.slide1.png"):
            (folder / name).parent.mkdir(exist_ok=True)
            image.convert("RGB").save(folder / name)
    return folder


def test_predictions_of_one_name_do_not_overwrite_each_other(trained, images, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run")
    for name in ("case1.slide1.png", "case1.slide2.png"):
        assert call("predict", tmp_path / "run", images / name, "--mpp", 1.4).exit_code == 0
    written = {path.name: path.read_bytes() for path in (tmp_path / "run" / "predictions").iterdir()}
    assert sorted(written) == ["case1.slide1.h5ad", "case1.slide2.h5ad"]
    found = anndata.read_h5ad(tmp_path / "run" / "predictions" / "case1.slide2.h5ad")
    assert found.uns["hyperst"]["image"] == "case1.slide2.png"
    assert found.obs["tissue_fraction"].between(0.15, 1).all()
    assert found.obs_names[0] == "case1.slide2_0"

    monkeypatch.setattr("hyperst.run.load_run", lambda *_, **__: pytest.fail("the work began"))
    result = call("predict", tmp_path / "run", images / "other" / "case1.slide1.png", "--mpp", 1.4)
    assert result.exit_code == 1
    assert "case1.slide1.h5ad exists" in result.stderr
    assert "--output" in result.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "run" / "predictions").iterdir()} == written


def test_where_nothing_can_be_written_is_said_before_the_work(trained, images, tmp_path, monkeypatch):
    monkeypatch.setattr("hyperst.run.load_run", lambda *_, **__: pytest.fail("the work began"))
    (tmp_path / "file").write_text("")
    result = call("predict", trained, images / "case1.slide1.png", "-o", tmp_path / "file" / "p.h5ad")
    assert result.exit_code == 1
    assert "p.h5ad cannot be written" in result.stderr


def test_min_tissue(trained, images, tmp_path):
    arguments = ("predict", trained, images / "case1.slide1.png", "--mpp", 1.4, "-o", tmp_path / "p.h5ad")
    result = call(*arguments, "--min-tissue", 0)
    assert result.exit_code == 0, result.output
    with Image.open(images / "case1.slide1.png") as image:
        tiles = int(image.width // (100 / 1.4)) * int(image.height // (100 / 1.4))
    assert anndata.read_h5ad(tmp_path / "p.h5ad").n_obs == tiles
    written = (tmp_path / "p.h5ad").read_bytes()
    for image in (
        "case1.slide1.png",
        "case1.slide2.png",
    ):  # what is there may be of another image, or have more columns
        result = call("predict", trained, images / image, "--mpp", 1.4, "-o", tmp_path / "p.h5ad")
        assert result.exit_code == 1
        assert "p.h5ad exists and is not overwritten" in result.stderr
    assert (tmp_path / "p.h5ad").read_bytes() == written
    assert call(*arguments, "--min-tissue", 1.5).exit_code == 2
    Image.new("RGB", (500, 400), "white").save(tmp_path / "white.png")
    result = call("predict", trained, tmp_path / "white.png", "--mpp", 1.4, "-o", tmp_path / "q.h5ad")
    assert result.exit_code == 1
    assert "no tissue found on" in result.stderr
    assert "white.png" in result.stderr
    assert not (tmp_path / "q.h5ad").exists()
