"""The picture of hyperbolic space, and what an evaluation leaves for it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from hyperst.evaluation_space import KINDS, hyperbolic_space, read_space, write_space
from hyperst.poincare import disk_layout, distances_in_disk, normalised_stress
from hyperst.run import load_run
from hyperst_kernels import half_aperture, lorentz_to_poincare, pairwise_distance
from hyperst_kernels.maps import exp_map0


def test_points_of_a_plane_are_placed_without_stress():
    """Two dimensions turned into sixteen: all distances come back."""
    torch.manual_seed(0)
    flat = torch.randn(40, 2, dtype=torch.float64)
    turned = flat @ torch.linalg.qr(torch.randn(16, 2, dtype=torch.float64))[0].T
    places, stress = disk_layout(turned, 0.7)
    assert stress < 1e-7
    known = lorentz_to_poincare(exp_map0(flat, 0.7), 0.7) * 0.7**0.5
    apart = [torch.cdist(each, each) for each in (places, known)]
    torch.testing.assert_close(*apart, rtol=1e-6, atol=1e-7)


def test_radii_are_kept_and_stress_is_lessened():
    torch.manual_seed(0)
    tangent = torch.randn(60, 12, dtype=torch.float64) * 0.4
    c = 2.0
    places, stress = disk_layout(tangent, c)
    radius = tangent.norm(dim=1) * c**0.5
    torch.testing.assert_close(2 * places.norm(dim=1).atanh(), radius)
    wanted = pairwise_distance(tangent, tangent, c, input="tangent") * c**0.5
    angle = torch.atan2(places[:, 1], places[:, 0])
    assert normalised_stress(distances_in_disk(radius, angle), wanted) == pytest.approx(stress, rel=1e-9)
    axes = torch.linalg.svd(tangent, full_matrices=False)[2][:2]
    start = torch.atan2(*(tangent @ axes.T).T.flip(0))
    assert stress < 0.95 * normalised_stress(distances_in_disk(radius, start), wanted)


def test_the_aperture_of_a_drawn_cone_is_that_of_the_space():
    """space.js draws asin(2 K / sinh(radius)) with K = 0.1."""
    tangent = torch.tensor([[0.05, 0.0], [0.3, 0.4], [2.0, 0.0]], dtype=torch.float64)
    sinh = (tangent.norm(dim=1) * 0.7**0.5).sinh()
    torch.testing.assert_close(half_aperture(tangent, 0.7, input="tangent"), (0.2 / sinh).clamp(max=1).asin())


@pytest.fixture(scope="module")
def run(trained):
    return load_run(trained, device="cpu")


def test_a_section_has_four_places_for_each_spot(run, sections, tmp_path):
    write_space(run, sections[2], tmp_path)
    found = read_space(tmp_path)
    n = len(found["spots"])
    assert n == sections[2].n_spots
    assert set(found["kinds"]) == set(KINDS)
    for each in found["kinds"].values():
        places = np.asarray(each["places"])
        assert places.shape == (n, 2)
        # four decimals of both
        np.testing.assert_allclose(2 * np.arctanh(np.linalg.norm(places, axis=1)), each["radius"], atol=2e-3)
    sizes = np.bincount(found["cluster"])[1:]
    assert list(sizes) == sorted(sizes, reverse=True)
    assert next((each["parent"], each["child"]) for each in found["cones"]) == ("image_spot", "gene_spot")
    assert all(0 <= each["inside"] <= 1 for each in found["cones"])
    assert 0 <= found["stress"] < 1


def test_where_there_is_no_space_none_is_drawn(run, sections, tmp_path):
    config = replace(run.config, alignment=replace(run.config.alignment, entailment="none", geometry="euclidean"))
    assert hyperbolic_space(replace(run, config=config), sections[2]) is None
    lacking = replace(run, genes=[*run.genes[:-1], "not measured"])
    (tmp_path / "space.json").write_text("{}")
    write_space(lacking, sections[2], tmp_path)
    assert not (tmp_path / "space.json").exists()


@pytest.mark.parametrize("content", ["", "{}", "[1]", json.dumps({"kinds": {}, "cluster": [], "spots": []})])
def test_a_damaged_space_is_named(tmp_path, content):
    (tmp_path / "space.json").write_text(content)
    with pytest.raises(ValueError, match=r"space\.json is damaged"):
        read_space(tmp_path)
