"""Levels wider than the niche: their crops, expression, terms of the alignment, and runs of three levels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hyperst.cli import app
from hyperst.config import RunConfig, update
from hyperst.data import CropConfig, SpotDataset, crop_widths_px
from hyperst.data.dataset import normalise_image
from hyperst.data.niches import level_members, niche_members
from hyperst.model import Alignment, AlignmentConfig, HyperST, ModelConfig
from hyperst.model.alignment import contrastive_terms, entailment_terms
from hyperst.predict import predict_values
from hyperst.run import load_run
from hyperst.train import fit

LEVELS = ("spot", "niche", "region")
REGION = CropConfig(wider_um={"region": 616.0}, image_size=32)


def test_terms_of_three_levels_in_order():
    assert [(term.queries, term.keys, term.directions) for term in contrastive_terms("hierarchical", LEVELS)] == [
        ("image_spot", "gene_spot", "both"),
        ("image_niche", "gene_spot", "rows"),
        ("gene_niche", "image_spot", "rows"),
        ("image_region", "gene_niche", "rows"),
        ("gene_region", "image_niche", "rows"),
    ]
    cones = [(term.parent, term.child, term.eta) for term in entailment_terms("all", LEVELS)]
    assert cones == [
        ("image_spot", "gene_spot", 0.7),
        ("image_niche", "gene_niche", 0.7),
        ("image_region", "gene_region", 0.7),
        ("image_spot", "image_niche", 1.2),
        ("gene_spot", "gene_niche", 1.2),
        ("image_niche", "image_region", 1.2),
        ("gene_niche", "gene_region", 1.2),
    ]
    assert [(term.parent, term.child, term.eta) for term in entailment_terms("levels", LEVELS)] == cones[3:]
    for levels in (LEVELS[:2], LEVELS, (*LEVELS, "slide")):
        assert sum(term.weight for term in contrastive_terms("hierarchical", levels)) == pytest.approx(1)
        assert sum(term.weight for term in entailment_terms("all", levels)) == pytest.approx(2)


def test_the_alignment_of_three_levels_is_that_of_the_formulas():
    """In float64, written out: distances between lifted features, cross-entropy, exterior angles beyond apertures."""
    torch.manual_seed(0)
    features = {f"{modality}_{level}": torch.randn(9, 16) for modality in ("image", "gene") for level in LEVELS}
    parts = Alignment(AlignmentConfig(), 16, levels=LEVELS)(features)

    scale = 16**-0.5  # c is 1, the factor of the lift d^-1/2
    space = {}
    for name, values in features.items():
        v = values.double() * scale
        r = v.norm(dim=1, keepdim=True)
        space[name] = r.sinh() / r * v
    time = {name: (1 + x.square().sum(1)).sqrt() for name, x in space.items()}

    def align(queries, keys):
        inner = space[queries] @ space[keys].T - time[queries][:, None] * time[keys]
        return torch.nn.functional.cross_entropy(-torch.acosh(-inner) / 0.07, torch.arange(9))

    def entail(parent, child, eta):
        p, q = space[parent], space[child]
        z = (p * q).sum(1) - time[parent] * time[child]
        angle = torch.acos((time[child] + time[parent] * z) / (p.norm(dim=1) * (z.square() - 1).sqrt()))
        return (angle - eta * torch.asin(0.2 / p.norm(dim=1))).clamp(min=0).mean()

    hca = sum(
        term.weight
        * (align(term.queries, term.keys) + (align(term.keys, term.queries) if term.directions == "both" else 0))
        / (2 if term.directions == "both" else 1)
        for term in contrastive_terms("hierarchical", LEVELS)
    )
    hea = sum(term.weight * entail(term.parent, term.child, term.eta) for term in entailment_terms("all", LEVELS))
    # 9 x 9 logits of float32 up to about 60
    torch.testing.assert_close(parts["contrastive"].double(), hca, rtol=1e-5, atol=0)
    torch.testing.assert_close(parts["entailment"].double(), hea, rtol=1e-5, atol=0)
    torch.testing.assert_close(parts["loss"].double(), 0.2 * (hca + 0.4 * hea), rtol=1e-5, atol=0)


def test_each_level_has_its_own_encoders_and_every_parameter_is_trained():
    torch.manual_seed(0)
    two, three = (
        HyperST(7, ModelConfig(backbone="precomputed", width=16), levels=levels, backbone_width=12)
        for levels in (LEVELS[:2], LEVELS)
    )
    parts = [{name.split(".")[0] for name, _ in model.named_parameters()} for model in (two, three)]
    assert parts[0] == parts[1]
    new = {name.split(".")[0] for name, _ in three.named_parameters() if ".region." in name}
    assert new == {"image_projectors", "gene_projectors", "image_encoders", "gene_encoders"}
    assert three.head[1].in_features == 3 * 16
    batch = {f"{level}_features": torch.randn(6, 12) for level in LEVELS}
    batch |= {f"{level}_expression": torch.randn(6, 7) for level in LEVELS}
    outputs = three(batch)
    (
        outputs["prediction"].square().mean() + Alignment(AlignmentConfig(), 16, levels=LEVELS)(outputs)["loss"]
    ).backward()
    assert not [
        name for name, parameter in three.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]


def test_the_head_sees_the_levels_it_is_told():
    config = ModelConfig(backbone="precomputed", width=16, head_inputs=("region",))
    assert HyperST(7, config, levels=LEVELS, backbone_width=12).head[1].in_features == 16
    assert update(RunConfig(), {"crop": {"wider_um": {"region": 616}}, "model": {"head_inputs": ["region"]}})
    with pytest.raises(ValueError, match=r"head_inputs\.0 is 'region'; need one of 'spot', 'niche'"):
        update(RunConfig(), {"model": {"head_inputs": ["region"]}})


def test_the_expression_of_a_region_is_the_mean_over_the_spots_in_its_crop(sections):
    section = sections[0]
    members = level_members(section, "region", REGION).toarray().astype(bool)
    apart = np.abs(section.spot_px[:, None] - section.spot_px).max(axis=2)
    np.testing.assert_array_equal(members, apart <= 616 / section.grid.um_per_px / 2)
    assert (members >= niche_members(section).toarray().astype(bool)).all()
    item = SpotDataset([section], section.genes[:5], REGION)[40]
    wanted = np.log2(1 + section.counts.toarray()[members[40], :5].mean(axis=0, dtype=np.float64))
    np.testing.assert_allclose(item["region_expression"], wanted, rtol=1e-6)
    side = 616 / section.grid.um_per_px
    with section.open_image() as image:
        crop = image.read(*(section.spot_px[40] - side / 2), side, side, size=32)
    assert torch.equal(item["region_image"], normalise_image(crop))


def test_levels_that_cannot_be(sections):
    for wider, words in (
        ({"niche": 616.0}, "'niche' cannot be the name of a level"),
        ({"Region 1": 616.0}, "'Region 1' cannot be the name of a level"),
        ({"region": 616.0, "slide": 300.0}, "levels go from narrow to wide"),
    ):
        with pytest.raises(ValueError, match=words):
            CropConfig(wider_um=wider)
    section = sections[0]
    with pytest.raises(ValueError, match="level 'region' of 200 um is no wider than the niche, 255 um"):
        crop_widths_px(section.grid, section.spot_diameter_px, CropConfig(wider_um={"region": 200.0}))
    unknown = replace(section, grid=replace(section.grid, um_per_px=None))
    with pytest.raises(
        ValueError, match=r"um/px of the image are unknown; give mpp=\.\.\. \(--mpp\), or leave .* wider_um"
    ):
        crop_widths_px(unknown.grid, None, REGION)
    with pytest.raises(ValueError, match="level 'region' has a width in um"):
        level_members(unknown, "region", REGION)


def test_a_run_on_crops_of_three_levels(sections, tiny_config, tmp_path):
    config = replace(tiny_config, crop=REGION, training=replace(tiny_config.training, epochs=1, stain_jitter=0.2))
    fit(config, sections[:1], tmp_path / "run")
    run = load_run(tmp_path / "run", device="cpu")
    assert run.model.levels == LEVELS
    assert (run.config.crop.spot_um, run.config.crop.niche_um, run.config.crop.wider_um) == (112, 255, {"region": 616})
    found = predict_values(run, sections[2])
    for name in ("region", "niche"):  # what the head sees matters
        moved = replace(
            run.config.crop, **({"wider_um": {"region": 700.0}} if name == "region" else {"niche_um": 300.0})
        )
        other = predict_values(replace(run, config=replace(run.config, crop=moved)), sections[2])
        assert not np.array_equal(found, other)


def test_the_command_line_says_what_a_level_is(section_paths, tmp_path):
    for given, words in (
        (["--level", "region"], "is not of the form NAME=VALUE"),
        (["--level", "region=wide"], "is no width in um"),
        (["--level", "a=600", "--level", "a=700"], "is given twice"),
        (["--level-features", "region=x"], "goes with --features"),
    ):
        result = CliRunner().invoke(app, ["train", str(section_paths[0]), "-o", str(tmp_path / "run"), *given])
        assert result.exit_code == 2
        assert words in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())
