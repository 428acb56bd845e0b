"""Prediction from the image alone: at the spots of a section, of a table, or on a grid; and files that scanpy opens."""

from __future__ import annotations

import shutil
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from hyperst.data import CropConfig, Grid, find_tissue, read_section, tile_grid
from hyperst.export.spots import spots_of
from hyperst.files import write_h5ad_atomic
from hyperst.predict import check_output, predict_image, predict_section, predict_values, prediction_path, read_spots
from hyperst.run import as_trained, load_checkpoint, load_run


@pytest.fixture(scope="module")
def run(trained):
    return load_run(trained, device="cpu")


@pytest.fixture(scope="module")
def test_section(sections):
    return sections[2]


@pytest.fixture(scope="module")
def predicted(run, test_section):
    return predict_section(run, test_section)


def test_the_run_has_the_weights_of_the_best_epoch(run, trained):
    stored = load_checkpoint(trained / "checkpoints" / "best.ckpt")["state_dict"]
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, stored[f"averaged.module.{name}"]), name
    assert not run.model.training


def test_values_are_per_spot_finite_and_depend_on_the_image(predicted, run, test_section):
    assert predicted.shape == (test_section.n_spots, len(run.genes))
    assert predicted.X.dtype == np.float32
    assert np.isfinite(predicted.X).all()
    assert (predicted.X.std(axis=0) > 0).all()


def test_counts_are_not_looked_at(predicted, run, test_section):
    blind = replace(test_section, counts=test_section.counts * 0, library_size=test_section.library_size * 0)
    np.testing.assert_array_equal(predict_values(run, blind), predicted.X)


def test_batch_size_does_not_matter(predicted, run, test_section):
    values = predict_values(run, test_section, batch_size=7)
    np.testing.assert_allclose(values, predicted.X, rtol=1e-4, atol=1e-5)


def test_a_section_file_as_spots_gives_the_same(predicted, run, test_section, section_paths):
    again = predict_image(run, test_section.image_path, spots=section_paths[2])
    np.testing.assert_array_equal(again.X, predicted.X)
    assert list(again.obs_names) == list(predicted.obs_names)
    np.testing.assert_array_equal(again.obs["array_row"], test_section.array_index[:, 0])


def test_a_section_can_stand_for_its_image(predicted, run, section_paths):
    np.testing.assert_array_equal(predict_image(run, section_paths[2]).X, predicted.X)


def test_a_table_as_spots_gives_the_same(predicted, run, test_section, tmp_path):
    table = pd.DataFrame(test_section.spot_px, columns=["x", "y"])
    table.assign(spot=test_section.spot_ids).to_csv(tmp_path / "spots.csv", index=False)
    section_mpp = test_section.grid.um_per_px
    again = predict_image(run, test_section.image_path, spots=tmp_path / "spots.csv", mpp=section_mpp)
    assert list(again.obs_names) == list(test_section.spot_ids)
    np.testing.assert_allclose(again.X, predicted.X, rtol=1e-3, atol=1e-4)
    by_array = predict_image(run, test_section.image_path, spots=test_section.spot_px, mpp=section_mpp)
    np.testing.assert_allclose(by_array.X, again.X, rtol=1e-6)
    one = predict_image(run, test_section.image_path, spots=test_section.spot_px[:1], mpp=section_mpp)
    sizes = [
        spots_of(each).diameter_px for each in (again, by_array, one)
    ]  # of the array, not of how far apart places are
    assert sizes == pytest.approx([spots_of(predicted).diameter_px] * 3, rel=0.01)


def test_without_spots_a_grid_covers_the_tissue(run, test_section):
    tiles = predict_image(run, test_section.image_path, mpp=test_section.grid.um_per_px)
    pitch = test_section.grid.pitch_px
    positions = tiles.obsm["spatial"]
    assert 0.3 * test_section.n_spots < tiles.n_obs < 4 * test_section.n_spots
    steps = np.unique(np.round(np.diff(np.unique(positions[:, 0])), 6))
    assert np.allclose(steps / pitch, np.round(steps / pitch), atol=0.05)
    distance = np.linalg.norm(test_section.spot_px[:, None] - positions[None], axis=-1).min(axis=1)
    assert np.mean(distance < pitch) > 0.8  # nearly every measured spot has a tile near it


def test_the_scale_of_a_new_image_is_respected(run, test_section, tmp_path, predicted):
    """The same tissue photographed at half the resolution must give nearly the same values."""
    from PIL import Image

    with Image.open(test_section.image_path) as image:
        small = image.convert("RGB").resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    small.save(tmp_path / "small.png")
    values = predict_image(
        run, tmp_path / "small.png", spots=test_section.spot_px / 2, mpp=2 * test_section.grid.um_per_px
    )
    spread = predicted.X.std(axis=0)
    assert np.median(np.abs(values.X - predicted.X) / spread) < 0.5
    wrong = predict_image(run, tmp_path / "small.png", spots=test_section.spot_px / 2, mpp=test_section.grid.um_per_px)
    assert np.abs(wrong.X - predicted.X).mean() > np.abs(values.X - predicted.X).mean()


