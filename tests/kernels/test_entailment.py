"""Cones: apertures, exterior angles and hinges, on every backend, far out, and against 60-digit arithmetic."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hyperst_kernels as hk
from benchmarks import oracle
from hyperst_kernels.operators.entailment import reference_hinges
from hyperst_kernels.operators.register import ops
from tests.kernels import far_out
from tests.kernels.backends import BACKENDS, WITHOUT_MACHINE_CODE, device
from tests.kernels.far_out import EPS, C
from tests.kernels.float32 import implementation
from tests.kernels.hard_pairs import CURVATURES, DIGITS, conditioning, pairs
from tests.kernels.row_wise import RowWise, rows_apart, vectors_and_curvature


class TestOperators(RowWise):
    operators = ("half_aperture", "exterior_angle")
    found = (  # a radius beside the rim of cones
        ("half_aperture-tangent", 18, 16, 18, 1.0, 0.8),
        ("half_aperture-tangent", 18, 16, 18, 1.0, 40.0),
    )


@given(pairs(smallest=1e-2), st.sampled_from(CURVATURES))
def test_exterior_angle(pair, c):
    u, v = (z / c**0.5 for z in pair)
    angle = float(hk.exterior_angle(u, v, c, input="tangent"))
    assert 0 <= angle <= math.pi + EPS[torch.float32] * 4
    cosine = float(torch.nn.functional.cosine_similarity(u.double(), v.double(), dim=0)) if v.any() else 1.0
    if abs(cosine) > 1 - 1e-8:  # theta below 1e-4, where the angle jumps between 0 and pi
        return
    f = lambda a, b: oracle.exterior_angle(  # noqa: E731
        oracle.exp_map0(a, mpmath.mpf(c)), oracle.exp_map0(b, mpmath.mpf(c)), mpmath.mpf(c)
    )
    with mpmath.workdps(DIGITS):
        exact, known = float(f(oracle.vector(u), oracle.vector(v))), conditioning(f, u, v)
    assert abs(angle - exact) <= 8 * EPS[torch.float32] * math.pi + 2 * known


@given(st.floats(-6, 1.5), st.sampled_from(CURVATURES))
def test_half_aperture(log_radius, c):
    x = torch.tensor([10**log_radius / c**0.5, 0.0])
    X = mpmath.sqrt(c) * mpmath.mpf(float(x[0]))
    exact = float(mpmath.asin(min(mpmath.mpf(1), mpmath.mpf("0.2") / X)))
    rim = 2e-7 / abs(float(X) - 0.2) ** 0.5 if abs(float(X) - 0.2) < 1e-3 else 0.0
    assert abs(float(hk.half_aperture(x, c)) - exact) <= 1e-6 + rim


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("vectors", "tangent"),
    [([(70.883148, 0.0), (70.883163, 7.0883163e-25)], True), ([(1e-20, 0.0), (6e-30, 1.2e-29)], True)],
)
def test_numbers_of_a_row_far_apart(vectors, tangent, backend):
    far_out.numbers_of_a_row_may_be_far_apart(backend, "exterior_angle", vectors, (tangent,))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", far_out.SIZES)
@pytest.mark.parametrize(
    ("name", "count", "flags"), [("half_aperture", 1, (0.1, False)), ("exterior_angle", 2, (False,))]
)
def test_squares_that_do_not_fit(name, count, flags, size, backend):
    far_out.squares_need_not_fit(backend, name, count, size, flags)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("apart", far_out.APART)
def test_products_of_two_that_do_not_fit(apart, backend):
    far_out.products_of_two_need_not_fit(backend, "exterior_angle", (True,), 100.0, 100.0, 1.0, apart)


def hinges(backend):
    """Of several relations at once."""
    return reference_hinges if backend == "portable" else ops.entailment_hinges


def hinge_arguments(backend, dtype=torch.float64, n=4, d=3):
    g = torch.Generator().manual_seed(5)
    x, y, z = (0.6 * torch.randn(n, d, generator=g, dtype=torch.float64).to(device(backend), dtype) for _ in range(3))
    c = torch.tensor(C, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=x.device)
    return [x, y], [y, z], c, [0.7, 1.2], 0.1, True


@pytest.mark.any_arithmetic
@pytest.mark.parametrize("backend", WITHOUT_MACHINE_CODE)  # which has no float64
def test_gradcheck_of_the_hinges(backend):
    parents, children, c, *flags = hinge_arguments(backend)
    leaves = [t.requires_grad_() for t in (*parents, children[1], c)]

    def compute(x0, x1, y1, c):
        return hinges(backend)([x0, x1], [x1, y1], c, *flags)

    assert torch.autograd.gradcheck(compute, leaves)
    assert (compute(*leaves) > 0).any()


@pytest.mark.any_arithmetic
@pytest.mark.parametrize("backend", ["native", "triton"])
def test_opcheck_of_the_hinges(backend):
    parents, children, c, *flags = hinge_arguments(backend, torch.float32)
    if backend == "native":
        parents = [parents[0].requires_grad_(), parents[1]]
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    tests += ("test_autograd_registration",) * (backend == "native")
    torch.library.opcheck(ops.entailment_hinges.default, (parents, children, c, *flags), test_utils=tests)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hinges_match_one_relation_at_a_time(backend):
    parents, children, c, etas, K, tangent = hinge_arguments(backend, torch.float32, n=9, d=33)
    together = hinges(backend)(parents, children, c, etas, K, tangent)
    for row, x, y, eta in zip(together, parents, children, etas, strict=True):
        angle = implementation("exterior_angle", backend)(x, y, c, tangent)
        alone = torch.relu(angle - eta * implementation("half_aperture", backend)(x, c, K, tangent))
        torch.testing.assert_close(row, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.triton
@pytest.mark.any_arithmetic
def test_hinges_of_rows_too_long_for_a_kernel_are_computed_all_the_same(monkeypatch):
    def value_and_gradients():
        parents, children, c, *flags = hinge_arguments("triton", torch.float32)
        leaves = [t.requires_grad_() for t in (*parents, children[1], c)]
        value = ops.entailment_hinges(parents, children, c, *flags)
        return [value, *torch.autograd.grad(value.sum(), leaves)]

    with_kernels = value_and_gradients()
    monkeypatch.setattr("hyperst_kernels.gpu.launch.fits", lambda d, dtype: False)
    monkeypatch.setattr("hyperst_kernels.gpu.launch.over_rows", None)  # no kernel is launched
    for got, want in zip(value_and_gradients(), with_kernels, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["native"])
@pytest.mark.parametrize("tangent", [True, False])
@pytest.mark.parametrize("radius", [1e-4, 0.5, 5.0, 20.0])
@pytest.mark.parametrize("apart", [0.0, 1e-6, 1e-2, 1.0])
def test_machine_code_of_hinges_keeps_every_digit(tangent, radius, apart, backend):
    """Of two relations, in the other direction in the second, through the operator and its gradient."""
    (x, y, c), wide = rows_apart(tangent, radius, apart)
    flags = ([0.7, 1.2], 0.1, tangent)
    upstream = torch.randn(2, 40, generator=torch.Generator().manual_seed(2))

    def run(compute, *inputs):
        a, b, c = leaves = [t.clone().requires_grad_() for t in inputs]
        value = compute([a, b], [b, a], c, *flags)
        return value.detach(), torch.autograd.grad(value, leaves, upstream.to(value))

    value, grads = run(ops.entailment_hinges, x, y, c)
    exact, (*exact_vectors, exact_c) = run(reference_hinges, *wide)
    assert (value - exact).abs().max() <= 4 * EPS[torch.float32] * math.pi
    for got, want in zip(grads, exact_vectors, strict=False):
        assert ((got - want).norm(dim=-1) <= 16 * EPS[torch.float32] * want.norm(dim=-1)).all()
    shares = sum((t * g).sum(1).abs().sum() for t, g in zip(wide, exact_vectors, strict=False))
    assert (grads[2] - exact_c).abs() <= 16 * EPS[torch.float32] * shares / c


@pytest.mark.parametrize("backend", BACKENDS)
def test_hinges_of_one_row(backend):
    x, y, c = torch.tensor([[0.6, 0.2]]), torch.tensor([[0.1, 0.9]]), torch.tensor(C)
    want = reference_hinges([x.double()], [y.double()], c.double(), [1.0], 0.1, False)
    x, y, c = (t.to(device(backend)) for t in (x, y, c))
    found = hinges(backend)([x], [y], c, [1.0], 0.1, False).cpu()
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("c", [1e-3, 1.0])
def test_slope_of_a_half_aperture_by_c_where_that_by_the_point_does_not_fit(c):
    """asin s = s for s = 2 K / (sqrt(c) |x|), and ds/dc = -s / 2c."""
    curvature = torch.tensor(c, requires_grad=True)
    (slope,) = torch.autograd.grad(hk.half_aperture(torch.tensor([[1e25, 0.0]]), curvature).sum(), curvature)
    assert float(slope) == pytest.approx(-0.1 / (c**1.5 * 1e25), rel=1e-6)


def test_gradients_of_public_functions():
    x, y, c = vectors_and_curvature()
    for input in ("tangent", "lorentz"):
        assert torch.autograd.gradcheck(lambda a, b, k, i=input: hk.exterior_angle(a, b, k, input=i), (x, y, c))
        assert torch.autograd.gradcheck(lambda a, k, i=input: hk.half_aperture(a, k, input=i), (x, c))


def test_cones_of_the_origin_have_finite_gradients():
    x = torch.zeros(3, 4, requires_grad=True)
    angle = hk.exterior_angle(x, torch.ones(3, 4))
    (hk.half_aperture(x).sum() + angle.sum()).backward()
    assert torch.isfinite(x.grad).all()
    assert float(angle[0]) == pytest.approx(math.pi / 2)
