"""Blockwise losses of all pairs: several positives, sigmoid, scales of each query, angles; against plain formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hyperst_kernels as hk
from benchmarks import cases
from hyperst_kernels.blocked import blocks, pair_loss
from hyperst_kernels.blocked.blocks import Geometry
from hyperst_kernels.blocked.pairs import PowerSums
from hyperst_kernels.operators import pair_loss as operators
from tests.kernels import examples
from tests.kernels.triton import DEVICE

GEOMETRIES = ["lorentz", "euclidean", "cosine", "angle"]
EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Several blocks of several shapes."""
    for device in ("cpu", "cuda"):
        monkeypatch.setitem(blocks.SIDE, device, (5, 7))


def apart(q: Tensor, k: Tensor, c: Tensor, geometry: str, input: str) -> Tensor:
    """Distances or angles of all pairs in float64 from row-wise functions of the reference, which have no blocks."""
    shape = (len(q), len(k), q.shape[1])
    x, y = q[:, None].expand(shape), k[None].expand(shape)
    if geometry == "euclidean":
        return torch.linalg.vector_norm(x - y, dim=-1)
    if geometry == "cosine":
        return 1 - F.cosine_similarity(x, y, dim=-1, eps=0)
    with hk.use_reference():
        return (hk.exterior_angle if geometry == "angle" else hk.distance)(x, y, c, input=input)


def plainly(q, k, c, s, b, *, loss, geometry, input, directions, ids=None, exclude=None) -> Tensor:
    """The formulas as they are written, row by row."""
    logits = -(s[:, None] if s.ndim else s) * apart(q, k, c, geometry, input)
    positive = torch.eye(*logits.shape, dtype=torch.bool) if ids is None else ids[0][:, None] == ids[1]
    excluded = torch.zeros_like(positive) if exclude is None else (exclude[: len(q), None] == exclude) & ~positive
    if loss == "sigmoid":
        each = F.softplus(torch.where(positive, -1, 1) * (logits + b), threshold=700)
        return each.masked_fill(excluded, 0).sum() / len(q)

    def mean_over_rows(logits, positive, excluded):
        each = [
            torch.logsumexp(row[~out], 0) - row[mine].mean()
            for row, mine, out in zip(logits, positive, excluded, strict=True)
            if mine.any()
        ]
        return torch.stack(each).mean()

    rows = mean_over_rows(logits, positive, excluded)
    return rows if directions == "rows" else (rows + mean_over_rows(logits.T, positive.T, excluded.T)) / 2


def value_and_gradients(function, *given: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in given]
    value = function(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves, materialize_grads=True)]


