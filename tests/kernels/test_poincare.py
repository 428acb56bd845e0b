"""The Poincare ball and back: on every backend, far out, and what a round trip loses."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch.nn import functional as F

import hyperst_kernels as hk
from benchmarks import oracle
from tests.kernels import far_out
from tests.kernels.backends import WITHOUT_MACHINE_CODE, documented
from tests.kernels.far_out import EPS, KINDS, C, call, ray, slope_by_curvature
from tests.kernels.row_wise import RowWise, vectors_and_curvature


class TestOperators(RowWise):
    operators = ("lorentz_to_poincare", "poincare_to_lorentz")


@pytest.mark.parametrize("dtype", far_out.DTYPES)
@pytest.mark.parametrize("backend", WITHOUT_MACHINE_CODE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [1e-3, 2.0, 10.0, 18.0, 22.5, 40.0])
def test_radial_slope_of_the_poincare_map(p, kind, backend, dtype):
    """1 / ((1 + cosh p) cosh p): one e^-p less than either term of the textbook form."""
    x = math.sinh(p) / C**0.5 * ray(kind, dtype)
    grad = x / x.abs().max()
    _, got = call(backend, "lorentz_to_poincare", x[None], grad=grad[None])
    wide = oracle.vector(x)
    cosh_p = mpmath.sqrt(1 + C * oracle.dot(wide, wide))
    want = [g / ((1 + cosh_p) * cosh_p) for g in oracle.vector(grad)]
    # the gradient is on the ray of x but for its rounding, of which a slope across the ray makes that of 1 / (1 + cosh p)
    off = 0 if kind != "oblique" else 2 * EPS[dtype] * float(oracle.norm(oracle.vector(grad)) / (1 + cosh_p))
    tolerance = 16 * EPS[dtype] + documented(8, backend) * (dtype == torch.float32)
    error = float(oracle.norm([a - b for a, b in zip(oracle.vector(got[0]), want, strict=True)]))
    assert error <= tolerance * float(oracle.norm(want)) + off
    by_c = -wide[0] * oracle.dot(wide, wide) / (2 * cosh_p * (1 + cosh_p) ** 2)
    assert slope_by_curvature(backend, "lorentz_to_poincare", x[None], C) == pytest.approx(float(by_c), rel=tolerance)


@pytest.mark.parametrize("backend", WITHOUT_MACHINE_CODE)
@pytest.mark.parametrize("size", far_out.SIZES)
def test_squares_that_do_not_fit(size, backend):
    far_out.squares_need_not_fit(backend, "lorentz_to_poincare", 1, size)


@pytest.mark.parametrize("c", [1e-6, 1e-3, 1.0, 3.0, 1e4])
@pytest.mark.parametrize("d", [3, 8, 64])
@pytest.mark.parametrize(
    ("dtype", "radius", "error"),
    [
        (torch.float32, 10.0, 0.005),
        (torch.float32, 14.0, 0.3),
        (torch.float64, 30.0, 0.005),
        (torch.float64, 34.0, 0.3),
    ],
)
def test_the_poincare_round_trip_loses_what_its_docstring_says(dtype, radius, error, d, c):
    a = F.normalize(torch.randn(2000, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1)
    x = (math.sinh(radius) / c**0.5 * a).to(dtype)
    back = hk.poincare_to_lorentz(hk.lorentz_to_poincare(x, c), c)
    lost = float((hk.distance0(back, c) - hk.distance0(x, c)).abs().max()) * c**0.5
    # 1 - tanh(p/2) = 2 e^-p, off by 3.5 eps
    derived = -math.log1p(-3.5 * EPS[dtype] * math.exp(radius) / 2)
    assert error / 20 < lost <= derived <= error


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.ones(2), "inside the Poincare ball"),
        (torch.tensor([1.0]), "in torch.float32 points of radius 15.4 and more"),
    ],
)
def test_errors_name_the_argument(x, words):
    with pytest.raises(ValueError, match=words):
        hk.poincare_to_lorentz(x)


def test_gradients_of_public_functions():
    x, _, c = vectors_and_curvature()
    assert torch.autograd.gradcheck(hk.lorentz_to_poincare, (x, c))
