"""Terms of a small batch in few native calls, against the float64 reference and the code for batches of any size."""

from __future__ import annotations

import math

import pytest
import torch

from hyperst_kernels import HierarchicalAlignmentLoss, hierarchical_contrastive_loss, use_reference
from hyperst_kernels.contrastive import Term
from hyperst_kernels.cpu import small_batch
from hyperst_kernels.cpu.native import bindings
from tests.kernels.instruction_sets import instruction_set  # noqa: F401

pytestmark = [
    pytest.mark.skipif(bindings.library() is None, reason="the package was installed without a compiler"),
    pytest.mark.usefixtures("instruction_set"),
]
NAMES = ("image_spot", "gene_spot", "image_niche", "gene_niche")


def features(n, d, radius=1.0):
    generator = torch.Generator().manual_seed(n + d)
    return {name: radius * torch.randn(n, d, generator=generator) / math.sqrt(d) for name in NAMES}


@pytest.fixture
def taken(monkeypatch):
    """What the calls gave: None where they left the batch to others."""
    found = []
    for name in ("forward", "backward"):
        compute = getattr(small_batch, name)

        def recorded(*args, compute=compute):
            found.append(compute(*args))
            return found[-1]

        monkeypatch.setattr(small_batch, name, recorded)
    return found


def run(vectors, dtype, ids, input="tangent", scale=14.0):
    """Every number that the loss returns, and gradients by features, curvature and logit scale."""
    leaves = [x.to(dtype).clone().requires_grad_() for x in (*vectors.values(), torch.tensor(0.8), torch.tensor(scale))]
    loss = HierarchicalAlignmentLoss(input=input)
    parts = loss(dict(zip(NAMES, leaves, strict=False)), *leaves[4:], exclude_ids=ids)
    return [x.detach() for x in parts.values()], torch.autograd.grad(parts["loss"], leaves)


def assert_close(ours, exact, tolerance=2.0**-17):
    """Relative to the largest of the numbers, and of the gradients: a scalar's is a sum of terms of both signs."""
    for got, want in zip(ours, exact, strict=True):
        size = max((float(w.norm()) for w in want), default=0)
        for one, other in zip(got, want, strict=True):
            assert (one - other).norm() <= tolerance * size


@pytest.mark.parametrize("input", ["tangent", "lorentz"])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 5), (50, 17), (260, 11)])
def test_matches_the_reference(n, d, input, taken):
    vectors, ids = features(n, d), torch.arange(n) // 2
    ours, again = run(vectors, torch.float32, ids, input), run(vectors, torch.float32, ids, input)
    assert len(taken) == 4
    assert None not in taken
    with use_reference():
        exact = run(vectors, torch.float64, ids, input)
    assert_close(ours, exact)
    assert all(torch.equal(a, b) for a, b in zip((*ours[0], *ours[1]), (*again[0], *again[1]), strict=True))


@pytest.mark.parametrize("spoilt", ["duplicates", "far", "steep"])
def test_leaves_to_others_what_float32_products_do_not_hold(spoilt, taken):
    vectors = features(40, 12, 30.0 if spoilt == "far" else 1.0)
    if spoilt == "duplicates":
        vectors["gene_spot"][3] = vectors["image_spot"][9]
    if spoilt == "far":
        vectors["gene_spot"][0] *= 60 / vectors["gene_spot"][0].norm()
    scale = 2.0**31 if spoilt == "steep" else 14.0
    ours = run(vectors, torch.float32, None, scale=scale)
    assert taken == [None, None]
    with use_reference():
        exact = run(vectors, torch.float64, None, scale=scale)
    assert_close(ours, exact)


def test_more_keys_than_queries_and_factors(taken):
    queries, keys = torch.randn(2, 20, 6).unbind()
    keys = torch.cat([keys, torch.randn(11, 6)])
    leaves = [x.clone().requires_grad_() for x in (queries, keys, torch.tensor(0.5), torch.tensor(0.7))]

    def loss(queries, keys, one, other):
        terms = [Term(queries, keys, 0.5, directions, one, other) for directions in ("both", "rows")]
        return hierarchical_contrastive_loss(terms, 0.8, 9.0)[0]

    ours = torch.autograd.grad(loss(*leaves), leaves)
    assert len(taken) == 2
    assert None not in taken
    with use_reference():
        wide = [x.detach().double().requires_grad_() for x in leaves]
        exact = torch.autograd.grad(loss(*wide), wide)
    assert_close(([], ours), ([], exact))


def test_is_the_same_from_run_to_run_on_several_threads():
    vectors, before = features(128, 20), torch.get_num_threads()
    alone = run(vectors, torch.float32, None)
    try:
        torch.set_num_threads(3)
        first, *others = [run(vectors, torch.float32, None) for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    assert_close(first, alone)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip((*first[0], *first[1]), (*other[0], *other[1]), strict=True))


def test_losses_of_terms_can_be_changed_in_place():
    """They are no views of one tensor, which autograd would refuse to have changed."""
    a, b = (torch.randn(8, 4, requires_grad=True) for _ in range(2))
    _, losses = hierarchical_contrastive_loss([Term(a, b), Term(b, a, directions="rows")])
    for loss in losses:
        loss *= 2
    sum(losses).backward()
    assert torch.isfinite(a.grad).all()
