"""Contrastive losses in a product of hyperbolic spaces, against formulas row by row in float64, on whatever this process has."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import hyperst_kernels as hk
from hyperst_kernels.blocked import blocks, pair_loss, product
from hyperst_kernels.blocked.blocks import BlockedPairs, Geometry
from hyperst_kernels.cpu.product_pairs import ProductPairs
from hyperst_kernels.operators import pair_loss as operators
from tests.kernels import examples
from tests.kernels.test_pair_loss import OPTIONS, Largest, keywords, value_and_gradients
from tests.kernels.triton import DEVICE

NAMES = ["l1-product", "l2-product"]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Several blocks of several shapes."""
    for device in ("cpu", "cuda"):
        monkeypatch.setitem(blocks.SIDE, device, (5, 7))


def apart(q: Tensor, k: Tensor, c: Tensor, name: str, input: str) -> Tensor:
    """Distances of all pairs from row-wise functions of the reference, which have no blocks."""
    width = q.shape[1] // len(c)
    found = []
    for i in range(len(c)):
        x, y = (t[:, i * width : (i + 1) * width] for t in (q, k))
        shape = (len(q), len(k), width)
        with hk.use_reference():
            found.append(hk.distance(x[:, None].expand(shape), y[None].expand(shape), c[i], input=input))
    each = torch.stack(found, -1)
    return each.sum(-1) if name == "l1-product" else torch.linalg.vector_norm(each, dim=-1)


def inputs_of(n: int, m: int, factors: int, width: int, seed: int, radius: float) -> list[Tensor]:
    """Queries, keys, curvatures, logit scale and bias in float64; some keys lie on a query, or near one, in some factors."""
    g = torch.Generator().manual_seed(seed)
    d = factors * width
    q, k = (radius * torch.randn(r, d, generator=g, dtype=torch.float64) / width**0.5 for r in (n, m))
    k[m // 2] = q[0]
    k[m // 3, :width] = q[n // 2, :width] * (1 + 1e-4)
    k[-1, -width:] = q[-1, -width:]
    curvatures = 0.3 + 2 * torch.rand(factors, generator=g, dtype=torch.float64)
    return [q, k, curvatures, torch.tensor(4.0, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)]


def plainly(q, k, c, s, b, *, name, input, loss, directions, ids=None, exclude=None) -> Tensor:
    logits = -s * apart(q, k, c, name, input)
    positive = torch.eye(*logits.shape, dtype=torch.bool) if ids is None else ids[0][:, None] == ids[1]
    excluded = torch.zeros_like(positive) if exclude is None else (exclude[: len(q), None] == exclude) & ~positive
    if loss == "sigmoid":
        return F.softplus(torch.where(positive, -1, 1) * (logits + b)).masked_fill(excluded, 0).sum() / len(q)

    def mean_over_rows(logits, positive, excluded):
        rows = zip(logits, positive, excluded, strict=True)
        each = [torch.logsumexp(row[~out], 0) - row[mine].mean() for row, mine, out in rows if mine.any()]
        return torch.stack(each).mean()

    rows = mean_over_rows(logits, positive, excluded)
    return rows if directions == "rows" else (rows + mean_over_rows(logits.T, positive.T, excluded.T)) / 2


def compare(given_: list[Tensor], ours: dict, theirs: dict, dtype: torch.dtype, name: str, input: str) -> None:
    rounded = [x.to(dtype) for x in given_]
    want = value_and_gradients(lambda *t: plainly(*t, name=name, input=input, **theirs), *(x.double() for x in rounded))
    got = value_and_gradients(
        lambda q, k, c, s, b: hk.contrastive_loss(q, k, c, s, logit_bias=b, geometry=name, input=input, **ours),
        *(x.to(DEVICE) for x in rounded),
    )
    allowed, largest = {torch.float64: 2e-9, torch.float32: 2e-3}[dtype], max(float(x.norm()) for x in want[1:])
    for what, x, y in zip(("loss", "queries", "keys", "c", "scale", "bias"), got, want, strict=True):
        size = float(y.norm()) + (1e-3 * largest if what != "loss" else 0)
        assert float((x.cpu().double() - y).norm()) <= allowed * size, (what, x, y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@settings(max_examples=examples(4))
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(2, 12),
    factors=st.integers(1, 3),
    width=st.integers(1, 4),
    radius=st.sampled_from([0.01, 1.0, 4.0]),
    tangent=st.booleans(),
)
def test_against_the_formulas(options, name, dtype, seed, n, factors, width, radius, tangent):
    ours, theirs = keywords(options, n, n + 3, seed)
    given_ = inputs_of(n, n + 3, factors, width, seed, radius)
    compare(given_, ours, theirs, dtype, name, "tangent" if tangent else "lorentz")


@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_that_has_collapsed_in_one_factor(name):
    """Nearly all pairs of the first factor are near ones, so that float32 starts again in float64."""
    q, k, c, s, b = inputs_of(90, 90, 2, 8, 1, 0.5)
    q[:, :8], k[:, :8] = (0.3 + 1e-3 * x[:, :8] for x in (q, k))
    ours = {"loss": "softmax", "directions": "both"}
    compare([q, k, c, s, b], ours, dict(ours), torch.float32, name, "tangent")


@pytest.mark.parametrize("name", NAMES)
def test_coincident_pairs_have_no_slope(name):
    x = torch.randn(4, 6, dtype=torch.float64)
    found = value_and_gradients(
        lambda q, k, c: hk.contrastive_loss(q, k, c, 3.0, geometry=name), x, x, torch.tensor([0.5, 2.0]).double()
    )
    assert all(torch.isfinite(t).all() for t in found)


def test_one_factor_is_the_loss_of_distances():
    q, k, c, s, _ = inputs_of(9, 12, 1, 6, 3, 1.0)
    want = value_and_gradients(lambda q, k, c: hk.contrastive_loss(q, k, c[0], s), q, k, c)
    for name in NAMES:
        got = value_and_gradients(lambda q, k, c, name=name: hk.contrastive_loss(q, k, c, s, geometry=name), q, k, c)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{"margin": 0.1}, {"label_smoothing": 0.1, "debias": 0.02}])
