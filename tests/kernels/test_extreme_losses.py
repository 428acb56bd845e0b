"""The loss where float32 ends: logits of millions, and points too far out for their products. On every path."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.nn import functional as F

import hyperst_kernels as hk
from benchmarks import cases
from hyperst_kernels.cpu.native import bindings
from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.contrastive.numbers import LARGEST_BY_ROWS
from hyperst_kernels.reference import contrastive as reference
from tests.kernels.triton import AVAILABLE, DEVICE
from tests.kernels.triton.test_contrastive_kernel import VARIANTS

C = 0.8
EPS = torch.finfo(torch.float32).eps
PATHS = list(VARIANTS) if AVAILABLE else ["native", "portable"]


@pytest.fixture(params=PATHS)
def loss(request, monkeypatch):
    """Losses of rows and columns, by one path."""
    if request.param == "native" and bindings.library() is None:
        pytest.skip("the package was installed without a compiler")
    if request.param == "portable":
        monkeypatch.setattr(bindings, "usable", lambda x: False)

    def compute(*arguments, **options):
        with contextlib.ExitStack() as stack:
            if AVAILABLE:
                stack.enter_context(launch.forced("contrastive backward", VARIANTS[request.param]))
            return run(cases.contrastive_terms, *arguments, atomic=request.param == "atomic", **options)

    # whether the backward pass takes other tiles of the product than the forward pass, which may round it differently
    compute.other_tiles = AVAILABLE and request.param != "blocks"
    return compute


def run(compute, queries, keys, scale, dtype, input="tangent", geometry="lorentz", ids=None, **options):
    """Losses, and gradients of all inputs under an upstream gradient that differs from row to row."""
    leaves = [x.to(DEVICE, dtype).requires_grad_() for x in (queries, keys, torch.tensor(C), torch.tensor(scale))]
    ids = None if ids is None else ids.to(DEVICE)
    rows, columns = compute(*leaves, input, geometry, "both", ids, **options)
    weights = torch.linspace(0.5, 1.5, len(rows), dtype=dtype, device=DEVICE)
    grads = torch.autograd.grad((rows * weights).sum() + columns.sum(), leaves, materialize_grads=True)
    return [x.detach().cpu().double() for x in (rows, columns, *grads)]


def exactly(*arguments, **options):
    return run(reference.contrastive_terms, *arguments, torch.float64, **options)


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean", "cosine"])
@pytest.mark.parametrize("scale", [1e4, 1e5, 1e6, 1e7])
def test_large_logits(loss, scale, geometry):
    """One key of each row is nearer than the others by more than rounding: its weight is 1, and all others 0."""
    g = torch.Generator().manual_seed(0)
    queries = torch.randn(30, 12, generator=g)
    keys = torch.cat([queries + torch.randn(30, 12, generator=g), torch.randn(10, 12, generator=g)])
    ids = torch.arange(40) // 2
    apart = reference.dissimilarity(
        queries.double(), keys.double(), torch.tensor(C), "tangent", geometry, pairwise=True
    )
    for axis in (0, 1):
        nearest = apart.topk(2, axis, largest=False).values.unbind(axis)
        # 2^-13: a distance from a product with 15 bits of z
        chosen = (nearest[1] - nearest[0] > 40 / scale + 2.0**-13 * apart.max()).sum()
        assert chosen >= 0.8 * len(nearest[0])
    exact = exactly(queries, keys, scale, geometry=geometry, ids=ids)
    found = loss(queries, keys, scale, torch.float32, geometry=geometry, ids=ids)
    for got, want in zip(found[:2], exact[:2], strict=True):
        assert (got - want).abs().max() <= 2.0**-13 * scale * apart.max()
    if any(x.isnan().any() for x in found[2:4]):
        assert loss.other_tiles
        assert scale * apart.max() > LARGEST_BY_ROWS
        return
    # of a row with two keys as near: which of them is nearer; and what a weight is off by where its distance is by 2 ulp
    largest = 2 * float(torch.exp(4 * EPS * scale * apart.max())) if loss.other_tiles else 2
    for got, want in zip(found[2:4], exact[2:4], strict=True):
        error = (got - want).norm(dim=1) / want.norm(dim=1).max()
        assert error.median() <= 1e-5
        assert error.max() <= largest


@pytest.mark.parametrize("scale", [1e3, 1e5, 1e7])
def test_equal_logits_share_the_gradient(loss, scale):
    """All keys at one distance, whatever that is rounded to: each weighs 1/(keys), also of a large logit."""
    turn = torch.eye(16)
    exact = exactly(turn, turn.roll(1, 0), scale)
    found = loss(turn, turn.roll(1, 0), scale, torch.float32)
    for got, want in zip(found[2:4], exact[2:4], strict=True):
        assert (got - want).norm(dim=1).max() <= 1e-4 * want.norm(dim=1).max()


@pytest.mark.parametrize("scale", [1e9, 1e10, 1e11])
def test_logits_that_float32_does_not_tell_apart(loss, scale):
    """Right on a CPU, which takes float64; NaN on a GPU."""
    g = torch.Generator().manual_seed(0)
    queries, keys = (5 * F.normalize(torch.randn(32, 8, generator=g), dim=1) for _ in range(2))
    exact = exactly(queries, keys, scale)
    found = loss(queries, keys, scale, torch.float32)
    if AVAILABLE:
        assert all(x.isnan().all() for x in found[:4])
        return
    for got, want in zip(found[:4], exact[:4], strict=True):
        # of a row with two keys as near, in float64: 10 s 2^-53 of each weight
        assert (got - want).abs().max() <= (1e-5 + 20 * scale * 2.0**-53) * want.abs().max()


@pytest.mark.skipif(AVAILABLE, reason="the limit of a CPU")
@pytest.mark.parametrize("scale", [1e13, 1e16, 1e20])
def test_weights_of_logits_that_float64_does_not_tell_apart_are_not_a_number(loss, scale):
    g = torch.Generator().manual_seed(0)
    queries, keys = (5 * F.normalize(torch.randn(8, 8, generator=g), dim=1) for _ in range(2))
    for dtype in (torch.float32, torch.float64):
        found, exact = loss(queries, keys, scale, dtype), exactly(queries, keys, scale)
        torch.testing.assert_close(found[0], exact[0], rtol=1e-6, atol=0)
        assert all(x.isnan().all() for x in found[2:4])


@pytest.mark.parametrize("radius", [36.0, 42.0, 50.0, 64.0, 200.0])
@pytest.mark.parametrize("input", ["tangent", "lorentz"])
def test_far_out(loss, radius, input):
    """The right value, or NaN where a GPU cannot hold the products; never 0, which is the loss of a batch without negatives."""
    g = torch.Generator().manual_seed(1)
    points = (
        F.normalize(torch.randn(20, 8, generator=g, dtype=torch.float64), dim=1) * radius / C**0.5 for _ in range(2)
    )
    queries, keys = points if input == "tangent" else (hk.exp_map0(v, C) for v in points)
    queries, keys = queries.float(), keys.float()
    if not queries.isfinite().all():
        pytest.skip("float32 does not hold these points")
    exact = exactly(queries, keys, 1.0, input=input)
    found = loss(queries, keys, 1.0, torch.float32, input=input)
    for got, want in zip(found[:4], exact[:4], strict=True):
        if AVAILABLE and radius > 44:
            got = torch.where(got.isnan(), want, got)
        assert (got - want).abs().max() <= 2.0**-13 * (1 + radius) * want.abs().max()


def test_beyond_float64(loss):
    """What no format holds is not a number."""
    far = 400 * F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    assert all(x.isnan().all() for x in loss(far, far.roll(1, 0), 1.0, torch.float32)[:2])


@pytest.mark.skipif(AVAILABLE, reason="a GPU in float32 has no such radius")
@pytest.mark.parametrize("radius", [50.0, 64.0, 90.0])
def test_compiled_and_eager_far_out(radius):
    """A float32 row of 4096 standard normal numbers has radius 64."""
    g = torch.Generator().manual_seed(0)
    queries, keys = (radius * F.normalize(torch.randn(20, 8, generator=g), dim=1) for _ in range(2))
    want = sum(x.mean() for x in exactly(queries, keys, 1.0)[:2]) / 2
    torch._dynamo.reset()
    for compute in (hk.contrastive_loss, torch.compile(hk.contrastive_loss, fullgraph=True, backend="aot_eager")):
        torch.testing.assert_close(compute(queries, keys, C).double(), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("input", ["tangent", "lorentz"])
def test_matrix_far_out(input):
    """Distances whose products float32 does not hold: right on a CPU, NaN on a GPU."""
    g = torch.Generator().manual_seed(1)
    x, y = (F.normalize(torch.randn(20, 8, generator=g, dtype=torch.float64), dim=1) * 60 / C**0.5 for _ in range(2))
    if input == "lorentz":
        x, y = hk.exp_map0(x, C), hk.exp_map0(y, C)
    x, y = (v.float().to(DEVICE).requires_grad_() for v in (x, y))
    want = hk.reference.distance.pairwise_distance(
        x.detach().double().cpu(), y.detach().double().cpu(), torch.tensor(C), input
    )
    found = hk.pairwise_distance(x, y, C, input=input)
    if AVAILABLE:
        assert not (found.cpu() < 0.9 * want).any()
    else:
        torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=0)
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(found.sum(), (x, y)))


FLAT = ("cosine", "euclidean")


@pytest.mark.parametrize("geometry", FLAT)
@pytest.mark.parametrize("power", [-125, -100, -66, -43, 64, 83, 120])
def test_flat_losses_do_not_depend_on_the_unit(loss, geometry, power):
    """Squares of such numbers overflow or vanish in float32. Distances in another unit, at an inverse temperature in it."""
    g = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(6, 4, generator=g), torch.randn(8, 4, generator=g)
    queries[1] = keys[2]  # a near pair
    unit = 2.0**power
    scale = 3 / unit if geometry == "euclidean" else 3.0
    want = exactly(queries, keys, 3.0, geometry=geometry)
    found = loss(queries * unit, keys * unit, scale, torch.float32, geometry=geometry)
    for got, exact in zip(found[:2], want[:2], strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-5)
    for got, exact in zip(found[2:4], want[2:4], strict=True):
        torch.testing.assert_close(got * unit, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("power", [-900, -500, -50, 90, 600, 1000])
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("geometry", FLAT)
def test_flat_losses_do_not_depend_on_the_unit_in_float64(geometry, power, reference):
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(6, 4, generator=g, dtype=torch.float64).to(DEVICE) for _ in range(2))
    unit = 2.0**power
    moved = (x * unit).requires_grad_()
    with hk.use_reference() if reference else contextlib.nullcontext():
        want = hk.contrastive_loss(x.requires_grad_(), y, 1.0, 3.0, geometry=geometry)
        got = hk.contrastive_loss(
            moved, y * unit, 1.0, 3.0 / unit if geometry == "euclidean" else 3.0, geometry=geometry
        )
    torch.testing.assert_close(got, want)
    (slope,), (expected,) = torch.autograd.grad(got, moved), torch.autograd.grad(want, x)
    torch.testing.assert_close(slope * unit, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_zero_vector_is_at_right_angles_to_everything(dtype):
    """Its direction, which the loss would depend on, has no derivative: the gradient is 0."""
    x, y = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    x[1] = y[3] = 0
    value, *grads = run_public(x, y, 9.0)
    with hk.use_reference():
        want, *_ = run_public(x.double(), y.double(), 9.0)
    torch.testing.assert_close(value.double(), want, rtol=1e-5, atol=1e-5)
    assert not grads[0][1].any()
    assert not grads[1][3].any()
    assert all(g.isfinite().all() and g.abs().max() < 10 for g in grads)


def run_public(x, y, scale):
    leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    value = hk.contrastive_loss(*leaves, 1.0, scale, geometry="cosine")
    return value, *torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("geometry", FLAT)
@pytest.mark.parametrize("unit", [1e-38, 1e-30, 1e-20, 1e-13, 1e19, 1e25, 1e37])
def test_flat_similarities_do_not_depend_on_the_unit(geometry, unit):
    x, y = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    moved = (x * unit).requires_grad_()
    got = hk.similarity(moved, y * unit, geometry=geometry)
    want = hk.similarity(x.requires_grad_(), y, geometry=geometry)
    torch.testing.assert_close(
        got.double() / (unit if geometry == "euclidean" else 1), want.double(), rtol=1e-5, atol=1e-6
    )
    (slope,), (expected,) = torch.autograd.grad(got.sum(), moved), torch.autograd.grad(want.sum(), x)
    torch.testing.assert_close(slope * (1 if geometry == "euclidean" else unit), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("radius", [1e-1, 1e-2, 1e-3, 1e-5, 1e-8, 1e-12])
def test_short_distances_at_a_large_scale(loss, radius):
    """A distance has digits of its own, however short beside the unit 1/sqrt(c), which the limit of flat space brings about too."""
    g = torch.Generator().manual_seed(0)
    queries, keys = (radius * torch.randn(n, 8, generator=g) for n in (20, 24))
    exact = exactly(queries, keys, 1 / radius)
    found = loss(queries, keys, 1 / radius, torch.float32)
    for got, want in zip(found[:2], exact[:2], strict=True):
        assert (got - want).abs().max() <= 2e-5 * want.abs().max()
    for got, want in zip(found[2:4], exact[2:4], strict=True):
        assert (got - want).norm(dim=1).max() <= 1e-4 * want.norm(dim=1).max()
    assert abs(found[5] - exact[5]) <= 1e-4 * abs(exact[5])


@pytest.mark.parametrize("far", [1e2, 1e9, 1e10])
def test_far_logits_beside_near_positives(loss, far):
    """No pair but the positives counts: every gradient is 0, and none is that of the positive as its own negative."""
    queries, keys = torch.tensor([[1.0, 0.0], [2.0, 0.3]]), torch.tensor([[1.0, 0.001], [2.0, 0.3001]])
    found = loss(queries, keys, far, torch.float32)
    exact = exactly(queries, keys, far)
    for got, want in zip(found[:4], exact[:4], strict=True):
        assert want.abs().max() < 1e-9
        assert got.isnan().all() if AVAILABLE and far > 1e8 else (got - want).abs().max() <= 1e-9
