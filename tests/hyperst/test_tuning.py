"""What of an encoder is trained, on small networks in place of timm's; `make timm` does the same with its own."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from hyperst.config import RunConfig, preset, read_run_config, update, write_config
from hyperst.model import ModelConfig, backbones
from hyperst.model.backbones import build_backbone
from hyperst.model.backbones.encoders import Encoder
from hyperst.model.backbones.tuning import Tune, tuned
from hyperst.predict import predict_values
from hyperst.run import RunFolder, load_run
from hyperst.train import fit


class Convolutions(nn.Module):
    """Laid out as timm's: a stem, stages of blocks, a last convolution; batch norm throughout."""

    num_features = 12

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4))
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4)) for _ in range(3)))
        self.head = nn.Conv2d(4, 12, 1)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x))).mean((2, 3))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(12, 36)

    def forward(self, x):
        query, key, value = self.qkv(x).chunk(3, -1)
        return (query @ key.mT / 12**0.5).softmax(-1) @ value


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(12), Attention()

    def forward(self, x):
        return x + self.attn(self.norm(x))


class Transformer(nn.Module):
    """Laid out as timm's: patches, blocks, a norm."""

    num_features = 12

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.blocks = nn.Sequential(*(Block() for _ in range(4)))
        self.norm = nn.LayerNorm(12)

    def forward(self, x):
        return self.norm(self.blocks(self.patches(x).flatten(2).mT)).mean(1)


NETWORKS = {"convolutions": Convolutions, "transformer": Transformer}


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    """The encoders "convolutions" and "transformer"."""
    for name in NETWORKS:
        monkeypatch.setitem(backbones.ENCODERS, name, Encoder(name, input_size=None, left_over=()))
    monkeypatch.setattr(backbones, "build_network", lambda encoder, kwargs, size: NETWORKS[encoder.architecture]())


def trained(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_trained(name):
    everything = {key for key, _ in NETWORKS[name]().named_parameters()}
    assert trained(tuned(NETWORKS[name](), "frozen")) == set()
    assert trained(tuned(NETWORKS[name](), "full")) == everything
    parts = {"convolutions": ("blocks.2.", "head."), "transformer": ("blocks.3.", "norm.")}[name]
    assert trained(tuned(NETWORKS[name](), "last-block")) == {key for key in everything if key.startswith(parts)}


def test_a_row_of_blocks_may_lie_deeper_and_what_follows_it_at_any_depth_is_trained():
    network = nn.ModuleDict({"stem": nn.Linear(2, 2), "trunk": Transformer(), "pool": nn.Linear(2, 2)})
    found = trained(tuned(network, "last-block"))
    assert {key.split(".")[0] for key in found} == {"trunk", "pool"}
    assert {key.removeprefix("trunk.").split(".attn")[0] for key in found if "qkv" in key} == {"blocks.3"}
    with pytest.raises(ValueError, match="'last-block' needs a network of blocks or stages"):
        tuned(nn.Linear(2, 2), "last-block")


def test_adapters_need_a_transformer_and_peft(monkeypatch):
    network = tuned(Transformer(), "lora")
    assert {name.split(".attn")[0] for name in trained(network)} == {"blocks.2", "blocks.3"}  # 11/24 of four are two
    assert all("lora_" in name for name in trained(network))
    with pytest.raises(ValueError, match=r"'lora' needs a vision transformer .* choose 'last-block' or 'full'"):
        tuned(Convolutions(), "lora")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"LoRA needs peft: pip install"):
        tuned(Transformer(), "lora")