def inputs_of(n: int, m: int, d: int, seed: int, radius: float, each: bool, scale: float = 7.0) -> list[Tensor]:
    """Queries, keys, c, logit scale and bias in float64; some keys lie on a query, or near one."""
    g = torch.Generator().manual_seed(seed)
    q, k = (F.normalize(torch.randn(r, d, generator=g, dtype=torch.float64), dim=1) * radius for r in (n, m))
    q, k = (x * torch.rand(len(x), 1, generator=g, dtype=torch.float64) for x in (q, k))
    k[m // 2] = q[0]
    k[m // 3] = q[n // 2] + 1e-4 * radius * k[m // 3]
    s = torch.full((), scale, dtype=torch.float64)
    if each:
        s = s * (0.5 + torch.rand(n, generator=g, dtype=torch.float64))
    return [q, k, torch.tensor(0.8, dtype=torch.float64), s, torch.tensor(-2.0, dtype=torch.float64)]


OPTIONS = [
    *(
        {"loss": "softmax", "directions": way, "kind": kind}
        for way in ("both", "rows")
        for kind in (None, "ids", "exclude")
    ),
    *({"loss": "sigmoid", "directions": "rows", "kind": kind} for kind in (None, "ids", "exclude")),
]


def keywords(options: dict, n: int, m: int, seed: int) -> tuple[dict, dict]:
    """For the library, and for `plainly`."""
    g = torch.Generator().manual_seed(seed)
    ids = tuple(torch.randint(0, 4, (r,), generator=g) for r in (n, m))
    ids[1][0] = ids[0][0]  # one pair at least
    exclude = torch.randint(0, 5, (m,), generator=g)
    ours = {"loss": options["loss"], "directions": options["directions"]}
    theirs = dict(ours)
    if options["kind"] == "ids":
        ours["positives"], theirs["ids"] = tuple(t.to(DEVICE) for t in ids), ids
    elif options["kind"] == "exclude":
        ours["exclude_ids"], theirs["exclude"] = exclude.to(DEVICE), exclude
    return ours, theirs


def compare(given, ours, theirs, dtype, geometry, input, allowed) -> None:
    rounded = [x.to(dtype) for x in given]
    want = value_and_gradients(
        lambda *t: plainly(*t, geometry=geometry, input=input, **theirs), *(x.double() for x in rounded)
    )
    got = value_and_gradients(
        lambda q, k, c, s, b: hk.contrastive_loss(q, k, c, s, logit_bias=b, geometry=geometry, input=input, **ours),
        *(x.to(DEVICE) for x in rounded),
    )
    largest = max(float(x.norm()) for x in want[1:])
    for name, x, y in zip(("loss", "queries", "keys", "c", "scale", "bias"), got, want, strict=True):
        size = float(y.norm()) + (1e-3 * largest if name != "loss" else 0)
        assert float((x.cpu().double() - y).norm()) <= allowed * size, (name, x, y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@settings(max_examples=examples(6))
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(2, 12),
    more=st.integers(1, 6),
    d=st.integers(2, 6),
    radius=st.sampled_from([0.01, 1.0, 4.0]),
    each=st.booleans(),
    tangent=st.booleans(),
)
def test_against_the_formulas(options, geometry, dtype, seed, n, more, d, radius, each, tangent):
    m = n + more
    given_ = inputs_of(n, m, d, seed, radius, each)
    ours, theirs = keywords(options, n, m, seed)
    # a matrix of distances has errors of some 1e-5 in float32, of points near the origin relative to their radius; a loss is a
    # difference of logits of size scale * distance
    allowed = {torch.float64: 2e-9, torch.float32: 2e-3}[dtype]
    compare(given_, ours, theirs, dtype, geometry, "tangent" if tangent else "lorentz", allowed)


@pytest.mark.parametrize("directions", ["both", "rows"])
@pytest.mark.parametrize("scale", [1e3, 1e5, 1e7])
def test_large_logits(scale, directions):
    """Of distances of 1: gradients are those of float64 to the rounding of a distance times the scale."""
    q, k, c, _, b = inputs_of(9, 12, 4, 1, 1.0, False)
    # distances within some rounding of each other, so that the softmax is not all of one key
    k = q[:1] + k / scale
    q = q[:1] + q / scale
    s = torch.tensor(scale, dtype=torch.float64)
    ids = torch.arange(9) % 3, torch.arange(12) % 3
    q, k = (x.float().double() for x in (q, k))
    ours = {"loss": "softmax", "directions": directions, "positives": tuple(t.to(DEVICE) for t in ids)}
    theirs = {"loss": "softmax", "directions": directions, "ids": ids}
    compare([q, k, c, s, b], ours, theirs, torch.float32, "lorentz", "tangent", 2e-4)


def test_one_positive_each_is_the_fused_loss():
    q, k, c, s, _ = inputs_of(11, 11, 5, 2, 1.5, False)
    ids = torch.randperm(11, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    given_ = [x.to(DEVICE) for x in (q, k, c, s)]
    got = value_and_gradients(lambda *t: hk.contrastive_loss(*t, positives=(ids, ids)), *given_)
    want = value_and_gradients(lambda *t: hk.contrastive_loss(*t), *given_)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_a_confident_row_keeps_its_digits():
    """e^-gap, where 1 - e^-gap rounds to 1."""
    q = torch.tensor([[0.0, 0.0]], dtype=torch.float32, device=DEVICE)
    k = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float32, device=DEVICE)
    ids = torch.tensor([5], device=DEVICE), torch.tensor([5, 6], device=DEVICE)
    s = torch.tensor(50.0, device=DEVICE, requires_grad=True)
    loss = hk.contrastive_loss(q, k, 1.0, s, positives=ids, directions="rows")
    loss.backward()
    assert float(loss) == pytest.approx(math.exp(-50), rel=1e-5)
    assert float(s.grad) == pytest.approx(-math.exp(-50), rel=1e-5)


def test_queries_without_a_positive_are_not_counted():
    q, k, c, s, _ = inputs_of(6, 8, 3, 3, 1.0, False)
    of_queries, of_keys = torch.tensor([0, 0, 1, 9, 9, 1]), torch.tensor([0, 1, 1, 0, 7, 7, 7, 7])
    each = hk.contrastive_loss(q, k, c, s, positives=(of_queries, of_keys), directions="rows", reduction="none")
    assert each[[3, 4]].tolist() == [0, 0]
    assert (each[[0, 1, 2, 5]] > 0).all()
    mean = hk.contrastive_loss(q, k, c, s, positives=(of_queries, of_keys), directions="rows")
    torch.testing.assert_close(mean, each.sum() / 4)
    weights = torch.tensor([1.0, 0, 2, 5, 5, 0], dtype=torch.float64)
    weighted = hk.contrastive_loss(q, k, c, s, positives=(of_queries, of_keys), directions="rows", weights=weights)
    torch.testing.assert_close(weighted, (each[0] + 2 * each[2]) / 3)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_gradcheck(loss, geometry):
    q, k, c, s, b = (x.requires_grad_() for x in inputs_of(4, 6, 3, 5, 1.0, True))
    ids = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2, 1, 3])
    with torch.no_grad():
        k += 0.1  # off the queries, where distances have a kink

    def function(*t):
        return hk.contrastive_loss(*t[:4], logit_bias=t[4], loss=loss, positives=ids, geometry=geometry)

    assert torch.autograd.gradcheck(function, (q, k, c, s, b), atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"loss": "sigmoid"}, {"geometry": "angle"}, {"geometry": "euclidean", "loss": "sigmoid"}]
)
def test_operators_keep_what_the_dispatcher_expects(options):
    q, k, c, s, b = (x.float().requires_grad_() for x in inputs_of(5, 9, 4, 6, 1.0, True))
    given_ = (q, k, c, s, b if options.get("loss") else None, *(None,) * 5, options.get("loss", "softmax"))
    flags = (options.get("geometry", "lorentz"), True, True, "bf16x3", 0.0)
    torch.library.opcheck(operators._forward, (*given_, *flags), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("options", [{"loss": "sigmoid"}, {"geometry": "angle"}, {"ids": True}, {"each": True}])
def test_the_same_bits_every_time(options):
    q, k, c, s, b = (x.float().to(DEVICE) for x in inputs_of(30, 40, 6, 7, 2.0, options.get("each", False)))
    keywords = {name: value for name, value in options.items() if name in ("loss", "geometry")}
    if options.get("ids"):
        keywords["positives"] = (torch.arange(30, device=DEVICE) % 4, torch.arange(40, device=DEVICE) % 4)
    one, other = (
        value_and_gradients(
            lambda q, k, c, s, b: hk.contrastive_loss(q, k, c, s, logit_bias=b, **keywords), q, k, c, s, b
        )
        for _ in range(2)
    )
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def test_terms_have_their_own_scales():
    q, k, c, _, _ = inputs_of(7, 9, 4, 8, 1.0, False)
    alpha = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    own = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    terms = [hk.Term(q, k, 0.5, "both", alpha), hk.Term(k[:7], q, 0.25, "rows", 1.0, alpha, own), hk.Term(q, q, 1.0)]
    total, parts = hk.hierarchical_contrastive_loss(terms, c, 11.0)
    alone = [
        hk.contrastive_loss(q, k, c, 11.0, query_scale=alpha),
        hk.contrastive_loss(k[:7], q, c, own, directions="rows", key_scale=alpha),
        hk.contrastive_loss(q, q, c, 11.0),
    ]
    torch.testing.assert_close(parts, alone)
    want = 0.5 * alone[0] + 0.25 * alone[1] + alone[2]
    for x, y in zip(*(torch.autograd.grad(v, (alpha, own), retain_graph=True) for v in (total, want)), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_module_passes_loss_and_bias_on(loss):
    q, k, _, s, b = (x.requires_grad_() for x in inputs_of(6, 6, 4, 9, 1.0, False))
    module = hk.HyperbolicContrastiveLoss(0.8, loss=loss)
    torch.testing.assert_close(module(q, k, s, b), hk.contrastive_loss(q, k, 0.8, s, loss=loss, logit_bias=b))
    (slope,) = torch.autograd.grad(module(q, k, s, b), b)
    assert (float(slope) == 0) == (loss == "softmax")


@pytest.mark.parametrize("geometry", ["lorentz", "angle"])
def test_half_precision_is_computed_in_float32(geometry):
    q, k, c, s, _ = (x.bfloat16() for x in inputs_of(9, 9, 8, 10, 1.0, False))
    ids = torch.arange(9) % 4
    got = hk.contrastive_loss(q, k, c, s, positives=(ids, ids), geometry=geometry)
    want = hk.contrastive_loss(q.float(), k.float(), c.float(), s.float(), positives=(ids, ids), geometry=geometry)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_more_queries_than_keys_with_ids_of_any_integers():
    q, k, c, s, _ = inputs_of(9, 5, 3, 12, 1.0, False)
    ids = torch.arange(9) % 4, torch.arange(5) % 4
    want = plainly(q, k, c, s, None, loss="softmax", geometry="lorentz", input="tangent", directions="both", ids=ids)
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.uint16):
        torch.testing.assert_close(hk.contrastive_loss(q, k, c, s, positives=tuple(t.to(dtype) for t in ids)), want)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("spread", [1e-2, 1e-4])
def test_of_an_encoder_that_has_collapsed(geometry, spread, monkeypatch):
    """Distances of near vectors tell them apart, in a block that is nearly all of them too."""
    monkeypatch.setitem(blocks.SIDE, "cpu", (64, 64))
    g = torch.Generator().manual_seed(0)
    base = torch.randn(1, 16, generator=g, dtype=torch.float64)
    k = (base + spread * torch.randn(90, 16, generator=g, dtype=torch.float64)).float()
    wide = hk.similarity(k[:20].double(), k.double(), 0.8, geometry=geometry)
    distances, indices = hk.topk(k[:20], k, 3, 0.8, input="tangent", geometry=geometry)
    torch.testing.assert_close(distances.double(), -wide.topk(3).values, rtol=1e-3, atol=1e-5 * spread)
    if geometry != "angle":  # which is 0 of a vector and itself, and of all that are straight behind it
        assert indices[:, 0].tolist() == list(range(20))
        assert (indices == wide.topk(3).indices).double().mean() > 0.95


class Largest(TorchDispatchMode):
    """Notes the most numbers that a tensor made inside holds."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(made) if isinstance(t, Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return made


@pytest.mark.parametrize(("loss", "label_smoothing"), [("softmax", 0.0), ("softmax", 0.1), ("sigmoid", 0.0)])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_no_tensor_grows_with_the_matrix(geometry, loss, label_smoothing, monkeypatch):
    """Forward and backward: none is larger than a few blocks, or what is given, at twice the batch as at once."""
    monkeypatch.setitem(blocks.SIDE, "cpu", (16, 16))
    for n in (48, 96):
        q, k, c, s, _ = inputs_of(n, n, 4, 11, 1.0, False)
        ids = torch.arange(n) % 7
        flags = (loss, Geometry(geometry, True, "bf16x3"), True, label_smoothing)
        debias, limits = (torch.tensor(0.1), (torch.full((n,), 0.1).double(),) * 2) if label_smoothing else (None, None)
        given_ = pair_loss.Inputs(q, k, c, s, None, (ids, ids), None, limits, debias, *flags)
        with Largest() as largest:
            rows, columns, stats = pair_loss.forward(given_)
            pair_loss.backward(given_, torch.ones_like(rows), torch.ones_like(columns), stats)
        assert largest.numbers <= max(len(PowerSums._fields) * 2 * n, 8 * 16 * 16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("input", ["tangent", "lorentz"])
@given(seed=st.integers(0, 2**31), d=st.integers(1, 6))
def test_angles_of_all_pairs_are_those_of_rows(input, dtype, seed, d):
    """Equal, near, opposite vectors, on one ray, at the origin: all with all, and the gradients but for kinks."""
    u, v = cases.tangents(8, d, seed, 20.0)
    if input == "lorentz":
        u, v = (hk.exp_map0(t, 0.8) for t in (u, v))
    x, y = u.to(DEVICE, dtype), v.to(DEVICE, dtype)
    angles = hk.pairwise_exterior_angle(x, y, 0.8, input=input)
    shape = (*angles.shape, d)
    pairs = x.double()[:, None].expand(shape), y.double()[None].expand(shape)
    want = hk.exterior_angle(*pairs, 0.8, input=input)
    # two roundings of a product of directions, over the least sine that is taken from one; where C cancels, cosh p times that
    allowed = 64 * EPS[dtype] * 2.0**3 * (d + 4)
    # a kink, where points coincide but for rounding: there an angle may be any
    apart = hk.distance(*pairs, 0.8, input=input) > 1e3 * EPS[dtype] * (1 + hk.distance0(pairs[0], 0.8, input=input))
    assert ((angles.double() - want).abs()[apart] <= allowed).all()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("spread", [0.1, 1e-2])
def test_gradients_of_an_encoder_that_has_collapsed(geometry, spread, monkeypatch):
    """In blocks that are nearly all near pairs, and in those that hold a few."""
    g = torch.Generator().manual_seed(1)
    base = torch.randn(1, 16, generator=g, dtype=torch.float64) / 4
    x = base + spread * torch.randn(90, 16, generator=g, dtype=torch.float64) / 4
    x[45:] = torch.randn(45, 16, generator=g, dtype=torch.float64) / 4
    ids = torch.arange(90) % 30
    for side in (32, 96):
        monkeypatch.setitem(blocks.SIDE, "cpu", (side, side))
        given_ = [
            x,
            x.flip(0) + 1e-3,
            torch.tensor(0.8).double(),
            torch.tensor(5.0).double(),
            torch.tensor(2.0).double(),
        ]
        ours = {"loss": "softmax", "directions": "rows", "positives": (ids.to(DEVICE), ids.to(DEVICE))}
        theirs = {"loss": "softmax", "directions": "rows", "ids": (ids, ids)}
        compare(given_, ours, theirs, torch.float32, geometry, "tangent", 2e-3)
