"""Tests of the kernels belong to operators: each to the right ones, and none of either is forgotten."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks import device_tests
from benchmarks.concerns import HIERARCHY, HINGES, LOSS, OPERATORS, PAIRS, ROW_WISE, concerned
from benchmarks.results import REPOSITORY

HERE = "tests/kernels/triton/"


@pytest.mark.parametrize(
    ("test", "operators"),
    [
        ("tests/kernels/test_row_wise.py::test_float32_and_its_gradient[exp_map0-False]", {"exp_map0"}),
        ("tests/kernels/test_row_wise.py::test_float32_and_its_gradient[distance0-lorentz-False]", {"distance0"}),
        ("tests/kernels/test_row_wise.py", set(ROW_WISE)),
        (HERE + "test_operators.py::test_gradcheck_in_float64[exp_map]", {"exp_map"}),
        (HERE + "test_operators.py::test_half_precision_is_computed_in_float32[distance-tangent-dtype0]", {"distance"}),
        (HERE + "test_operators.py::test_gradcheck_of_the_hinges", {HINGES}),
        (HERE + "test_operators.py::test_rows_too_long_for_a_kernel_are_computed_all_the_same[hinges]", {HINGES}),
        (HERE + "test_operators.py::test_opcheck_of_hinges_and_pairs", {HINGES, PAIRS}),
        (HERE + "test_operators.py::test_maps_over_samples[distance-tangent]", {"distance"}),
        (HERE + "test_operators.py::test_maps_over_samples[contrastive_loss-tangent]", {LOSS, HIERARCHY}),
        (HERE + "test_operators.py::test_this_process_runs_kernels", set(OPERATORS)),
        (HERE + "test_scalars.py::test_at_zero[asinh]", set(OPERATORS)),
        (HERE + "test_distance_matrix.py::test_wide_rows[True]", {PAIRS}),
        (HERE + "test_contrastive_kernel.py::test_gradcheck_in_float64", {LOSS, HIERARCHY}),
        (HERE + "test_contrastive_kernel.py", {LOSS, HIERARCHY}),
        (HERE + "test_hierarchy.py::test_half_precision_in_stripes[rows]", {HIERARCHY}),
        (HERE + "test_smoke.py::test_rows[inner]", {"inner"}),
        (HERE + "test_smoke.py::test_loss[rows-cosine]", {LOSS, HIERARCHY}),
        (HERE + "test_tune.py::test_without_a_gpu_it_says_so", set()),
    ],
)
def test_operators_of_a_test(test, operators):
    assert concerned(test) == operators


@pytest.fixture(scope="module")
def collected():
    """Ids of the smoke tests, and of all tests that run on a device."""

    def ids(*chosen):
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *chosen, *device_tests.PATHS]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if "::" in line]

    return ids("-m", device_tests.SMOKE), ids()


def test_every_operator_has_smoke_tests_and_others(collected):
    smoke, everything = collected
    assert set(smoke) < set(everything)
    for tests in (smoke, set(everything) - set(smoke)):
        few = [test for test in tests if len(concerned(test)) <= 2]  # not by tests of everything
        assert set().union(*map(concerned, few)) == set(OPERATORS)


def test_most_tests_concern_few_operators(collected):
    """What concerns all operators is single functions and the process: no test of an operator got there by mistake."""
    _, everything = collected
    of_all = [test for test in everything if len(concerned(test)) > 3 and "test_scalars.py" not in test]
    assert of_all == [HERE + "test_operators.py::test_this_process_runs_kernels"]
