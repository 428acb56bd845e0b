"""The fused loss and its gradients: tails, near pairs and duplicates, every geometry and direction, memory."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from benchmarks import cases
from hyperst_kernels.gpu import contrastive as kernels
from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.contrastive import backward_blocks
from hyperst_kernels.gpu.contrastive.inputs import CANCELLED
from hyperst_kernels.gpu.exact_pairs import EXACT_TILE
from hyperst_kernels.reference import contrastive as reference
from hyperst_kernels.reference import maps
from hyperst_kernels.reference.contrastive import Pairing
from tests.kernels import examples
from tests.kernels.halves import moved_losses
from tests.kernels.triton import APPROXIMATE, DEVICE, INTERPRETED

C = 0.8
PAIR = [Pairing(0, 1, True)]
# how the gradient is computed: blocks of weights, one kernel run for queries and for keys, or one run for both
BY_ROWS = {"rows": 64, "columns": 32, "warps": 4, "stages": 1}
VARIANTS: dict[str, dict[str, int]] = {"blocks": {}, "rows": BY_ROWS, "atomic": BY_ROWS}
EPS = torch.finfo(torch.float32).eps
BLOCK = 64 if INTERPRETED else 128  # the least that holds whole tiles: several blocks in a small batch


def views(n, m, d, seed, radius, input, dtype=torch.float32):
    """Directions at random, positives alike; duplicates, near neighbours and the origin among the negatives."""
    g = torch.Generator().manual_seed(seed)
    keys = F.normalize(torch.randn(m, d, generator=g, dtype=torch.float64), dim=1)
    queries = F.normalize(keys[:n] + 0.5 * torch.randn(n, d, generator=g, dtype=torch.float64) / d**0.5, dim=1)
    queries, keys = radius * queries, radius * keys
    if n > 8:
        keys[3], keys[5] = queries[7], queries[6] * (1 + 1e-4)
        queries[1] = keys[1]
        queries[2], keys[8] = 0, 0
    if input == "lorentz":
        queries, keys = (maps.exp_map0(v / C**0.5, torch.tensor(C)) for v in (queries, keys))
    return queries.to(dtype), keys.to(dtype)


def run(compute, queries, keys, scale, upstream, **options):
    """Losses of rows and columns, and the gradients of queries, keys, c and the logit scale."""
    wide = torch.float64 if queries.dtype == torch.float64 else torch.float32
    scalars = (torch.tensor(v, dtype=wide, device=queries.device) for v in (C, scale))
    leaves = [t.clone().requires_grad_() for t in (queries, keys, *scalars)]
    given = {"input": "tangent", "geometry": "lorentz", "directions": "both", "exclude_ids": None, **options}
    rows, columns = compute(*leaves, *given.values())
    weights = upstream.to(rows)
    loss = (rows * weights[0]).sum() + (columns * weights[1, : len(columns)]).sum()
    grads = torch.autograd.grad(loss, leaves, materialize_grads=True)
    return [t.detach().cpu() for t in (rows, columns, *grads)]


def fused(queries, keys, scale, upstream, variant="blocks", **options):
    if options.get("exclude_ids") is not None:
        options = {**options, "exclude_ids": options["exclude_ids"].to(DEVICE)}
    compute = functools.partial(cases.contrastive_terms, atomic=variant == "atomic")
    with launch.forced("contrastive backward", VARIANTS[variant]):
        return run(compute, queries.to(DEVICE), keys.to(DEVICE), scale, upstream, **options)


def exactly(queries, keys, scale, upstream, **options):
    return run(reference.contrastive_terms, queries.double(), keys.double(), scale, upstream, **options)


def moved_by_product(queries, keys, scale, upstream, **options):
    """`exactly`, but for what a product of bf16 halves leaves open where it is one."""
    if not APPROXIMATE:
        return []
    return moved_losses(lambda: exactly(queries, keys, scale, upstream, **options), CANCELLED[torch.float32])


def assert_close(ours, exact, moved, scale, radius, upstream, relative=1e-4, cancelling=0.0):
    """Losses and gradients within what float32 logits and features leave open, and an error of pulls that cancel."""
    rounding = EPS * scale * (64 + 8 * radius)  # a logit keeps 15 bits of z where a pair is near, and all of a distance
    for got, want, *others in zip(ours[:2], exact[:2], *(other[:2] for other in moved), strict=True):
        known = 2 * sum((other - want).abs() for other in others)
        assert torch.isfinite(got).all()
        assert ((got - want).abs() <= 1e-5 * want.abs() + 1e-6 + rounding + known).all()
    floor = (4 * EPS + cancelling) * scale * float(upstream.abs().max())
    for i in (2, 3):
        known = 2 * sum((other[i] - exact[i]).norm(dim=1).max() for other in moved)
        assert torch.isfinite(ours[i]).all()
        largest = exact[i].norm(dim=1).max()
        assert (ours[i] - exact[i]).norm(dim=1).max() <= (relative + rounding) * largest + floor + known


@pytest.mark.parametrize("variant", VARIANTS)  # and not drawn: each of its hundred kernels is compiled where it runs
@settings(max_examples=examples(4 if INTERPRETED else 40))
@given(
    n=st.sampled_from([1, 9, 33, 70]),
    more=st.sampled_from([0, 0, 40]),
    d=st.sampled_from([1, 3, 17] if INTERPRETED else [1, 3, 17, 40]),
    seed=st.integers(0, 2**31),
    radius=st.sampled_from([1e-2, 1.0, 5.0, 20.0]),
    scale=st.sampled_from([1.0, 14.0, 100.0]),
    directions=st.sampled_from(["both", "rows"]),
    input=st.sampled_from(["tangent", "lorentz"]),
    excluding=st.booleans(),
)
def test_float32_against_the_float64_reference(n, more, d, seed, radius, scale, directions, input, excluding, variant):
    m = n + more
    queries, keys = views(n, m, d, seed, radius, input)
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 10, (m,), generator=g) if excluding else None
    upstream = torch.randn(2, n, generator=g)
    options = {"input": input, "directions": directions, "exclude_ids": ids}
    exact = exactly(queries, keys, scale, upstream, **options)
    moved = [
        exactly(torch.nextafter(queries, torch.full_like(queries, torch.inf)), keys, scale, upstream, **options),
        exactly(queries, torch.nextafter(keys, torch.full_like(keys, -torch.inf)), scale, upstream, **options),
        *moved_by_product(queries, keys, scale, upstream, **options),
    ]
    ours = fused(queries, keys, scale, upstream, variant, **options)
    assert_close(ours, exact, moved, scale, radius, upstream)


@pytest.mark.any_arithmetic
@pytest.mark.parametrize(
    ("geometry", "directions"), [("lorentz", "both"), ("lorentz", "rows"), ("euclidean", "both"), ("cosine", "both")]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_float64_in_every_geometry(geometry, directions, variant, monkeypatch):
    monkeypatch.setattr(backward_blocks, "BLOCK", 64)  # several blocks of weights, of whole tiles in float64
    monkeypatch.setattr(kernels, "WORKSPACE", 1)  # and strips of one tile of columns
    queries, keys = views(70, 100, 19, 0, 1.0, "tangent", torch.float64)
    if geometry == "cosine":  # whose gradient at the origin means nothing
        queries[2], keys[8] = 1, -1
    g = torch.Generator().manual_seed(1)
    upstream, ids = torch.randn(2, 70, generator=g, dtype=torch.float64), torch.randint(0, 30, (100,), generator=g)
    options = {"geometry": geometry, "directions": directions, "exclude_ids": ids}
    exact = exactly(queries, keys, 14.0, upstream, **options)
    for got, want in zip(fused(queries, keys, 14.0, upstream, variant, **options), exact, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11 * float(want.abs().max()) if want.numel() else 0)


@pytest.mark.any_arithmetic
def test_gradcheck_in_float64():
    queries, keys = (v.to(DEVICE).requires_grad_() for v in views(3, 4, 2, 0, 1.0, "tangent", torch.float64))
    c, scale = (torch.tensor(v, dtype=torch.float64, device=DEVICE, requires_grad=True) for v in (C, 5.0))

    def loss(*leaves):
        rows, columns = cases.contrastive_terms(*leaves, "tangent", "lorentz", "both", None)
        return torch.cat([rows, columns])

    assert torch.autograd.gradcheck(loss, (queries, keys, c, scale))


def test_near_tiles_are_flagged_and_no_others():
    queries, keys = views(40, 100, 16, 0, 1.0, "tangent")
    scalars = torch.tensor(C, device=DEVICE), torch.tensor(10.0, device=DEVICE)
    features, given = [queries.to(DEVICE), keys.to(DEVICE)], (None, *scalars, None, PAIR, "lorentz", True, "ieee")
    flags = kernels.forward(features, *given)[3]
    assert flags.any()
    assert flags.shape == kernels.flags_shape(features, PAIR, "lorentz")
    if INTERPRETED:  # tiles of 32 x 64: duplicates of the first rows are among the first columns
        assert flags[0, 0, 0]
        assert not flags[0, 0, 1]
    g = torch.Generator().manual_seed(0)
    apart = F.normalize(torch.randn(100, 16, generator=g), dim=1).to(DEVICE)
    assert not kernels.forward([-apart[:40], apart], *given)[3].any()


@pytest.mark.parametrize(
    ("dtype", "variant"), [(torch.float16, "blocks"), *((torch.bfloat16, variant) for variant in VARIANTS)]
)
def test_half_precision_features(dtype, variant):
    queries, keys = views(40, 50, 24, 2, 1.0, "tangent", dtype)
    upstream = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    ours, exact = fused(queries, keys, 14.0, upstream, variant), exactly(queries, keys, 14.0, upstream)
    assert ours[0].dtype == torch.float32
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-4, atol=1e-4)
    for got, want in zip(ours[2:4], exact[2:4], strict=True):
        assert got.dtype == dtype
        # sums of rounded weights, and the rounding of the result
        assert (got.double() - want).norm(dim=1).max() <= 4 * torch.finfo(dtype).eps * want.norm(dim=1).max()


@pytest.mark.parametrize(("radius", "input"), [(1.0, "tangent"), (20.0, "lorentz")])
def test_several_blocks_in_float32(radius, input, monkeypatch):
    """The last with fewer tiles, which end beyond the rows and beyond the columns; all pairs count. Far out, times are e^20."""
    monkeypatch.setattr(backward_blocks, "BLOCK", 128)
    points = views(8, 176, 12, 0, radius, input)[1]  # none near another
    queries, keys = points[:40], points[40:]
    upstream = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    exact = exactly(queries, keys, 1.0, upstream, input=input)
    assert_close(fused(queries, keys, 1.0, upstream, input=input), exact, [], 1.0, radius, upstream)


@pytest.mark.parametrize("variant", VARIANTS)
def test_far_points_side_by_side_in_bfloat16(variant):
    """Their pulls are differences of sums ten times as large. Were weights rounded in one of the two only, 19 % off."""
    around = torch.randn(2, 40, 24, generator=torch.Generator().manual_seed(0)) / 24**0.5 + 6 * torch.eye(24)[0]
    queries, keys = (8 * F.normalize(around, dim=2)).to(torch.bfloat16)
    upstream = torch.ones(2, 40)
    ours, exact = fused(queries, keys, 2.0, upstream, variant), exactly(queries, keys, 2.0, upstream)
    for got, want in zip(ours[2:4], exact[2:4], strict=True):
        largest = want.norm(dim=1).max()
        assert (got.double() - want).norm(dim=1).max() <= 2 * torch.finfo(torch.bfloat16).eps * largest


@pytest.mark.parametrize("variant", ["blocks", "rows"])
def test_layouts_and_the_same_bits_twice(variant):
    queries, keys = (v.to(DEVICE) for v in views(70, 90, 9, 7, 1.0, "tangent"))
    upstream = torch.randn(2, 70, generator=torch.Generator().manual_seed(0))
    results = fused(queries, keys, 20.0, upstream, variant)
    again = fused(queries, keys, 20.0, upstream, variant)
    assert all(torch.equal(a, b) for a, b in zip(again, results, strict=True))
    strided = fused(torch.cat([queries, queries], 1)[:, :9], keys.T.contiguous().T, 20.0, upstream, variant)
    for a, b in zip(strided, results, strict=True):  # library sums may take another order
        torch.testing.assert_close(a, b, rtol=16 * EPS, atol=16 * EPS * float(b.abs().max()))


@pytest.mark.any_arithmetic
def test_memory_grows_with_the_batch_and_not_with_its_square(monkeypatch):
    """Numbers that one step allocates beside a block of weights: slope over B, for twice and four times the batch."""
    monkeypatch.setattr(backward_blocks, "BLOCK", BLOCK)

    class Counted(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for t in torch.utils._pytree.tree_leaves(out):
                if isinstance(t, torch.Tensor):
                    self.largest = max(self.largest, t.untyped_storage().nbytes())
            return out

    def largest(n):
        queries, keys = (v.to(DEVICE) for v in views(n, n, 8, 0, 1.0, "tangent"))
        c, scale = torch.tensor(C, device=DEVICE), torch.tensor(10.0, device=DEVICE)
        with Counted() as counted, torch.no_grad():
            given, flags = ([queries, keys], None, c, scale, None), (PAIR, "lorentz", True, "ieee")
            *found, near = kernels.forward(*given, *flags)
            ones = torch.ones_like(found[0], dtype=c.dtype)
            slopes = kernels.of_losses(ones, ones, *found, given[0], PAIR)
            kernels.backward(slopes, *given, near, *flags, False)
        return counted.largest

    small, large = largest(64), largest(256)
    assert large <= 4 * small


def test_nan_reaches_the_loss():
    queries, keys = (v.to(DEVICE) for v in views(5, 9, 4, 0, 1.0, "tangent"))
    keys[7, 2] = torch.nan  # no positive of any query
    rows, _ = cases.contrastive_terms(
        queries,
        keys,
        torch.tensor(C, device=DEVICE),
        torch.tensor(5.0, device=DEVICE),
        "tangent",
        "lorentz",
        "both",
        None,
    )
    assert rows.isnan().all()


@pytest.mark.any_arithmetic
@pytest.mark.parametrize("geometry", ["lorentz", "cosine"])
def test_opcheck_and_fullgraph(geometry):
    queries, keys = (v.to(DEVICE).requires_grad_() for v in views(9, 11, 5, 2, 1.0, "tangent"))
    c, scale = (torch.tensor(v, device=DEVICE, requires_grad=True) for v in (C, 10.0))
    arguments = ([queries, keys], None, c, scale, None, [0, 1, 1], geometry, True, "bf16x3", False, 1 << 20)
    torch.library.opcheck(torch.ops.hyperst_kernels.contrastive_forward.default, arguments)

    def loss(queries, keys, c, scale):
        rows, columns = cases.contrastive_terms(queries, keys, c, scale, "tangent", geometry, "both", None)
        return rows.sum() + columns.sum()

    torch._dynamo.reset()
    leaves = (queries, keys, c, scale)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(*leaves), leaves, materialize_grads=True)
    for got, want in zip(ours, torch.autograd.grad(loss(*leaves), leaves, materialize_grads=True), strict=True):
        assert torch.equal(got, want)


@pytest.mark.any_arithmetic
def test_settings_hold_whole_tiles():
    for d in (1, 128, 512, 4096):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            table = launch.settings("contrastive", d, dtype)
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            for side in ("rows", "columns"):
                assert backward_blocks.BLOCK % table[side] == 0
                assert table[side] % EXACT_TILE[wide] == 0