def test_an_image_of_unknown_scale_needs_mpp(run, test_section):
    for spots in (None, test_section.spot_px):
        with pytest.raises(ValueError, match=r"--mpp"):
            predict_image(run, test_section.image_path, spots=spots)


def test_a_run_without_scale_follows_the_spot_grid(run, test_section):
    crop = replace(run.config.crop, spot_um=None, niche_um=None)
    scaleless = replace(run, config=replace(run.config, crop=crop))
    grid = as_trained(scaleless, test_section).grid
    assert grid == Grid(test_section.grid.kind, test_section.grid.pitch_px)
    assert as_trained(run, test_section) is test_section


def test_scanpy_reads_the_written_file(predicted, run, test_section, tmp_path):
    scanpy = pytest.importorskip("scanpy")
    path = write_h5ad_atomic(predicted, tmp_path / "predicted.h5ad")
    again = scanpy.read_h5ad(path)
    np.testing.assert_array_equal(again.X, predicted.X)
    np.testing.assert_array_equal(again.obsm["spatial"], test_section.spot_px)
    assert list(again.var_names) == run.genes
    notes = again.uns["hyperst"]
    assert notes["target"] == run.config.data.target
    assert "count" in notes["units"]
    assert notes["training_sections"] == "S1, S2"
    scale = again.uns["spatial"]["S3"]["scalefactors"]["tissue_hires_scalef"]
    height, width, _ = again.uns["spatial"]["S3"]["images"]["hires"].shape
    assert (again.obsm["spatial"] * scale <= [width, height]).all()


def test_the_file_opens_without_this_library(predicted, tmp_path):
    path = write_h5ad_atomic(predicted, tmp_path / "predicted.h5ad")
    assert anndata.read_h5ad(path).uns["spatial"]["S3"]["images"]["hires"].dtype == np.uint8


def test_missing_runs_and_epochs_are_named(tmp_path, trained):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_run(tmp_path)
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match="no finished epoch"):
        load_run(tmp_path / "run")


def test_a_moved_run_predicts_the_same(trained, tmp_path, test_section, predicted):
    shutil.copytree(trained, tmp_path / "elsewhere")
    np.testing.assert_array_equal(
        predict_values(load_run(tmp_path / "elsewhere", device="cpu"), test_section), predicted.X
    )


def test_checkpoint_and_configuration_must_belong_together(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("width: 16", "width: 24"))
    with pytest.raises(ValueError, match=r"best\.ckpt does not fit"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a,b\n1,2\n", "need columns x and y .*, got a, b"),
        (b"x;y\n1;2\n", "separated by ';'"),
        (b"", "is empty; need a comma-separated table"),
        (b"\n\n", "is empty; need a comma-separated table"),
        (b"x,y\n", "holds no spots"),
        (b"x,y\n1,here\n", "must be numbers, but y is 'here' in row 1"),
        (b"x,y\n1,2\n,4\n5,\n", r"must be numbers, but x is empty in row 2 .*\(1 such of 3\)"),
        (b"x,y\n1,nan\n", "must be numbers, but y is 'nan' in row 1"),
        (b"x,y\n1,inf\n", "must be numbers, but y is 'inf' in row 1"),
        (b'x,y\n"10,5","2,5"\n', "'10,5' in row 1 .*decimals with a point"),
        (b"x,y\n10,5,2,5\n", "its rows have different numbers of cells"),
        (b"# mine\nx,y\n10,5\n", "the names of the columns in its first line"),
        (b"x;y\n10,5;2,5\n", "separated by ';'.*decimal point"),
        (b"x\ty\n1\t2\n", "separated by tabs"),
        (b"x,y,X\n1,2,3\n", "column x is there 2 times"),
        (b"x,y,spot\n1,2\n3,4,A\n", "no name in column spot in row 1"),
        (b"spot,x,y\nM\xfcller,1,2\n", "is no table of text in UTF-8.*'CSV UTF-8'"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe" * 9, "is no table of text"),
        ("x,y\n1,2\n".encode("utf-16"), "is no table of text"),
        (b"spot,x,y\nA,1,2\nA,3,4\n", r"1 spots have the name of another \(A\)"),
        (b"spot,x,y\n,1,2\n", "no name in column spot in row 1"),
    ],
)
def test_wrong_tables_of_spots(run, test_section, tmp_path, content, words):
    """The table is named, not the image."""
    (tmp_path / "spots.csv").write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        predict_image(run, test_section.image_path, spots=tmp_path / "spots.csv", mpp=1.4)
    assert str(caught.value).startswith(str(tmp_path / "spots.csv"))


