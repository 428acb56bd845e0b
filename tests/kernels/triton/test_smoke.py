"""Every kernel and every variant of the loss once, at sizes that compile more than they compute: the first look at a device."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

import hyperst_kernels as hk
from benchmarks.cases import CASES, ROW_WISE, C
from hyperst_kernels.entailment import entailment_hinges
from hyperst_kernels.reference.contrastive import Pairing
from tests.kernels import test_distance_matrix
from tests.kernels.triton import DEVICE, INTERPRETED, test_hierarchy
from tests.kernels.triton import test_contrastive_kernel as loss

pytestmark = pytest.mark.smoke

# of norms of values and of gradients, at radius 0.3 to 0.8, where nothing cancels
RELATIVE = {torch.float32: 1e-5, torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps, torch.float64: 1e-12}
# of pairwise distances and their gradient, at unit radius
PRECISIONS = {"ieee": 5e-5, "bf16x3": 5e-5, "tf32": 5e-3, "bf16": 0.1}
# on a device whole tiles inside and cut ones at the ends; the interpreter pays per pair and feature
N, M, D = (12, 14, 8) if INTERPRETED else (300, 450, 24)


def vectors(count, dtype, seed=0, n=50, d=33):
    g = torch.Generator().manual_seed(seed)
    radius = 0.3 + 0.5 * torch.rand(count, n, 1, generator=g)
    return [x.to(dtype) for x in radius * F.normalize(torch.randn(count, n, d, generator=g), dim=2)]


def assert_same(compute, exactly, inputs, dtype):
    """Value and gradients on the device against those of float64."""

    def run(function, leaves):
        leaves = [x.requires_grad_() for x in leaves]
        value = function(*leaves)
        upstream = torch.rand(value.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(value)
        return [value, *torch.autograd.grad(value, leaves, upstream, materialize_grads=True)]

    ours = run(compute, [x.clone().to(DEVICE) for x in inputs])
    for got, want in zip(ours, run(exactly, [x.double() for x in inputs]), strict=True):
        assert (got.detach().cpu().double() - want).norm() <= RELATIVE[dtype] * want.norm()


def referred(function):
    def compute(*leaves):
        with hk.use_reference():
            return function(*leaves)

    return compute


def scalars(values, dtype):
    return [torch.tensor(v, dtype=torch.float64 if dtype == torch.float64 else torch.float32) for v in values]


@pytest.mark.parametrize("operator", sorted({case.operator for case in CASES.values()}))
def test_rows(operator):
    for case, dtype in itertools.product(CASES.values(), RELATIVE):
        if case.operator == operator:
            inputs = [*vectors(len(case.vectors(1, 1, 0, 1.0)), dtype), *scalars((*case.scalars, C), dtype)]
            compute, exactly = ROW_WISE[operator].operator, ROW_WISE[operator].portable
            assert_same(lambda *x: compute(*x, *case.flags), lambda *x: exactly(*x, *case.flags), inputs, dtype)  # noqa: B023


def test_cone_hinges():
    for input, dtype in itertools.product(("tangent", "lorentz"), RELATIVE):

        def hinges(x, y, z, c):
            return entailment_hinges([(x, y, 0.7), (y, z, 1.2)], c, 0.1, input)  # noqa: B023

        assert_same(hinges, referred(hinges), [*vectors(3, dtype), *scalars([C], dtype)], dtype)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_pairs(precision):
    """In float32, with pairs that coincide."""
    n, d = (20, 16) if INTERPRETED else (70, 64)
    x, y = (F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(k)), dim=1) for k in range(2))
    y[:9] = x[:9]
    upstream = torch.rand(n, n, generator=torch.Generator().manual_seed(2))
    for tangent in (True, False):
        found = test_distance_matrix.on_backend(x, y, upstream, tangent, precision)
        for got, want in zip(found, test_distance_matrix.exactly(x, y, upstream, tangent), strict=True):
            torch.testing.assert_close(got.double(), want, rtol=0, atol=PRECISIONS[precision] * float(want.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_pairs_of_other_dtypes(dtype):
    x, y = vectors(2, dtype, n=20)
    y[:9] = x[:9]
    upstream = torch.rand(20, 20, generator=torch.Generator().manual_seed(2))
    for tangent in (True, False):

        def distances(x, y, c):
            return hk.pairwise_distance(x, y, c, input=test_distance_matrix.NAMES[tangent])  # noqa: B023

        want = test_distance_matrix.exactly(x, y, upstream, tangent)
        found = test_distance_matrix.run(distances, x.to(DEVICE), y.to(DEVICE), upstream)
        error = RELATIVE[dtype] if dtype == torch.bfloat16 else 1e-9
        for got, exact in zip(found, want, strict=True):
            torch.testing.assert_close(got.double(), exact, rtol=0, atol=error * float(exact.abs().max()))


def sides(geometry, dtype):
    queries, keys = loss.views(N, M, D, 0, 1.0, "tangent", dtype)
    if geometry == "cosine":  # whose gradient at the origin means nothing
        queries[2], keys[8] = 1, -1
    g = torch.Generator().manual_seed(1)
    return queries, keys, torch.randint(0, 30, (M,), generator=g), torch.randn(2, N, generator=g)


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean", "cosine"])
@pytest.mark.parametrize("variant", loss.VARIANTS)
def test_loss(variant, geometry):
    """In float32, over one and both directions, with and without pairs that are left out."""
    queries, keys, ids, upstream = sides(geometry, torch.float32)
    for directions, exclude_ids in itertools.product(("both", "rows"), (None, ids)):
        options = {"geometry": geometry, "directions": directions, "exclude_ids": exclude_ids}
        exact = loss.exactly(queries, keys, 14.0, upstream, **options)
        ends = [torch.nextafter(x, torch.full_like(x, torch.inf)) for x in (queries, keys)]
        moved = [loss.exactly(*pair, 14.0, upstream, **options) for pair in ((ends[0], keys), (queries, ends[1]))]
        moved += loss.moved_by_product(queries, keys, 14.0, upstream, **options)
        found = loss.fused(queries, keys, 14.0, upstream, variant, **options)
        loss.assert_close(found, exact, moved, 14.0, 1.0, upstream)


OTHERS = [*((variant, torch.bfloat16) for variant in loss.VARIANTS), ("blocks", torch.float64)]


@pytest.mark.parametrize(("variant", "dtype"), OTHERS, ids=str)
def test_loss_in_other_dtypes(variant, dtype):
    queries, keys, ids, upstream = sides("lorentz", dtype)
    for directions, exclude_ids in (("both", None), ("rows", ids)):
        options = {"directions": directions, "exclude_ids": exclude_ids}
        exact = loss.exactly(queries, keys, 14.0, upstream, **options)
        found = loss.fused(queries, keys, 14.0, upstream, variant, **options)
        half = dtype == torch.bfloat16
        for got, want in zip(found[:2], exact[:2], strict=True):
            torch.testing.assert_close(got.double(), want, **({"rtol": 1e-4, "atol": 1e-4} if half else {}))
        for got, want in zip(found[2:4], exact[2:4], strict=True):
            error = (got.double() - want).norm(dim=1).max() / want.norm(dim=1).max()
            assert error <= (4 * torch.finfo(dtype).eps if half else 1e-9)


@pytest.mark.parametrize(("variant", "dtype"), OTHERS, ids=str)
def test_terms_of_a_hierarchy(variant, dtype):
    """Two symmetric terms and a row-only one that share features."""
    pairings = (Pairing(0, 1, True), Pairing(2, 1, True), Pairing(3, 0, False))
    features = test_hierarchy.features((N, N, N, N), D, 0, dtype=dtype)
    exact = test_hierarchy.exactly(features, pairings, 1)
    found = test_hierarchy.fused(features, pairings, 1, variant)
    for got, want in zip(found[2:6], exact[2:6], strict=True):
        assert got.dtype == dtype
        error = (got.double() - want).norm(dim=1).max() / want.norm(dim=1).max()
        assert error <= (4 * torch.finfo(dtype).eps if dtype == torch.bfloat16 else 1e-9)


def test_public_losses():
    """What users call, as the launch table has it."""
    leaves = [x.requires_grad_() for x in (*vectors(4, torch.float32, n=N), *scalars([C, 14.0], torch.float32))]

    def total(image, gene, image_niche, gene_niche, c, scale):
        niches = [hk.Term(image_niche, gene, 0.25, "rows"), hk.Term(gene_niche, image, 0.25, "rows", 0.9)]
        hierarchy, _ = hk.hierarchical_contrastive_loss([hk.Term(image, gene, 0.5), *niches], c, scale)
        return hierarchy + hk.contrastive_loss(image, gene, c, scale)

    def run(function, leaves):
        leaves = [x.detach().requires_grad_() for x in leaves]
        value = function(*leaves)
        return [x.detach().cpu().double() for x in (value, *torch.autograd.grad(value, leaves))]

    value, *grads = run(total, [x.to(DEVICE) for x in leaves])
    exact, *wanted = run(referred(total), [x.double() for x in leaves])
    torch.testing.assert_close(value, exact, rtol=1e-4, atol=0)
    pulls = sum(float(g.norm(dim=1).sum()) for g in wanted[:4])  # which cancel in the gradients of c and the scale
    for got, want in zip(grads, wanted, strict=True):
        assert (got - want).norm() <= (5e-4 * want.norm() if want.ndim else 1e-4 * pulls)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("geometry", ["lorentz", "angle"])
def test_losses_of_all_pairs(geometry, dtype):
    """Several positives and other targets, with a scale of each query, and the sigmoid loss, of vectors some of which are near."""
    queries, keys = vectors(2, dtype, n=N)
    keys[:3] = queries[:3] * 1.001
    ids = torch.arange(N) % 5
    each = torch.linspace(5, 9, N, dtype=dtype)
    targets = {"label_smoothing": 0.1, "debias": 0.01, "margin": 0.05}
    ways = {"positives": (ids, ids)}, {"loss": "sigmoid"}, targets
    for input, options in itertools.product(("tangent", "lorentz"), ways):

        def value(x, y, c, scale):
            own = {name: tuple(t.to(x.device) for t in o) if name == "positives" else o for name, o in options.items()}  # noqa: B023
            return hk.contrastive_loss(x, y, c, scale, geometry=geometry, input=input, **own)  # noqa: B023

        leaves = [queries, keys, *scalars([C], dtype), each]
        found, exact = [], []
        for function, given, kept in (
            (value, [x.to(DEVICE) for x in leaves], found),
            (referred(value), [x.double() for x in leaves], exact),
        ):
            given = [x.detach().requires_grad_() for x in given]
            loss_ = function(*given)
            kept += [loss_, *torch.autograd.grad(loss_, given)]
        size = float(sum(g.norm() for g in exact[1:3]))
        for got, want in zip(found, exact, strict=True):
            error = float((got.detach().cpu().double() - want.detach()).norm())
            # on a GPU weights have 17 bits; the gradient of c is what is left of sums of that size
            assert error <= (2e-4 if dtype == torch.float32 else 1e-10) * max(
                float(want.norm()), size if want.ndim == 0 else 0
            )
