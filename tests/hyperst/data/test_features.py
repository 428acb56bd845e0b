"""Precomputed features from HDF5: which row is which spot's, what is told, and that trained runs take them."""

from __future__ import annotations

from dataclasses import replace

import anndata
import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hyperst.cli import app
from hyperst.config import update
from hyperst.data import SpotDataset, attach_features, image_section, niche_members, read_section
from hyperst.data.features import match_patches
from hyperst.data.readers.features import find_features, read_patch_features
from hyperst.evaluation import evaluate
from hyperst.predict import predict_image, predict_section
from hyperst.run import RunFolder, load_run
from hyperst.train import fit

WIDTH = 6


def write(path, values, *, barcodes=None, corners=None, side=None, name="features", **attributes):
    with h5py.File(path, "w") as file:
        file[name] = values
        if barcodes is not None:
            file["barcode"] = [str(barcode) for barcode in barcodes]
        if corners is not None:
            file["coords"] = corners
            if side is not None:
                attributes["patch_size_level0"] = side
            file["coords"].attrs.update(attributes)
    return path


def values_of(section, seed=0):
    return np.random.default_rng(seed).normal(size=(section.n_spots, WIDTH)).astype(np.float32)


@pytest.fixture
def section(sections):
    return sections[0]


@pytest.mark.parametrize("name", ["features", "embeddings"])
def test_rows_are_joined_on_the_barcode_whatever_their_order(section, tmp_path, name):
    values = values_of(section)
    order = np.random.default_rng(1).permutation(section.n_spots)
    others = np.full((2, WIDTH), np.nan)  # patches of no spot do not matter, NaN or not
    barcodes = [*section.spot_ids[order], "elsewhere", "else"]
    path = write(tmp_path / "f.h5", np.concatenate([values[order], others]), barcodes=barcodes, name=name)
    found = attach_features(section, path)
    np.testing.assert_array_equal(found.load_features("file"), values)
    assert found.n_spots == section.n_spots
    assert found.features_path == path


def test_shapes_and_names_that_tools_write(section, tmp_path):
    """A column of barcodes (HEST), a leading axis of one slide, barcodes as `barcodes`."""
    values = values_of(section)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["embeddings"] = values[None].astype(np.float64)
        file["barcodes"] = np.asarray(section.spot_ids, dtype="S")[:, None]
    np.testing.assert_array_equal(attach_features(section, tmp_path / "f.h5").load_features("file"), values)


@given(shift=st.tuples(st.floats(-0.499, 0.499), st.floats(-0.499, 0.499)), side=st.integers(4, 60))
def test_patches_belong_to_the_spot_that_lies_in_them(sections, tmp_path_factory, shift, side):
    section = sections[0]
    values = values_of(section)
    order = np.random.default_rng(2).permutation(section.n_spots)
    corners = section.spot_px[order] - side / 2 + np.asarray(shift) * side
    path = write(tmp_path_factory.mktemp("f") / "f.h5", values[order], corners=corners, side=side)
    assert side < section.grid.pitch_px  # so that a spot lies in one patch
    np.testing.assert_array_equal(match_patches(section, read_patch_features(path)), np.argsort(order))


def test_a_patch_beyond_half_its_side_is_not_the_spots(section, tmp_path):
    corners = section.spot_px - 20.0  # sides of 40 px, centred
    corners[3] += (20.5, 0)
    corners[7] -= (0, 21)
    path = write(tmp_path / "f.h5", values_of(section), corners=corners, side=40)
    with pytest.warns(
        UserWarning, match=rf"S1: 2 of 81 spots have no features .*{section.spot_ids[3]}, {section.spot_ids[7]}"
    ):
        found = attach_features(section, path)
    kept = np.delete(np.arange(section.n_spots), [3, 7])
    np.testing.assert_array_equal(found.load_features("file"), values_of(section)[kept])
    np.testing.assert_array_equal(found.spot_ids, section.spot_ids[kept])
    np.testing.assert_array_equal(found.spot_px, section.spot_px[kept])
    np.testing.assert_array_equal(found.array_index, section.array_index[kept])
    np.testing.assert_array_equal(found.library_size, section.library_size[kept])
    np.testing.assert_array_equal(found.counts.toarray(), section.counts.toarray()[kept])


