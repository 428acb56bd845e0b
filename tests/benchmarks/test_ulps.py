"""Counting units in the last place: of numbers whose errors are known, over numbers that are all there."""

from __future__ import annotations

import math
import subprocess
import sys

import mpmath
import pytest
import torch

from benchmarks import ulps
from benchmarks.oracle import SCALARS
from benchmarks.results import REPOSITORY


def test_units_of_known_errors():
    truth = torch.tensor([1.0, 1.0, 1.5, -3.0, 2.0**-126, 2.0**-130, 1e39, 2.0], dtype=torch.float64)
    value = torch.tensor([1 + 2.0**-23, 1 - 2.0**-24, 1.5, -3 - 2.0**-21, 2.0**-125, 1, 1, math.nan])
    assert ulps.units(value, truth).tolist() == [1, 0.5, 0, 2, 2.0**23, 0, 0, math.inf]


def test_every_number_between_two_is_taken_once():
    low, high = 1.0, 1 + 5 * 2.0**-23
    assert torch.cat(list(ulps.numbers(low, high, 1))).tolist() == [1 + k * 2.0**-23 for k in range(6)]
    both = torch.cat(list(ulps.numbers(-2.0, 3.0, 9973)))
    assert both.min() >= -2
    assert both.max() <= 3
    assert both.abs().min() >= ulps.TINY
    assert len(both.unique()) == len(both)
    # 127 exponents below 2, of 2^23 numbers each
    assert (both < 0).sum() == pytest.approx(127 * 2**23 / 9973, abs=1)


@pytest.mark.parametrize("path", [ulps.CODE, ulps.CALLS])
def test_float64_is_as_good_as_exact(path):
    """To a thousandth of an ulp of float32, over what each function is measured on."""
    for function in ulps.functions(path):
        some = torch.cat(list(ulps.numbers(function.low, function.high, 50_000_017)))
        for x, truth in zip(some.tolist(), function.wide(some.double()).tolist(), strict=True):
            with mpmath.workdps(300):
                exact = function.exact(mpmath.mpf(x))
            assert abs(truth - exact) <= 2.0**-34 * abs(exact), (function.name, x)


@pytest.mark.parametrize("name", SCALARS)
def test_float64_is_as_good_as_exact_for_functions_of_the_kernels(name):
    low, high = ulps.RANGES.get(name, (ulps.TINY, ulps.HUGE))
    some = torch.cat(list(ulps.numbers(low, high, 50_000_017))).double()
    for x, truth in zip(some.tolist(), ulps.wide(name)(some).tolist(), strict=True):
        with mpmath.workdps(300):
            exact = SCALARS[name](mpmath.mpf(x))
        assert abs(truth - exact) <= 2.0**-34 * abs(exact) + 1e-300, (name, x)


def test_a_wrong_function_is_seen():
    twice = ulps.Function(
        "twice", lambda x: torch.nextafter(2 * x, torch.tensor(math.inf)), lambda x: 2 * x, lambda x: 2 * x, 1, 2
    )
    assert ulps.measure(twice, ulps.CODE, 1_000_003).median == 1
    lying = twice._replace(exact=lambda x: 3 * x)
    with pytest.raises(ValueError, match="from 300 digits"):
        ulps.measure(lying, ulps.CODE, 1_000_003)


def test_a_machine_with_a_gpu_needs_no_extras():
    """Its checks, times and errors import what kernels and their tests need, and nothing else."""
    extras = ("anndata", "lightning", "pandas", "pydantic", "scanpy", "timm", "yaml")
    block = f"import sys; sys.modules.update(dict.fromkeys({extras!r})); import benchmarks.gpu, benchmarks.ulps"
    subprocess.run([sys.executable, "-c", block], cwd=REPOSITORY, check=True)
