"""What a file of outcomes says about operators, whole or cut off."""

from __future__ import annotations

import pytest

from benchmarks import device_summary, outcomes
from benchmarks.concerns import HIERARCHY, HINGES, LOSS, OPERATORS, PAIRS

PAIRWISE = ["test_distance_matrix.py::test_wide_rows", "test_distance_matrix.py::test_precisions[tf32]"]
RIGHT = {"test": PAIRWISE[0], "outcome": "passed", "seconds": 1.0}
RIGHT_TOO = {"test": PAIRWISE[1], "outcome": "passed"}
WRONG = {"test": PAIRWISE[1], "outcome": "failed", "said": "E   assert 2 == 3"}


@pytest.fixture
def run(tmp_path):
    """Append a run, and return what the file says after it."""
    path = tmp_path / "here" / outcomes.NAME

    def append(*lines, planned=PAIRWISE, sources="a"):
        outcomes.append(path, about={"sources": sources, "selection": "smoke"})
        outcomes.append(path, planned=planned)
        for line in lines:
            outcomes.append(path, **line)
        return outcomes.read(path, sources="a")

    append.path = path
    return append


def objection(runs, operator=PAIRS):
    return outcomes.objections(runs)[operator]


def test_green_is_what_has_run_and_passed(run):
    runs = run(RIGHT, RIGHT_TOO, {"status": 0})
    assert objection(runs) == ""
    assert runs[0].status == 0
    others = {operator: objection(runs, operator) for operator in OPERATORS if operator != PAIRS}
    assert set(others.values()) == {outcomes.NOT_RUN}


def test_a_failure_stops_its_operator_only(run):
    tests = [*PAIRWISE, "test_operators.py::test_gradcheck_of_the_hinges"]
    runs = run(RIGHT, WRONG, {"test": tests[2], "outcome": "passed"}, planned=tests)
    assert objection(runs) == "1 failed, as test_precisions[tf32]"
    assert objection(runs, HINGES) == ""
    assert objection(runs, LOSS) == outcomes.NOT_RUN


def test_a_run_that_was_cut_off_is_not_green(run):
    assert objection(run(RIGHT)) == outcomes.NOT_RUN
    with run.path.open("a") as file:
        file.write('{"test": "test_distance_matrix.py::test_prec')
    runs = outcomes.read(run.path)
    assert runs[0].missing() == PAIRWISE[1:]
    assert runs[0].status is None
    assert objection(runs) == outcomes.NOT_RUN


def test_the_smoke_tests_are_enough_while_no_other_has_failed(run):
    run(RIGHT, RIGHT_TOO)
    more = [
        *PAIRWISE,
        "test_distance_matrix.py::test_nan_is_not_hidden",
        "test_distance_matrix.py::test_no_second_derivative",
    ]
    assert objection(run({"test": more[2], "outcome": "passed"}, planned=more)) == ""
    assert "1 failed" in objection(run({"test": more[3], "outcome": "failed"}, planned=more))


def test_a_failure_that_passes_later_is_forgiven_and_one_of_other_sources_does_not_count(run):
    assert objection(run(RIGHT, WRONG)) != ""
    assert objection(run(RIGHT, RIGHT_TOO)) == ""
    assert objection(run(RIGHT, WRONG, sources="b")) == ""
    assert objection(outcomes.read(run.path, sources="c")) == outcomes.NOT_RUN


def test_a_failure_is_not_overwritten_by_what_follows_in_the_same_run(run):
    """As where the process that failed it ends."""
    runs = run(RIGHT, WRONG, {**WRONG, "said": "worker 'gw0' crashed"}, RIGHT_TOO)
    assert runs[0].outcomes[PAIRWISE[1]].said == WRONG["said"]
    assert objection(runs) != ""


def test_skipped_tests_alone_are_not_green(run):
    skipped = [{"test": test, "outcome": "skipped"} for test in PAIRWISE]
    assert objection(run(*skipped)) == outcomes.NOT_RUN
    assert objection(run(RIGHT, skipped[1])) == ""


def test_a_module_that_cannot_be_collected_fails_its_operators(run):
    runs = run({"test": "tests/kernels/triton/test_contrastive_kernel.py", "outcome": "failed"}, planned=[])
    assert "1 failed" in objection(runs, LOSS)
    assert "1 failed" in objection(runs, HIERARCHY)


def test_no_file_is_no_run(tmp_path):
    assert outcomes.read(tmp_path / outcomes.NAME) == []


def test_the_summary_has_failures_first_and_is_short(run):
    tests = [f"test_distance_matrix.py::test_precisions[{k}]" for k in range(400)]
    lines = [{"test": test, "outcome": "failed", "said": f"{'x' * 3000}\nE   assert {test}"} for test in tests]
    text = device_summary.summary(run(*lines, planned=[*tests, "never"]), [])
    assert text.startswith(f"FAILED {tests[0]}\n")
    assert f"    E   assert {tests[0]}\n" in text
    assert len(text) < 12_000
    text = device_summary.summary(run(RIGHT, planned=PAIRWISE, sources="a")[-1:], [])
    assert "smoke: 1 passed, 0 skipped, 0 failed, 1 not run, 1 s in all processes, cut off" in text
    assert f"not green: {PAIRS}: {outcomes.NOT_RUN}" in text
