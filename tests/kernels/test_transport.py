"""Parallel transport: on every backend, and far out against 100-digit arithmetic."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

from benchmarks import oracle
from tests.kernels import far_out
from tests.kernels.backends import WITHOUT_MACHINE_CODE, device, documented
from tests.kernels.far_out import EPS, KINDS, C, call, ray, slope_of
from tests.kernels.row_wise import RowWise


class TestOperators(RowWise):
    operators = ("parallel_transport",)
    found = (("parallel_transport", 10, 33, 85585, 40.0, 1e-6),)  # to behind the origin


@pytest.mark.parametrize("dtype", far_out.DTYPES)
@pytest.mark.parametrize("backend", WITHOUT_MACHINE_CODE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("p", "halvings"), [(8.0, 10), (10.0, 12), (12.0, 1), (2.0, -12), (18.0, 22)])
def test_transport_of_a_radial_vector(kind, backend, dtype, p, halvings):
    """Its length goes with cosh q / cosh p: nothing of it is left of the textbook form at radius 10."""
    x = math.sinh(p) * ray(kind, dtype)
    y, v, grad = x / 2**halvings, x / 4, -x / 2
    got, *grads = call(backend, "parallel_transport", x[None], y[None], v[None], grad=grad[None])
    with mpmath.workdps(100):
        at = [oracle.vector(t) for t in (x, y, v)]
        want = oracle.parallel_transport(*at, mpmath.mpf(C))
        assert oracle.error(got[0], want) <= 16 * EPS[dtype] + documented(4, backend) * (dtype == torch.float32)
        for i, found in enumerate(grads):
            slope = slope_of(oracle.parallel_transport, at, i, grad)
            assert oracle.error(found[0], slope) <= 64 * EPS[dtype] + documented(16, backend) * (
                dtype == torch.float32
            ), i


TRANSPORTS = [
    ([1e20, 0.0], [0.0, 1e20], [1.0, 1.0], 1.0),
    ([1e30, 0.0], [0.0, 1e30], [0.0, 1e10], 1.0),
    ([1e3, 0.0], [0.0, 1e25], [0.0, 1e15], 1.0),
    ([1e18, 0.0], [0.0, 1e18], [1.0, 1.0], 1e4),
    ([1e25, 0.0], [1e25, 0.0], [1.0, 2.0], 1.0),
    ([1e25, 0.0], [1e25, 1e20], [1e20, 1e20], 1.0),
    ([1e36, 1e36], [1.0, 0.0], [1e30, 0.0], 1.0),
]


@pytest.mark.parametrize(("backend", "transform"), [("portable", False), ("portable", True), ("triton", False)])
@pytest.mark.parametrize(("x", "y", "v", "c"), TRANSPORTS)
def test_transport_between_points_far_out(x, y, v, c, backend, transform):
    """Each growing factor is divided by cosh(D/2) before another is multiplied with it: sinh p sinh q does not fit."""
    compute, place = far_out.compute("parallel_transport", backend), device(backend)
    weights = torch.tensor([1.0, 0.5], device=place)

    def total(*leaves):
        return (compute(*leaves) * weights).sum()

    vectors = [torch.tensor([z], device=place).requires_grad_() for z in (x, y, v)]
    leaves = [*vectors, torch.tensor(c, device=place, requires_grad=True)]
    if transform:
        grads = torch.func.grad(total, (0, 1, 2, 3))(*leaves)
    else:
        grads = torch.autograd.grad(total(*leaves), leaves)
    with mpmath.workdps(150):
        at = [oracle.vector(z[0]) for z in vectors]
        want = oracle.parallel_transport(*at, mpmath.mpf(c))
        # a wrong digit of theta, or of p - q, is multiplied by sinh p / cosh(D/2)
        tolerance = 32 * EPS[torch.float32] + documented(64, backend)
        assert oracle.error(compute(*leaves)[0], want) <= tolerance
        upstream = oracle.vector(weights)
        for i, got in enumerate(grads[:3]):
            slope = oracle.gradient(
                lambda z, i=i: oracle.dot(upstream, oracle.parallel_transport(*at[:i], z, *at[i + 1 :], mpmath.mpf(c))),
                at[i],
                "1e-50",
            )
            assert oracle.error(got[0], slope) <= tolerance, i
        assert torch.isfinite(grads[3])


@pytest.mark.parametrize("backend", WITHOUT_MACHINE_CODE)
def test_numbers_of_a_row_far_apart(backend):
    vectors = [(1.2e18, 0.0), (1.188e18, 5e-16), (0.0, 1.0)]
    far_out.numbers_of_a_row_may_be_far_apart(backend, "parallel_transport", vectors)


@pytest.mark.parametrize("backend", WITHOUT_MACHINE_CODE)
@pytest.mark.parametrize("size", far_out.SIZES)
def test_squares_that_do_not_fit(size, backend):
    far_out.squares_need_not_fit(backend, "parallel_transport", 3, size)