def test_the_nearest_of_overlapping_patches_counts(section, tmp_path):
    corners = np.concatenate([section.spot_px - 20 + 9.0, section.spot_px - 20 + 3.0])
    values = np.concatenate([np.zeros((section.n_spots, WIDTH)), values_of(section)])
    path = write(tmp_path / "f.h5", values, corners=corners, side=40)
    np.testing.assert_array_equal(attach_features(section, path).load_features("file"), values_of(section))


def test_spots_that_share_a_patch_are_told(section, tmp_path):
    """One patch over everything: every spot has its features."""
    path = write(tmp_path / "f.h5", np.ones((1, WIDTH)), corners=np.zeros((1, 2)), side=10_000)
    with pytest.warns(
        UserWarning, match=rf"1 patches of 10000 px lie over more than one spot.*81 spots share .*{section.spot_ids[0]}"
    ):
        assert attach_features(section, path).n_spots == section.n_spots


def test_the_size_of_a_patch_as_clam_writes_it(section, tmp_path):
    """256 px of a level that is 4 times smaller are 1024 px of the full image."""
    corners = section.spot_px - 512.0
    path = write(tmp_path / "f.h5", values_of(section), corners=corners, patch_size=256, downsample=(4.0, 4.0))
    found = read_patch_features(path)
    assert found.side_px == 1024
    np.testing.assert_allclose(found.centres, section.spot_px)


def test_barcodes_of_another_naming_give_way_to_positions(section, tmp_path):
    barcodes = [f"x{number}" for number in range(section.n_spots)]
    path = write(tmp_path / "f.h5", values_of(section), barcodes=barcodes, corners=section.spot_px - 20, side=40)
    with pytest.warns(UserWarning, match="no barcode is a spot of section S1 .*found by their position"):
        found = attach_features(section, path)
    np.testing.assert_array_equal(found.load_features("file"), values_of(section))


def test_spots_missing_among_the_barcodes_are_told(section, tmp_path):
    path = write(tmp_path / "f.h5", values_of(section)[2:], barcodes=section.spot_ids[2:])
    with pytest.warns(
        UserWarning, match=rf"2 of 81 spots have no features.*\({section.spot_ids[0]}, {section.spot_ids[1]}\)"
    ):
        assert list(attach_features(section, path).spot_ids) == list(section.spot_ids[2:])


def test_niche_features_come_from_a_second_file_or_are_means(section, tmp_path):
    spots = write(tmp_path / "spots.h5", values_of(section), barcodes=section.spot_ids)
    niches = write(tmp_path / "niches.h5", values_of(section, 9), barcodes=section.spot_ids)
    both = attach_features(section, spots, niches, key="uni")
    items = SpotDataset([both], (), feature_key="uni", counts=False)
    np.testing.assert_array_equal(items[4]["spot_features"], values_of(section)[4])
    np.testing.assert_array_equal(items[4]["niche_features"], values_of(section, 9)[4])
    mean = SpotDataset([attach_features(section, spots)], (), feature_key="file", counts=False)
    members = niche_members(section).toarray()[4].astype(bool)
    assert members.sum() > 1
    np.testing.assert_allclose(
        mean[4]["niche_features"], values_of(section)[members].mean(axis=0), rtol=1e-5, atol=1e-6
    )
    narrow = write(tmp_path / "narrow.h5", values_of(section)[:, :3], barcodes=section.spot_ids)
    with pytest.raises(ValueError, match="features of spots have 6 numbers and those of niches 3"):
        SpotDataset([attach_features(section, spots, narrow)], (), feature_key="file", counts=False)


def test_a_spot_without_niche_features_is_left_out_too(section, tmp_path):
    spots = write(tmp_path / "spots.h5", values_of(section)[:-1], barcodes=section.spot_ids[:-1])
    niches = write(tmp_path / "niches.h5", values_of(section)[1:], barcodes=section.spot_ids[1:])
    with pytest.warns(UserWarning, match=r"2 of 81 spots have no features in .*spots\.h5 and .*niches\.h5"):
        found = attach_features(section, spots, niches)
    np.testing.assert_array_equal(found.load_features("file_niche"), values_of(section)[1:-1])


