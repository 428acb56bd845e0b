"""Smoothed targets, debiased negatives and a margin of softmax losses, against formulas row by row in float64."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import hyperst_kernels as hk
from hyperst_kernels.blocked import blocks
from hyperst_kernels.operators import pair_loss as operators
from tests.kernels import examples
from tests.kernels.test_pair_loss import GEOMETRIES, apart, inputs_of, keywords, value_and_gradients
from tests.kernels.test_pair_loss_mpmath import TARGETS
from tests.kernels.triton import DEVICE

KINDS = (None, "ids", "exclude")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Several blocks of several shapes."""
    for device in ("cpu", "cuda"):
        monkeypatch.setitem(blocks.SIDE, device, (5, 7))


def of_row(logits: Tensor, positive: Tensor, lowest: Tensor, label_smoothing: float, tau: Tensor | None) -> Tensor:
    """The loss of one row over the pairs that take part: cross entropy, in the mean over positives."""
    if tau is None:
        each = [F.cross_entropy(logits, j, label_smoothing=label_smoothing) for j in positive.nonzero()[:, 0]]
        return torch.stack(each).mean()
    powers = logits.exp()
    number = float((~positive).sum())
    true = (powers[~positive].sum() - tau * number * powers[positive].mean()) / (1 - tau)
    floor = number * lowest.detach().exp()
    assume(number == 0 or abs(true - floor) > 1e-3 * powers[~positive].sum())  # off the kink
    total = powers[positive].sum() + torch.maximum(true, floor)
    each = total.log() - logits
    return (1 - label_smoothing) * each[positive].mean() + label_smoothing * each.mean()


def plainly(
    q,
    k,
    c,
    s,
    *,
    geometry,
    directions,
    ids=None,
    exclude=None,
    loss="softmax",
    label_smoothing=0.0,
    debias=None,
    margin=None,
) -> Tensor:
    """The mean over rows, or over rows and over columns."""
    far = apart(q, k, c, geometry, "tangent")
    logits = -(s[:, None] if s.ndim else s) * far
    positive = torch.eye(*logits.shape, dtype=torch.bool) if ids is None else ids[0][:, None] == ids[1]
    excluded = torch.zeros_like(positive) if exclude is None else (exclude[: len(q), None] == exclude) & ~positive
    if margin is not None:
        limits = F.pad(far.diagonal().detach() - margin, (0, len(k) - len(q)), value=-math.inf)
        near = [far < limits[: len(q), None], (far < limits).T]
        assume(
            all(((far - x).abs()[~positive] > 1e-3).all() for x in (limits[: len(q), None], limits))
        )  # off the limits
    means = []
    for turned in (False, True)[: 1 + (directions == "both")]:
        logits_, positive_, out_ = (x.T if turned else x for x in (logits, positive, excluded))
        if margin is not None:
            out_ = out_ | (near[turned] & ~positive_)
        rows = zip(logits_, positive_, out_, strict=True)
        lowest = -{"cosine": 2.0, "angle": math.pi}.get(geometry, math.inf) * (s.amax() if turned else s).expand(
            len(far)
        )
        each = [
            of_row(
                row[~out],
                mine[~out],
                lowest[min(i, len(lowest) - 1)],
                label_smoothing,
                None if debias is None else debias if debias.ndim == 0 else debias[i],
            )
            for i, (row, mine, out) in enumerate(rows)
            if mine.any()
        ]
        means.append(torch.stack(each).mean())
    return torch.stack(means).mean()