def test_statistics_of_frozen_layers_do_not_move():
    torch.manual_seed(0)
    for tune, moving in (("frozen", set()), ("last-block", {"blocks.2.1"}), ("full", None)):
        backbone = build_backbone("convolutions", tune=tune).train()
        before = {
            name: value.clone() for name, value in backbone.model.named_buffers() if name.endswith("running_mean")
        }
        backbone(torch.randn(4, 3, 16, 16))
        after = dict(backbone.model.named_buffers())
        moved = {name.rpartition(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
        assert moved == ({name.rpartition(".")[0] for name in before} if moving is None else moving)


def test_what_cannot_be_tuned():
    with pytest.raises(ValueError, match="tune is 'full', which goes with an encoder that has weights"):
        ModelConfig(tune="full")
    with pytest.raises(ValueError, match=r"model\.tune is 'some'"):
        update(RunConfig(), {"model": {"tune": "some"}})


def test_configurations_of_before_said_lora(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {backbone: uni, lora: true}\n")
    assert read_run_config(tmp_path / "config.yaml").model.tune == "lora" == preset("paper").model.tune
    assert update(preset("paper"), {"model": {"lora": False}}).model.tune == "frozen"
    (tmp_path / "config.yaml").write_text("model: {lora: false}\n")
    assert read_run_config(tmp_path / "config.yaml").model == ModelConfig(
        head="network", networks=1
    )  # nor had they another head


def start_run(name, tune, config, sections, place):
    """One epoch on a network whose weights lie in a file: the network as it was, that file, and the run's folder."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    weights = place / "w.pt"
    torch.save(network.state_dict(), weights)
    model = replace(config.model, backbone=name, weights=str(weights), tune=tune)
    config = replace(config, model=model, training=replace(config.training, epochs=1, averaging=0.0))
    fit(config, sections[:1], place / "run")
    return network, weights, RunFolder(place / "run")


@pytest.mark.parametrize(
    ("name", "tune"), [("convolutions", "last-block"), ("convolutions", "full"), ("transformer", "lora")]
)
def test_a_run_trains_and_keeps_its_part_of_the_encoder(name, tune, tiny_config, sections, tmp_path):
    network, weights, folder = start_run(name, tune, tiny_config, sections, tmp_path)
    before = dict(network.named_parameters())
    after = {
        key.replace("base_layer.", ""): value
        for key, value in load_run(folder.path, device="cpu").model.backbone.model.named_parameters()
    }
    same = {key for key, value in before.items() if torch.equal(value, after[key])}
    assert same == before.keys() - trained(tuned(NETWORKS[name](), tune))
    kept, started = (
        dict(each.named_buffers()) for each in (load_run(folder.path, device="cpu").model.backbone.model, network)
    )
    moved = {key for key, value in started.items() if "running" in key and not torch.equal(value, kept[key])}
    norms = {key for key in started if "running" in key}
    assert moved == (norms if tune == "full" else {key for key in norms if key.startswith("blocks.2.")})
    held = {key.removeprefix("model.backbone.model.") for key in torch.load(folder.best)["state_dict"]}
    assert not held & same  # weights of others are not passed on
    if tune == "full":  # all of it is in the checkpoint
        expected = predict_values(load_run(folder.path, device="cpu"), sections[2])
        weights.unlink()
        np.testing.assert_array_equal(predict_values(load_run(folder.path, device="cpu"), sections[2]), expected)
    else:
        torch.save({key: value + 1 for key, value in network.state_dict().items()}, weights)
        with pytest.raises(ValueError, match=r"w\.pt does not hold the weights that .* was trained with"):
            load_run(folder.path, device="cpu")


def test_a_checkpoint_that_lacks_what_was_trained_is_no_checkpoint(tiny_config, sections, tmp_path):
    """Frozen weights come from their file; all else must be there, to predict and to go on."""
    _, _, folder = start_run("convolutions", "last-block", tiny_config, sections, tmp_path)
    config = read_run_config(folder.config)
    write_config(replace(config, training=replace(config.training, epochs=2)), folder.config)
    folder.summary.unlink()
    for path in (folder.best, folder.last):
        stored = torch.load(path)
        del stored["state_dict"]["model.backbone.model.blocks.2.0.weight"]
        torch.save(stored, path)
    with pytest.raises(ValueError, match=r"blocks\.2\.0\.weight do not match"):
        load_run(folder.path, device="cpu")
    with pytest.raises(RuntimeError, match=r"Missing key.*blocks\.2\.0\.weight"):
        fit(config, sections[:1], folder.path, resume=True)


def test_the_names_are_those_of_the_command_line():
    assert get_args(Tune) == ("frozen", "last-block", "lora", "full")
