"""Every scalar function of the kernels alone, against 60-digit arithmetic over the whole range of float32."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

import triton
import triton.language as tl

from benchmarks.oracle import SCALARS, asinhc
from hyperst_kernels.gpu import scalars
from tests.kernels.backends import APPROXIMATE, DEVICE, INTERPRETED, documented

pytestmark = pytest.mark.triton
EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}


@triton.jit
def _one(function: tl.constexpr, x_ptr, out_ptr, N: tl.constexpr):
    where = tl.arange(0, N)
    tl.store(out_ptr + where, function(tl.load(x_ptr + where)))


@triton.jit
def _two(function: tl.constexpr, x_ptr, y_ptr, out_ptr, N: tl.constexpr):
    where = tl.arange(0, N)
    tl.store(out_ptr + where, function(tl.load(x_ptr + where), tl.load(y_ptr + where)))


def on_device(function, *inputs):
    inputs = [x.to(DEVICE) for x in inputs]
    out = torch.empty_like(inputs[0])
    (_one if len(inputs) == 1 else _two)[(1,)](function, *inputs, out, N=len(out))
    return out.cpu()


def spread(low, high, seed, dtype, n=64):
    """Numbers whose logarithm is uniform, and the ends."""
    generator = torch.Generator().manual_seed(seed)
    exponent = math.log(low) + (math.log(high) - math.log(low)) * torch.rand(
        n, generator=generator, dtype=torch.float64
    )
    x = torch.exp(exponent).to(dtype)
    x[0], x[1] = low, high
    return x


# name: range of the argument, eps of relative error allowed. 4 for a chain of a few roundings; more where
# the function is a difference of larger numbers: p / (p - tanh p) where the series of tanh_defect ends is 20 in float32
# and 1200 in float64.
FUNCTIONS = {
    "asinh": (1e-38, 3e38, 4),
    "log1p": (1e-38, 3e38, 4),
    "sinh": (1e-38, 88, 4),
    "tanh": (1e-38, 3e38, 4),
    "cosh": (1e-38, 88, 4),
    "sinhc": (1e-38, 7000, 6),
    "kappa": (1e-38, 7000, 24),
    "asinhc": (1e-38, 1e38, 8),
    "tanh_defect": (1e-12, 3e38, {torch.float32: 60, torch.float64: 3600}),
    "atan_unit": (1e-38, 1, 4),
    "hypot1": (1e-38, 3e38, 4),
    "sinhc_scaled": (1e-38, 3e38, 4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
@given(seed=st.integers(0, 2**31))
def test_function_of_one_number(name, dtype, seed):
    exact, (low, high, units) = SCALARS[name], FUNCTIONS[name]
    x = spread(low, high, seed, dtype)
    for z, value in zip(x.tolist(), on_device(getattr(scalars, name), x).tolist(), strict=True):
        truth = exact(mpmath.mpf(z))
        # numbers below the smallest normal one are not held to relative accuracy
        allowed = (units if isinstance(units, int) else units[dtype]) * EPS[dtype] * abs(truth) + 4 * torch.finfo(
            dtype
        ).tiny
        if name == "atan_unit" and dtype == torch.float32:
            allowed += documented(3) * abs(truth)  # each of the two halvings takes a root and a quotient
        # the square root of t^2 of these two carries its rounding into the exponent
        allowed += EPS[dtype] * math.sqrt(z) * abs(truth) if name in ("sinhc", "kappa") else 0
        assert abs(value - truth) <= allowed, (name, z, value, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 2**31), negative=st.booleans())
def test_exponentials(dtype, seed, negative):
    x = spread(1e-38, 87, seed, dtype) * (-1 if negative else 1)
    for name in ("exp", "expm1"):
        for z, value in zip(x.tolist(), on_device(getattr(scalars, name), x).tolist(), strict=True):
            truth = SCALARS[name](mpmath.mpf(z))
            assert abs(value - truth) <= 4 * EPS[dtype] * abs(truth) + 4 * torch.finfo(dtype).tiny, (name, z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 2**31))
def test_derivative_ofasinhc(dtype, seed):
    """A difference of numbers near 1, which is added to one of them in every gradient."""
    x = spread(1e-38, 1e38, seed, dtype)
    falls, slopes = (on_device(f, x).tolist() for f in (scalars.asinhc_fall, scalars.asinhc_slope))
    for z2, fall, slope in zip(x.tolist(), falls, slopes, strict=True):
        truth = asinhc(mpmath.mpf(z2)) - 1 / mpmath.sqrt(1 + mpmath.mpf(z2))
        allowed = 8 * EPS[dtype] * asinhc(mpmath.mpf(z2))
        assert abs(fall - truth) <= allowed, z2
        assert abs(-2 * z2 * mpmath.mpf(slope) - truth) <= allowed + 8 * torch.finfo(dtype).tiny * z2, z2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 2**31))
def test_angle_and_length_of_two_numbers(dtype, seed):
    x, y = spread(1e-30, 1e30, seed, dtype), spread(1e-30, 1e30, seed + 1, dtype)
    signed = x * (1 - 2 * (torch.arange(len(x)) % 2))
    for a, b, value in zip(y.tolist(), signed.tolist(), on_device(scalars.atan2, y, signed).tolist(), strict=True):
        truth = mpmath.atan2(a, b)
        chain = documented(4) * (dtype == torch.float32)  # one more quotient than `atan_unit`
        assert abs(value - truth) <= (6 * EPS[dtype] + chain) * truth + 4 * torch.finfo(dtype).tiny, (
            a,
            b,
            value,
            truth,
        )
    for a, b, value in zip(x.tolist(), y.tolist(), on_device(scalars.hypot, x, y).tolist(), strict=True):
        truth = mpmath.hypot(a, b)
        assert abs(value - truth) <= 4 * EPS[dtype] * truth, (a, b)


@pytest.mark.parametrize("name", [*FUNCTIONS, "exp", "expm1", "asinhc_fall", "asinhc_slope"])
def test_nan_stays_nan(name):
    assert on_device(getattr(scalars, name), torch.full((16,), torch.nan)).isnan().all()


def test_nan_stays_nan_in_functions_of_two_numbers():
    nan, one = torch.full((16,), torch.nan), torch.ones(16)
    for function in (scalars.hypot, scalars.atan2, scalars.at_most, scalars.at_least):
        assert on_device(function, nan, one).isnan().all()
    for function in (scalars.hypot, scalars.atan2):
        assert on_device(function, one, nan).isnan().all()


@pytest.mark.parametrize(
    "name", ["asinh", "sinh", "tanh", "sinhc", "kappa", "asinhc", "tanh_defect", "atan_unit", "hypot1"]
)
def test_at_zero(name):
    limits = {"sinhc": 1, "kappa": 1 / 3, "asinhc": 1, "hypot1": 1}
    value = on_device(getattr(scalars, name), torch.zeros(16))
    root_of_one = EPS[torch.float32] if name == "hypot1" and APPROXIMATE else 0
    torch.testing.assert_close(value, torch.full((16,), float(limits.get(name, 0))), rtol=root_of_one, atol=0)


def test_the_flag_was_read():
    assert scalars.INTERPRETED.value == INTERPRETED
