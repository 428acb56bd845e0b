"""HyperST as the paper describes it: sizes, initial losses, ablations, gradients."""

from __future__ import annotations

import statistics

import pytest
import torch
from einops import rearrange

from hyperst.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from hyperst.model import HyperST, ModelConfig
from hyperst.model.alignment import ABLATIONS, Alignment, AlignmentConfig
from hyperst.model.backbones import build_backbone

N_GENES, WIDTH = 200, 1024


def random_batch(b: int, width: int, n_genes: int) -> dict[str, torch.Tensor]:
    batch = {f"{level}_features": torch.randn(b, width) for level in ("spot", "niche")}
    return batch | {f"{level}_expression": 5 * torch.rand(b, n_genes) for level in ("spot", "niche")}


def test_parameter_count_of_the_paper():
    """53.13 M without backbone and LoRA at N = 200, d = w = 1024."""
    model = HyperST(N_GENES, ModelConfig(backbone="precomputed", width=WIDTH), backbone_width=WIDTH)
    total = sum(p.numel() for module in (model, Alignment(AlignmentConfig(), WIDTH)) for p in module.parameters())
    assert round(total / 1e6, 2) == 53.13


def test_initial_losses_of_the_paper():
    """|I_s| about 32, HCA 4.93 and HEA 4.81 at B = 128, within the spread over seeds."""
    found: dict[str, list[float]] = {"contrastive": [], "entailment": [], "norm": []}
    for seed in range(4):
        torch.manual_seed(seed)
        model = HyperST(N_GENES, ModelConfig(backbone="precomputed", width=WIDTH), backbone_width=WIDTH)
        alignment = Alignment(AlignmentConfig(), WIDTH)
        with torch.no_grad():
            outputs = model(random_batch(128, WIDTH, N_GENES))
            parts = alignment(outputs)
        found["contrastive"].append(float(parts["contrastive"]))
        found["entailment"].append(float(parts["entailment"]))
        found["norm"].append(float(outputs["image_spot"].norm(dim=1).mean()))
        report = alignment.report()
        assert report["effective_radius"] == pytest.approx(1, abs=0.05)
        assert report["effective_temperature"] == pytest.approx(0.07, rel=1e-5)
    for name, value, published_digits in (("contrastive", 4.93, 0.02), ("entailment", 4.81, 0.02), ("norm", 32, 0.5)):
        spread = 3 * statistics.stdev(found[name])
        assert abs(statistics.mean(found[name]) - value) <= spread + published_digits, name


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_trains_every_parameter_it_uses(name):
    torch.manual_seed(0)
    alignment_config, head = ABLATIONS[name]
    model = HyperST(7, ModelConfig(backbone="precomputed", width=16, head_inputs=head), backbone_width=12)
    alignment = Alignment(alignment_config, 16)
    batch = random_batch(6, 12, 7)
    outputs = model(batch)
    loss = torch.nn.functional.mse_loss(outputs["prediction"], batch["spot_expression"]) + alignment(outputs)["loss"]
    loss.backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    if name in ("full", "no_hea", "no_gene_image_hea", "euclidean", "spot_head", "niche_head"):
        assert not unused
    elif name == "no_hca_hea":
        assert unused
        assert all(n.startswith("gene") for n in unused)
    else:  # one level: genes of the niche take no part
        assert all("gene" in n and "niche" in n for n in unused)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_masked_neighbours_are_no_negatives():
    torch.manual_seed(0)
    features = {k: torch.randn(8, 4) for k in ("image_spot", "image_niche", "gene_spot", "gene_niche")}
    masked = Alignment(AlignmentConfig(mask_neighbours=True), 4)
    everyone_alike = masked(features, torch.zeros(8, dtype=torch.int64))
    assert float(everyone_alike["contrastive"]) == 0
    assert float(masked(features, torch.arange(8))["contrastive"]) > 0


def test_prediction_needs_the_image_alone_and_survives_autocast():
    torch.manual_seed(0)
    model = HyperST(5, ModelConfig(width=16), image_size=32).eval()
    batch = {"spot_image": torch.randn(3, 3, 32, 32), "niche_image": torch.randn(3, 3, 32, 32)}
    mean = torch.arange(5.0)
    model.initialise_output(mean)
    exact = model.predict(batch)
    assert torch.equal(exact, model(batch)["prediction"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.predict(batch)
    # a dozen layers, each rounding to 8 bits
    assert (rounded.float() - exact).abs().max() <= 12 * 2**-8 * (exact - mean).abs().max() + 4 * 2**-8


@pytest.mark.parametrize("name", ["conv", "stain", "conv+stain"])
def test_backbone_widths(name):
    backbone = build_backbone(name)
    features = backbone(torch.rand(2, 3, 64, 64))
    assert features.shape == (2, backbone.width)
    assert torch.isfinite(features).all()


def test_texture_of_stain_is_that_of_densities_averaged_over_squares_of_each_scale():
    images = torch.rand(2, 3, 32, 32)  # between the mean and brighter, where no density is cut off
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    density = -torch.log((images.double() * std + mean).clamp(0.02, 1))
    found = build_backbone("stain")(images).double()
    moments = torch.cat([density.flatten(2).mean(2), density.flatten(2).std(2)], dim=1)
    # a density is a logarithm of numbers near 1/2: as many roundings as a sum of 1024 of them may keep
    tolerance = {"rtol": 100 * torch.finfo(torch.float32).eps, "atol": 0.0}
    torch.testing.assert_close(found[:, :6], moments, **tolerance)
    for number, scale in enumerate((1, 2, 4, 8)):
        pooled = rearrange(density, "b c (h r) (w s) -> b c h w (r s)", r=scale, s=scale).mean(-1)
        spread = pooled.flatten(2).std(2)
        slope = pooled.diff(dim=2).abs().mean((2, 3)) + pooled.diff(dim=3).abs().mean((2, 3))
        start = 3 * (2 + 5 + 2 * number)
        torch.testing.assert_close(found[:, start : start + 6], torch.cat([spread, slope], dim=1), **tolerance)


def test_options_that_cannot_be():
    with pytest.raises(ValueError, match="cones need"):
        AlignmentConfig(geometry="cosine")
    with pytest.raises(ValueError, match="head_inputs"):
        HyperST(5, ModelConfig(head_inputs=("cell",)))
    with pytest.raises(ValueError, match="'conv', 'stain'"):
        build_backbone("resnet")