def compare(given_: list[Tensor], ours: dict, theirs: dict, dtype: torch.dtype, geometry: str, allowed: float) -> None:
    """The loss and all gradients, relative to the largest gradient."""
    rounded = [x.to(dtype) for x in given_]
    want = value_and_gradients(lambda *t: plainly(*t, geometry=geometry, **theirs), *(x.double() for x in rounded))
    largest = max(float(x.norm()) for x in want[1:])
    for reference in (False, True) if dtype == torch.float64 else (False,):

        def value(*t):
            with contextlib.nullcontext() if not reference else hk.use_reference():  # noqa: B023
                return hk.contrastive_loss(*t, geometry=geometry, **ours)

        got = value_and_gradients(value, *(x.to(DEVICE) for x in rounded))
        for name, x, y in zip(("loss", "queries", "keys", "c", "scale"), got, want, strict=True):
            # the formulas, as they are written, lose what is small beside 1, times the slope of an angle near its kink
            size = float(y.norm()) + 1e-2 + (1e-3 * largest if name != "loss" else 0)
            # of the reference, whose distances have no digits to lose
            closer = 1e-2 if reference and name in ("loss", "scale") else 1
            assert float((x.cpu().double() - y).norm()) <= closer * allowed * size, (name, reference, x, y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("directions", ["both", "rows"])
@settings(max_examples=examples(6))
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(2, 12),
    more=st.integers(0, 6),
    d=st.integers(2, 6),
    radius=st.sampled_from([0.01, 1.0, 4.0]),
    each=st.booleans(),
    kind=st.sampled_from(KINDS),
    label_smoothing=st.sampled_from([0.01, 0.1, 0.5, 0.99]),
)
def test_smoothing_is_that_of_cross_entropy(
    directions, geometry, dtype, seed, n, more, d, radius, each, kind, label_smoothing
):
    given_ = inputs_of(n, n + more, d, seed, radius, each)[:4]
    ours, theirs = keywords({"loss": "softmax", "directions": directions, "kind": kind}, n, n + more, seed)
    smooth = {"label_smoothing": label_smoothing}
    allowed = {torch.float64: 2e-9, torch.float32: 2e-3}[dtype]  # as in test_pair_loss.py
    compare(given_, {**ours, **smooth}, {**theirs, **smooth}, dtype, geometry, allowed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("directions", ["both", "rows"])
@settings(max_examples=examples(8))
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(2, 12),
    more=st.integers(0, 6),
    radius=st.sampled_from([0.01, 1.0, 4.0]),
    scale=st.sampled_from([0.5, 7.0]),
    each=st.booleans(),
    of_rows=st.booleans(),
    kind=st.sampled_from(KINDS),
    tau=st.sampled_from([1e-3, 0.1, 0.6]),
    label_smoothing=st.sampled_from([0.0, 0.1]),
)
def test_debiased_is_the_estimate_that_is_written(
    directions, geometry, dtype, seed, n, more, radius, scale, each, of_rows, kind, tau, label_smoothing
):
    g = torch.Generator().manual_seed(seed)
    given_ = inputs_of(n, n + more, 4, seed, radius, each, scale)[:4]
    ours, theirs = keywords({"loss": "softmax", "directions": directions, "kind": kind}, n, n + more, seed)
    debias = torch.tensor(tau, dtype=torch.float64)
    if of_rows and (kind, directions) != ("ids", "both"):
        debias = tau * torch.rand(n, generator=g, dtype=torch.float64)
    debias = debias.to(dtype)
    ours |= {"label_smoothing": label_smoothing, "debias": debias.to(DEVICE)}
    theirs |= {"label_smoothing": label_smoothing, "debias": debias.double()}
    # what is left of two sums has the error of either over the rest
    allowed = {torch.float64: 1e-7, torch.float32: 2e-2}[dtype]
    compare(given_, ours, theirs, dtype, geometry, allowed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("directions", ["both", "rows"])
@settings(max_examples=examples(6))
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 12),
    more=st.integers(0, 6),
    radius=st.sampled_from([1.0, 4.0]),
    each=st.booleans(),
    kind=st.sampled_from([None, "exclude"]),
    margin=st.sampled_from([-0.1, 0.0, 0.3]),
    others=st.sampled_from([{}, {"label_smoothing": 0.1}, {"debias": torch.tensor(0.02).double()}]),
)
def test_keys_nearer_than_the_positive_by_a_margin_are_left_out(
    directions, geometry, dtype, seed, n, more, radius, each, kind, margin, others
):
    given_ = inputs_of(n, n + more, 4, seed, radius, each)[:4]
    ours, theirs = keywords({"loss": "softmax", "directions": directions, "kind": kind}, n, n + more, seed)
    allowed = {torch.float64: 1e-7, torch.float32: 2e-2}[dtype]
    compare(
        given_, {**ours, **others, "margin": margin}, {**theirs, **others, "margin": margin}, dtype, geometry, allowed
    )


def test_nothing_is_smoothed_or_taken_by_0():
    q, k, c, s, _ = (x.to(DEVICE) for x in inputs_of(6, 9, 4, 3, 1.0, False))
    want = hk.contrastive_loss(q, k, c, s)
    assert torch.equal(hk.contrastive_loss(q, k, c, s, label_smoothing=0.0), want)
    torch.testing.assert_close(hk.contrastive_loss(q, k, c, s, debias=0.0), want, rtol=1e-12, atol=0)


