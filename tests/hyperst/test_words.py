"""No text of a library reaches a user: what it is about is said in the words of files, options and remedies."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from hyperst.data import CropConfig, open_image
from hyperst.model.backbones.weights import read_weights
from hyperst.predict import predict_image, predict_section
from hyperst.run import load_run

from .test_cli import call, failure


def test_a_warning_is_one_line_without_the_place_in_the_code(section_paths, tmp_path, capsys):
    import anndata

    adata = anndata.read_h5ad(section_paths[0])
    adata.layers["counts"], adata.X = adata.X.copy(), np.log1p(adata.X.toarray())
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "S1.png").write_bytes((section_paths[0].parent / "images" / "S1.png").read_bytes())
    adata.write_h5ad(tmp_path / "S1.h5ad")
    shown = []
    usual = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda *parts: shown.append(warnings.formatwarning(*parts[:4]))
        call("train", tmp_path / "S1.h5ad", "--n-genes", "1000", "-o", tmp_path / "run")
    assert f"warning: {tmp_path / 'S1.h5ad'}: X does not hold raw counts, so layers['counts'] is used\n" in shown
    assert warnings.formatwarning is usual


@pytest.mark.parametrize("content", [b"II*\0" + bytes(20), b"hello, this is no TIFF", b"II*\0\x08\0\0\0\xff\xff"])
def test_a_tiff_that_is_none(content, tmp_path, capfd):
    path = tmp_path / "slide.tif"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"slide\.tif is no readable TIFF; it is damaged, cut short or of another kind"
    ) as error:
        open_image(path)
    assert "tifffile" not in str(error.value)
    assert "argument" not in str(error.value)
    # without a handler Python prints what a library logs
    assert logging.getLogger("tifffile").handlers
    assert capfd.readouterr() == ("", "")
    sys.stderr.flush()


def test_weights_of_another_shape_name_the_first(trained, tmp_path):
    import shutil

    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    stored = torch.load(path, weights_only=True)
    name = (
        "averaged.module.output.bias" if "averaged.module.output.bias" in stored["state_dict"] else "model.output.bias"
    )
    stored["state_dict"][name] = torch.zeros(3)
    torch.save(stored, path)
    with pytest.raises(
        ValueError, match=r"best\.ckpt does not fit .*config\.yaml: output\.bias is \(3,\), need \(12,\);"
    ) as error:
        load_run(tmp_path / "run", device="cpu")
    assert "state_dict" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("size", "said"), [((20, 20), "20 x 20 px"), ((400, 10), "400 x 10 px"), ((1, 1), "1 x 1 px")])
def test_an_image_smaller_than_a_square_of_the_grid(size, said, trained, tmp_path):
    Image.new("RGB", size, "purple").save(tmp_path / "part.png")
    message = failure("predict", trained, tmp_path / "part.png", "--mpp", 1.4, "-o", tmp_path / "p.h5ad")
    assert f"part.png has {said}, too few for one square of a grid of 71.43 px" in message
    assert "--mpp" in message
    assert "DecodedImage" not in message


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0"])
def test_um_per_px_that_are_no_length(value, trained, sections):
    message = failure("predict", trained, sections[2].image_path, "--mpp", value)
    assert f"mpp (--mpp) is {value}, no um per pixel" in message
    assert "0.05 to 20" in message


def test_positions_of_a_users_choice_are_seen_as_the_training_spots_were(trained, sections):
    """Without um/px crops follow a spacing: that of the training spots, not that of the one, two or far spots in a table."""
    run = load_run(trained, device="cpu")
    crop, model = CropConfig(image_size=run.config.crop.image_size), replace(run.config.model, head="network")
    # the network alone: the closed-form head sees a spot's neighbours, which other positions do not have
    run = replace(run, config=replace(run.config, crop=crop, model=model), mixture=None)
    section = replace(sections[0], grid=replace(sections[0].grid, um_per_px=None, pitch_um=None))
    expected = predict_section(run, section).X
    for chosen in ([40], [0, 80], [3, 33, 63]):
        with pytest.warns(UserWarning, match="spacing of the training spots in pixels"):
            found = predict_image(run, section.image_path, spots=section.spot_px[chosen])
        # another batch size and order of sums, in float32
        np.testing.assert_allclose(found.X, expected[chosen], rtol=0, atol=64 * np.finfo(np.float32).eps)


def test_where_no_run_can_be_written_is_said_before_sections_are_read(section_paths, tmp_path, monkeypatch):
    monkeypatch.setattr("hyperst.cli.commands.read_sections", lambda *_, **__: pytest.fail("the work began"))
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/run"):
        message = failure("train", section_paths[0], "-o", tmp_path / place)
        assert "cannot be written" in message
        assert "it is no folder; choose another place with --output" in message
        assert "Errno" not in message
    assert (tmp_path / "file").read_text() == "mine"


def test_a_configuration_that_is_no_text(section_paths, tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\x80\x81")
    message = failure("train", section_paths[0], "--config", tmp_path / "c.yaml", "-o", tmp_path / "run")
    assert "c.yaml is not a YAML file: it is no text in UTF-8" in message
    message = failure("train", section_paths[0], "--config", tmp_path, "-o", tmp_path / "run")
    assert "is no file; leave --config out" in message


def test_files_that_are_no_weights(tmp_path):
    """Each says what the file is; a changed byte is found, though PyTorch would load it."""
    state = torch.nn.Linear(64, 64).state_dict()
    path = tmp_path / "w.bin"
    torch.save(state, path)
    assert torch.equal(read_weights(path)["weight"], state["weight"])
    right = path.read_bytes()
    place = right.index(state["weight"].numpy().tobytes()[:16])
    changed = right[:place] + bytes([right[place] ^ 1]) + right[place + 1 :]
    pickled = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), pickled)
    for content, words in (
        (changed, "cut short, damaged or of another kind"),
        (right[: len(right) // 2], "cut short, damaged or of another kind"),
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page or message"),
        (pickled.getvalue(), "holds more than tensors and plain values, such as a whole network"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words) as error:
            read_weights(path)
        assert "Pytorch" not in str(error.value)
        assert str(path) in str(error.value)
