"""The native CPU kernel against the PyTorch calls it replaces, the float64 reference, and mpmath."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch.nn import functional as F

import hyperst_kernels as hk
from benchmarks import cases, oracle
from hyperst_kernels._constants import CHUNK, STRIP
from hyperst_kernels.cpu import contrastive, memory, online_softmax, small_batch
from hyperst_kernels.cpu.geometry import Lorentz
from hyperst_kernels.cpu.native import bindings
from hyperst_kernels.operators.register import ops
from hyperst_kernels.reference import contrastive as reference
from tests.kernels.instruction_sets import instruction_set  # noqa: F401

pytestmark = [
    pytest.mark.skipif(bindings.library() is None, reason="the package was installed without a compiler"),
    pytest.mark.usefixtures("instruction_set"),
]
EPS = torch.finfo(torch.float32).eps


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles in both directions, and several chunks in a tile."""
    monkeypatch.setattr(online_softmax, "NATIVE_ROWS", 24)
    monkeypatch.setattr(online_softmax, "NATIVE_COLUMNS", 300)
    monkeypatch.setattr(small_batch, "SMALL", 0)


def run(queries, keys, scale, dtype, compute=cases.contrastive_terms, **options):
    """Losses, and gradients of all inputs under an upstream gradient that differs from row to row."""
    leaves = [x.to(dtype).clone().requires_grad_() for x in (queries, keys, torch.tensor(0.8), torch.tensor(scale))]
    names = {"input": "tangent", "geometry": "lorentz", "directions": "both", "exclude_ids": None, **options}
    rows, columns = compute(*leaves, *names.values())
    loss = (rows * torch.linspace(0.5, 1.5, len(rows), dtype=dtype)).sum() + columns.sum()
    grads = torch.autograd.grad(loss / len(rows), leaves, allow_unused=True)
    return rows.detach(), columns.detach(), *(torch.zeros(()) if g is None else g for g in grads)