def test_a_smoothed_target_is_where_the_slope_ends():
    """Of a confident row, the slope of its positive is what smoothing leaves, in all digits of float32."""
    q, k = torch.zeros(1, 2, device=DEVICE), torch.tensor([[1e-3, 0.0], [3.0, 0.0], [0.0, 3.0]], device=DEVICE)
    k.requires_grad_()
    hk.contrastive_loss(q, k, 1.0, 50.0, directions="rows", label_smoothing=0.3).backward()
    # away from the positive, which e^-150 of the softmax would pull, and towards the two others
    torch.testing.assert_close(
        k.grad.cpu(), 50 * 0.1 * torch.tensor([[-2.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), rtol=1e-5, atol=0
    )


def test_the_module_passes_them_on():
    q, k, c, s, _ = (x.to(DEVICE) for x in inputs_of(6, 6, 4, 9, 1.0, False))
    module, options = hk.HyperbolicContrastiveLoss(c, **TARGETS[-1]), dict(TARGETS[-1])
    torch.testing.assert_close(module(q, k, s), hk.contrastive_loss(q, k, c, s, **options))
    options["debias"] = torch.linspace(0, 0.1, 6, dtype=torch.float64, device=DEVICE)
    torch.testing.assert_close(module(q, k, s, debias=options["debias"]), hk.contrastive_loss(q, k, c, s, **options))
    terms = [hk.Term(q, k, 0.5, "rows"), hk.Term(k, q, 0.25)]
    total, parts = hk.hierarchical_contrastive_loss(terms, c, s, **options)
    alone = [hk.contrastive_loss(q, k, c, s, directions="rows", **options), hk.contrastive_loss(k, q, c, s, **options)]
    torch.testing.assert_close(parts, alone)
    torch.testing.assert_close(total, 0.5 * alone[0] + 0.25 * alone[1])


def test_a_copy_of_the_positive_is_within_any_margin():
    """Keys that are the positive again are as far as it: not nearer by more than 0, and nearer than a margin below 0."""
    g = torch.Generator().manual_seed(1)
    q, k = (torch.randn(5, 8, generator=g).to(DEVICE) for _ in range(2))
    far = torch.full((5, 8), 3.0, device=DEVICE)
    options = {"directions": "rows", "reduction": "none"}
    alone = hk.contrastive_loss(q[:1], torch.cat([k[:1], far[:1]]), 1.0, 1.0, **options)
    twice = hk.contrastive_loss(q[:1], torch.cat([k[:1], k[:1], far[:1]]), 1.0, 1.0, **options)
    pair = torch.cat([k[:1], k[:1], far[:1]])
    torch.testing.assert_close(hk.contrastive_loss(q[:1], pair, 1.0, 1.0, margin=1e-3, **options), twice)
    torch.testing.assert_close(hk.contrastive_loss(q[:1], pair, 1.0, 1.0, margin=-1e-3, **options), alone)


@pytest.mark.parametrize("tau", [0.01, 0.1, 0.3])
def test_debiased_cosines_are_those_of_the_paper(tau):
    """In which temperature is 1 / logit_scale, and rows are above the floor and at it."""
    g = torch.Generator().manual_seed(4)
    q, k = (F.normalize(torch.randn(9, 3, generator=g, dtype=torch.float64), dim=1) for _ in range(2))
    k[:4] = q[:4]
    similar = torch.exp(2.0 * q @ k.T)
    positive, negatives = similar.diagonal(), similar.sum(1) - similar.diagonal()
    number, lowest = 8, math.exp(-2.0)
    found = (negatives - tau * number * positive) / (1 - tau)
    assert not tau > 0.1 or 0 < (found < number * lowest).sum() < 9
    want = -torch.log(positive / (positive + found.clamp(min=number * lowest)))
    options = {"geometry": "cosine", "directions": "rows", "reduction": "none"}
    got = hk.contrastive_loss(q.to(DEVICE), k.to(DEVICE), 1.0, 2.0, debias=tau, **options)
    torch.testing.assert_close(got.cpu(), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_row_of_which_nothing_is_left_has_no_loss(dtype):
    """Of distances, which have no largest: no logarithm of what is not positive, no NaN, and no gradient."""
    q = torch.tensor([[0.0], [1.0], [0.0]], dtype=dtype, device=DEVICE)
    k = torch.tensor([[0.0], [5.0], [0.5]], dtype=dtype, device=DEVICE)
    given_ = q.requires_grad_(), k.requires_grad_()
    each = hk.contrastive_loss(*given_, 1.0, 4.0, directions="rows", debias=0.2, reduction="none")
    assert each[0] == 0
    assert (each[1:] > 0).all()
    assert all((x == 0).all() for x in torch.autograd.grad(each[0], given_, retain_graph=True))
    assert all(torch.isfinite(x).all() for x in torch.autograd.grad(each.sum(), given_))


def test_what_is_taken_may_be_nearly_all():
    """Beside the floor, where the estimate is e^-40 of the sums it is the rest of, slopes are those of the formula."""
    far, s = torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64, device=DEVICE), 3.0
    positive, number = 1.0, 2
    for beside in (1e-3, 1e-9):
        tau = math.exp(-s) / positive * (1 - beside)
        true = (number * math.exp(-s) - tau * number * positive) / (1 - tau)
        q, k = torch.zeros(1, 1, dtype=torch.float64, device=DEVICE), far.T.clone().requires_grad_()
        value = hk.contrastive_loss(q, k, 1.0, s, directions="rows", debias=tau)
        (slopes,) = torch.autograd.grad(value, k)
        assert float(value.detach()) == pytest.approx(math.log1p(true), rel=1e-5)
        assert slopes[1:, 0].tolist() == pytest.approx([-s * math.exp(-s) / (1 - tau) / (1 + true)] * 2, rel=1e-7)


@pytest.mark.parametrize("options", [{"label_smoothing": 0.2}, {"debias": 0.02}, {"margin": 0.1}], ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("directions", ["both", "rows"])
def test_gradcheck(directions, geometry, options):
    q, k, c, s, _ = (x.to(DEVICE).requires_grad_() for x in inputs_of(4, 6, 3, 5, 1.0, True))
    ids = torch.tensor([0, 1, 1, 2], device=DEVICE), torch.tensor([0, 1, 2, 2, 1, 3], device=DEVICE)
    with torch.no_grad():
        k += 0.1  # off the queries, where distances have a kink

    def function(*t):
        positives = None if "margin" in options else ids
        return hk.contrastive_loss(*t, positives=positives, geometry=geometry, directions=directions, **options)

    assert torch.autograd.gradcheck(function, (q, k, c, s), atol=1e-6)


@pytest.mark.parametrize("options", [{"margin": -50.0}, {"margin": 0.1}, {"debias": 0.9}], ids=str)
def test_second_derivatives_of_the_reference(options):
    """Where rows have no negatives, or nothing is left of them."""
    q, k, c, s, _ = (x.requires_grad_() for x in inputs_of(3, 4, 2, 5, 1.0, False))
    with torch.no_grad():
        k += 0.1

    def function(*t):
        with hk.use_reference():
            return hk.contrastive_loss(*t, label_smoothing=0.1, **options)

    assert torch.autograd.gradgradcheck(function, (q, k, c, s), atol=1e-5)


FIVE = torch.full((5,), 0.1)


@pytest.mark.parametrize(
    ("label_smoothing", "debias", "limits"),
    [(0.1, None, None), (0.0, FIVE, None), (0.1, FIVE[0], FIVE), (0.0, None, FIVE)],
)
def test_operators_keep_what_the_dispatcher_expects(label_smoothing, debias, limits):
    q, k, c, s, _ = (x.float().requires_grad_() for x in inputs_of(5, 9, 4, 6, 1.0, True))
    flags = ("softmax", "lorentz", True, True, "bf16x3", label_smoothing)
    given_ = (q, k, c, s, None, None, None, None, debias, limits, *flags)
    torch.library.opcheck(operators._forward, given_, test_utils=("test_schema", "test_faketensor"))


def test_compiled():
    leaves = [x.to(DEVICE) for x in inputs_of(9, 12, 4, 6, 1.0, True)[:4]]
    debias = torch.full((9,), 0.1, device=DEVICE)

    def value(*t):
        return hk.contrastive_loss(*t, label_smoothing=0.1, debias=debias, margin=0.1)

    compiled = torch.compile(value, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(value_and_gradients(compiled, *leaves), value_and_gradients(value, *leaves))


@pytest.mark.parametrize("reference", [False, True])
def test_a_rate_that_float32_would_round_to_one(reference):
    """1 less the rate is what float32 must not lose."""
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    y = x.flip(0).roll(1, 0)
    with hk.use_reference() if reference else contextlib.nullcontext():
        found = hk.contrastive_loss(x, y, debias=1 - 1e-8, reduction="none")
        expected = hk.contrastive_loss(x.double(), y.double(), debias=1 - 1e-8, reduction="none")
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
