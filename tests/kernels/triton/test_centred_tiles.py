"""Batches that have collapsed: tiles whose products have cancelled, and do not once a centre is taken from their points."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.nn import functional as F

from hyperst_kernels.gpu import contrastive as kernels
from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.contrastive import inputs
from hyperst_kernels.gpu.contrastive.centred import CENTRED
from hyperst_kernels.gpu.contrastive.exact import NEAR
from hyperst_kernels.reference import maps
from tests.kernels.triton import DEVICE, INTERPRETED, test_hierarchy
from tests.kernels.triton.test_contrastive_kernel import PAIR, C, assert_close, exactly, fused

UNFLAGGED, NEAR, CENTRED = 0, NEAR.value, CENTRED.value
SCALE = 14.0
# neither whole tiles nor few of them
N, M = (40, 70) if INTERPRETED else (300, 450)
D = 24


@pytest.fixture(autouse=True)
def _centres_at_any_size(monkeypatch):
    monkeypatch.setattr(inputs, "CENTRED_FROM", 0)


def cluster(n, d, seed, radius, spread):
    """Tangent vectors (n d), float64, about one of a length; the spread is that of their differences beside it."""
    g = torch.Generator().manual_seed(seed)
    centre = F.normalize(torch.ones(d, dtype=torch.float64), dim=0)
    return radius * (centre + spread * torch.randn(n, d, generator=g, dtype=torch.float64) / d**0.5)


def collapsed(radius, spread, input="tangent", dtype=torch.float32, d=D):
    found = [cluster(n, d, seed, radius, spread) for seed, n in enumerate((N, M))]
    if input == "lorentz":
        found = [maps.exp_map0(x / C**0.5, torch.tensor(C)) for x in found]
    return [x.to(dtype) for x in found]


def upstream_of(n=N):
    return torch.randn(2, n, generator=torch.Generator().manual_seed(9))


def flags_of(queries, keys, input="tangent", geometry="lorentz", precision="bf16x3"):
    """Flags of the tiles, but for the last row and column, which are of none."""
    features, scalars = [queries.to(DEVICE), keys.to(DEVICE)], torch.tensor([C, SCALE], device=DEVICE)
    flags = kernels.forward(features, None, *scalars, None, PAIR, geometry, input == "tangent", precision)[3]
    return flags[0, :-1, :-1].cpu()


def assert_right(queries, keys, radius, variant="blocks", **options):
    """Losses and gradients of features as those of near pairs; of c and the scale by what their sums are made of.

    z of a centred tile is up to 1e-4 off, see decisions.md: so is each summand.
    """
    upstream = upstream_of(len(queries))
    exact = exactly(queries, keys, SCALE, upstream, **options)
    found = fused(queries, keys, SCALE, upstream, variant, **options)
    assert_close(found, exact, [], SCALE, radius, upstream)
    longest = max(float(x.double().norm(dim=1).max()) for x in (queries, keys))
    along = longest * sum(float(g.norm(dim=1).sum()) for g in exact[2:4])
    (dc, ds), (exact_dc, exact_ds) = found[4:], exact[4:]
    assert (dc - exact_dc).abs() <= 1e-4 * along / (2 * C)
    assert (ds - exact_ds).abs() <= 1e-4 * along / SCALE + 1e-5 * exact_ds.abs()


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("variant", "geometry", "input"), [("rows", "lorentz", "tangent"), ("blocks", "euclidean", "tangent")]
)
def test_a_batch_that_has_collapsed(variant, geometry, input):
    options = {"geometry": geometry, "input": input}
    queries, keys = collapsed(1.0, 1e-3, input)
    assert (flags_of(queries, keys, **options) == CENTRED).all()
    assert_right(queries, keys, 1.0, variant, **options)


@pytest.mark.parametrize(
    ("radius", "spread", "input", "variant"),
    [
        (0.1, 1e-5, "tangent", "rows"),
        (1.0, 1e-5, "lorentz", "atomic"),
        (5.0, 1e-4, "lorentz", "blocks"),
        (20.0, 1e-2, "tangent", "rows"),
    ],
)
def test_of_any_radius_and_spread(radius, spread, input, variant):
    d = 128 if radius == 20 else D  # fewer leave near pairs in every tile
    queries, keys = collapsed(radius, spread, input, d=d)
    flags = flags_of(queries, keys, input)
    assert (flags == CENTRED).any()
    assert (flags != UNFLAGGED).all()
    assert_right(queries, keys, radius, variant, input=input)


def test_half_precision_features():
    queries, keys = collapsed(1.0, 3e-2, dtype=torch.bfloat16)
    assert (flags_of(queries, keys) == CENTRED).any()
    upstream = upstream_of()
    found, exact = fused(queries, keys, SCALE, upstream, "rows"), exactly(queries, keys, SCALE, upstream)
    for got, want in zip(found[:2], exact[:2], strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    for got, want in zip(found[2:4], exact[2:4], strict=True):
        assert (got.double() - want).norm(dim=1).max() <= torch.finfo(torch.bfloat16).eps * want.norm(dim=1).max()


@pytest.mark.any_arithmetic
def test_one_tile_of_a_batch():
    """The rest is ordinary, a duplicate apart."""
    table = launch.settings("contrastive", D, torch.float32)
    g = torch.Generator().manual_seed(5)
    queries, keys = (F.normalize(torch.randn(n, D, generator=g), dim=1) for n in (N, M))
    keys = -keys
    queries[: table["rows"]] = cluster(table["rows"], D, 2, 1.0, 1e-3)
    keys[: table["columns"]] = cluster(table["columns"], D, 3, 1.0, 1e-3)
    keys[table["columns"] + 3] = queries[table["rows"] + 1]
    flags = flags_of(queries, keys)
    expected = torch.zeros_like(flags)
    expected[0, 0], expected[1, 1] = CENTRED, NEAR
    assert torch.equal(flags, expected)
    assert_right(queries, keys, 1.0, "rows")


def test_near_pairs_in_a_batch_that_has_collapsed():
    """Their tiles stay with differences, number by number."""
    queries, keys = collapsed(1.0, 1e-3)
    keys[3] = queries[7]
    flags = flags_of(queries, keys)
    assert flags[0, 0] == NEAR
    assert (flags.flatten()[1:] == CENTRED).all()
    assert_right(queries, keys, 1.0)


@pytest.mark.any_arithmetic
def test_what_stays_with_differences():
    """Two clusters, squares that are no numbers, and a row that is none: no distance of the others may be one from it."""
    queries, keys = collapsed(1.0, 1e-5)
    queries[::2], keys[::2] = queries[::2] * 1.03, keys[::2] * 1.03
    assert (flags_of(queries, keys) == NEAR).all()
    assert (flags_of(*collapsed(1e-10, 1e-7, "lorentz"), "lorentz") == NEAR).all()
    queries, keys = collapsed(1.0, 1e-3)
    queries[0, 0] = torch.nan
    flags = flags_of(queries, keys)
    assert (flags[0] == NEAR).all()
    assert (flags[1:] == CENTRED).all()


@pytest.mark.any_arithmetic
def test_ids_rectangles_and_the_same_bits_twice():
    queries, keys = collapsed(1.0, 1e-3)
    ids = torch.arange(M) % 7
    options = {"exclude_ids": ids, "directions": "rows"}
    assert_right(queries, keys, 1.0, "rows", **options)
    compute = functools.partial(fused, queries, keys, SCALE, upstream_of(), "rows")
    assert all(map(torch.equal, compute(**options), compute(**options)))


@pytest.mark.any_arithmetic
def test_terms_of_a_hierarchy():
    """With factors, features that own rows in several terms, and terms over rows alone."""
    lengths, radii = (33, 33, 33, 40), (2.0, 1.0, 1.0, 1 / 0.7)  # times their factors
    vectors = [
        cluster(n, 16, k, radius, 1e-3).float() for k, (n, radius) in enumerate(zip(lengths, radii, strict=True))
    ]
    found = test_hierarchy.fused(vectors, test_hierarchy.TANGLED, 1, "rows")
    exact = test_hierarchy.exactly(vectors, test_hierarchy.TANGLED, 1)
    for got, want in zip(found[2:6], exact[2:6], strict=True):
        assert (got.double() - want).norm(dim=1).max() <= 1e-4 * want.norm(dim=1).max()


@pytest.mark.any_arithmetic
def test_small_batches_are_not_worth_it(monkeypatch):
    queries, keys = collapsed(1.0, 1e-3)
    monkeypatch.undo()
    assert (flags_of(queries, keys) == NEAR).all()


@pytest.mark.any_arithmetic
def test_an_ordinary_batch_has_the_same_bits(monkeypatch):
    g = torch.Generator().manual_seed(0)
    apart = F.normalize(torch.randn(M, 24, generator=g), dim=1)
    found = fused(-apart[:N], apart, SCALE, upstream_of(), "rows")
    monkeypatch.setattr(inputs, "CENTRED_FROM", 1 << 60)
    assert all(map(torch.equal, found, fused(-apart[:N], apart, SCALE, upstream_of(), "rows")))
