"""Configurations survive YAML, refuse what they do not know, and name the remedy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperst.config import PRESETS, RunConfig, preset, read_config, read_run_config, update, with_ablation, write_config
from hyperst.model import ModelConfig

ABLATIONS = (
    "full",
    "no_gene_image_hea",
    "no_hea",
    "no_hca_hea",
    "euclidean",
    "meru",
    "clip",
    "spot_head",
    "niche_head",
)

OLD_RUN = """\
data:
  target: log1p_cp10k
  n_genes: 200
  gene_selection: hmhvg
  feature_key: uni
  cache_gib: 2.0
crop:
  spot_um: 112.0
  niche_um: 255.123
  image_size: 96
model:
  backbone: precomputed
  weights: null
  lora: false
  width: 256
  dropout: 0.1
  head_inputs:
  - niche
alignment:
  weight: 0.2
  entailment_weight: 0.4
  contrastive: spot
  entailment: none
  geometry: cosine
  mask_neighbours: false
training:
  epochs: 40
  batch_size: 32
  learning_rate: 1.0e-05
  weight_decay: 0.01
  gradient_clip: 1.0
  averaging: 0.98
  stain_jitter: 0.2
  patience: 10
  precision: 32-true
  accelerator: auto
  workers: 0
  validation_fraction: 0.15
  seed: 0