def test_a_table_of_spots_as_spreadsheets_write_it(tmp_path):
    for content in (b"\xef\xbb\xbfx, y\r\n10.5, 20.5\r\n", b'\r\n"Y","X"\r20.5,1.05e1\r'):
        (tmp_path / "spots.csv").write_bytes(content)
        assert read_spots(tmp_path / "spots.csv")[0].tolist() == [[10.5, 20.5]]


@pytest.mark.parametrize(
    ("content", "words"),
    [("x,y\n1,2\n1,2\n5,9\n", "1 spots share the position"), ("x,y\n1,2\n1e6,2\n", "1 of 2 spots lie outside image")],
)
def test_wrong_positions_name_their_table(run, test_section, tmp_path, content, words):
    (tmp_path / "spots.csv").write_text(content)
    with pytest.raises(ValueError, match=words) as caught:
        predict_image(run, test_section.image_path, spots=tmp_path / "spots.csv", mpp=1.4)
    assert str(caught.value).startswith(str(tmp_path / "spots.csv"))


def test_spots_outside_the_image(run, test_section):
    with pytest.raises(ValueError, match="outside"):
        predict_image(run, test_section.image_path, spots=test_section.spot_px + 1e5, mpp=1.0)


def test_every_spot_has_its_share_of_tissue(run, tmp_path):
    from tests.hyperst.data.slides import slide, write_slide

    adata, image = slide()
    path = write_slide(tmp_path, adata, image)
    section = read_section(path)
    at_spots = predict_image(run, path).obs["tissue_fraction"]
    with section.open_image() as opened:
        tissue = find_tissue(opened, section.grid.pitch_px)
        tiles = tile_grid(opened, section.grid.pitch_px, min_tissue=0.5)
    np.testing.assert_array_equal(at_spots, tissue.fraction(section.spot_px, section.grid.pitch_px))
    assert at_spots.min() > 0.9
    predicted = predict_image(run, section.image_path, mpp=section.grid.um_per_px, min_tissue=0.5)
    pitch = run.split.role("training")[0].pitch_px  # of the same um/px
    assert pitch == pytest.approx(section.grid.pitch_px, rel=1e-6)
    np.testing.assert_allclose(predicted.obsm["spatial"], tiles, rtol=1e-6)
    assert predicted.obs["tissue_fraction"].min() >= 0.5
    glass = predict_image(run, section.image_path, spots=np.array([[60.0, 1200], [800, 400]]), mpp=1.4)
    assert glass.obs["tissue_fraction"].tolist() == [0, 1]


def test_min_tissue_goes_with_a_grid(run, section_paths, test_section):
    for image, spots in ((section_paths[2], None), (test_section.image_path, test_section.spot_px)):
        with pytest.raises(ValueError, match="--min-tissue"):
            predict_image(run, image, spots=spots, min_tissue=0.3)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("case1.slide1.png", "case1.slide1"),
        ("case1.slide2.ome.tif", "case1.slide2"),
        ("A.B.SVS", "A.B"),
        ("S.1.h5ad", "S.1"),
    ],
)
def test_predictions_are_named_by_the_whole_name(tmp_path, image, name):
    (tmp_path / image).write_bytes(b"")
    assert prediction_path(tmp_path, tmp_path / image) == tmp_path / "predictions" / f"{name}.h5ad"


def test_an_output_replaces_no_file(section_paths, tmp_path):
    """Neither an input, nor measured expression, nor an earlier prediction, nor a link that leads nowhere."""
    measured = tmp_path / "S.h5ad"
    shutil.copy(section_paths[2], measured)
    with pytest.raises(FileExistsError, match=r"S\.h5ad is what the prediction is made from"):
        check_output(measured, [None, measured])
    with pytest.raises(FileExistsError, match=r"S\.h5ad exists and is not overwritten; choose another --output"):
        check_output(measured, [section_paths[2]])
    check_output(tmp_path / "new.h5ad", [section_paths[2]])
    (tmp_path / "link.h5ad").symlink_to(tmp_path / "nowhere.h5ad")
    with pytest.raises(FileExistsError, match=r"is a link to .*nowhere\.h5ad, which does not exist"):
        check_output(tmp_path / "link.h5ad", [section_paths[2]])
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "S.h5ad").symlink_to(tmp_path / "nowhere.h5ad")
    with pytest.raises(FileExistsError, match=r"S\.h5ad exists"):
        prediction_path(tmp_path, measured)


def test_a_run_without_a_scale_says_that_pixels_count(run, section_paths, sections):
    """Its grid and crops follow the spacing of the spots in pixels."""
    scaleless = replace(run, config=replace(run.config, crop=CropConfig(image_size=run.config.crop.image_size)))
    with pytest.raises(ValueError, match=r"trained without um/px, so that mpp \(--mpp\) has no effect"):
        predict_image(scaleless, sections[2].image_path, mpp=1.4)
    with pytest.warns(UserWarning, match="must have the pixel size of the training images"):
        predict_image(scaleless, section_paths[2])
