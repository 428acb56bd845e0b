"""The benchmark of training: every moment is in a named span, spans change nothing, and operations are those that are counted."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("lightning", reason="hyperst's training needs the extra st")
from benchmarks import training, training_loops
from benchmarks.measure import AGAIN
from benchmarks.problem import OURS
from benchmarks.results import read_last
from benchmarks.training_products import RELEASED, TRIPLEX, Multiplications, products, resnet18
from benchmarks.training_spans import AFTER, BATCH, BEFORE, CHECKPOINTS, DECODING, LOOP, STEP, VALIDATION, Spans, traced
from hyperst.config import RunConfig, update
from hyperst.data import read_section
from hyperst.model import Alignment, AlignmentConfig, HyperST, ModelConfig
from hyperst.synthetic import write_tissue
from hyperst.train import fit

SMALL = update(
    RunConfig(),
    {
        "data": {"n_genes": 20},
        "crop": {"image_size": 32},
        "model": {"width": 16, "head": "network", "networks": 1},
        "training": {"batch_size": 8, "epochs": 1},
    },
)
LEARNT = {
    "convolutional backbone",
    "image encoders",
    "gene encoders",
    "prediction head",
    "prediction error",
    "alignment",
}
OF_STEP = {
    *(f"forward: {part}" for part in (*LEARNT, "backbone", "stain features")),
    *(f"backward: {part}" for part in (*LEARNT, "backbone", "losses joined")),
    *(BATCH, "orientation", "crops as normalised numbers", "items put together", "loader", "stain jitter", STEP),
    *("metrics added up", "gradients clipped", "optimizer", "moving average of the weights", LOOP),
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sections")
    return [write_tissue(folder, seed, n_rows=6, n_cols=6, n_genes=30) for seed in (1, 2)]


def test_every_moment_of_a_training_is_in_a_named_span_and_spans_change_nothing(paths, tmp_path, monkeypatch):
    sections = [read_section(path) for path in paths]
    plain = fit(SMALL, sections, tmp_path / "plain")
    ticks = itertools.count()
    monkeypatch.setattr(Spans, "_now", staticmethod(lambda: (float(tick := next(ticks)), float(tick))))
    with traced() as spans:
        spanned = fit(SMALL, sections, tmp_path / "traced")
    times = spans.taken()
    assert sum(wall for wall, _ in times.values()) == next(ticks) - 1
    assert set(times) == OF_STEP | {BEFORE, DECODING, VALIDATION, CHECKPOINTS}
    assert all(cpu == wall > 0 for wall, cpu in times.values())
    assert (spanned.validation_mse, spanned.validation_pcc) == (plain.validation_mse, plain.validation_pcc)


def test_of_nested_spans_the_innermost_counts_and_a_validation_is_one(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(Spans, "_now", staticmethod(lambda: (clock.now, 2 * clock.now)))

    def passing(seconds):
        clock.now += seconds

    spans = Spans()
    passing(1)
    with spans.span("outer"):
        passing(2)
        with spans.span("inner"):
            passing(4)
        passing(8)
    with spans.span(VALIDATION):
        spans.start("[LightningModule]TrainingStep.on_train_batch_end")
        passing(16)
        spans.stop("[LightningModule]TrainingStep.on_train_batch_end")
    assert spans.taken() == {BEFORE: (1, 2), "outer": (10, 20), "inner": (4, 8), VALIDATION: (16, 32)}
    spans.start("[Strategy]SingleDeviceStrategy.backward")
    passing(1)
    spans.backward_of("head", torch.ones(1))
    passing(2)
    spans.stop("[Strategy]SingleDeviceStrategy.backward")
    spans.backward_of("head", torch.ones(1))  # of a gradient that is taken elsewhere
    passing(4)
    taken = spans.taken()
    assert taken == {"backward: losses joined": (1, 2), "backward: head": (2, 4), BEFORE: (4, 8)}


@pytest.mark.parametrize("tracked", [False, True])
def test_the_products_of_a_step_are_those_that_pytorch_counts(tracked):
    width = 24
    model = HyperST(20, ModelConfig("precomputed", width=16), backbone_width=width)
    names = ("spot_expression", "niche_expression", "target")
    batch = {f"{level}_features": torch.randn(8, width, requires_grad=tracked) for level in ("spot", "niche")}
    batch |= {name: torch.randn(8, 20) for name in names}
    listed = products(model, batch)
    module = SimpleNamespace(model=model, alignment=Alignment(AlignmentConfig(), 16))
    assert sum(product.flops for product in listed) == training.count(module, batch)
    with FlopCounterMode(display=False) as counter:
        Multiplications(listed).steps(1)
    assert counter.get_total_flops() == sum(product.flops for product in listed)


def test_operations_of_triplex_are_those_of_its_layers():
    model = TRIPLEX[RELEASED]
    assert sum(resnet18(224)) == 1_813_561_344  # 1.814e9 with its classifier, as torchvision tells
    d, tokens = model.width, 25
    layer = nn.TransformerEncoderLayer(d, 16, model.mlp * d, batch_first=True, device="meta")
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(1, tokens, d, device="meta"))
    assert 2 * model._layer(tokens) == counter.get_total_flops()
    stem, rest = resnet18(224)
    assert model.flops([0], 1, 250) > 4 * stem + 6 * rest
    assert model.flops([100, 100], 128, 250) - model.flops([100], 128, 250) == pytest.approx(
        6 * model.whole * model._layer(100) / 128
    )


def test_the_command_measures_all_and_fills_the_page(paths, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "wide", lambda config: config)
    monkeypatch.setattr(training, "path_for", lambda: tmp_path / "results.csv")
    page = tmp_path / "training.md"
    page.write_text(training.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    named = [argument for path in paths for argument in ("--section", str(path))]
    training.main([*named, "--rounds", "1", "--docs", "--output", str(tmp_path / "rows.csv")], page, SMALL)
    found, _ = read_last(tmp_path / "rows.csv")
    assert found == read_last(tmp_path / "results-training.csv")[0]
    assert all(math.isfinite(row.median) and row.median >= 0 for row in found)
    steps = {row.provider for row in found if row.setting == "crops, step"}
    assert steps == OF_STEP
    assert {row.provider for row in found if row.setting == "crops, run"} == {BEFORE, DECODING, AFTER}
    ways = {setting: {row.provider for row in found if row.setting == setting} for setting in ("crops", "features")}
    assert ways["crops"] == {OURS, training_loops.PLAIN, training_loops.ALIKE, AGAIN}
    assert ways["features"] == {OURS, training_loops.PLAIN, training_loops.PRODUCTS, AGAIN}
    text, shown = page.read_text(encoding="utf-8"), capsys.readouterr().out
    printed = shown.strip().split("\n\n")
    assert len(printed) == 4
    assert all(table in text for table in printed)
    assert "Not measured yet" not in text


def test_sections_must_be_named_somewhere(monkeypatch):
    monkeypatch.delenv("HYPERST_DATA", raising=False)
    with pytest.raises(SystemExit, match="--section"):
        training.main([])