def assert_close(ours, exact, scale, radius):
    """Logits s d carry the roundings of d, 4 eps (radius + 1) s; what they weigh carries them relatively."""
    rounding = 4 * EPS * scale * (radius + 1)
    for got, want in zip(ours[:2], exact[:2], strict=True):
        assert (got - want).abs().max() <= 1e-5 * want.abs().max() + rounding if len(want) else len(got) == 0
    for got, want in zip(ours[2:4], exact[2:4], strict=True):
        assert (got - want).norm(dim=-1).max() <= (1e-4 + rounding) * want.norm(dim=-1).max()
    # sums over all pairs, whose terms have both signs
    size = sum(float(g.norm(dim=-1).sum()) for g in exact[2:4]) * radius + 1
    for got, want in zip(ours[4:], exact[4:], strict=True):
        assert (got - want).abs() <= (1e-5 + rounding) * size


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean", "cosine"])
@pytest.mark.parametrize("input", ["tangent", "lorentz"])
@pytest.mark.parametrize("directions", ["both", "rows"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 9), (24, 300), (50, 601), (77, 77)])
def test_matches_the_float64_reference(geometry, input, directions, n, m, small_tiles):
    generator = torch.Generator().manual_seed(n + m)
    queries, keys = torch.randn(n, 6, generator=generator), torch.randn(m, 6, generator=generator)
    keys[: n // 3] = queries[: n // 3]
    keys[-1] = keys[0]
    options = {"geometry": geometry, "input": input, "directions": directions, "exclude_ids": torch.arange(m) // 2}
    exact = run(queries, keys, 10.0, torch.float64, reference.contrastive_terms, **options)
    ours = run(queries, keys, 10.0, torch.float32, **options)
    assert_close(ours, exact, 10.0, float(queries.detach().norm(dim=-1).max()))
    again = run(queries, keys, 10.0, torch.float32, **options)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean", "cosine"])
@pytest.mark.parametrize("radius", [1e-3, 1.0, 20.0])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_matches_the_portable_online_softmax(geometry, radius, scale, small_tiles, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, keys = (radius * F.normalize(torch.randn(r, 8, generator=generator), dim=-1) for r in (70, 333))
    keys[:9], keys[300] = queries[:9], queries[3]
    ours = run(queries, keys, scale, torch.float32, geometry=geometry)
    monkeypatch.setattr(bindings, "usable", lambda x: False)
    assert_close(ours, run(queries, keys, scale, torch.float32, geometry=geometry), scale, radius)


@pytest.mark.parametrize("symmetric", [True, False])
def test_blocks_of_a_tile_give_the_same_bits_on_any_number_of_threads(symmetric):
    n, m, scale = 2 * STRIP + 22, 2 * CHUNK + 88, 10.0
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.rand(n, m, generator=generator)
    z.diagonal().fill_(torch.inf)
    grads = [torch.rand(length, generator=generator) for length in (n, m)]
    tile = slice(0, n), slice(0, m)

    def found(threads):
        torch.set_num_threads(threads)
        softmax = online_softmax.NativeOnlineSoftmax(Lorentz(torch.tensor(1.0), True), z, n, m, scale, symmetric)
        softmax.add(*tile, z)
        rows, columns = softmax.log_sum_exps()
        of_columns = (columns, grads[1]) if symmetric else (None, None)
        relative = softmax.relative(online_softmax.Upstream(rows, grads[0], *of_columns))
        weights = torch.empty_like(z)
        along = softmax.weigh(*tile, z, relative, weights)
        return rows, columns, weights, torch.tensor(along)

    before = torch.get_num_threads()
    try:
        ours, *others = [found(threads) for threads in (1, 2, 5)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in others for a, b in zip(ours, other, strict=True))

    negative, wide = z < torch.inf, z.double().where(z < torch.inf, 1).requires_grad_()
    distance = 2 * torch.asinh(wide.sqrt())
    logits = (-scale * distance).masked_fill(~negative, -torch.inf).requires_grad_()
    rows, columns = torch.logsumexp(logits, 1), torch.logsumexp(logits, 0)[: m * symmetric]
    loss = (rows * grads[0]).sum() + (columns * grads[1][: m * symmetric]).sum()
    weights, by_logit = torch.autograd.grad(loss, (wide, logits))
    for got, want in zip(ours, (rows, columns, weights, (by_logit * distance).sum()), strict=True):
        assert (got - want).norm() <= 64 * EPS * want.norm()


@pytest.mark.parametrize("is_native", [True, False])
def test_kept_products_change_nothing(is_native, small_tiles, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(50, 601, generator=generator).T[:90].T, torch.randn(601, 100, generator=generator).T
    queries, keys = queries[:, :64], keys[:, :64]  # neither has its rows in one piece
    keys[:5], keys[70] = queries[:5], queries[8]
    if not is_native:
        monkeypatch.setattr(bindings, "usable", lambda x: False)
    kept = run(queries, keys, 10.0, torch.float32, exclude_ids=torch.arange(100) // 2)
    monkeypatch.setattr(memory, "kept_bytes", 0)
    again = run(queries, keys, 10.0, torch.float32, exclude_ids=torch.arange(100) // 2)
    assert_close(kept, again, 10.0, 10.0)


def test_products_are_kept_only_for_a_backward_pass():
    torch.manual_seed(0)  # of some features digits cancel, and all is computed once more
    arguments = ([torch.randn(6, 4), torch.randn(9, 4)], None, torch.tensor(1.0), torch.tensor(10.0), None)
    flags = ([0, 1, 1], "lorentz", True, "bf16x3", False)
    for keep, shape in ((4 * 6 * 9, (1, 6, 9)), (4 * 6 * 9 - 1, (1, 0, 0)), (0, (1, 0, 0))):
        assert ops.contrastive_forward(*arguments, *flags, keep)[-1].shape == shape
    seen = []
    kept_shape = contrastive.kept_shape
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrastive, "kept_shape", lambda *args: seen.append(args[-1]) or kept_shape(*args))
        leaf = torch.randn(4, 3, requires_grad=True)
        hk.contrastive_loss(leaf, torch.randn(4, 3))
        hk.contrastive_loss(leaf.detach(), torch.randn(4, 3))
        with torch.no_grad():
            hk.contrastive_loss(leaf, torch.randn(4, 3))
    assert seen == [memory.kept_bytes, 0, 0]


def test_collapsed_batch_with_kept_products():
    """The forward pass goes to float64; the products it leaves behind send the backward pass there too."""
    torch.manual_seed(0)
    queries, keys = (F.normalize(torch.ones(1, 16), dim=-1) + 1e-3 * torch.randn(200, 16) for _ in range(2))
    exact = run(queries, keys, 50.0, torch.float64, reference.contrastive_terms)
    assert_close(run(queries, keys, 50.0, torch.float32), exact, 50.0, 1.0)


def test_half_precision_is_computed_in_float32():
    torch.manual_seed(0)
    queries, keys = torch.randn(9, 12), torch.randn(11, 12)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = [x.to(dtype) for x in (queries, keys)]
        want = hk.contrastive_loss(*(x.float() for x in rounded), logit_scale=10.0)
        assert torch.equal(hk.contrastive_loss(*rounded, logit_scale=10.0), want)


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean", "cosine"])
def test_nan_stays_nan(geometry):
    """Compiled code does not look at its inputs: a NaN must not vanish in a minimum, a maximum or an exponential."""
    one, flags = torch.tensor(1.0), ([0, 1, 1], geometry, True, "bf16x3", False, 0)
    keys = torch.randn(9, 4)
    keys[7, 2] = torch.nan  # no positive of any query
    rows, *_ = ops.contrastive_forward([torch.randn(5, 4), keys], None, one, one, None, *flags)
    assert torch.isnan(rows).all()


def values(name, x):
    out = torch.empty_like(x)
    getattr(bindings.library(), f"hyperst_{name}")(x.data_ptr(), out.data_ptr(), len(x))
    return out


def test_exp2_against_mpmath():
    x = torch.cat([torch.linspace(-125.9, 126.9, 2000), torch.linspace(-1, 1, 2001)])
    for at, got in zip(x, values("exp2", x), strict=True):
        want = mpmath.mpf(2) ** oracle.vector(at[None])[0]
        assert abs(float(got) / want - 1) <= 2 * EPS
    ends = values("exp2", torch.tensor([-torch.inf, -200.0, 0.0, torch.nan]))
    assert ends[:3].tolist() == [0, 0, 1]
    assert torch.isnan(ends[3])


def test_log1p_against_mpmath():
    x = torch.cat([torch.logspace(-38, 38, 2000), torch.linspace(0, 4, 2001)])
    for at, got in zip(x, values("log1p", x), strict=True):
        want = mpmath.log1p(oracle.vector(at[None])[0])
        assert abs(float(got) - want) <= 2 * EPS * want
    assert torch.isnan(values("log1p", torch.tensor([torch.nan]))).all()


@pytest.mark.parametrize("c", [1.0, 0.3])
def test_gradients_by_products_of_distances_against_mpmath(c):
    """A distance of D units carries D eps into sinh."""
    geometry, distance = Lorentz(torch.tensor(c), True), torch.logspace(-6, 1.68, 900).reshape(3, 300)
    grad, out = torch.linspace(-1, 2, 900).reshape(3, 300), torch.empty(3, 300)
    least, along = geometry.weigh(distance.T.contiguous().T, grad, out)
    unit = 1 / mpmath.sqrt(float(torch.tensor(c)))
    for d, g, got in zip(distance.flatten(), oracle.vector(grad.flatten()), oracle.vector(out.flatten()), strict=True):
        D = oracle.vector(d[None])[0] / unit
        want = g * 2 * unit / mpmath.sinh(D)
        assert abs(got - want) <= 2 * EPS * (1 + D) * abs(want)
    assert torch.equal(least, distance.amin(1))
    terms = distance.double() * grad
    assert abs(along - float(terms.sum())) <= 300 * EPS * float(terms.abs().sum())
    geometry.weigh(torch.full((1, 3), torch.nan), grad[:1, :3], out[:1, :3])
    assert torch.isnan(out[0, :3]).all()