def _twice(section, path):
    write(path, np.ones((section.n_spots + 1, WIDTH)), barcodes=[*section.spot_ids, section.spot_ids[5]])


def _nan(section, path):
    values = values_of(section)
    values[[2, 4], 1] = np.nan
    write(path, values, barcodes=section.spot_ids)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_twice, r"1 spots of section S1 have more than one row \(S1_0x10\)"),
        (_nan, r"features of 2 spots are NaN or infinite \(S1_0x4, S1_0x8\)"),
        (lambda s, p: write(p, values_of(s), barcodes=[f"x{i}" for i in range(81)]), "its barcodes are x0.*the spots are S1_0x0"),
        (lambda s, p: write(p, values_of(s), corners=s.spot_px + 1e6, side=40), "its patches lie at x 1000.*the spots at x"),
        (lambda s, p: write(p, values_of(s), corners=s.spot_px, overlap=0), r"patch_size_level0.*attributes found: overlap"),
        (lambda s, p: write(p, values_of(s)), "neither barcode nor coords.*it holds features"),
        (lambda s, p: write(p, values_of(s), barcodes=s.spot_ids, name="feats"), "no features or embeddings; .*barcode, feats"),
        (lambda s, p: write(p, values_of(s)[0], barcodes=s.spot_ids), r"features is float32 of shape \(6,\)"),
        (lambda s, p: write(p, values_of(s).astype("S3"), barcodes=s.spot_ids), r"features is \|S3 of shape"),
        (lambda s, p: write(p, values_of(s)[:5], barcodes=s.spot_ids), "features has 5 rows and barcode 81"),
        (lambda s, p: write(p, values_of(s), corners=s.spot_px[:, :1], side=4), r"coords of shape \(81, 1\)"),
        (lambda s, p: p.write_bytes(b"\x89HDF nothing"), "cannot be read"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used_are_named(section, tmp_path, make, words):
    path = tmp_path / "f.h5"
    make(section, path)
    with pytest.raises(ValueError, match=words) as error:
        attach_features(section, path)
    assert str(path) in str(error.value)


def test_a_file_cut_anywhere_gives_one_message(section, tmp_path):
    whole = write(tmp_path / "whole.h5", values_of(section), barcodes=section.spot_ids).read_bytes()
    for size in np.linspace(0, len(whole) - 1, 25).astype(int):
        (tmp_path / "cut.h5").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.h5"):
            attach_features(section, tmp_path / "cut.h5")


def test_a_folder_holds_a_file_per_section(section, tmp_path):
    path = write(tmp_path / "S1.h5", values_of(section), barcodes=section.spot_ids)
    assert find_features(tmp_path, "S1") == path
    with pytest.raises(FileNotFoundError, match=r"no features of section S2: looked for .*S2\.h5, .*S2\.hdf5"):
        find_features(tmp_path, "S2")
    with pytest.raises(FileNotFoundError, match="neither a file nor a folder"):
        find_features(tmp_path / "absent", "S2")


def test_a_key_that_is_not_there_names_those_that_are(section_paths, tmp_path):
    adata = anndata.read_h5ad(section_paths[0])
    adata.obsm["uni"] = np.ones((adata.n_obs, WIDTH), dtype=np.float32)
    adata.obsm["broken"] = np.full((adata.n_obs, WIDTH), np.inf)
    adata.write_h5ad(tmp_path / "S1.h5ad")
    section = read_section(tmp_path / "S1.h5ad", require_image=False)
    with pytest.raises(
        ValueError, match=r"has no features 'nope', nor 'nope_spot' with 'nope_niche'; .*broken, spatial, uni"
    ):
        SpotDataset([section], (), feature_key="nope", counts=False)
    with pytest.raises(ValueError, match="has no features 'nope'; features found: broken, spatial, uni"):
        section.load_features("nope")
    with pytest.raises(ValueError, match=r"obsm\['broken'\] of 81 spots is NaN or infinite \(S1_0x0"):
        section.load_features("broken")
    result = CliRunner().invoke(
        app,
        ["train", str(tmp_path / "S1.h5ad"), "-o", str(tmp_path / "run"), "--feature-key", "nope", "--n-genes", "6"],
    )
    assert result.exit_code == 1
    assert "broken, spatial, uni" in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_features_in_memory_need_no_file(section, tmp_path):
    gone = replace(section, path=tmp_path / "gone.h5ad", features={"uni": values_of(section)})
    assert gone.feature_keys() == ["uni"]
    np.testing.assert_array_equal(gone.load_features("uni"), values_of(section))


def test_sections_of_two_encoders_do_not_train_together(sections, tmp_path, feature_config):
    given = []
    for section, width in zip(sections[:2], (6, 4), strict=True):
        path = write(tmp_path / f"{section.name}.h5", values_of(section)[:, :width], barcodes=section.spot_ids)
        given.append(attach_features(section, path))
    with pytest.raises(ValueError, match="differ in width: S1 has 6, S2 has 4"):
        fit(feature_config, given, tmp_path / "run")
    with pytest.raises(ValueError, match="differ in width: S1 has 6, S2 has 4"):
        fit(feature_config, given[:1], tmp_path / "run", validation_sections=given[1:])
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def feature_config(tiny_config):
    return update(
        replace(tiny_config, training=replace(tiny_config.training, epochs=2)),
        {"data": {"feature_key": "file"}, "model": {"backbone": "precomputed"}},
    )


@pytest.fixture(scope="module")
def folder(sections, tmp_path_factory):
    """Features of three sections that follow their expression, so that there is something to learn, and those of niches."""
    folder = tmp_path_factory.mktemp("features")
    (folder / "niches").mkdir()
    for section in sections:
        values = np.log1p(section.counts.toarray()[:, :WIDTH])
        write(folder / f"{section.name}.h5", values, barcodes=section.spot_ids)
        write(folder / "niches" / f"{section.name}.h5", values[::-1], barcodes=section.spot_ids)
    return folder


@pytest.fixture(scope="module")
def run_folder(sections, folder, feature_config, tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "run"
    fit(feature_config, [attach_features(section, folder) for section in sections[:2]], place)
    return place


def test_a_run_on_files_predicts_and_is_evaluated_with_files(run_folder, sections, section_paths, folder, tmp_path):
    run = load_run(run_folder, device="cpu")
    records = RunFolder(run_folder).read_split().role("training")
    assert [record.features for record in records] == [str(folder / "S1.h5"), str(folder / "S2.h5")]
    assert [record.own_niche for record in records] == [False, False]
    again = records[1].read("file")
    np.testing.assert_array_equal(again.load_features("file"), np.log1p(sections[1].counts.toarray()[:, :WIDTH]))

    test = attach_features(sections[2], folder)
    expected = predict_section(run, test).X
    assert (expected.std(axis=0) > 0).all()
    for place in (section_paths[2], sections[2].image_path):  # a section, or an image with its spots
        spots = None if place == section_paths[2] else section_paths[2]
        found = predict_image(run, place, spots=spots, features=folder / "S3.h5")
        np.testing.assert_array_equal(found.X, expected)
    result = evaluate(run, test, training_sections=[again], output=tmp_path)
    assert "ridge on this run's image features" in result.scores


def test_prediction_on_a_grid_takes_the_patches_of_a_slide(run_folder, sections, tmp_path):
    """A slide's features without any spots: the grid over the tissue, each point with the patch that it lies in."""
    section = sections[2]
    run = load_run(run_folder, device="cpu")
    with section.open_image() as opened:
        corners = np.stack(
            np.meshgrid(np.arange(0, opened.width, 40), np.arange(0, opened.height, 40)), axis=-1
        ).reshape(-1, 2)
    values = np.concatenate([corners, corners, corners], axis=1) / 1000  # a patch's features say where it is
    path = write(tmp_path / "slide.h5", values, corners=corners, side=40)
    predicted = predict_image(run, section.image_path, mpp=section.grid.um_per_px, features=path)
    positions = predicted.obsm["spatial"]
    assert predicted.n_obs > 20
    pitch = run.split.role("training")[0].pitch_px
    by_hand = image_section(section.image_path, positions, mpp=section.grid.um_per_px, pitch_px=pitch)
    by_hand.features["file"] = np.tile(np.floor(positions / 40) * 40 / 1000, 3).astype(np.float32)
    np.testing.assert_allclose(predicted.X, predict_section(run, by_hand).X, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_the_run_is_said(run_folder, trained, sections, section_paths, folder, tmp_path):
    run = load_run(run_folder, device="cpu")
    narrow = write(tmp_path / "narrow.h5", np.ones((81, 4)), barcodes=sections[2].spot_ids)
    with pytest.raises(ValueError, match=r"section S3 has 4 features per spot, the run in .* was trained on 6"):
        predict_image(run, section_paths[2], features=narrow)
    with pytest.raises(ValueError, match="those trained on the mean over the niche's spots; leave them out"):
        predict_image(run, section_paths[2], features=folder / "S3.h5", niche_features=folder / "niches" / "S3.h5")
    with pytest.raises(ValueError, match=r"has no features 'file'.*--features"):
        predict_image(run, section_paths[2])
    with pytest.raises(ValueError, match=r"give those of .* with --features FILE"):
        predict_image(run, sections[2].image_path)
    with pytest.raises(ValueError, match="give both files"):
        predict_image(run, section_paths[2], niche_features=folder / "S3.h5")
    with pytest.raises(ValueError, match="trained on crops of the image; leave --features out"):
        predict_image(load_run(trained, device="cpu"), section_paths[2], features=folder / "S3.h5")


def test_the_command_line_from_files_to_prediction(section_paths, folder, tmp_path):
    def call(*arguments):
        result = CliRunner().invoke(app, [str(each) for each in arguments])
        return result.exit_code, " ".join(result.output.split())

    run = tmp_path / "run"
    files = ["--features", folder, "--niche-features", folder / "niches"]
    options = ["-o", run, "--epochs", 1, "--n-genes", 6, "--width", 8, "--networks", 1]
    code, output = call("train", *section_paths[:2], *options, *files)
    assert code == 0, output
    assert load_run(run, device="cpu").config.data.feature_key == "file"
    code, output = call("train", "--resume", "-o", run)
    assert code == 0, output
    code, output = call("evaluate", run, section_paths[2], *files)
    assert code == 0, output
    assert "ridge on this run's image features" in output
    code, output = call("predict", run, section_paths[2], *files, "-o", tmp_path / "p.h5ad")
    assert code == 0, output
    assert anndata.read_h5ad(tmp_path / "p.h5ad").shape == (81, 6)
    code, output = call("predict", run, section_paths[2], "--features", folder, "-o", tmp_path / "q.h5ad")
    assert (code, (tmp_path / "q.h5ad").exists()) == (1, False)
    assert "those trained on features of the niche itself; give them" in output
    rows = f"section,name\n{section_paths[2]},S3\n"
    (tmp_path / "all.csv").write_text(rows)
    code, output = call("predict", run, tmp_path / "all.csv", *files, "-o", tmp_path / "all", "--workers", 0)
    assert code == 0, output
    one, listed = (anndata.read_h5ad(tmp_path / name) for name in ("p.h5ad", "all/S3.h5ad"))
    np.testing.assert_array_equal(listed.X, one.X)
    (tmp_path / "all.csv").write_text(f"{rows}{section_paths[1]},nobody\n")
    code, output = call("predict", run, tmp_path / "all.csv", *files, "-o", tmp_path / "none", "--workers", 0)
    assert (code, (tmp_path / "none").exists()) == (1, False)
    assert "no features of section nobody" in output
    code, output = call("train", *section_paths[:2], "-o", tmp_path / "other", "--features", folder / "S1.h5")
    assert code == 2
    assert "one file for 2 sections" in output
    code, output = call("train", *section_paths[:2], "-o", tmp_path / "other", "--niche-features", folder)
    assert code == 2
    assert not (tmp_path / "other").exists()


def test_two_rows_at_one_place_are_refused(tmp_path):
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file["features"] = np.arange(6, dtype=np.float32).reshape(3, 2)
        file["coords"] = np.array([[0, 0], [10, 0], [10, 0]])
        file["coords"].attrs["patch_size_level0"] = 8
    with pytest.raises(ValueError, match=r"f\.h5: 1 patches lie where others do, the first around x 14, y 4"):
        read_patch_features(path)
