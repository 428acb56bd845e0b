"""Several terms in one set of launches: shared features, factors, unequal lengths, stripes of rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperst_kernels.gpu import contrastive, launch
from hyperst_kernels.gpu.contrastive import backward_blocks
from hyperst_kernels.gpu.contrastive.inputs import CANCELLED
from hyperst_kernels.operators.contrastive import contrastive_terms
from hyperst_kernels.reference import contrastive as reference
from hyperst_kernels.reference.contrastive import Pairing
from tests.kernels import examples
from tests.kernels.halves import moved_losses
from tests.kernels.triton import APPROXIMATE, DEVICE, INTERPRETED
from tests.kernels.triton.test_contrastive_kernel import BLOCK, VARIANTS, assert_close, views

# HyperST's: image spot, gene spot, image niche, gene niche
HYPERST = (Pairing(0, 1, True), Pairing(2, 1, False), Pairing(3, 0, False))
# features that own rows in several terms, or both sides of one
TANGLED = (Pairing(0, 1, True), Pairing(0, 3, False), Pairing(2, 1, True), Pairing(3, 3, True), Pairing(0, 2, False))
SCALE = 9.0
EPS = torch.finfo(torch.float32).eps
# In blocks, weights and points are sums of two bf16 numbers, each 2^-17 off; a pull is their difference down to 2^-4 of them.
PULL = {"blocks": 2 * 2.0**-13, "rows": 1e-4, "atomic": 1e-4}


def features(lengths, d, seed, radius=1.0, dtype=torch.float32):
    """Random vectors with the origin among them; 1 and 2, whose factors are the same, share a row: a near pair."""
    found = [views(n, n, d, seed + k, radius, "tangent", dtype)[k % 2] for k, n in enumerate(lengths)]
    found[1][-1] = found[2][0]
    return found


def step(compute, vectors, seed, dtype, **options):
    """Losses and gradients of features, factors, c and the logit scale, under a random upstream gradient."""
    factors = torch.tensor([0.5, 1, 1, 0.7], dtype=dtype)
    leaves = [*vectors, *(s.to(vectors[0].device) for s in (factors, *torch.tensor([0.8, SCALE], dtype=dtype)))]
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    rows, columns = compute(leaves[:-3], *leaves[-3:], **options)
    upstream = upstream_of(rows, seed)
    loss = (rows * upstream[0]).sum() + (columns * upstream[1]).sum()
    grads = torch.autograd.grad(loss, leaves, materialize_grads=True)
    return [t.detach().cpu() for t in (rows, columns, *grads)]


def upstream_of(rows, seed):
    return torch.randn(2, *rows.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(rows)


def fused(vectors, pairings, seed, variant, geometry="lorentz", ids=None):
    wide = torch.float64 if vectors[0].dtype == torch.float64 else torch.float32
    options = {"pairings": pairings, "input": "tangent", "geometry": geometry, "atomic": variant == "atomic"}
    options["exclude_ids"] = None if ids is None else ids.to(DEVICE)
    with launch.forced("contrastive backward", VARIANTS[variant]):
        return step(contrastive_terms, [x.to(DEVICE) for x in vectors], seed, wide, **options)


def exactly(vectors, pairings, seed, geometry="lorentz", ids=None):
    options = {"pairings": pairings, "geometry": geometry, "exclude_ids": ids}
    return step(reference.hierarchy_terms, [x.double() for x in vectors], seed, torch.float64, **options)


@pytest.fixture
def small(monkeypatch):
    """Several blocks of weights, stripes of rows and strips of columns."""
    monkeypatch.setattr(contrastive, "BLOCK", BLOCK)
    monkeypatch.setattr(backward_blocks, "BLOCK", BLOCK)
    monkeypatch.setattr(contrastive, "WORKSPACE", 1)
    monkeypatch.setattr(contrastive, "SUMS", 1)


@pytest.mark.any_arithmetic
@pytest.mark.parametrize(
    ("geometry", "variant"), [*(("lorentz", v) for v in VARIANTS), ("euclidean", "rows"), ("cosine", "blocks")]
)
def test_float64_in_every_geometry(geometry, variant, small):
    vectors = features([n * BLOCK // 64 for n in (66, 72, 70, 68)], 11, 0, dtype=torch.float64)
    if geometry == "cosine":  # whose gradient at the origin means nothing
        vectors = [x + 0.1 * (x == 0).all(1, keepdim=True) for x in vectors]
    exact = exactly(vectors, TANGLED, 1, geometry)
    found = fused(vectors, TANGLED, 1, variant, geometry)
    if geometry == "cosine":  # which does not depend on the factors
        assert found.pop(-3).abs().max() <= 1e-11 * len(vectors[0])
        exact.pop(-3)
    for got, want in zip(found, exact, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11 * float(want.abs().max()))


@settings(max_examples=examples(5 if INTERPRETED else 60), deadline=None)
@given(
    n=st.sampled_from([1, 9, 33]),
    more=st.sampled_from([0, 40]),
    d=st.sampled_from([3, 5]),
    seed=st.integers(0, 2**31),
    radius=st.sampled_from([1e-2, 1.0, 20.0]),
    excluding=st.booleans(),
    variant=st.sampled_from([*VARIANTS]),
)
def test_float32_against_the_float64_reference(n, more, d, seed, radius, excluding, variant):
    vectors = features([n + more * (k < 2) for k in range(4)], d, seed, radius)
    pairings = [Pairing(2, 0, True), Pairing(3, 1, False), Pairing(3, 0, False)] if more else HYPERST
    ids = torch.randint(0, 9, (n + more,), generator=torch.Generator().manual_seed(seed)) if excluding else None
    exact, found = exactly(vectors, pairings, seed, ids=ids), fused(vectors, pairings, seed, variant, ids=ids)
    # features have roundings of their own, and so have their products with a factor
    ends = [torch.nextafter(x, torch.full_like(x, torch.inf)) for x in vectors]
    moved = [exactly([*vectors[:k], ends[k], *vectors[k + 1 :]], pairings, seed, ids=ids) for k in range(4)]
    if APPROXIMATE:
        moved += moved_losses(lambda: exactly(vectors, pairings, seed, ids=ids), CANCELLED[torch.float32])
    for k in (2, 4):
        of_two = [[*results[:2], *results[k : k + 2]] for results in (found, exact, *moved)]
        # the pulls on the one row of a batch of one nearly cancel, and each has the rounding of a logit s d
        upstream, cancelling = upstream_of(found[0], seed), EPS * SCALE * 2 * radius
        assert_close(*of_two[:2], of_two[2:], SCALE, radius, upstream, PULL[variant], cancelling)
    # sums over all pairs, whose terms have both signs
    rounding, size = EPS * SCALE * (64 + 8 * radius), sum(float(g.norm(dim=1).sum()) for g in exact[2:6]) * radius + 1
    for i in (6, 7, 8):
        known = 2 * sum((other[i] - exact[i]).abs().max() for other in moved)
        assert (found[i] - exact[i]).abs().max() <= (1e-5 + rounding) * size + known


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_in_stripes(variant, small):
    vectors = features([n * BLOCK // 32 - 20 for n in (40, 50, 50, 45)], 24, 2, dtype=torch.bfloat16)
    exact, found = exactly(vectors, HYPERST[:2], 1), fused(vectors, HYPERST[:2], 1, variant)
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-4, atol=1e-4)
    for got, want in zip(found[2:6], exact[2:6], strict=True):
        assert got.dtype == torch.bfloat16
        # sums of rounded weights, and the rounding of the result
        assert (got.double() - want).norm(dim=1).max() <= 4 * 2**-7 * want.norm(dim=1).max()


@pytest.mark.parametrize("variant", ["blocks", "rows"])
def test_the_same_bits_twice_and_as_terms_of_their_own(variant):
    vectors = features((40, 40, 40, 40), 3, 7)
    found, again = (fused(vectors, HYPERST, 1, variant) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    for t, pairing in enumerate(HYPERST):
        alone = fused(vectors, [pairing], 1, variant)
        assert torch.equal(alone[0][0], found[0][t])
        assert torch.equal(alone[1][0], found[1][t])
