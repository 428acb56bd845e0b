"""Fused multiply-adds and conversions against exact fractions, ties and subnormal numbers included."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.kernels.ptx import arithmetic
from tests.kernels.ptx.instructions import PURE, WORST

LARGEST = Fraction(float(np.finfo(np.float32).max))


def rounded(exact: Fraction, mode: str) -> Fraction:
    """To 24 bits, or to fewer where the number is subnormal; no number here is too large."""
    if exact == 0:
        return exact
    exponent = math.floor(math.log2(abs(exact.numerator)) - math.log2(exact.denominator))
    exponent += (abs(exact) >= Fraction(2) ** (exponent + 1)) - (abs(exact) < Fraction(2) ** exponent)
    unit = Fraction(2) ** max(exponent - 23, -149)
    parts = exact / unit
    whole = {"rn": round, "rm": math.floor, "rz": math.trunc}[mode](parts)  # round: ties to even
    return whole * unit


def floats(smallest: int, largest: int):
    """float32 numbers of few or of 24 bits, with exponents in this range."""
    mantissas = st.one_of(st.integers(-(2**24) + 1, 2**24 - 1), st.integers(-9, 9))
    return st.builds(lambda m, e: float(np.float32(math.ldexp(m, e))), mantissas, st.integers(smallest, largest))


def of_one(function, *numbers, **options):
    return float(function(*(np.array([x], np.float32) for x in numbers), **options)[0])


@settings(max_examples=2000)
@given(a=floats(-90, 10), b=floats(-90, 10), c=floats(-149, 10), mode=st.sampled_from(["rn", "rz", "rm"]))
@example(a=1 + 2.0**-12, b=1 + 2.0**-12, c=2.0**-60, mode="rn")  # just above a tie
@example(a=1 + 2.0**-12, b=1 + 2.0**-12, c=0.0, mode="rn")  # a tie
@example(a=2.0**-75, b=2.0**-75, c=0.0, mode="rn")  # half of the smallest number
@example(a=2.0**-75, b=1.5 * 2.0**-75, c=-(2.0**-149), mode="rm")
def test_fma_of_float32(a, b, c, mode):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    found = of_one(arithmetic.fma_f32, a, b, c, mode=mode)
    assert Fraction(found) == rounded(exact, mode)


@given(a=floats(-149, 100), b=floats(-149, 100), mode=st.sampled_from(["rn", "rz", "rm"]))
def test_sum_of_float32(a, b, mode):
    assert Fraction(of_one(arithmetic.add_f32, a, b, mode=mode)) == rounded(Fraction(a) + Fraction(b), mode)


@given(m=st.integers(-(2**53), 2**53), e=st.integers(-200, 60), mode=st.sampled_from(["rn", "rz", "rm"]))
@example(m=2**24 + 1, e=0, mode="rn")
@example(m=2**24 + 3, e=0, mode="rn")
def test_float64_to_float32(m, e, mode):
    x = math.ldexp(m, e)
    assert Fraction(float(arithmetic.to_f32(np.array([x]), mode)[0])) == rounded(Fraction(x), mode)


doubles = st.builds(math.ldexp, st.integers(-(2**53), 2**53), st.integers(-250, 150))


@settings(max_examples=1000)
@given(a=doubles, b=doubles, c=doubles, cancelling=st.booleans())
def test_fma_of_float64(a, b, c, cancelling):
    c = -(a * b) if cancelling else c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    found = float(arithmetic.fma_f64(np.array([a]), np.array([b]), np.array([c]))[0])
    assert abs(Fraction(found) - exact) <= Fraction(math.ulp(float(exact)))


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64))
@example(bits=[0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x00008000, 0xFF800000, 0x7F800001])
def test_halves(bits):
    x = np.array(bits, np.uint32).view(np.float32)
    given_ = torch.from_numpy(x)
    for kind, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        want = given_.to(dtype)
        with np.errstate(all="ignore"):
            found = torch.from_numpy(PURE[f"cvt.rn.{kind}.f32"].function(x).view(np.int16)).view(dtype)
        assert torch.equal(found.isnan(), want.isnan())
        assert torch.equal(found.nan_to_num(7), want.nan_to_num(7))
    read = arithmetic.bf16_value(arithmetic.bf16_of(x))
    assert np.array_equal(read, given_.bfloat16().float().numpy(), equal_nan=True)


def test_subnormal_numbers_are_flushed():
    x = np.array([2.0**-127, -(2.0**-149), 2.0**-126, np.inf, np.nan], np.float32)
    assert np.array_equal(arithmetic.flush(x), np.array([0, 0, 2.0**-126, np.inf, np.nan], np.float32), equal_nan=True)
    assert np.signbit(arithmetic.flush(x)[1])


@given(a=st.integers(-(2**31) + 1, 2**31 - 1), b=st.integers(-(2**31) + 1, 2**31 - 1).filter(bool))
def test_quotients_of_integers(a, b):
    found = arithmetic.divided(np.array([a], np.int32), np.array([b], np.int32))[0]
    assert found == abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


@given(bits=st.integers(0, 2**32 - 1), start=st.integers(0, 31), length=st.integers(1, 32))
def test_bit_fields(bits, start, length):
    length = min(length, 32 - start)
    field = bits >> start & (1 << length) - 1
    where = np.array([start], np.uint32), np.array([length], np.uint32)
    assert PURE["bfe.u32"].function(np.array([bits], np.uint32), *where)[0] == field
    signed = field - (1 << length) * (field >> (length - 1))
    assert PURE["bfe.s32"].function(np.array([bits], np.uint32).view(np.int32), *where)[0] == signed


@pytest.mark.parametrize(
    ("opcode", "error"),
    [("sqrt.approx.ftz.f32", 2.0**-23), ("ex2.approx.ftz.f32", 2.0**-22), ("rsqrt.approx.ftz.f32", 2.0**-22.9)],
)
def test_worst_functions_err_as_much_as_documented(opcode, error):
    x = np.linspace(0.1, 30, 1000, dtype=np.float32)
    exact, worst = PURE[opcode].function(x).astype(np.float64), WORST[opcode].function(x).astype(np.float64)
    off = worst / exact - 1
    assert (np.abs(off) <= error + 2.0**-23).all()
    assert off.min() < -error / 2
    assert off.max() > error / 2
