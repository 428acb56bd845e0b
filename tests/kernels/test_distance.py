"""Inner products and distances of rows: on every backend, far out, and against 60-digit arithmetic."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hyperst_kernels as hk
from benchmarks import oracle
from benchmarks.cases import ROW_WISE, Case
from hyperst_kernels.reference import distance as reference
from tests.kernels import far_out
from tests.kernels.backends import BACKENDS, DEVICE, WITHOUT_MACHINE_CODE, documented
from tests.kernels.far_out import EPS, KINDS, C, call
from tests.kernels.float32 import implementation, on_backend
from tests.kernels.hard_pairs import CURVATURES, DIGITS, conditioning, pairs, perturbed
from tests.kernels.row_wise import RowWise, rows_apart, vectors_and_curvature


class TestOperators(RowWise):
    operators = ("inner", "distance", "distance0")
    found = (  # directions and rounded radii in e^(p + q - D) far out
        ("distance-tangent", 32, 513, 1851712, 60.0, 40.0),
        ("distance-tangent", 8, 33, 8, 40.0, 1e-6),
    )


@given(pairs(), st.sampled_from(CURVATURES))
def test_distance_of_tangent_vectors(pair, c):
    u, v = (z / c**0.5 for z in pair)
    f = lambda a, b: oracle.tangent_distance(a, b, mpmath.mpf(c))  # noqa: E731
    with mpmath.workdps(DIGITS):
        exact = float(f(oracle.vector(u), oracle.vector(v)))
        known = conditioning(f, u, v)
    ours = float(hk.distance(u, v, c, input="tangent"))
    assert abs(ours - exact) <= 8 * EPS[torch.float32] * exact + 2 * known


@given(pairs(), st.sampled_from(CURVATURES))
def test_distance_of_points(pair, c):
    x, y = (hk.exp_map0(z / c**0.5, c) for z in pair)
    f = lambda a, b: oracle.distance(a, b, mpmath.mpf(c))  # noqa: E731
    with mpmath.workdps(DIGITS):
        exact = float(f(oracle.vector(x), oracle.vector(y)))
        known = conditioning(f, x, y)
    assert abs(float(hk.distance(x, y, c)) - exact) <= 8 * EPS[torch.float32] * exact + 2 * known


@given(pairs(smallest=1e-3), st.sampled_from(CURVATURES), st.sampled_from(["tangent", "lorentz"]), st.booleans())
def test_distance_gradient(pair, c, input, swapped):
    pair = [z / c**0.5 for z in (pair[::-1] if swapped else pair)]
    u, v = pair if input == "tangent" else (hk.exp_map0(z, c) for z in pair)
    leaf = u.clone().requires_grad_()
    hk.distance(leaf, v, c, input=input).backward()
    assert torch.isfinite(leaf.grad).all()
    if torch.equal(u, v):
        assert not leaf.grad.any()
        return
    f = oracle.tangent_distance if input == "tangent" else oracle.distance

    def slope(a, b):
        return oracle.gradient(lambda w: f(w, b, mpmath.mpf(c)), a, "1e-60")

    with mpmath.workdps(DIGITS):
        exact = slope(oracle.vector(u), oracle.vector(v))
        others = [slope(oracle.vector(p), oracle.vector(v)) for p in perturbed(u)]
        others += [slope(oracle.vector(u), oracle.vector(p)) for p in perturbed(v)]
        known = max(oracle.norm([p - q for p, q in zip(other, exact, strict=True)]) for other in others)
        error = oracle.norm([p - q for p, q in zip(oracle.vector(leaf.grad), exact, strict=True)])
        assert error <= 8 * EPS[torch.float32] * oracle.norm(exact) + 2 * known


GOLDEN = [
    ((0.3, -0.4, 1.2), 1, -3.25622708128, 1.84925767668, 0.171016010097, 2.56535007911),
    ((1.2, 1.5, 0.1), 1, -1.46488926742, 0.930334344866, 0.171016010097, 0.190861416620),
    ((0.3, -0.4, 1.2), 0.5, -3.83782224917, 1.79438496333, 0.263621314977, 2.44710321116),
    ((0.3, -0.4, 1.2), 4, -7.02029656126, 2.01396490838, 0.0551720989763, 2.90214070974),
]


@pytest.mark.parametrize(("w", "c", "product", "d", "aperture", "angle"), GOLDEN)
def test_golden_values(w, c, product, d, aperture, angle):
    v, w = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64), torch.tensor(w, dtype=torch.float64)
    x, y = hk.exp_map0(v, c), hk.exp_map0(w, c)
    got = [hk.inner(x, y, c), hk.distance(x, y, c), hk.half_aperture(x, c), hk.exterior_angle(x, y, c)]
    assert got == pytest.approx([product, d, aperture, angle], rel=1e-11)
    assert float(hk.distance(v, w, c, input="tangent")) == pytest.approx(d, rel=1e-11)


@pytest.mark.parametrize("dtype", far_out.DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tangent", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("radius", "share"), far_out.ON_ONE_RAY)
def test_slope_on_one_ray(kind, tangent, backend, dtype, radius, share):
    """1 away from the other: what rounding leaves of the angle between them must not be multiplied by e^radius."""
    x, y, slopes = far_out.on_one_ray(kind, tangent, dtype, radius, share)
    _, *grads = call(backend, "distance", x[None], y[None], flags=(tangent,), grad=torch.ones(1))
    # e^-D is taken of rounded radii, and cosh of p
    known = (32 + 8 * radius) * EPS[dtype] + documented(32, backend) * (dtype == torch.float32)
    for got, want in zip(grads, slopes, strict=True):
        assert (got[0].double() - want).norm() <= known * want.norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("y", far_out.BESIDE_AN_AXIS)
def test_an_angle_that_the_numbers_hold_is_not_taken_for_rounding(y, backend):
    x, y = far_out.beside_an_axis(y)
    d, *grads = call(backend, "distance", x[None], y[None], flags=(True,), grad=torch.ones(1))
    far_out.assert_angle_is_seen(x, y, d, grads, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("vectors", "tangent"),
    [
        ([(45.283345, 0.0), (41.563283, 4.1563283e-21)], True),
        ([(3.4657e20, 0.0), (2.621e18, 2.621e-2)], False),
        ([(1.2e18, 0.0), (1.19e18, 5e-16)], False),
        ([(1e-25, 0.0), (0.0, 1e-25)], True),
    ],
)
def test_numbers_of_a_row_far_apart(vectors, tangent, backend):
    far_out.numbers_of_a_row_may_be_far_apart(backend, "distance", vectors, (tangent,))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", far_out.SIZES)
@pytest.mark.parametrize(
    ("name", "count", "flags"), [("distance0", 1, (False,)), ("inner", 2, ()), ("distance", 2, (False,))]
)
def test_squares_that_do_not_fit(name, count, flags, size, backend):
    far_out.squares_need_not_fit(backend, name, count, size, flags)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("apart", far_out.APART)
@pytest.mark.parametrize(
    ("name", "flags", "first", "second", "c"),
    [
        ("inner", (), 1e18, 1e18, 1e4),
        ("inner", (), 1e19, 3e18, 30.0),
        ("distance", (False,), 1e35, 1e36, 1.0),
        ("distance", (True,), 100.0, 100.0, 1.0),
        ("distance", (True,), 170.0, 3.0, 4.0),
        ("distance", (True,), 340.0, 350.0, 1.0),
    ],
)
def test_products_of_two_that_do_not_fit(name, flags, first, second, c, apart, backend):
    far_out.products_of_two_need_not_fit(backend, name, flags, first, second, c, apart)


@pytest.mark.parametrize("dtype", far_out.DTYPES)
@pytest.mark.parametrize("backend", WITHOUT_MACHINE_CODE)
@pytest.mark.parametrize(("size", "c"), far_out.RADII)
def test_slope_of_distance0_by_the_curvature(size, c, backend, dtype):
    far_out.the_radius_has_a_slope_by_the_curvature(backend, "distance0", size, c, dtype, (False,))


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_whose_squares_vanish(backend):
    x, y = torch.tensor([[3e-25, -4e-25]]), torch.tensor([[0.0, 4e-25]])
    assert float(call(backend, "distance0", x, flags=(True,))[0]) == pytest.approx(5e-25, rel=1e-6)
    for tangent in (True, False):
        d = call(backend, "distance", x, y, flags=(tangent,))[0]
        assert float(d) == pytest.approx(73**0.5 * 1e-25, rel=2e-6)


@pytest.mark.parametrize("dtype", far_out.DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tangent", [(800.0, 800.0), (500.0, 350.0), (1e4, 0.0)])
def test_a_distance_beyond_all_numbers_is_right_or_none(tangent, backend, dtype):
    """The machine code forms sinh p sinh q in float64, from which point on it says NaN: never inf, and no slopes of 0."""
    u, v = torch.tensor([[tangent[0], 0.0]], dtype=dtype), torch.tensor([[0.0, tangent[1]]], dtype=dtype)
    d, *grads = call(backend, "distance", u, v, flags=(True,), grad=torch.ones(1))
    exact = sum(tangent) - math.log(2) / C**0.5 * (tangent[1] != 0)
    if backend == "native" and dtype == torch.float32:
        assert all(torch.isnan(t).all() for t in (d, *grads))
    else:
        assert float(d) == pytest.approx(exact, rel=8 * EPS[dtype])
        for a, slope in zip((u, v), grads, strict=True):
            want = a[0] / a.abs().max() if a.any() else torch.zeros(2, dtype=dtype)
            along = slope[0] if a.any() else torch.zeros(2, dtype=dtype)
            torch.testing.assert_close(along[a[0] != 0], want[a[0] != 0], rtol=sum(tangent) * 8 * EPS[dtype], atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("radius", [1e-3, 5.0, 40.0])
def test_one_feature_far_out(radius, backend):
    """Two points of a line are as far apart as their radii say: a direction is a sign, and rounding it makes no angle."""
    g = torch.Generator().manual_seed(0)
    x, y = (radius * torch.rand(200, 1, generator=g) * torch.randn(200, 1, generator=g).sign() for _ in "xy")
    found = call(backend, "distance", x, y, flags=(True,))[0].double()
    want = (x.double() - y.double()).abs().squeeze(1)
    torch.testing.assert_close(found, want, rtol=8 * EPS[torch.float32] * (1 + radius), atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    x, y = torch.randn(5, 8).to(dtype), torch.randn(5, 8).to(dtype)
    got = hk.distance(x, y, input="tangent")
    assert got.dtype == dtype
    torch.testing.assert_close(got, hk.distance(x.float(), y.float(), input="tangent").to(dtype), rtol=0, atol=0)


@pytest.mark.triton
def test_autocast_and_broadcasting_reach_the_kernels():
    g = torch.Generator().manual_seed(0)
    x, y = (0.4 * torch.randn(shape, generator=g).to(DEVICE) for shape in ((3, 1, 6), (4, 6)))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        d = hk.distance(x, y, C, input="tangent")
    assert (d.dtype, d.shape) == (torch.float32, (3, 4))
    wide = torch.broadcast_tensors(x.double(), y.double())
    want = ROW_WISE["distance"].portable(*(t.reshape(-1, 6) for t in wide), torch.tensor(C).to(wide[0]), True)
    torch.testing.assert_close(d.double(), want.reshape(3, 4), rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", ["native"])
@pytest.mark.parametrize("tangent", [True, False])
@pytest.mark.parametrize("radius", [1e-4, 0.5, 5.0, 20.0])
@pytest.mark.parametrize("apart", [0.0, 1e-6, 1e-2, 1.0])
def test_machine_code_keeps_every_digit(tangent, radius, apart, backend):
    (x, y, c), wide = rows_apart(tangent, radius, apart)
    value, grads = on_backend(Case("distance", None, flags=(tangent,)), [x, y, c], torch.ones(40), backend)
    exact = reference.distance(*wide, "tangent" if tangent else "lorentz")
    torch.testing.assert_close(value.double(), exact, rtol=4 * EPS[torch.float32], atol=0)
    for got, want in zip(grads, reference.distance_gradients(*wide, tangent)[:2], strict=False):
        assert ((got - want).norm(dim=-1) <= 16 * EPS[torch.float32] * want.norm(dim=-1)).all()


@pytest.mark.parametrize("backend", ["native"])
def test_distances_on_a_line_are_differences(backend):
    """What rounding leaves of the angle between two numbers would be amplified by e^80."""
    generator = torch.Generator().manual_seed(0)
    x, y = (40 * torch.rand(2000, 1, generator=generator) for _ in range(2))
    want = (x.double() - y.double()).abs()[:, 0]
    found = implementation("distance", backend)(x, y, torch.tensor(1.0), True)
    torch.testing.assert_close(found.double(), want, rtol=2 * EPS[torch.float32], atol=0)


def test_gradients_of_public_functions():
    x, y, c = vectors_and_curvature()
    for input in ("tangent", "lorentz"):
        assert torch.autograd.gradcheck(lambda a, b, k, i=input: hk.distance(a, b, k, input=i), (x, y, c))
        assert torch.autograd.gradgradcheck(lambda a, b, k, i=input: hk.distance(a, b, k, input=i), (x, y, c))
    assert torch.autograd.gradcheck(hk.inner, (x, y, c))


def test_coincident_points_have_finite_gradients():
    x = torch.zeros(3, 4, requires_grad=True)
    hk.distance(x, x.detach()).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: hk.distance(torch.ones(2, dtype=torch.int64), torch.ones(2)), TypeError, "x must be a floating"),
        (lambda: hk.distance(torch.ones(2, 3), torch.ones(4, 3)), ValueError, r"x \(2, 3\), y \(4, 3\)"),
        (
            lambda: hk.distance(torch.ones(2), torch.ones(2), input="ball"),
            ValueError,
            "'tangent', 'lorentz', got 'ball'",
        ),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()
