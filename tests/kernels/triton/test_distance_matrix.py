"""The matrix of all distances and its gradient: tails in every dimension, near pairs, precisions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import hyperst_kernels as hk
from hyperst_kernels.gpu import distance_matrix, distance_matrix_backward, launch
from hyperst_kernels.reference import distance as reference
from hyperst_kernels.reference import maps
from tests.kernels import examples
from tests.kernels.halves import distance_from_halves, random_signs
from tests.kernels.triton import APPROXIMATE, DEVICE, INTERPRETED

C = 0.8
EPS = torch.finfo(torch.float32).eps
NAMES = {True: "tangent", False: "lorentz"}


def sides(n, m, d, seed, radius, tangent, dtype=torch.float32):
    """Rows of one radius and of many; duplicates, near neighbours of every degree, antipodes, and the origin."""
    g = torch.Generator().manual_seed(seed)
    x, y = (F.normalize(torch.randn(k, d, generator=g, dtype=torch.float64), dim=1) for k in (n, m))
    x = radius * x * 10 ** (-3 * torch.rand(n, 1, generator=g, dtype=torch.float64))
    y = radius * y
    for k in range(min(n, m)):
        if k % 3 == 0:
            y[k] = x[k] + x[k].norm() * 10.0 ** -(k % 7) * y[k] / radius
        elif k % 7 == 1:
            y[k] = x[k]
        elif k % 7 == 5:
            y[k] = -x[k]
    x[n // 2], y[m // 3] = 0, 0
    if not tangent:
        x, y = (maps.exp_map0(v / C**0.5, torch.tensor(C)) for v in (x, y))
    return x.to(dtype), y.to(dtype)


def run(compute, x, y, upstream):
    leaves = [t.clone().requires_grad_() for t in (x, y, torch.tensor(C, dtype=x.dtype, device=x.device))]
    matrix = compute(*leaves)
    grads = torch.autograd.grad(matrix, leaves, upstream.to(matrix))
    return matrix.detach().cpu(), *(g.cpu() for g in grads)


def kernel(x, y, upstream, tangent, precision=None):
    def compute(x, y, c):
        return hk.pairwise_distance(x, y, c, input=NAMES[tangent], precision=precision)

    return run(compute, x.to(DEVICE), y.to(DEVICE), upstream)


def exactly(x, y, upstream, tangent):
    return run(lambda x, y, c: reference.pairwise_distance(x, y, c, NAMES[tangent]), x.double(), y.double(), upstream)


def moved_by_product(x, y, upstream, tangent):
    """`exactly`, but for what a product of bf16 halves leaves open where it is one."""

    def moved(signs):
        def compute(x, y, c):
            return distance_from_halves(distance_matrix.CANCELLED[torch.float32], signs, x, y, c, NAMES[tangent])

        return run(compute, x.double(), y.double(), upstream)

    return [moved(signs(len(x), len(y))) for signs in (torch.ones, random_signs)] if APPROXIMATE else []


@settings(max_examples=examples(8 if INTERPRETED else 60))
@given(
    n=st.sampled_from([1, 31, 33, 70]),
    m=st.sampled_from([1, 63, 65, 100]),
    d=st.sampled_from([1, 3, 16, 17, 40]),
    seed=st.integers(0, 2**31),
    radius=st.sampled_from([1e-6, 1e-2, 1.0, 5.0, 20.0]),
    tangent=st.booleans(),
)
def test_float32_against_the_float64_reference(n, m, d, seed, radius, tangent):
    x, y = sides(n, m, d, seed, radius, tangent)
    upstream = torch.randn(n, m, generator=torch.Generator().manual_seed(seed))
    ours, exact = kernel(x, y, upstream, tangent), exactly(x, y, upstream, tangent)
    moved = [
        exactly(torch.nextafter(x, torch.full_like(x, torch.inf)), y, upstream, tangent),
        exactly(x, torch.nextafter(y, torch.full_like(y, torch.inf)), upstream, tangent),
        *moved_by_product(x, y, upstream, tangent),
    ]
    for got in ours:
        assert torch.isfinite(got).all()
    known = 2 * torch.stack([(other[0] - exact[0]).abs() for other in moved]).amax(0)
    # a product keeps all but the digits that CANCELLED lets it lose
    assert ((ours[0] - exact[0]).abs() <= 5e-5 * exact[0] + known).all()
    for i in (1, 2):
        change = 2 * torch.stack([(other[i] - exact[i]).norm(dim=1) for other in moved]).amax(0)
        pulls = upstream.abs().sum(2 - i)  # of unit slopes, which may cancel in the sum
        scale = exact[i].norm(dim=1).clamp(min=float(exact[i].norm(dim=1).max()) / 10) + pulls / 10
        assert ((ours[i] - exact[i]).norm(dim=1) <= 5e-5 * scale + change).all()
    along = (upstream * exact[0]).abs().sum() / (2 * C)
    change = 2 * max(float((other[3] - exact[3]).abs()) for other in moved)
    assert (ours[3] - exact[3]).abs() <= 5e-5 * exact[3].abs() + 16 * EPS * along + change


@pytest.mark.parametrize("tangent", [True, False])
def test_wide_rows(tangent):
    x, y = sides(5, 6, 2048 if not INTERPRETED else 150, 3, 2.0, tangent)
    upstream = torch.ones(5, 6)
    for got, want in zip(kernel(x, y, upstream, tangent)[:3], exactly(x, y, upstream, tangent)[:3], strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


@pytest.mark.any_arithmetic
@pytest.mark.parametrize("tangent", [True, False])
def test_float64_and_its_gradcheck(tangent):
    x, y = sides(35, 66, 5, 0, 1.5, tangent, torch.float64)
    upstream = torch.randn(35, 66, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for got, want in zip(kernel(x, y, upstream, tangent), exactly(x, y, upstream, tangent), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12 * float(want.abs().max()))
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(3, 2, generator=g, dtype=torch.float64).to(DEVICE).requires_grad_() for _ in range(2))
    y = (x.detach() + torch.tensor([[0.5, 0.1], [1e-2, 0.0], [-0.3, 2.0]], device=DEVICE)).requires_grad_()
    c = torch.tensor(C, dtype=torch.float64, device=DEVICE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: hk.pairwise_distance(*a, input=NAMES[tangent]), (x, y, c))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_points_are_exact_operands(dtype):
    x, y = sides(33, 40, 24, 4, 2.0, True, dtype)
    upstream = torch.randn(33, 40, generator=torch.Generator().manual_seed(0))
    c = torch.tensor(C, device=DEVICE)
    leaves = [x.to(DEVICE).requires_grad_(), y.to(DEVICE).requires_grad_()]
    matrix = torch.ops.hyperst_kernels.pairwise_distance(*leaves, c, True, "bf16x3")
    assert matrix.dtype == torch.float32
    want = exactly(x, y, upstream, True)
    torch.testing.assert_close(matrix.detach().cpu().double(), want[0], rtol=5e-5, atol=0)
    for got, exact in zip(torch.autograd.grad(matrix, leaves, upstream.to(DEVICE)), want[1:3], strict=True):
        assert got.dtype == dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(got.cpu().double(), exact, rtol=2 * eps, atol=eps * float(exact.abs().max()) / 10)


@pytest.mark.parametrize(("precision", "error"), [("ieee", 5e-5), ("bf16x3", 5e-5), ("tf32", 5e-3), ("bf16", 0.1)])
def test_precisions(precision, error):
    """Errors at unit radius where points are apart. The interpreter knows "ieee" and rounding to bf16 only."""
    g = torch.Generator().manual_seed(0)
    x, y = (F.normalize(torch.randn(70, 64, generator=g), dim=1) for _ in range(2))
    y[:20] = x[:20]
    got = kernel(x, y, torch.ones(70, 70), True, precision)[0]
    want = exactly(x, y, torch.ones(70, 70), True)[0]
    torch.testing.assert_close(got.double(), want, rtol=error, atol=error)
    if precision == "bf16":
        assert (got - want).abs().max() > 1e-4  # it really is the rounded product


@pytest.mark.parametrize("tangent", [True, False])
def test_layouts_the_same_bits_twice_and_empty(tangent):
    x, y = (t.to(DEVICE) for t in sides(40, 37, 9, 7, 1.0, tangent))
    upstream = torch.randn(40, 37, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    results = kernel(x, y, upstream, tangent)
    for again in (
        kernel(x, y, upstream, tangent),
        kernel(torch.cat([x, x], 1)[:, :9], y.T.contiguous().T, upstream.T.contiguous().T, tangent),
    ):
        assert all(torch.equal(a, b) for a, b in zip(again, results, strict=True))
    for n, m in ((0, 3), (3, 0), (0, 0)):
        matrix, dx, dy, dc = kernel(x[:n], y[:m], upstream[:n, :m], tangent)
        assert (matrix.shape, dx.shape, dy.shape) == ((n, m), (n, 9), (m, 9))
        assert not any(g.any() for g in (dx, dy, dc))


def test_nan_is_not_hidden():
    x, y = sides(3, 4, 5, 0, 1.0, True)
    x[1] = torch.nan
    c = torch.tensor(C, device=DEVICE)
    matrix = torch.ops.hyperst_kernels.pairwise_distance(x.to(DEVICE), y.to(DEVICE), c, True, "ieee")
    assert matrix[1].isnan().all()
    assert not matrix[[0, 2]].isnan().any()


@pytest.mark.any_arithmetic
def test_no_second_derivative():
    x = torch.ones(2, 3, device=DEVICE, requires_grad=True)
    (slope,) = torch.autograd.grad(hk.pairwise_distance(x, 2 * x.detach()).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="use_reference"):
        slope.sum().backward()


@pytest.mark.any_arithmetic
def test_compiled_without_a_graph_break():
    x, y = (t.to(DEVICE) for t in sides(9, 8, 5, 2, 1.0, True))
    leaves, others = ([t.clone().requires_grad_() for t in (x, y)] for _ in range(2))

    def total(x, y):
        return hk.pairwise_distance(x, y, C, input="tangent").sum()

    torch.compile(total, fullgraph=True, backend="aot_eager")(*leaves).backward()
    total(*others).backward()
    for got, want in zip(leaves, others, strict=True):
        assert torch.equal(got.grad, want.grad)


@pytest.mark.any_arithmetic
def test_settings_exist_for_every_bucket_and_dtype():
    for d in (1, 16, 17, 512, 4097, launch.LARGEST_ROW):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            for kind in ("product", "plain product"):
                assert {"rows", "columns", "inner", "warps", "stages"} == set(launch.settings(kind, d, dtype))
            assert {"rows", "warps"} == set(launch.settings("map", d, dtype)) == set(launch.settings("pair", d, dtype))


def test_the_grid_grows_along_its_first_axis(monkeypatch):
    """The others end at 65,535 programs."""
    grids = []

    class Noted:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            grids.append(grid)
            return self.kernel[grid]

    for module, names in (
        (distance_matrix, ("_pairwise", "_repair")),
        (distance_matrix_backward, ("_weights", "_cancelled_gradients")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Noted(getattr(module, name)))
    x, y = (torch.randn(n, 3, device=DEVICE, requires_grad=True) for n in (100, 300))
    hk.pairwise_distance(x, y, C, input="tangent").sum().backward()
    assert len(grids) == 5
    assert all(len(grid) == 1 for grid in grids)
