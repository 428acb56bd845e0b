"""Tests of the kernels belong to operators: each to the right ones, and none of either is forgotten."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks import device_tests
from benchmarks.concerns import HIERARCHY, HINGES, LOSS, OPERATORS, PAIRS, concerned
from benchmarks.results import REPOSITORY
from tests.kernels.test_interpreter import FILES

# blockwise functions launch no kernel of their own: the interpreter has nothing to show of them
BLOCKWISE = {
    f"tests/kernels/test_{name}.py" for name in ("pair_loss", "pair_loss_mpmath", "pair_loss_targets", "retrieval")
}
HERE = "tests/kernels/"
MAPS = {"exp_map0", "log_map0", "exp_map", "log_map", "lift"}
ROWS = "TestOperators::test_float32_and_its_gradient"


@pytest.mark.parametrize(
    ("test", "operators"),
    [
        (HERE + f"test_maps.py::{ROWS}[exp_map0-triton]", {"exp_map0"}),
        (HERE + f"test_distance.py::{ROWS}[distance0-lorentz-triton]", {"distance0"}),
        (HERE + "test_maps.py", MAPS),
        (HERE + "test_maps.py::test_exp_map_along_a_ray[9.0--8.0-axis-triton-dtype0]", {"exp_map"}),
        (
            HERE + "test_maps.py::test_numbers_of_a_row_far_apart[far-triton]",
            {"exp_map0", "log_map0", "exp_map", "log_map", "lift"},
        ),
        (HERE + "test_maps.py::TestOperators::test_gradcheck_in_float64[exp_map-triton]", {"exp_map"}),
        (HERE + "test_distance.py::TestOperators::test_nan_is_not_hidden[distance-tangent-triton]", {"distance"}),
        (HERE + "test_entailment.py::test_gradcheck_of_the_hinges[triton]", {HINGES}),
        (HERE + "test_entailment.py::test_hinges_of_rows_too_long_for_a_kernel", {HINGES}),
        (HERE + "test_func.py::test_vmap_of_kernels[distance-tangent]", {"distance"}),
        (HERE + "test_func.py::test_vmap_of_kernels[contrastive_loss-tangent]", {LOSS, HIERARCHY}),
        (HERE + "test_launch.py::test_this_process_runs_kernels", set(OPERATORS)),
        (HERE + "test_scalars.py::test_at_zero[asinh]", set(OPERATORS)),
        (HERE + "test_distance_matrix.py::test_wide_rows[True-triton]", {PAIRS}),
        (HERE + "triton/test_contrastive_kernel.py::test_gradcheck_in_float64", {LOSS, HIERARCHY}),
        (HERE + "triton/test_contrastive_kernel.py", {LOSS, HIERARCHY}),
        (HERE + "triton/test_hierarchy.py::test_half_precision_in_stripes[rows]", {HIERARCHY}),
        (HERE + "triton/test_smoke.py::test_rows[inner]", {"inner"}),
        (HERE + "triton/test_smoke.py::test_loss[rows-cosine]", {LOSS, HIERARCHY}),
        (HERE + "test_tune.py::test_without_a_gpu_it_says_so", set()),
    ],
)
def test_operators_of_a_test(test, operators):
    assert concerned(test) == operators


@pytest.fixture(scope="module")
def collected():
    """Ids of the smoke tests, of all tests that run on a device, and of all that run on kernels."""

    def ids(mark, *paths):
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", mark, *paths]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if "::" in line]

    smoke, mark = device_tests.SMOKE, device_tests.MARK
    return ids(smoke, *device_tests.PATHS), ids(mark, *device_tests.PATHS), ids(mark, "tests/kernels")


def test_every_test_of_kernels_is_run(collected):
    """On a GPU, and in the interpreter where there is none."""
    _, on_device, everything = collected
    assert set(on_device) == {test for test in everything if "test_empty.py" not in test}  # which launches nothing
    jobs = {HERE + file for names in FILES.values() for file in names}
    assert {test.split("::")[0] for test in everything} == {file for file in jobs if "/ptx/" not in file} | BLOCKWISE


def test_every_operator_has_smoke_tests_and_others(collected):
    smoke, everything, _ = collected
    assert set(smoke) < set(everything)
    for tests in (smoke, set(everything) - set(smoke)):
        few = [test for test in tests if len(concerned(test)) <= 2]  # not by tests of everything
        assert set().union(*map(concerned, few)) == set(OPERATORS)


def test_most_tests_concern_few_operators(collected):
    """What concerns all operators is single functions and the process: no test of an operator got there by mistake."""
    of_all = {test for test in collected[1] if len(concerned(test)) > 5 and "test_scalars.py" not in test}
    assert {test.split("::")[0] for test in of_all} == {HERE + "test_launch.py"}
