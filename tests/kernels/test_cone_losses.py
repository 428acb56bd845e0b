"""The variants of the entailment loss in the documentation: against formulas in float64, and what each is for."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
import torch

import hyperst_kernels as hk

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@pytest.fixture(name="cones")
def _cones(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("cone_losses")


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Parents, and children of which the first half lies inside their cones."""
    torch.manual_seed(0)
    parent = torch.randn(20, 4, dtype=torch.float64)
    child = torch.cat([2 * parent[:10] + 0.01, torch.randn(10, 4, dtype=torch.float64)])
    return parent.requires_grad_(), child.requires_grad_()


def textbook_angle(parent: torch.Tensor, child: torch.Tensor, c: float) -> torch.Tensor:
    """Desai et al. 2023, equation 8, from points with their time."""
    x, y = hk.lift(hk.exp_map0(parent, c), c), hk.lift(hk.exp_map0(child, c), c)
    product = c * ((x[:, 1:] * y[:, 1:]).sum(1) - x[:, 0] * y[:, 0])
    return torch.acos((y[:, 0] + x[:, 0] * product) / (x[:, 1:].norm(dim=1) * (product**2 - 1).sqrt()))


def test_a_hinge_that_leaks_has_a_gradient_inside_the_cone(cones):
    parent, child = pairs()
    aperture = torch.asin((0.2 / (0.7**0.5 * hk.exp_map0(parent, 0.7).norm(dim=1))).clamp(max=1))
    beyond = textbook_angle(parent, child, 0.7) - 1.2 * aperture
    want = torch.where(beyond > 0, beyond, 0.3 * beyond)
    torch.testing.assert_close(cones.leaky(parent, child, 0.7, eta=1.2, leak=0.3), want, rtol=1e-7, atol=1e-9)
    hinge = hk.entailment_loss(parent, child, 0.7, input="tangent", reduction="none")
    torch.testing.assert_close(cones.leaky(parent, child, 0.7, leak=0.0), hinge)
    inside = hinge == 0
    assert inside[:10].all()
    assert not inside.all()
    (grad,) = torch.autograd.grad(cones.leaky(parent, child, 0.7).sum(), child)
    assert (grad[:10].norm(dim=1) > 0).all()
    (grad,) = torch.autograd.grad(hk.entailment_loss(parent, child, 0.7, input="tangent"), child)
    assert not grad[:10].any()


def test_a_weighted_angle_leaves_out_what_weighs_nothing(cones):
    parent, child = pairs()
    weights = torch.rand(20, dtype=torch.float64)
    weights[3] = 0
    want = (weights * textbook_angle(parent, child, 0.7)).sum() / weights.sum()
    found = cones.weighted_angle(parent, child, 0.7, weights)
    torch.testing.assert_close(found, want, rtol=1e-7, atol=1e-9)
    found.backward()
    assert not child.grad[3].any()
    assert (child.grad[:3].norm(dim=1) > 0).all()


def test_an_uncertain_relation_loses_its_weight(cones):
    """sigma goes to the loss of a relation, and a relation that is kept to gets the largest weight there is."""
    parent, child = (t.detach() for t in pairs())
    relations = {"kept": (parent[:10], child[:10]), "broken": (parent[10:], child[10:])}
    module = cones.UncertainEntailment(("kept", "broken")).double()
    steps = torch.optim.Adam(module.parameters(), 0.05)
    for _ in range(400):
        steps.zero_grad()
        module(relations, 0.7).backward()
        steps.step()
    loss = hk.entailment_loss(*relations["broken"], 0.7, input="tangent").item()
    sigma = {name: math.exp(p.item()) + module.smallest for name, p in module.log_sigma.items()}
    assert sigma["broken"] == pytest.approx(loss, rel=1e-3)
    assert sigma["kept"] < 2 * module.smallest
