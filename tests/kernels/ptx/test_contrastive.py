"""The contrastive loss and its gradients on executed PTX, in every variant: near the reference, and nothing found wrong."""

from __future__ import annotations

import pytest
import torch

from hyperst_kernels.gpu import launch
from tests.kernels.ptx.launch import running
from tests.kernels.triton import test_contrastive_kernel as pair
from tests.kernels.triton import test_fused_arithmetic as faults
from tests.kernels.triton import test_hierarchy as hierarchy

# how the gradient is computed: as the table says for this architecture, in blocks of weights, by rows, or atomically;
# "wide" is what the table says for bfloat16 on sm_90
WAYS = {
    "table": None, "blocks": {}, "rows": pair.BY_ROWS, "atomic": pair.BY_ROWS,
    "wide": {"rows": 128, "columns": 64, "warps": 8, "stages": 2},
}  # fmt: skip
SINGLE, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float64
SCALE = 14.0


@pytest.fixture
def _way(request, monkeypatch):
    """The launch settings of one way, in place of those of the test module that is borrowed from."""
    monkeypatch.setattr(pair, "VARIANTS", WAYS)
    monkeypatch.setattr(hierarchy, "VARIANTS", WAYS)


def ids_of(kind, m):
    """No ids, or classes of a few keys each, in random order or side by side."""
    if kind is None:
        return None
    ids = torch.arange(m) // 12
    return ids if kind == "sorted" else ids[torch.randperm(m, generator=torch.Generator().manual_seed(3))]


def case(n, m, d, dtype=SINGLE, way="table", geometry="lorentz", directions="both", ids=None, approximate="exact"):
    """A test, with a name that says what differs from the default."""
    values = (n, m, d, dtype, way, geometry, directions, ids, approximate)
    changed = [str(v).removeprefix("torch.") for v, plain in zip(values[3:], DEFAULTS, strict=True) if v != plain]
    return pytest.param(*values, id="-".join([f"{n}x{m}x{d}", *changed]))


DEFAULTS = (SINGLE, "table", "lorentz", "both", None, "exact")
BY = ("table", "rows", "atomic")
WHOLE = (70, 100, 24)  # two tiles of rows and two of keys
SMALL = (40, 70, 17)  # one and two, for what no number of tiles changes
CASES = [
    *(case(1, 1, 1, way=way) for way in BY),
    *(case(1, 5, 3, way=way) for way in BY),
    *(case(33, 33, 3, way=way) for way in (*BY, "blocks")),
    *(case(*WHOLE, way=way, ids=ids) for way in BY for ids in (None, "sorted")),
    *(case(*SMALL, way=way, ids="random") for way in BY),
    *(case(*WHOLE, way=way, directions="rows", ids="sorted") for way in ("table", "rows")),
    *(case(*SMALL, way=way, geometry="euclidean") for way in BY),
    *(case(*SMALL, way=way, geometry="cosine", directions="rows") for way in BY),
    case(*SMALL, way="rows", geometry="euclidean", directions="rows", ids="random"),
    case(*SMALL, way="table", geometry="cosine", ids="sorted"),
    *(case(*SMALL, HALF, way) for way in BY),
    case(*WHOLE, HALF, "wide"),
    case(*SMALL, torch.float16),
    *(case(*SMALL, DOUBLE, way) for way in BY),
    *(case(*SMALL, dtype, "rows", approximate="worst") for dtype in (SINGLE, HALF)),
    *(case(*SMALL, way=way, ids="random", approximate="worst") for way in ("table", "atomic")),
    case(130, 70, 3, way="table"),
]


def losses(compute, queries, keys, upstream, **options):
    return pair.run(compute, queries, keys, SCALE, upstream, **options)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize(("n", "m", "d", "dtype", "way", "geometry", "directions", "ids", "approximate"), CASES)
def test_pairs(n, m, d, dtype, way, geometry, directions, ids, approximate):
    m, n = max(n, m), min(n, m)
    queries, keys = pair.views(n, m, d, 0, 1.0, "tangent", dtype)
    if geometry == "cosine" and n > 8:  # whose gradient at the origin means nothing
        queries[2], keys[8] = 1, -1
    upstream = torch.randn(2, n, generator=torch.Generator().manual_seed(1))
    options = {"geometry": geometry, "directions": directions, "exclude_ids": ids_of(ids, m)}
    with running(approximate) as run:
        found = fused(queries, keys, upstream, way, **options)
    exact = pair.exactly(queries, keys, SCALE, upstream, **options)
    wide = DOUBLE if dtype == DOUBLE else SINGLE
    moved = [
        pair.exactly(
            torch.nextafter(queries.to(wide), torch.full(queries.shape, torch.inf, dtype=wide)),
            keys,
            SCALE,
            upstream,
            **options,
        ),
        pair.exactly(
            queries,
            torch.nextafter(keys.to(wide), torch.full(keys.shape, -torch.inf, dtype=wide)),
            SCALE,
            upstream,
            **options,
        ),
    ]
    check(found, exact, moved, dtype, approximate, upstream)
    assert not run.findings