def test_targets_are_those_of_the_reference(name, options):
    q, k, c, s, _ = inputs_of(9, 12, 2, 3, 5, 1.0)
    loss = lambda q, k, c, s: hk.contrastive_loss(q, k, c, s, geometry=name, query_scale=1.3, **options)  # noqa: E731
    got = value_and_gradients(loss, *(x.to(DEVICE) for x in (q, k, c, s)))
    with hk.use_reference():
        want = value_and_gradients(loss, q, k, c, s)
    torch.testing.assert_close([x.cpu() for x in got], want)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tangent", [True, False])
def test_blocks_of_any_device_are_those_of_tiles(name, tangent):
    q, k, c, *_ = (x.float() for x in inputs_of(20, 30, 2, 4, 7, 1.0))
    grad = torch.randn(20, 30)

    def fill(rows, columns, values, out):
        out.copy_(grad[rows, columns])

    pairs = BlockedPairs(q, k, c, Geometry(name, tangent, "ieee")), ProductPairs(q, k, c, name, tangent, False)
    one, other = ({(r.start, s.start): values.clone() for r, s, values in some.blocks()} for some in pairs)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(*(some.gradients(fill) for some in pairs), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_differences(name):
    q, k, c, s, b = (x.to(DEVICE).requires_grad_() for x in inputs_of(3, 5, 2, 2, 9, 1.0))
    for loss in ("softmax", "sigmoid"):
        assert torch.autograd.gradcheck(
            lambda *t, loss=loss: hk.contrastive_loss(*t[:4], logit_bias=t[4], loss=loss, geometry=name),
            (q, k + 0.1, c, s, b),
            atol=1e-6,
        )


@pytest.mark.parametrize("name", NAMES)
def test_the_operator_keeps_what_the_dispatcher_expects(name):
    q, k, c, s, _ = (x.float().requires_grad_() for x in inputs_of(5, 9, 2, 2, 6, 1.0))
    given_ = (q, k, c, s, *(None,) * 6, "softmax", name, True, True, "bf16x3", 0.0)
    torch.library.opcheck(operators._forward, given_, test_utils=("test_schema", "test_faketensor"))
    rows, columns, stats = operators._forward(*given_)
    ones = (torch.ones_like(rows), torch.ones_like(columns), stats)
    given_ = tuple(x.detach() if isinstance(x, Tensor) else x for x in (*ones, *given_))
    torch.library.opcheck(operators._backward, given_, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_grows_with_the_matrix(name, monkeypatch):
    monkeypatch.setitem(blocks.SIDE, "cpu", (16, 16))
    for n in (48, 96):
        q, k, c, s, _ = inputs_of(n, n, 2, 3, 11, 1.0)
        flags = ("softmax", Geometry(name, True, "bf16x3"), True)
        given_ = pair_loss.Inputs(q, k, c, s, *(None,) * 5, *flags)
        with Largest() as largest:
            rows, columns, stats = pair_loss.forward(given_)
            pair_loss.backward(given_, torch.ones_like(rows), torch.ones_like(columns), stats)
        assert largest.numbers <= max(16 * n, 9 * 16 * 16)


def test_terms_of_a_hierarchy():
    q, k, c, s, _ = inputs_of(6, 6, 2, 3, 13, 1.0)
    _, parts = hk.hierarchical_contrastive_loss(
        [hk.Term(q, k), hk.Term(k, q, 0.5, "rows")], c, s, geometry="l1-product"
    )
    alone = [hk.contrastive_loss(*two, c, s, geometry="l1-product", directions=way)
             for two, way in (((q, k), "both"), ((k, q), "rows"))]  # fmt: skip
    torch.testing.assert_close(parts, alone)


@pytest.mark.parametrize(
    ("c", "says"),
    [
        (1.0, "got float"),
        (torch.ones(()), r"got shape \(\)"),
        (torch.ones(4), r"divides d = 6, got shape \(4,\)"),
        (torch.tensor([1.0, -1.0]), "got -1 at index 1"),
    ],
)
def test_curvatures_that_are_none_of_factors(c, says):
    with pytest.raises(ValueError, match=says):
        hk.contrastive_loss(torch.randn(3, 6), torch.randn(3, 6), c, geometry="l1-product")


def test_a_factor_that_reaches_too_far():
    x = torch.full((3, 6), 300.0)
    with pytest.raises(ValueError, match="queries reaches"):
        hk.contrastive_loss(x, x, torch.ones(2), geometry="l2-product")


def test_features_are_cut_into_neighbouring_columns():
    parts = product.factors(torch.arange(12.0).reshape(2, 6), torch.ones(3))
    assert [p.tolist() for p in parts] == [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]
