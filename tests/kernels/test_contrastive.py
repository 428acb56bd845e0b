"""The blocked loss against the float64 reference, and against the textbook formulas where those fail."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import hyperst_kernels as hk
from benchmarks import cases, textbook
from hyperst_kernels.cpu import tiles
from hyperst_kernels.operators.register import ops
from hyperst_kernels.reference import contrastive as reference


@st.composite
def problems(draw):
    """Features with coincident pairs, duplicates, points at the origin; sizes that are no multiple of a tile."""
    n = draw(st.integers(1, 40))
    m = n + draw(st.sampled_from([0, 0, 7]))
    d = draw(st.sampled_from([1, 3, 16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    radius = draw(st.sampled_from([1e-3, 0.3, 1.0, 5.0, 20.0]))
    shapes = (n, d), (m, d)
    queries, keys = (radius * F.normalize(torch.randn(s, generator=generator), dim=-1) for s in shapes)
    if draw(st.booleans()):
        keys[: n // 2] = queries[: n // 2]
    if n > 4 and draw(st.booleans()):
        queries[0], keys[1], keys[3] = 0, 0, queries[2]
    return queries, keys, draw(st.sampled_from([1.0, 14.0, 100.0]))


def run(compute, queries, keys, scale, upstream, dtype, **options):
    c = torch.tensor(0.8, dtype=dtype, requires_grad=True)
    s = torch.tensor(scale, dtype=dtype, requires_grad=True)
    q, k = (x.to(dtype).clone().requires_grad_() for x in (queries, keys))
    names = {"input": "tangent", "geometry": "lorentz", "directions": "both", "exclude_ids": None, **options}
    rows, columns = compute(q, k, c, s, *names.values())
    loss = (rows * upstream.to(dtype)).sum() + columns.sum() / len(queries)
    loss.backward()
    grads = [x.grad if x.grad is not None else torch.zeros_like(x) for x in (q, k, c, s)]
    return rows.detach(), columns.detach(), *grads


@given(problems(), st.sampled_from(["tangent", "lorentz"]), st.sampled_from(["both", "rows"]))
def test_float32_matches_the_float64_reference(problem, input, directions):
    queries, keys, scale = problem
    if input == "lorentz":
        queries, keys = hk.exp_map0(queries, 0.8), hk.exp_map0(keys, 0.8)
    upstream = torch.linspace(0.5, 1.5, len(queries)) / len(queries)
    options = {"input": input, "directions": directions}
    exact = run(reference.contrastive_terms, queries, keys, scale, upstream, torch.float64, **options)
    ours = run(cases.contrastive_terms, queries, keys, scale, upstream, torch.float32, **options)
    # the change under one ulp of the inputs: what float32 features themselves leave open
    moved = run(
        reference.contrastive_terms,
        torch.nextafter(queries, torch.full_like(queries, torch.inf)),
        torch.nextafter(keys, torch.full_like(keys, -torch.inf)),
        scale,
        upstream,
        torch.float64,
        **options,
    )
    # a logit s d is a rounded number: losses are off by that, softmax weights by that times themselves
    radius = float(hk.distance0(queries, 0.8, input=input).max())
    # and the matrix product of a tile loses the bits that NEAR allows it to
    lost = 1 / tiles.NEAR[torch.float32] / 4
    rounding = 4 * torch.finfo(torch.float32).eps * scale * (2 * (0.1 + radius) + lost)
    for got, want, other in zip(ours[:2], exact[:2], moved[:2], strict=True):
        assert torch.isfinite(got).all()
        assert ((got - want).abs() <= 1e-5 * want.abs() + rounding + 2 * (other - want).abs()).all()
        if len(want):
            known = 2 * (other - want).abs().mean()
            assert (got.double().mean() - want.mean()).abs() <= 1e-5 * want.mean() + 1e-6 + rounding / 4 + known
    for got, want, other in zip(ours[2:4], exact[2:4], moved[2:4], strict=True):
        assert torch.isfinite(got).all()
        known = 2 * (other - want).norm(dim=-1).max()
        # pulls of size s times the upstream gradient may cancel to nothing: their roundings remain
        floor = 4 * torch.finfo(torch.float32).eps * scale * float(upstream.max())
        assert (got - want).norm(dim=-1).max() <= (1e-4 + rounding) * want.norm(dim=-1).max() + floor + known


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean", "cosine"])
@pytest.mark.parametrize("input", ["tangent", "lorentz"])
def test_float64_matches_the_reference_over_several_tiles(geometry, input, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_ROWS", 16)
    monkeypatch.setattr(tiles, "TILE_COLUMNS", 24)
    torch.manual_seed(0)
    queries, keys = torch.randn(45, 6), torch.randn(61, 6)
    keys[:5], keys[50] = queries[:5], keys[20]
    ids = torch.arange(61)
    ids[30], ids[59] = ids[7], ids[8]
    upstream = torch.rand(45) / 45
    options = {"input": input, "geometry": geometry, "exclude_ids": ids}
    exact = run(reference.contrastive_terms, queries, keys, 10.0, upstream, torch.float64, **options)
    ours = run(cases.contrastive_terms, queries, keys, 10.0, upstream, torch.float64, **options)
    for got, want in zip(ours, exact, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    again = run(cases.contrastive_terms, queries, keys, 10.0, upstream, torch.float64, **options)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


def test_collapsed_batch_falls_back_to_float64():
    """Encoders at initialisation put the whole batch in a narrow cone: every product cancels."""
    torch.manual_seed(0)
    center = F.normalize(torch.randn(1, 16), dim=-1)
    queries, keys = (center + 1e-3 * torch.randn(200, 16) for _ in range(2))
    upstream = torch.ones(200) / 200
    exact = run(reference.contrastive_terms, queries, keys, 50.0, upstream, torch.float64)
    ours = run(cases.contrastive_terms, queries, keys, 50.0, upstream, torch.float32)
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-5, atol=1e-6)
    assert (ours[2] - exact[2]).norm(dim=-1).max() <= 1e-4 * exact[2].norm(dim=-1).max()


def test_eager_meru_fails_where_we_do_not():
    """Radius 15 is flattened, and confident rows lose their loss; coincident pairs give NaN gradients with some PyTorch."""
    torch.manual_seed(0)
    c, s = torch.tensor(1.0), torch.tensor(50.0)
    same = 0.1 * F.normalize(torch.randn(512, 64), dim=-1)
    leaf = same.clone().requires_grad_()
    hk.contrastive_loss(leaf, same, c, s).backward()
    assert leaf.grad.isfinite().all()
    image, text = (15 * F.normalize(torch.randn(64, 64), dim=-1) for _ in range(2))
    with hk.use_reference():
        exact = hk.contrastive_loss(image.double(), text.double(), 1.0, 1.0)
    ours = hk.contrastive_loss(image, text, 1.0, 1.0)
    theirs = textbook.contrastive_loss(image, text, torch.tensor(1.0), torch.tensor(1.0))
    assert float(ours) == pytest.approx(float(exact), rel=1e-5)
    far = torch.cat([image[:32], 14 * F.normalize(torch.randn(32, 64), dim=-1)])
    with hk.use_reference():
        exact_far = hk.contrastive_loss(image.double(), far.double(), 1.0, 20.0)
    assert float(hk.contrastive_loss(image, far, 1.0, 20.0)) == pytest.approx(float(exact_far), rel=1e-5)
    wrong = float(textbook.contrastive_loss(image, far, torch.tensor(1.0), torch.tensor(20.0)))
    assert abs(wrong - float(exact_far)) > 0.02 * float(exact_far)
    assert math.isfinite(float(theirs))


def test_curvature_scale_and_temperature_are_redundant():
    """(c, alpha, s) and (1, alpha + ln(c)/2, s/sqrt c) give one loss."""
    torch.manual_seed(0)
    image, text = torch.randn(20, 8), torch.randn(20, 8)
    for c in (0.1, 2.0, 10.0):
        one = hk.contrastive_loss(image, text, c, 14.0)
        other = hk.contrastive_loss(image * c**0.5, text * c**0.5, 1.0, 14.0 / c**0.5)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_operator_contract():
    torch.manual_seed(0)
    queries, keys = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    c, s = torch.tensor(1.0, requires_grad=True), torch.tensor(10.0, requires_grad=True)
    for ids in (None, torch.arange(7)):
        torch.library.opcheck(
            ops.contrastive_forward.default,
            ([queries, keys], None, c, s, ids, [0, 1, 1], "lorentz", True, "bf16x3", False, 1 << 20),
        )
    loss = hk.contrastive_loss(queries, keys, c, s)
    (grad,) = torch.autograd.grad(loss, queries, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()
    with pytest.raises(RuntimeError), torch.autograd.forward_ad.dual_level():
        hk.contrastive_loss(torch.autograd.forward_ad.make_dual(queries.detach(), torch.ones(5, 4)), keys)


def test_compiles_fullgraph_and_ignores_autocast():
    torch.manual_seed(0)
    image, text = torch.randn(9, 16, requires_grad=True), torch.randn(9, 16)
    module = hk.HyperbolicContrastiveLoss()
    eager = module(image, text, 14.0)
    (want,) = torch.autograd.grad(eager, image)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")(image, text, 14.0)
    (got,) = torch.autograd.grad(compiled, image)
    torch.testing.assert_close((compiled, got), (eager, want))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(image, text, 14.0), eager)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(module(image, text, 14.0), eager)
    finally:
        torch.use_deterministic_algorithms(False)


def test_half_precision_and_strides():
    torch.manual_seed(0)
    image, text = torch.randn(8, 12).T, torch.randn(8, 12).T
    torch.testing.assert_close(hk.contrastive_loss(image, text), hk.contrastive_loss(image.clone(), text.clone()))
    half = image.bfloat16().requires_grad_()
    loss = hk.contrastive_loss(half, text.bfloat16())
    loss.backward()
    assert loss.dtype == torch.float32
    assert half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, hk.contrastive_loss(image.bfloat16().float(), text.bfloat16().float()))


def test_sums_in_any_order_are_refused_where_determinism_is_asked_for():
    x = torch.eye(3)
    assert torch.equal(hk.contrastive_loss(x, x, deterministic=False), hk.contrastive_loss(x, x))
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="deterministic=False"):
            hk.contrastive_loss(x, x, deterministic=False)
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_bias_changes_nothing_and_has_a_gradient():
    bias, x = torch.tensor(3.0, requires_grad=True), torch.eye(3)
    loss = hk.HyperbolicContrastiveLoss()
    value = loss(x, x, 10.0, logit_bias=bias)
    assert float(value) == float(loss(x, x, 10.0))
    value.backward()
    assert float(bias.grad) == 0


def test_reductions_weights_and_single_pair():
    torch.manual_seed(0)
    image, text = torch.randn(6, 4), torch.randn(6, 4)
    each = hk.contrastive_loss(image, text, reduction="none")
    weights = torch.tensor([1.0, 0, 2, 1, 1, 1])
    torch.testing.assert_close(each.mean(), hk.contrastive_loss(image, text))
    torch.testing.assert_close((each * weights).sum() / 6, hk.contrastive_loss(image, text, weights=weights))
    one = image[:1].clone().requires_grad_()
    loss = hk.contrastive_loss(one, text[:1])
    loss.backward()
    assert float(loss.detach()) == 0
    assert not one.grad.any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.ones(0, 3), torch.ones(0, 3)), "1 <= n <= m"),
        ((torch.ones(3, 3), torch.ones(2, 3)), "1 <= n <= m"),
        ((torch.ones(3, 3), torch.ones(3, 4)), "same d"),
        ((torch.ones(3, 3), torch.full((3, 3), torch.inf)), "keys must be finite, got 9"),
        ((torch.ones(3, 3), torch.ones(3, 3), 0.0), "c must be positive"),
        ((torch.ones(3, 3), torch.ones(3, 3), 1.0, torch.tensor(-1.0)), "logit_scale must be positive"),
        ((torch.ones(3, 3, dtype=torch.int32), torch.ones(3, 3)), "queries must be a floating tensor"),
    ],
)
def test_errors_name_the_argument(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        hk.contrastive_loss(*arguments)