def fused(queries, keys, upstream, way, **options):
    if way == "table":
        return pair.run(pair.cases.contrastive_terms, queries, keys, SCALE, upstream, **options)
    return pair.fused(queries, keys, SCALE, upstream, way, **options)


def check(found, exact, moved, dtype, approximate, upstream):
    """Losses, gradients of features, and those of scalars, relative to the largest of their kind."""
    eps = torch.finfo(DOUBLE if dtype == DOUBLE else SINGLE).eps
    logits = eps * SCALE * 72  # a logit keeps 15 bits of z where a pair is near, and all of a distance
    if approximate == "worst":
        logits *= 8
    rounded = 2.0**-7 if dtype in (HALF, torch.float16) else 0  # weights and results
    # in blocks, weights and points are sums of two bf16 numbers, and a pull the difference of what is 16 times as large
    weights = {DOUBLE: 1e-11}.get(dtype, 2.0**-13)
    for i, (got, want) in enumerate(zip(found, exact, strict=True)):
        assert torch.isfinite(got).all(), i
        known = 2 * max((float((other[i] - want).abs().max()) for other in moved), default=0.0) if want.numel() else 0.0
        off = (got - want).abs().max() if want.numel() else 0.0
        if i < 2:  # losses
            bound = (logits + 64 * eps) * (1 + float(want.abs().max() if want.numel() else 0))
        elif want.ndim:
            floor = SCALE * float(upstream.abs().max()) * 8 * eps
            off, bound = (
                (got - want).norm(dim=1).max(),
                (logits + 2 * weights + 4 * rounded) * want.norm(dim=1).max() + floor,
            )
            known *= want.shape[1] ** 0.5
        else:  # sums over pairs, with both signs
            bound = (logits + weights / 4 + rounded) * float(exact[0].sum() + exact[1].sum() + want.abs() + 1)
        assert off <= bound + known, (i, float(off), float(bound), float(known))


@pytest.mark.parametrize("fault", [faults.test_equal_rows_with_a_factor, faults.test_equal_negatives_with_a_factor])
@pytest.mark.parametrize(("dtype", "way"), [*((SINGLE, way) for way in pair.VARIANTS), (DOUBLE, "blocks")])
def test_equal_rows_pull_nowhere(fault, dtype, way):
    with running() as run:
        fault(way, dtype, "lorentz")
    assert not run.findings


HIERARCHIES = [
    *(
        pytest.param(way, ids, SINGLE, "exact", id=f"{way}-{ids}")
        for way, ids in zip(BY, (None, "sorted", None), strict=True)
    ),
    pytest.param("table", None, DOUBLE, "exact", id="float64"),
]


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize(("way", "ids", "dtype", "approximate"), HIERARCHIES)
def test_hierarchy_with_factors(way, ids, dtype, approximate):
    """HyperST's three terms; features that share a row, and factors that are no powers of two."""
    vectors = hierarchy.features((40, 40, 40, 40), 24, 0, dtype=dtype)
    excluded = ids_of(ids, 40)
    with running(approximate) as run:
        found = hierarchy.fused(vectors, hierarchy.HYPERST, 1, "blocks" if way == "table" else way, ids=excluded)
    exact = hierarchy.exactly(vectors, hierarchy.HYPERST, 1, ids=excluded)
    ends = [torch.nextafter(x, torch.full_like(x, torch.inf)) for x in vectors]
    moved = [
        hierarchy.exactly([*vectors[:k], ends[k], *vectors[k + 1 :]], hierarchy.HYPERST, 1, ids=excluded)
        for k in range(4)
    ]
    upstream = hierarchy.upstream_of(found[0], 1)
    check(found[:6], exact[:6], [other[:6] for other in moved], dtype, approximate, upstream)
    eps = torch.finfo(dtype).eps
    rounding = eps * hierarchy.SCALE * 72 * (8 if approximate == "worst" else 1) + 1e-5 * eps / torch.finfo(SINGLE).eps
    total = sum(float(g.norm(dim=1).sum()) for g in exact[2:6]) + 1
    for i in (6, 7, 8):  # factors, c and the scale: sums over all pairs, whose terms have both signs
        known = 2 * sum((other[i] - exact[i]).abs().max() for other in moved)
        assert (found[i] - exact[i]).abs().max() <= rounding * total + known, i
    assert not run.findings


def test_the_table_is_that_of_the_architecture():
    with running():
        assert launch.architecture() == "cuda:80"
        assert launch.lookup("contrastive backward", 24, SINGLE) == {}
