"""`hyperst features`: files in the layout of HEST and TRIDENT, and runs that are trained on them."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace

import anndata
import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from hyperst.cli import app
from hyperst.config import read_run_config, update
from hyperst.data import CropConfig, SpotDataset, attach_features, niche_members, read_crops, read_section
from hyperst.data.dataset import collate, normalise_image
from hyperst.data.feature_rows import MappedTable
from hyperst.data.quality import take_spots
from hyperst.data.readers.features import read_patch_features
from hyperst.encode import encode_section, feature_path, load_encoder, require_widths
from hyperst.feature_check import feature_width
from hyperst.model import build_backbone
from hyperst.predict import predict_image, predict_section
from hyperst.run import RunFolder, load_run
from hyperst.train import fit

WIDTHS = (112.0, 255.0, 616.0)


def call(*arguments):
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def stain(tiny_config):
    return load_encoder(update(tiny_config, {"model": {"backbone": "stain"}}), torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(sections, stain, tmp_path_factory):
    """Stain features of three sections at three widths."""
    folder = tmp_path_factory.mktemp("encoded")
    for section in sections:
        for width in WIDTHS:
            path = feature_path(folder, stain.name, width, section.name)
            assert encode_section(stain, section, width, path, batch_size=7)
    return folder


def options(folder):
    spot, niche, region = (folder / f"stain_{width:g}um" for width in WIDTHS)
    return ["--features", spot, "--niche-features", niche, "--level-features", f"region={region}"]


def test_a_file_is_laid_out_as_those_of_hest_and_trident(sections, folder):
    section = sections[0]
    um_per_px = section.grid.um_per_px
    with h5py.File(folder / "stain_255um" / "S1.h5") as file:
        assert set(file) == {"features", "coords", "barcode"}
        assert file["features"].shape == (81, build_backbone("stain").width)
        assert list(file["barcode"].asstr()) == list(section.spot_ids)
        assert file["coords"].dtype == np.int64
        attributes = dict(file["coords"].attrs)
        assert attributes["patch_size"] == 32
        assert attributes["patch_size_level0"] == round(255 / um_per_px)
        assert attributes["target_magnification"] == pytest.approx(10 * 32 / 255)
        centres = file["coords"][()] + attributes["patch_size_level0"] / 2
        assert np.abs(centres - section.spot_px).max() <= 1
        assert (file["features"].attrs["encoder"], file["features"].attrs["name"]) == ("stain", "S1")
        assert file["features"].attrs["width_um"] == 255


def test_features_are_those_of_the_crops(sections, folder):
    section = sections[0]
    held = attach_features(section, folder / "stain_112um", folder / "stain_616um")
    crop = CropConfig(spot_um=112, niche_um=616, image_size=32)
    both = np.stack([crops for _, crops in read_crops(section, crop)])
    stain = build_backbone("stain").eval()
    for level, name in enumerate(("file_spot", "file_niche")):
        wanted = stain(normalise_image(both[:, level])).numpy()
        np.testing.assert_allclose(held.load_features(name), wanted, rtol=1e-5, atol=1e-6)


def test_a_file_that_is_there_is_kept_or_refused(sections, folder, stain, tmp_path):
    section = sections[0]
    path = folder / "stain_112um" / "S1.h5"
    before = path.read_bytes()
    assert not encode_section(stain, section, 112, path)
    for given, width, words in (
        (section, 113, r"width_um is 112\.0, not 113\.0, its patches lie elsewhere"),
        (take_spots(section, np.arange(81) > 0), 112, "it is of other spots"),
    ):
        with pytest.raises(FileExistsError, match=words):
            encode_section(stain, given, width, path)
    with pytest.raises(FileExistsError, match="checksum is"):
        encode_section(replace(stain, checksum="0" * 64), section, 112, path)
    assert path.read_bytes() == before
    unknown = replace(section, grid=replace(section.grid, um_per_px=None))
    with pytest.raises(ValueError, match=r"um/px of the image are unknown; give --mpp"):
        encode_section(stain, unknown, 112, tmp_path / "f.h5")
    assert not list(tmp_path.iterdir())


def test_a_crop_far_wider_than_the_slide_is_refused_before_it_is_read(section_paths, tmp_path, monkeypatch):
    section = read_section(section_paths[0])
    um_per_px = section.grid.um_per_px
    with section.open_image() as image:
        extent = f"{image.width * um_per_px:.0f} x {image.height * um_per_px:.0f} um"
        longest = max(image.width, image.height) * um_per_px
    monkeypatch.setattr("hyperst.data.images.pil.DecodedImage._read_level", None)
    words = (
        f"a crop of 99999 um ({99999 / um_per_px:.0f} px at {um_per_px:.4g} um/px) is over 4 times as wide as the longer side of "
        f"the slide, which has {extent} ({section.image_path})"
    )
    code, output = call("features", section_paths[0], "--backbone", "stain", "--width-um", 99999, "-o", tmp_path / "f")
    assert (code, words in output) == (1, True), output
    train = ["train", section_paths[0], "-o", tmp_path / "run", "--n-genes", 6, "--level", "region=99999"]
    code, output = call(*train)
    assert (code, words in output) == (1, True), output
    crop = CropConfig(wider_um={"region": 99999.0})
    for read in (
        lambda: SpotDataset([section], (), crop, counts=False, cache_bytes=0),
        lambda: next(read_crops(section, crop)),
    ):
        with pytest.raises(ValueError, match="a crop of 99999 um"):
            read()
    assert not list(tmp_path.iterdir())
    require_widths(section, [4 * longest])
    with pytest.raises(ValueError, match="is over 4 times"):
        require_widths(section, [4.01 * longest])


def test_an_encoder_that_is_trained_has_no_features(tiny_config):
    with pytest.raises(ValueError, match=r"'conv\+stain' has no features before it is trained"):
        load_encoder(tiny_config, torch.device("cpu"))


def test_features_stay_on_the_disk_and_batches_read_their_rows(sections, folder):
    """From the disk and from memory the same batches, those of one item at a time; another process gets the place alone."""
    given = [
        take_spots(attach_features(section, folder / "stain_112um"), section.library_size > 0) for section in sections
    ]
    table = read_patch_features(folder / "stain_112um" / "S1.h5").values
    assert isinstance(table, MappedTable)
    assert len(pickle.dumps(given[0].features["file"])) < 2000 < 4 * table.shape[0] * table.shape[1]
    crop = CropConfig(wider_um={"region": 616.0})
    genes = sections[0].genes[:5]
    on_disk, in_memory = (
        SpotDataset(given, genes, crop, feature_key="file", cache_bytes=size) for size in (0, 2 << 30)
    )
    order = np.random.default_rng(0).permutation(len(on_disk)).tolist()
    loaders = [
        DataLoader(data, 50, sampler=order, collate_fn=collate)
        for data in (pickle.loads(pickle.dumps(on_disk)), in_memory)
    ]
    for start, batches in zip(range(0, len(order), 50), zip(*loaders, strict=True), strict=True):
        single = collate([in_memory[item] for item in order[start : start + 50]])
        for batch in batches:
            assert batch.keys() == single.keys()
            for name, values in batch.items():
                torch.testing.assert_close(values, single[name], rtol=1e-6, atol=1e-7)
    members = niche_members(given[1]).toarray().astype(bool)
    item = next(number for number, pair in enumerate(on_disk.indices) if tuple(pair) == (1, 4))
    wanted = given[1].load_features("file")[members[4]].mean(axis=0)
    np.testing.assert_allclose(on_disk[item]["niche_features"], wanted, rtol=1e-5, atol=1e-6)


def test_what_is_in_pieces_compressed_or_of_other_numbers_is_read_into_memory(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    kinds = {"chunks": (1, 2), "compression": "gzip", "dtype": np.float16}
    for name, kind in kinds.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.create_dataset("features", data=values, **{name: kind})
            file["barcode"] = [f"b{number}" for number in range(6)]
        found = read_patch_features(tmp_path / f"{name}.h5").values
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, values)


@pytest.fixture(scope="module")
def run_folder(section_paths, folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    chosen = ["-o", run, "--epochs", 1, "--n-genes", 6, "--width", 8, "--networks", 1, "--level", "region=616"]
    code, output = call("train", *section_paths[:2], *chosen, *options(folder))
    assert code == 0, output
    return run


def test_a_run_on_files_of_three_levels_is_trained_evaluated_and_predicts(run_folder, section_paths, folder, tmp_path):
    run = load_run(run_folder, device="cpu")
    assert run.model.levels == ("spot", "niche", "region")
    record = run.split.role("training")[0]
    assert [record.feature_sources[level].width_um for level in run.model.levels] == list(WIDTHS)
    code, output = call("evaluate", run_folder, section_paths[2], *options(folder))
    assert code == 0, output
    code, output = call("predict", run_folder, section_paths[2], *options(folder), "-o", tmp_path / "p.h5ad")
    assert code == 0, output
    assert anndata.read_h5ad(tmp_path / "p.h5ad").shape == (81, 6)
    code, output = call("predict", run_folder, section_paths[2], *options(folder)[:4], "-o", tmp_path / "q.h5ad")
    assert code == 1
    assert "features of the region itself; give them (file_region in obsm, or --level-features region=...)" in output


def test_a_slide_without_spots_is_encoded_on_a_grid_and_predicted(run_folder, sections, folder, tmp_path):
    place = ["--mpp", sections[2].grid.um_per_px, "-o", tmp_path, "--backbone", "stain", "--image-size", 32]
    widths = [part for width in WIDTHS for part in ("--width-um", width)]
    code, output = call("features", sections[2].image_path, *place, *widths)
    assert code == 0, output
    assert "barcode" not in h5py.File(tmp_path / "stain_112um" / "S3.h5")
    where = ["--mpp", sections[2].grid.um_per_px, "-o", tmp_path / "p.h5ad"]
    code, output = call("predict", run_folder, sections[2].image_path, *options(tmp_path), *where)
    assert code == 0, output
    assert anndata.read_h5ad(tmp_path / "p.h5ad").n_obs > 20


def test_the_widths_that_training_would_take_are_the_usual_ones(section_paths, tmp_path):
    code, output = call("features", *section_paths[:1], "--backbone", "stain", "--image-size", 32, "-o", tmp_path)
    assert code == 0, output
    assert sorted(each.name for each in tmp_path.iterdir()) == ["stain_112um", "stain_255um"]
    assert f"--features {tmp_path}/stain_112um --niche-features {tmp_path}/stain_255um" in output
    code, output = call("features", *section_paths[:1], "--backbone", "stain", "--image-size", 32, "-o", tmp_path)
    assert (code, output.count("(was there)")) == (0, 2)


def test_features_of_another_encoder_weights_or_width_are_refused(run_folder, section_paths, folder, tmp_path):
    run = load_run(run_folder, device="cpu")
    section = read_section(section_paths[2])
    spot, niche, region = (folder / f"stain_{width:g}um" for width in WIDTHS)
    places = {"wider_features": {"region": region}}
    with pytest.raises(
        ValueError, match=r"features of the niche are not of the encoder .*width_um is 616\.0, not 255\.0"
    ):
        predict_section(run, section, features=spot, niche_features=region, **places)

    def other(stem, **attributes):
        path = tmp_path / f"{stem}.h5"
        path.write_bytes((spot / "S3.h5").read_bytes())
        with h5py.File(path, "r+") as file:
            for key, value in attributes.items():
                if value is None:
                    del file["features"].attrs[key]
                else:
                    file["features"].attrs[key] = value
        return path

    with pytest.raises(ValueError, match=r"encoder is 'uni', not 'stain'"):
        predict_section(run, section, features=other("a", encoder="uni"), niche_features=niche, **places)
    with pytest.raises(ValueError, match=r"checksum is '0', not '"):
        predict_section(run, section, features=other("b", checksum="0"), niche_features=niche, **places)
    # the name is that of the slide, as in TRIDENT's files
    with pytest.warns(UserWarning, match="it says that it is of another slide, not of section S3"):
        predict_section(run, section, features=other("d", name="another slide"), niche_features=niche, **places)
    with pytest.warns(UserWarning, match="do not say which weights"):
        predict_section(run, section, features=other("c", checksum=None), niche_features=niche, **places)


def test_a_resumed_run_keeps_its_encoder(run_folder, section_paths, folder, tmp_path):
    """Also before its next epoch, and not only when it ends."""
    place = RunFolder(shutil.copytree(run_folder, tmp_path / "run"))
    place.summary.unlink()
    sections = []
    for path in section_paths[:2]:
        section = read_section(path)
        files = []
        for width in WIDTHS:
            file = shutil.copy(
                folder / f"stain_{width:g}um" / f"{section.name}.h5", tmp_path / f"{width}{section.name}.h5"
            )
            with h5py.File(file, "r+") as opened:
                opened["features"].attrs["checksum"] = "0"
            files.append(file)
        wider = {"region": files[2]}
        sections.append(attach_features(section, files[0], files[1], wider_features=wider))
    with pytest.raises(
        ValueError, match=r"of the spot are not of the encoder and crops of the run in .*checksum is '0'"
    ):
        fit(read_run_config(place.config), sections, place.path, resume=True)


def test_levels_of_features_that_have_no_effect_are_refused(run_folder, trained, section_paths, folder):
    spot, niche, region = (folder / f"stain_{width:g}um" for width in WIDTHS)
    config = load_run(run_folder, device="cpu").config
    section = attach_features(read_section(section_paths[0]), spot, niche, wider_features={"regoin": region})
    with pytest.raises(ValueError, match="--level-features names 'regoin'; levels wider than the niche: region"):
        feature_width(config, [section])
    for given, words in (
        (run_folder, "--level-features goes with --features"),
        (trained, "leave --level-features out"),
    ):
        with pytest.raises(ValueError, match=words):
            predict_image(load_run(given, device="cpu"), section_paths[2], wider_features={"region": region})
