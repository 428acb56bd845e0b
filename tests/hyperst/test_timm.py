"""Backbones of timm. `make test` is without timm, which brings torchvision; `make timm` runs these tests with both."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks.torchvision_of_another_build import prepare_torchvision
from hyperst.model import build_backbone


@pytest.fixture
def timm():
    """timm, also beside a torchvision of another build than PyTorch."""
    prepare_torchvision()
    return pytest.importorskip("timm", reason="timm is not installed; `make timm` runs these tests with it")


@pytest.mark.usefixtures("timm")
def test_timm_backbone_with_lora_trains_adapters_only(tmp_path):
    torch.manual_seed(0)
    options = {"image_size": 32}
    plain = build_backbone("timm:vit_tiny_patch16_224", **options)
    assert not any(p.requires_grad for p in plain.parameters())
    adapted = build_backbone("timm:vit_tiny_patch16_224", tune="lora", **options)
    trained = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in n for n in trained)
    assert {int(n.split("blocks.")[1].split(".")[0]) for n in trained} == set(range(6, 12))  # last 11/24 of 12 blocks
    weights = tmp_path / "weights.pt"
    torch.save(plain.model.state_dict(), weights)
    loaded = build_backbone("timm:vit_tiny_patch16_224", weights=str(weights), **options)
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.eval()(image), plain.eval()(image))
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        build_backbone("timm:vit_tiny_patch16_224", weights=str(tmp_path / "none.pt"), **options)


@pytest.mark.usefixtures("timm")
def test_an_unknown_model():
    with pytest.raises(ValueError, match="timm knows no model 'no_such_model'"):
        build_backbone("timm:no_such_model")


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"hyperst-kernels\[timm\]"):
        build_backbone("timm:vit_tiny_patch16_224")


def test_with_a_torchvision_of_another_build(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(ImportError, match="torchvision of the same build as PyTorch"):
        build_backbone("timm:vit_tiny_patch16_224")