"""


@pytest.mark.parametrize("name", PRESETS)
def test_yaml_round_trip_of_presets(tmp_path, name):
    path = write_config(preset(name), tmp_path / "config.yaml")
    assert read_config(path) == preset(name)
    assert read_config(path, preset("paper")) == preset(name)


@given(
    epochs=st.integers(1, 500),
    rate=st.floats(1e-8, 1.0),
    genes=st.integers(1, 2000),
    spot_um=st.none() | st.floats(10, 500),
    target=st.sampled_from(["log2", "log1p_cp10k"]),
)
def test_yaml_round_trip_of_values(tmp_path_factory, epochs, rate, genes, spot_um, target):
    config = RunConfig()
    config = replace(
        config,
        data=replace(config.data, n_genes=genes, target=target),
        crop=replace(config.crop, spot_um=spot_um),
        training=replace(config.training, epochs=epochs, learning_rate=rate),
    )
    path = write_config(config, tmp_path_factory.mktemp("yaml") / "config.yaml")
    assert read_config(path) == config


def test_paper_preset_is_the_published_configuration():
    config = preset("paper")
    assert (config.training.batch_size, config.training.learning_rate, config.training.epochs) == (128, 1e-4, 200)
    assert (config.training.patience, config.training.gradient_clip) == (10, 1.0)
    assert (config.model.width, config.model.dropout, config.model.tune) == (1024, 0.1, "lora")
    assert config.model.backbone == "uni"
    assert (config.crop.image_size, config.data.n_genes) == (224, 200)
    assert (config.data.target, config.data.gene_selection) == ("log2", "hmhvg")
    assert (config.alignment.weight, config.alignment.entailment_weight) == (0.2, 0.4)


def test_default_runs_on_a_cpu_without_weights():
    config = RunConfig()
    assert (config.model.backbone, config.model.weights, config.model.width) == ("conv+stain", None, 256)
    assert (config.crop.image_size, config.data.target) == (96, "log1p_cp10k")


def test_a_partial_file_keeps_the_other_values(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("training:\n  learning_rate: 1e-4\n  seed: 7\n")  # YAML reads 1e-4 as text
    config = read_config(path, preset("paper"))
    assert config == replace(preset("paper"), training=replace(preset("paper").training, seed=7))


def test_an_empty_file_is_the_default(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert read_config(path) == RunConfig()


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("training: {epoch: 3}", ValueError, ["training.epoch", "did you mean 'epochs'"]),
        ("trianing: {epochs: 3}", ValueError, ["trianing", "'training'"]),
        ("training: {epochs: 0}", ValueError, ["training.epochs is 0", "at least 1"]),
        ("training: {epochs: many}", TypeError, ["training.epochs", "'many'", "int"]),
        ("training: {epochs: true}", TypeError, ["training.epochs", "int"]),
        ("training: {learning_rate: fast}", TypeError, ["training.learning_rate", "number"]),
        ("training: {validation_fraction: 1.5}", ValueError, ["validation_fraction is 1.5"]),
        ("training: 3", TypeError, ["training must be a mapping"]),
        ("data: {target: counts}", ValueError, ["data.target is 'counts'", "'log1p_cp10k'", "'log2'"]),
        ("data: {feature_key: uni}", ValueError, ["precomputed", "feature_key"]),
        ("crop: {spot_um: -3}", ValueError, ["spot_um"]),
        ("crop: {spot_um: .nan}", ValueError, ["crop.spot_um is nan", "finite"]),
        ("model: {lora: 1}", TypeError, ["model.lora is 1", "true or false"]),
        ("model: {head_inputs: spot}", TypeError, ["model.head_inputs must be a list, got 'spot'"]),
        ("model: {head_inputs: [cell]}", ValueError, ["model.head_inputs.0 is 'cell'", "'spot', 'niche'"]),
        ("model: {image_mean: [0.5, 0.5, 0.5]}", ValueError, ["image_mean and model.image_std go together"]),
        (
            "model: {image_mean: [0.5, 0.5, 0.5], image_std: [1, 1, 0]}",
            ValueError,
            ["model.image_std.2 is 0", "greater"],
        ),
        ("model: {timm_kwargs: 3}", TypeError, ["model.timm_kwargs"]),
        ("model: {head_inputs: []}", ValueError, ["model.head_inputs", "got none"]),
        ("training: {epochs: 0, patience: 0}", ValueError, ["training.epochs is 0", "training.patience is 0"]),
        ("training: {3: 4}", ValueError, ["unknown configuration key 'training.3'"]),
        ("- training", TypeError, ["the configuration must be a mapping"]),
        ("a: [", ValueError, ["not a YAML file"]),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path, text, kind, words):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(kind) as error:
        read_config(path)
    assert str(path) in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_an_encoder_of_timm_in_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "model: {backbone: 'timm:vit_tiny_patch16_224', timm_kwargs: {init_values: 1.0e-05, mlp_layer: SwiGLUPacked},"
        " image_mean: [0.5, 0.6, 0.7], image_std: [0.1, 0.2, 0.3]}\n"
    )
    model = read_config(path).model
    assert model.timm_kwargs == {"init_values": 1e-5, "mlp_layer": "SwiGLUPacked"}
    assert model.normalisation == ((0.5, 0.6, 0.7), (0.1, 0.2, 0.3))
    assert read_config(write_config(read_config(path), tmp_path / "again.yaml")) == read_config(path)


def test_a_dataclass_is_checked_as_it_is_made():
    with pytest.raises(ValueError, match="epochs"):
        replace(RunConfig().training, epochs=0)


def test_a_run_of_an_older_version_is_read(tmp_path):
    """Keys are those that runs had before pydantic checked them, with some keys at other values than the default."""
    path = tmp_path / "config.yaml"
    path.write_text(OLD_RUN)
    config = read_config(path)
    assert (config.crop.niche_um, config.training.learning_rate) == (255.123, 1e-5)
    assert (config.model.head_inputs, config.alignment) == (("niche",), with_ablation(RunConfig(), "clip").alignment)
    assert config.training == replace(RunConfig().training, learning_rate=1e-5)


def test_a_run_without_a_head_in_its_configuration_predicts_with_its_network(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(OLD_RUN)
    assert (read_run_config(path).model.head, RunConfig().model.head, preset("paper").model.head) == (
        "network",
        "both",
        "network",
    )


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        read_config(tmp_path / "absent.yaml")


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="'cpu', 'paper'"):
        preset("gpu")


def test_update_leaves_the_original_alone():
    config = RunConfig()
    changed = update(config, {"data": {"n_genes": 5}})
    assert (config.data.n_genes, changed.data.n_genes) == (200, 5)


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_is_selectable_and_survives_yaml(tmp_path, name):
    config = with_ablation(RunConfig(), name)
    assert read_config(write_config(config, tmp_path / "config.yaml")) == config
    assert (config == update(RunConfig(), {"model": {"head": "network", "networks": 1}})) == (name == "full")


def test_small_backbones_have_four_networks_and_others_one():
    assert [ModelConfig(name).n_networks for name in ("conv", "conv+stain", "stain", "uni")] == [6, 6, 1, 1]
    assert [ModelConfig(name, networks=2).n_networks for name in ("conv", "uni")] == [2, 2]
    assert (preset("paper").model.n_networks, with_ablation(RunConfig(), "full").model.n_networks) == (1, 1)


def test_head_ablations_choose_the_heads_input():
    assert tuple(with_ablation(RunConfig(), "spot_head").model.head_inputs) == ("spot",)
    assert tuple(with_ablation(RunConfig(), "niche_head").model.head_inputs) == ("niche",)


ROWS = {  # what each row of the table is about; the rest of the configuration is not its business
    "full": {"contrastive": "hierarchical", "entailment": "all", "geometry": "lorentz"},
    "no_gene_image_hea": {"entailment": "levels"},
    "no_hea": {"entailment": "none"},
    "no_hca_hea": {"contrastive": "none", "entailment": "none"},
    "euclidean": {"entailment": "none", "geometry": "euclidean"},
    "meru": {"contrastive": "spot", "entailment": "spot", "geometry": "lorentz"},
    "clip": {"contrastive": "spot", "entailment": "none", "geometry": "cosine"},
    "spot_head": {},
    "niche_head": {},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_its_own_fields_only(name):
    theirs = update(
        RunConfig(),
        {
            "alignment": {"weight": 0.7, "entailment_weight": 0.1, "mask_neighbours": True, "entailment": "none"},
            "model": {"width": 48, "head_inputs": ["niche"]},
            "training": {"epochs": 7},
        },
    )
    changed = with_ablation(theirs, name)
    heads = {"full": None, "spot_head": ("spot",)}
    model = {"head_inputs": heads.get(name, ("niche",)), "head": "network", "networks": 1}
    assert changed == update(theirs, {"alignment": ROWS[name], "model": model})


def test_an_ablation_on_the_command_line_keeps_the_alignment_of_the_file(section_paths, tmp_path):
    from typer.testing import CliRunner

    from hyperst.cli import app

    (tmp_path / "c.yaml").write_text("alignment: {weight: 0.5, mask_neighbours: true}\n")
    options = ["--config", tmp_path / "c.yaml", "--ablation", "clip", "--epochs", 1, "--n-genes", 6, "--width", 8]
    command = ["train", section_paths[0], "-o", tmp_path / "run", "--image-size", 16, *options]
    result = CliRunner().invoke(app, [str(each) for each in command])
    assert result.exit_code == 0, result.output
    stored = read_config(tmp_path / "run" / "config.yaml").alignment
    assert (stored.weight, stored.mask_neighbours) == (0.5, True)
    assert (stored.contrastive, stored.entailment, stored.geometry) == ("spot", "none", "cosine")


def test_unknown_ablation_lists_the_known_ones():
    with pytest.raises(ValueError, match="no_hea"):
        with_ablation(RunConfig(), "nothing")
