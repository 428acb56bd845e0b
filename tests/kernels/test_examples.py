"""The examples of the documentation: the loops train, and the large batch in chunks has the gradients of the whole."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import textbook
from hyperst_kernels import HyperbolicContrastiveLoss, LorentzLift, contrastive_loss

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@pytest.fixture(name="example")
def _example(monkeypatch):
    """Import an example by its name, as a script beside it would."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


@pytest.mark.parametrize("name", ["open_clip_loop", "meru_loop", "hycoclip_loop", "hierarchy_loop"])
def test_a_loop_lowers_its_loss_with_finite_gradients(name, example):
    torch.manual_seed(0)
    model, history = example(name).train(steps=40)
    # 0.44 to 0.69 over a few seeds, the least in the loops over boxes
    assert sum(history[-5:]) < 0.8 * sum(history[:5])
    learned = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learned.values())
    assert ("lift.log_curvature" in learned) == (name != "open_clip_loop")


def test_ranking_by_similarity_finds_the_pairs(example):
    torch.manual_seed(0)
    loop = example("open_clip_loop")
    model, _ = loop.train(steps=40)
    assert loop.recall_at_1(model) > 0.2  # chance is 1/64; over seeds 0.33 to 0.56


def test_the_meru_example_computes_the_textbook_loss(example):
    torch.manual_seed(0)
    model = example("meru_loop").Meru().double()
    image, text = example("toy").pairs(16)
    out = model(image.double(), text)
    images, texts = model.lift(model.visual(image.double()), "image"), model.lift(model.textual(text), "text")
    formula = textbook.contrastive_loss(images, texts, model.lift.curvature, model.logit_scale.exp())
    torch.testing.assert_close(out["contrastive"], formula)
    torch.testing.assert_close(out["loss"], out["contrastive"] + 0.2 * out["entailment"])


class Encoders(nn.Module):
    """Two encoders with dropout, and lifts with a learnable scale."""

    def __init__(self, toy, dropout: float):
        super().__init__()
        self.image = nn.Sequential(toy.image_encoder(8), nn.Dropout(dropout))
        self.text = nn.Sequential(toy.text_encoder(8), nn.Dropout(dropout))
        self.lift = LorentzLift(8, ("image", "text"), output="tangent")

    def forward(self, image, text):
        return self.lift(self.image(image), "image"), self.lift(self.text(text), "text")


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_in_chunks_are_those_of_the_full_batch(dropout, example):
    torch.manual_seed(0)
    large_batch, toy = example("large_batch"), example("toy")
    encoders = Encoders(toy, dropout).double()
    log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07), dtype=torch.float64))
    learned = [*encoders.parameters(), log_scale]

    def loss(image, text):
        return contrastive_loss(image, text, encoders.lift.curvature, log_scale.exp())

    image, text = toy.pairs(22)
    chunks = list(zip(image.double().split(8), text.split(8), strict=True))  # the last one is shorter
    torch.manual_seed(1)
    value = large_batch.backward_in_chunks(encoders, loss, chunks)
    torch.manual_seed(1)  # the same dropout, with every graph held at once
    seeds = torch.randint(2**62, (len(chunks),)).tolist()
    parts = [large_batch.embed(encoders, chunk, seed) for chunk, seed in zip(chunks, seeds, strict=True)]
    whole = [torch.cat(features) for features in zip(*parts, strict=True)]
    if not dropout:
        torch.testing.assert_close(whole, list(encoders(image.double(), text)))
    full = loss(*whole)
    torch.testing.assert_close(value, full)
    for parameter, expected in zip(learned, torch.autograd.grad(full, learned), strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-13)


def test_checkpointing_a_loss_keeps_its_gradients():
    """Activation checkpointing around the lift and the loss, which is recomputed in the backward pass."""
    torch.manual_seed(0)
    lift = LorentzLift(6, ("image", "text"), output="tangent").double()
    image, text = torch.randn(2, 20, 6, dtype=torch.float64)
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    leaves = [image.requires_grad_(), text.requires_grad_(), scale, *lift.parameters()]

    def lifted_loss(image, text, scale):
        loss = HyperbolicContrastiveLoss(curvature=lift.curvature)
        return loss(lift(image, "image"), lift(text, "text"), scale)

    plain = lifted_loss(image, text, scale)
    expected = torch.autograd.grad(plain, leaves)
    for reentrant in (False, True):
        value = torch.utils.checkpoint.checkpoint(lifted_loss, image, text, scale, use_reentrant=reentrant)
        for leaf in leaves:
            leaf.grad = None
        value.backward()
        torch.testing.assert_close(value, plain)
        torch.testing.assert_close([leaf.grad for leaf in leaves], list(expected), rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore")  # Lightning's advice: loaders without workers, no log steps
def test_the_lightning_loop_trains_and_ranks_in_two_processes(example, tmp_path):
    pytest.importorskip("lightning", reason="lightning is not installed")
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    module, metrics = example("lightning_loop").train(
        accelerator="cpu", strategy="ddp_spawn", devices=2, max_epochs=3, default_root_dir=tmp_path, **quiet
    )
    assert float(metrics["recall@1"]) > 0.15  # chance is 1/64
    assert module.lift.log_curvature.item() != 0
