"""Exponential and logarithmic maps and the lift to time: on every backend, far out, and against 60-digit arithmetic."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hyperst_kernels as hk
from benchmarks import oracle
from benchmarks.cases import CASES
from tests.kernels import far_out
from tests.kernels.backends import BACKENDS, WITHOUT_MACHINE_CODE, device, documented
from tests.kernels.far_out import EPS, KINDS, C, call, ray, slope_by_curvature, slope_of
from tests.kernels.float32 import on_backend, reference, size
from tests.kernels.hard_pairs import CURVATURES, pairs
from tests.kernels.row_wise import RowWise, vectors_and_curvature


class TestOperators(RowWise):
    operators = ("exp_map0", "log_map0", "exp_map", "log_map", "lift")
    # rounded radii far out, a rounded direction of one feature, a point carried to behind the origin
    found = (
        ("log_map0", 13, 1, 1, 60.0, 0.03),
        ("exp_map", 37, 3, 27951, 40.0, 1e-6),
        ("exp_map", 33, 1, 43471151, 40.0, 0.03),
        ("lift", 33, 1, 33, 40.0, 0.03),
    )


@given(pairs(), st.sampled_from(CURVATURES))
def test_exp_and_log_map0(pair, c):
    u = pair[0] / c**0.5
    radius = float(u.norm()) * c**0.5
    tolerance = 4 * EPS[torch.float32] * (1 + radius)  # e^radius is taken of a rounded number
    exact = oracle.exp_map0(oracle.vector(u), mpmath.mpf(c))
    x = hk.exp_map0(u, c)
    error = oracle.norm([p - q for p, q in zip(oracle.vector(x), exact, strict=True)])
    assert error <= tolerance * oracle.norm(exact)
    assert float((hk.log_map0(x, c) - u).norm()) <= 2 * tolerance * float(u.norm())


@pytest.mark.parametrize("dtype", far_out.DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("p", "factor"), [(9.0, -8.0), (12.0, -16.0), (3.0, -0.5), (18.5, -16.0), (2.0, 4.0)])
def test_exp_map_along_a_ray(kind, backend, dtype, p, factor):
    """sinh(p - t) and its slopes, which are e^(p+t) less e^(p+t) in the textbook form."""
    x = math.sinh(p) * ray(kind, dtype)
    v, grad = factor * x, x / 8
    got, *grads = call(backend, "exp_map", x[None], v[None], grad=grad[None])
    # p and t are rounded, the hyperbolic functions take their difference
    rounding = (16 + 4 * (p + abs(factor)) / min(1, abs(p - abs(factor)))) * EPS[dtype]
    rounding += (documented(8, backend) * (p + abs(factor))) * (dtype == torch.float32)
    with mpmath.workdps(100):
        at = [oracle.vector(t) for t in (x, v)]
        assert oracle.error(got[0], oracle.exp_map(*at, mpmath.mpf(C))) <= rounding
        for i, found in enumerate(grads):
            slope = slope_of(oracle.exp_map, at, i, grad)
            assert oracle.error(found[0], slope) <= 4 * rounding, i


@pytest.mark.parametrize("backend", BACKENDS)
def test_slope_of_log_map_on_one_ray_far_out(backend):
    inputs = [torch.tensor([[1515690880.0]]), torch.tensor([[1515213184.0]]), torch.tensor(0.8)]
    upstream = torch.ones(1, 1)
    _, (*grads, _) = on_backend(CASES["log_map"], inputs, upstream, backend)
    _, (*exact, _) = reference(CASES["log_map"], inputs, upstream)
    for got, want in zip(grads, exact, strict=True):
        assert size(got - want) <= (8 * EPS[torch.float32] + documented(16, backend)) * size(want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "vectors", [[(3.4657e20, 0.0), (2.621e18, 2.621e-2)], [(1.2e18, 0.0), (1.19e18, 5e-16)]], ids=["far", "near"]
)
def test_numbers_of_a_row_far_apart(vectors, backend):
    far_out.numbers_of_a_row_may_be_far_apart(backend, "log_map", vectors)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", far_out.SIZES)
@pytest.mark.parametrize(("name", "count"), [("lift", 1), ("log_map0", 1), ("log_map", 2)])
def test_squares_that_do_not_fit(name, count, size, backend):
    far_out.squares_need_not_fit(backend, name, count, size)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("apart", far_out.APART)
@pytest.mark.parametrize(("first", "second"), [(1e19, 1e19), (1e20, 3e25)])
def test_products_of_two_that_do_not_fit(first, second, apart, backend):
    far_out.products_of_two_need_not_fit(backend, "log_map", (), first, second, 1.0, apart)


@pytest.mark.parametrize("dtype", far_out.DTYPES)
@pytest.mark.parametrize("backend", WITHOUT_MACHINE_CODE)
@pytest.mark.parametrize(("size", "c"), [(1e2, 1.0), (1e4, 1.0), (1e10, 1e-6), (1e20, 1.0), (1e-3, 1e4)])
def test_slope_of_the_time_by_the_curvature(size, c, backend, dtype):
    """-1 / (2 c^2 x_t), which is next to nothing of the time over 2c: 0 was left of it at |x| = 1e4."""
    c = float(torch.tensor(c, dtype=dtype))
    x = torch.tensor([[size, 0.0]], dtype=dtype)
    want = -1 / (2 * c**2 * math.sqrt(1 / c + float(x[0, 0]) ** 2))
    tolerance = 8 * EPS[dtype] + documented(4, backend) * (dtype == torch.float32)
    assert slope_by_curvature(backend, "lift", x, c) == pytest.approx(want, rel=tolerance)


@pytest.mark.parametrize("dtype", far_out.DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("size", "c"), far_out.RADII)
def test_slope_of_log_map0_by_the_curvature(size, c, backend, dtype):
    far_out.the_radius_has_a_slope_by_the_curvature(backend, "log_map0", size, c, dtype)


@pytest.mark.parametrize("c", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_points_are_made_up_to_where_they_overflow(c, dtype):
    limit = min(math.asinh(c**0.5 * torch.finfo(dtype).max), {torch.float64: 709.0}.get(dtype, 88.6))
    v = torch.tensor([[0.6, 0.8]], dtype=torch.float64) * (limit - 0.2) / c**0.5
    x = hk.exp_map0(v.to(dtype), c)
    assert torch.isfinite(x).all()
    tolerance = 4 * torch.finfo(dtype).eps * limit
    assert float(hk.distance0(x, c).double()) == pytest.approx((limit - 0.2) / c**0.5, rel=tolerance / 4)
    torch.testing.assert_close(hk.log_map0(x, c).double(), v.to(dtype).double(), rtol=tolerance, atol=0)


@pytest.mark.parametrize("radius", [1e-3, 5.0, 40.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_log_map_of_one_feature_far_out(backend, radius):
    """A tangent vector at x is cosh p times as long in its one component as it is."""
    c, g = torch.tensor(0.8, device=device(backend)), torch.Generator().manual_seed(0)
    x, y = (
        hk.exp_map0(
            (radius * torch.rand(200, 1, generator=g) * torch.randn(200, 1, generator=g).sign()).to(c.device), c
        )
        for _ in "xy"
    )
    p, q = (torch.asinh(0.8**0.5 * v.double()) for v in (x, y))
    want, eps = (q - p) * torch.cosh(p) / 0.8**0.5, EPS[torch.float32]
    known = 4 * eps * torch.cosh(p)  # x and y are rounded
    found = on_backend(CASES["log_map"], [x.cpu(), y.cpu(), c.cpu()], torch.ones(200, 1), backend)[0].to(want)
    assert ((found - want).abs() <= 16 * eps * (1 + radius) * want.abs() + known).all()


@pytest.mark.parametrize("scale", [1e-2, 1.0, 2.0])
def test_maps_undo_each_other(scale):
    torch.manual_seed(0)
    x, y = (hk.exp_map0(torch.randn(20, 5, dtype=torch.float64) * scale, 0.7) for _ in range(2))
    v = hk.log_map(x, y, 0.7)
    grow = float(y.norm(dim=-1).max() * x.norm(dim=-1).max() + 1)  # both maps amplify rounding by the radii
    torch.testing.assert_close(hk.exp_map(x, v, 0.7), y, rtol=0, atol=1e-13 * grow)
    torch.testing.assert_close(
        hk.poincare_to_lorentz(hk.lorentz_to_poincare(x, 0.7), 0.7), x, rtol=1e-12 * grow, atol=0
    )
    back = hk.parallel_transport(y, x, hk.parallel_transport(x, y, v, 0.7), 0.7)
    torch.testing.assert_close(back, v, rtol=0, atol=1e-13 * grow * float(v.norm(dim=-1).max() + 1))
    torch.testing.assert_close(hk.project(hk.lift(x, 0.7)), x, rtol=0, atol=0)


def test_gradients_of_public_functions():
    x, y, c = vectors_and_curvature()
    for f in (hk.exp_map, hk.log_map):
        assert torch.autograd.gradcheck(f, (x, y, c))
    for f in (hk.exp_map0, hk.log_map0, hk.lift):
        assert torch.autograd.gradcheck(f, (x, c))


def test_the_origin_has_finite_gradients():
    x = torch.zeros(3, 4, requires_grad=True)
    total = hk.exp_map0(x).sum() + hk.log_map0(x).sum() + hk.log_map(x, x.detach()).sum()
    total.backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: hk.exp_map0(torch.tensor([float("nan")])), "v must be finite, got 1"),
        (lambda: hk.exp_map0(torch.tensor([100.0])), "overflows"),
        (lambda: hk.log_map0(torch.ones(2), c=-1.0), "c must be positive and finite, got -1.0: the .* so pass c = 1"),
        (lambda: hk.exp_map0(torch.tensor([90.0])), r"overflows torch.float32 \(limit 88.7 at c = 1\)"),
        (lambda: hk.exp_map0(torch.tensor([8.3e4]), 1e-6), r"overflows torch.float32 \(limit 82.5 at c = 1e-06\)"),
        (
            lambda: hk.exp_map0(torch.tensor([6e3]).half(), 1e-6),
            r"overflows torch.float16 \(limit 4.87 at c = 1e-06\)",
        ),
    ],
)
def test_errors_name_the_argument(call, words):
    with pytest.raises(ValueError, match=words):
        call()
