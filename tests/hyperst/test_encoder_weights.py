"""Files of an encoder's weights: what they hold, that none starts without its own, and runs that know theirs. See `make timm`."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from hyperst.config import RunConfig, preset
from hyperst.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from hyperst.model.backbones import ENCODERS, build_backbone, require_weights
from hyperst.model.backbones.weights import read_weights
from hyperst.run import build_model, load_run
from tests.hyperst import test_encoders as encoders
from tests.hyperst.test_encoders import SMALL, fit, images, random_state

timm, small = encoders.timm, encoders.small  # fixtures


@pytest.mark.usefixtures("small")
def test_a_file_of_weights_is_read_without_running_code(tmp_path):
    torch.save(build_backbone("uni").model, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt cannot be read.*more than tensors"):
        read_weights(tmp_path / "model.pt")


def test_files_that_hold_no_weights(tmp_path):
    good = {"a": torch.ones(3)}
    torch.save(good, tmp_path / "cut.bin")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "cut.bin").read_bytes()[:-200])
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"a": torch.ones(3), "epoch": 3}, tmp_path / "mixed.pt")
    torch.save(good, tmp_path / "weights.onnx")
    for name, words in (
        ("cut.bin", "cut short"),
        ("text.safetensors", "cut short"),
        ("empty.pt", "is empty"),
        ("mixed.pt", "no plain table of names and tensors"),
        ("weights.onnx", r"is no \.bin, \.pt, \.pth or \.safetensors file"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            read_weights(tmp_path / name)
        assert name in str(error.value)


@pytest.mark.parametrize("name", [*ENCODERS, "timm:vit_tiny_patch16_224"])
def test_an_encoder_does_not_start_without_its_weights(name, tmp_path):
    size = ENCODERS[name].input_size or 96 if name in ENCODERS else 96
    with pytest.raises(ValueError, match=f"backbone '{name}' needs its weights.*--weights FILE"):
        require_weights(name, None, size)
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        require_weights(name, str(tmp_path / "absent.bin"), size)
    (tmp_path / "w.bin").touch()
    require_weights(name, str(tmp_path / "w.bin"), size)
    if name in ENCODERS and ENCODERS[name].input_size is not None:
        with pytest.raises(ValueError, match=f"takes crops of {size} px, got 100: set --image-size {size}"):
            require_weights(name, str(tmp_path / "w.bin"), 100)


def test_weights_for_what_takes_none(tmp_path):
    with pytest.raises(ValueError, match="'conv' takes no weights"):
        require_weights("conv", str(tmp_path / "w.bin"), 96)
    with pytest.raises(ValueError, match="'conv' takes no weights"):
        build_backbone("conv", normalisation=(IMAGENET_MEAN, IMAGENET_STD))


def test_the_papers_preset_refuses_to_start_without_weights(sections, tmp_path):
    config = preset("paper")
    assert config.model.backbone == "uni"
    with pytest.raises(ValueError, match="backbone 'uni' needs its weights"):
        fit(config, sections[:2], tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def encoder_run(timm, tiny_config, sections, tmp_path):
    """A run on a small vision transformer with weights, layer scales among them, and adapters."""
    torch.manual_seed(1)
    kwargs = {"init_values": 1e-5, **SMALL}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, **kwargs)
    torch.save(random_state(network), tmp_path / "w.pt")
    name = "timm:vit_tiny_patch16_224"
    model = replace(
        tiny_config.model, backbone=name, weights=str(tmp_path / "w.pt"), timm_kwargs=kwargs, tune="lora", width=16
    )
    config = replace(tiny_config, model=model, training=replace(tiny_config.training, epochs=1))
    fit(config, sections[:1], tmp_path / "run")
    return tmp_path / "run"


def test_a_run_records_what_its_encoder_expects_and_knows_its_weights(encoder_run, tmp_path):
    run = load_run(encoder_run, device="cpu")
    assert run.config.model.normalisation == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert torch.equal(
        run.model.backbone.gain.flatten(), (torch.tensor(IMAGENET_STD, dtype=torch.float64) / 0.5).float()
    )
    state = torch.load(tmp_path / "w.pt")
    torch.save({key: value + 0.01 for key, value in state.items()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt does not hold the weights that .*run was trained with"):
        load_run(encoder_run, device="cpu")


@torch.no_grad()
def test_a_run_of_an_older_version_goes_on_as_it_was_trained(timm, tmp_path):
    """It normalised as ImageNet's and left layer scales unused; it says so now."""
    name = "timm:vit_tiny_patch16_224"
    scaled = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, init_values=1e-5)
    state = random_state(scaled)
    torch.save(state, tmp_path / "w.pt")
    config = RunConfig()
    model = replace(config.model, backbone=name, weights=str(tmp_path / "w.pt"), width=16)
    config = replace(config, model=model, crop=replace(config.crop, image_size=32))
    with pytest.warns(UserWarning, match=r"older version, which left 24 weights .*ls1\.gamma.*Train again"):
        backbone = build_model(config, 5, stored=True).backbone.eval()
    used = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32).eval()
    used.load_state_dict({key: value for key, value in state.items() if "gamma" not in key})
    _, given = images(32)
    assert torch.equal(backbone(given), used(given))
    with pytest.raises(ValueError, match="24 unexpected"):
        build_model(config, 5)
    with warnings.catch_warnings():  # a plain file is no reason to warn
        warnings.simplefilter("error")
        torch.save(used.state_dict(), tmp_path / "w.pt")
        build_model(config, 5, stored=True)
