"""The matrix of all distances and its gradient: tails in every dimension, near pairs, precisions, far out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import hyperst_kernels as hk
from benchmarks.cases import ROW_WISE
from hyperst_kernels.cpu.native import bindings
from hyperst_kernels.reference import distance as reference
from hyperst_kernels.reference import maps
from tests.kernels import examples, far_out
from tests.kernels.backends import APPROXIMATE, BACKENDS, DEVICE, INTERPRETED, device, documented
from tests.kernels.halves import distance_from_halves, random_signs

C = 0.8
EPS = torch.finfo(torch.float32).eps
NAMES = {True: "tangent", False: "lorentz"}


@pytest.fixture(autouse=True)
def _portable(request, monkeypatch):
    """On a CPU, machine code takes the place of PyTorch calls for pairs that cancel."""
    if "backend" in request.fixturenames and request.getfixturevalue("backend") == "portable":
        monkeypatch.setattr(bindings, "usable", lambda x: False)


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


def on_backend(x, y, upstream, tangent, precision=None, backend="triton"):
    def compute(x, y, c):
        return hk.pairwise_distance(x, y, c, input=NAMES[tangent], precision=precision)

    return run(compute, x.to(device(backend)), y.to(device(backend)), upstream)


def exactly(x, y, upstream, tangent):
    return run(lambda x, y, c: reference.pairwise_distance(x, y, c, NAMES[tangent]), x.double(), y.double(), upstream)


def moved_by_product(x, y, upstream, tangent, backend):
    """`exactly`, but for what a product of bf16 halves leaves open where it is one."""
    if not APPROXIMATE or backend != "triton":
        return []
    from hyperst_kernels.gpu.distance_matrix import CANCELLED

    def moved(signs):
        def compute(x, y, c):
            return distance_from_halves(CANCELLED[torch.float32], signs, x, y, c, NAMES[tangent])

        return run(compute, x.double(), y.double(), upstream)

    return [moved(signs(len(x), len(y))) for signs in (torch.ones, random_signs)]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=examples(8 if INTERPRETED else 60))
@given(
    n=st.sampled_from([1, 31, 33, 70]),
    m=st.sampled_from([1, 63, 65, 100]),
    d=st.sampled_from([1, 3, 16, 17, 40]),
    seed=st.integers(0, 2**31),
    radius=st.sampled_from([1e-6, 1e-2, 1.0, 5.0, 20.0]),
    tangent=st.booleans(),
)
def test_float32_against_the_float64_reference(backend, n, m, d, seed, radius, tangent):
    x, y = sides(n, m, d, seed, radius, tangent)
    upstream = torch.randn(n, m, generator=torch.Generator().manual_seed(seed))
    ours, exact = on_backend(x, y, upstream, tangent, backend=backend), exactly(x, y, upstream, tangent)
    moved = [
        exactly(torch.nextafter(x, torch.full_like(x, torch.inf)), y, upstream, tangent),
        exactly(x, torch.nextafter(y, torch.full_like(y, torch.inf)), upstream, tangent),
        *moved_by_product(x, y, upstream, tangent, backend),
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tangent", [True, False])
def test_wide_rows(tangent, backend):
    x, y = sides(5, 6, 2048 if not INTERPRETED else 150, 3, 2.0, tangent)
    upstream = torch.ones(5, 6)
    for got, want in zip(
        on_backend(x, y, upstream, tangent, backend=backend)[:3], exactly(x, y, upstream, tangent)[:3], strict=True
    ):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


@pytest.mark.any_arithmetic
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tangent", [True, False])
def test_float64_and_its_gradcheck(tangent, backend):
    x, y = sides(35, 66, 5, 0, 1.5, tangent, torch.float64)
    upstream = torch.randn(35, 66, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for got, want in zip(
        on_backend(x, y, upstream, tangent, backend=backend), exactly(x, y, upstream, tangent), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12 * float(want.abs().max()))
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(3, 2, generator=g, dtype=torch.float64).to(device(backend)).requires_grad_() for _ in range(2))
    y = (x.detach() + torch.tensor([[0.5, 0.1], [1e-2, 0.0], [-0.3, 2.0]], device=device(backend))).requires_grad_()
    c = torch.tensor(C, dtype=torch.float64, device=device(backend), requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: hk.pairwise_distance(*a, input=NAMES[tangent]), (x, y, c))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_points_are_exact_operands(dtype, backend):
    x, y = sides(33, 40, 24, 4, 2.0, True, dtype)
    upstream = torch.randn(33, 40, generator=torch.Generator().manual_seed(0))
    c = torch.tensor(C, device=device(backend))
    leaves = [x.to(device(backend)).requires_grad_(), y.to(device(backend)).requires_grad_()]
    matrix = torch.ops.hyperst_kernels.pairwise_distance(*leaves, c, True, "bf16x3")
    assert matrix.dtype == torch.float32
    want = exactly(x, y, upstream, True)
    torch.testing.assert_close(matrix.detach().cpu().double(), want[0], rtol=5e-5, atol=0)
    for got, exact in zip(torch.autograd.grad(matrix, leaves, upstream.to(device(backend))), want[1:3], strict=True):
        assert got.dtype == dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(got.cpu().double(), exact, rtol=2 * eps, atol=eps * float(exact.abs().max()) / 10)


@pytest.mark.triton
@pytest.mark.parametrize(("precision", "error"), [("ieee", 5e-5), ("bf16x3", 5e-5), ("tf32", 5e-3), ("bf16", 0.1)])
def test_precisions(precision, error):
    """Errors at unit radius where points are apart. The interpreter knows "ieee" and rounding to bf16 only."""
    g = torch.Generator().manual_seed(0)
    x, y = (F.normalize(torch.randn(70, 64, generator=g), dim=1) for _ in range(2))
    y[:20] = x[:20]
    got = on_backend(x, y, torch.ones(70, 70), True, precision)[0]
    want = exactly(x, y, torch.ones(70, 70), True)[0]
    torch.testing.assert_close(got.double(), want, rtol=error, atol=error)
    if precision == "bf16":
        assert (got - want).abs().max() > 1e-4  # it really is the rounded product


@pytest.mark.any_arithmetic
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tangent", [True, False])
def test_layouts_the_same_bits_twice_and_empty(tangent, backend):
    def kernel(*arguments):
        return on_backend(*arguments, backend=backend)

    x, y = (t.to(device(backend)) for t in sides(40, 37, 9, 7, 1.0, tangent))
    upstream = torch.randn(40, 37, generator=torch.Generator().manual_seed(0)).to(x)
    results = kernel(x, y, upstream, tangent)
    again = kernel(x, y, upstream, tangent)
    assert all(torch.equal(a, b) for a, b in zip(again, results, strict=True))
    laid = kernel(torch.cat([x, x], 1)[:, :9], y.T.contiguous().T, upstream.T.contiguous().T, tangent)
    for got, want in zip(laid, results, strict=True):
        if backend == "triton":
            assert torch.equal(got, want)
        else:  # a library chooses its sums by the layout; that of c is over all pairs
            scale = want.abs().max() if want.ndim else (upstream.abs() * results[0]).sum() / (2 * C)
            torch.testing.assert_close(got, want, rtol=1e-5, atol=16 * EPS * float(scale))
    for n, m in ((0, 3), (3, 0), (0, 0)):
        matrix, dx, dy, dc = kernel(x[:n], y[:m], upstream[:n, :m], tangent)
        assert (matrix.shape, dx.shape, dy.shape) == ((n, m), (n, 9), (m, 9))
        assert not any(g.any() for g in (dx, dy, dc))


@pytest.mark.any_arithmetic
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_not_hidden(backend):
    x, y = (t.to(device(backend)) for t in sides(3, 4, 5, 0, 1.0, True))
    x[1] = torch.nan
    matrix = torch.ops.hyperst_kernels.pairwise_distance(x, y, torch.tensor(C).to(x), True, "ieee")
    assert matrix[1].isnan().all()
    if backend == "triton":  # on a CPU a tile is NaN as a whole
        assert not matrix[[0, 2]].isnan().any()


@pytest.mark.any_arithmetic
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_second_derivative(backend):
    x = torch.ones(2, 3, device=device(backend), requires_grad=True)
    (slope,) = torch.autograd.grad(hk.pairwise_distance(x, 2 * x.detach()).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="use_reference"):
        slope.sum().backward()


@pytest.mark.triton
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


@pytest.mark.triton
@pytest.mark.any_arithmetic
def test_the_grid_grows_along_its_first_axis(monkeypatch):
    """The others end at 65,535 programs."""
    from hyperst_kernels.gpu import distance_matrix, distance_matrix_backward

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


@pytest.mark.triton
@pytest.mark.any_arithmetic
def test_rows_too_long_for_a_product_say_so():
    from hyperst_kernels.gpu import launch

    x, c = torch.zeros(1, launch.LARGEST_ROW + 1, device=DEVICE), torch.tensor(1.0, device=DEVICE)
    with pytest.raises(ValueError, match="16384"):
        torch.ops.hyperst_kernels.pairwise_distance(x, x, c, True, "ieee")


@pytest.mark.any_arithmetic
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    x, y = (torch.randn(4, 3, generator=torch.Generator().manual_seed(k)).to(device(backend)) for k in range(2))
    arguments = (x.requires_grad_(), y.requires_grad_(), torch.tensor(C).to(x), True, "bf16x3")
    torch.library.opcheck(torch.ops.hyperst_kernels.pairwise_distance.default, arguments)


@pytest.mark.parametrize("backend", ["portable", "native"])
def test_matrices_of_any_layout(backend):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, 6, generator=generator).T, torch.randn(7, 18, generator=generator)[:, ::2]
    leaves = [t.detach().requires_grad_() for t in (x, y)]
    wide = [t.double().requires_grad_() for t in (x, y)]
    assert not leaves[0].is_contiguous()
    upstream = torch.randn(7, 6, generator=generator).T
    results = [(m := hk.pairwise_distance(*t), torch.autograd.grad(m, t, upstream.to(m))) for t in (leaves, wide)]
    (value, grads), (want, exact) = results
    torch.testing.assert_close(value.double(), want, rtol=1e-6, atol=1e-6)
    for got, expected in zip(grads, exact, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_matrix_needs_as_many_features_on_both_sides():
    with pytest.raises(ValueError, match="same number of features"):
        hk.pairwise_distance(torch.ones(2, 3), torch.ones(2, 4))


def of_one_pair(backend, x, y, tangent):
    """The distance of two vectors (d), and its gradients."""
    leaves = [t[None].to(device(backend)).requires_grad_() for t in (x, y)]
    d = hk.pairwise_distance(*leaves, far_out.C, input=NAMES[tangent], precision="ieee")
    return [d.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(d.sum(), leaves))]


@pytest.mark.parametrize("dtype", far_out.DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tangent", [True, False])
@pytest.mark.parametrize("kind", far_out.KINDS)
@pytest.mark.parametrize(("radius", "share"), far_out.ON_ONE_RAY)
def test_slope_on_one_ray(kind, tangent, backend, dtype, radius, share):
    """1 away from the other: what rounding leaves of the angle between them must not be multiplied by e^radius."""
    if radius > (40 if tangent else 19):
        pytest.skip("the product of two such points is too large for a matrix of distances")
    x, y, slopes = far_out.on_one_ray(kind, tangent, dtype, radius, share)
    _, *grads = of_one_pair(backend, x, y, tangent)
    # e^-D is taken of rounded radii, and cosh of p; and a product keeps pairs of which it has lost a few bits
    known = 8 * ((32 + 8 * radius) * far_out.EPS[dtype] + documented(32, backend) * (dtype == torch.float32))
    for got, want in zip(grads, slopes, strict=True):
        assert (got[0].double() - want).norm() <= known * want.norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("y", [y for y in far_out.BESIDE_AN_AXIS if y[0] <= 40])  # whose product fits
def test_an_angle_that_the_numbers_hold_is_not_taken_for_rounding(y, backend):
    x, y = far_out.beside_an_axis(y)
    d, *grads = of_one_pair(backend, x, y, True)
    far_out.assert_angle_is_seen(x, y, d, grads, backend)


@pytest.mark.parametrize("dtype", far_out.DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("angle", [0.0, 1.5, math.pi])
@pytest.mark.parametrize(
    ("p", "q"),
    [
        (60.0, 20.0),
        (44.0, 43.5),
        (44.0, 45.5),
        (60.0, 30.0),
        (100.0, 100.0),
        (350.0, 340.0),
        (356.0, 356.0),
        (800.0, 1.0),
    ],
)
def test_it_is_right_or_nan(p, q, angle, dtype, backend):
    """Of a point whose square does not fit, as from radius 45 on in float32, a GPU took the time for that of the origin."""
    u = torch.tensor([[p, 0.0]], dtype=dtype)
    v = q * torch.tensor([[math.cos(angle), math.sin(angle) * (angle == 1.5)]], dtype=dtype)
    leaves = [t.to(device(backend)).requires_grad_() for t in (u, v)]
    d = hk.pairwise_distance(*leaves, input="tangent")
    grads = [g.cpu() for g in torch.autograd.grad(d.sum(), leaves)]
    at = [t.double().requires_grad_() for t in (u, v)]
    want = ROW_WISE["distance"].portable(*at, torch.tensor(1.0, dtype=torch.float64), True)
    slopes = torch.autograd.grad(want.sum(), at)
    fits = p + q < 88 or (max(p, q) < 354 and (dtype == torch.float64 or backend != "triton"))
    if fits or not torch.isnan(d):
        assert float(d) == pytest.approx(float(want), rel=2e-5 if dtype == torch.float32 else 1e-12)
    for got, slope in zip(grads, slopes, strict=True):
        if fits or not torch.isnan(got).any():
            assert (got - slope).norm() <= (p + q) * 8 * far_out.EPS[dtype] + documented(32, backend) * (
                dtype == torch.float32
            )
