"""Tests on a device, with trivial ones in their place: what has ended is on disk, in one process and in several."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time

import pytest

from benchmarks import device_tests, outcomes
from benchmarks.concerns import PAIRS
from benchmarks.results import REPOSITORY

several = pytest.param(
    2, marks=pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")
)
in_one_and_several = pytest.mark.parametrize("cores", [1, several])


@pytest.fixture(autouse=True)
def _ids_are_relative(tmp_path):
    """To the folder of a test, wherever that lies."""
    (tmp_path / "pytest.ini").touch()


MARKED = "import pytest\n\npytestmark = pytest.mark.triton\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run modules of tests, given by their text, on so many cores; what was found."""

    def run(cores, selection="tests", operators=(), **modules):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores))
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(MARKED + text, encoding="utf-8")
        device_tests.run(selection, tmp_path / "out", operators, [str(tmp_path)])
        return outcomes.read(tmp_path / "out" / outcomes.NAME)[-1]

    return run


KINDS = """
import pytest

def test_right():
    pass

def test_wrong():
    x = 2
    assert x == 3

@pytest.mark.skip
def test_skipped():
    pass

@pytest.fixture
def broken():
    raise ValueError("no such thing")

def test_without(broken):
    pass
"""


@in_one_and_several
def test_every_outcome_is_kept(run, cores):
    found = run(cores, test_kinds=KINDS)
    assert {test.split("::")[1]: each.outcome for test, each in found.outcomes.items()} == {
        "test_right": "passed",
        "test_wrong": "failed",
        "test_skipped": "skipped",
        "test_without": "failed",
    }
    assert sorted(found.planned) == sorted(found.outcomes)
    assert "assert 2 == 3" in found.outcomes["test_kinds.py::test_wrong"].said
    assert "no such thing" in found.outcomes["test_kinds.py::test_without"].said
    assert found.status == 1
    assert found.about["selection"] == "tests"


@in_one_and_several
def test_a_module_that_does_not_load_has_failed(run, cores):
    found = run(cores, test_broken="import nothing_of_this_name\n")
    assert found.outcomes["test_broken.py"].outcome == "failed"
    assert "nothing_of_this_name" in found.outcomes["test_broken.py"].said


@in_one_and_several
def test_smoke_tests_and_tests_of_some_operators(run, cores):
    marked = "import pytest\n\n@pytest.mark.smoke\ndef test_marked():\n    pass\n\ndef test_unmarked():\n    pass\n"
    modules = {"test_distance_matrix": marked, "test_hierarchy": marked}
    assert len(run(cores, **modules).planned) == 4
    assert sorted(run(cores, device_tests.SMOKE, **modules).outcomes) == [
        f"test_{name}.py::test_marked" for name in ("distance_matrix", "hierarchy")
    ]
    found = run(cores, device_tests.SMOKE, [PAIRS], **modules)
    assert found.planned == list(found.outcomes) == ["test_distance_matrix.py::test_marked"]


# in place of a GPU whose context an illegal access ends: for the process that made it
LOST = """
from benchmarks import outcome_plugin

lost = []
outcome_plugin.is_lost = lambda: bool(lost)
"""
AFTER = """
import conftest

def test_first():
    conftest.lost.append(True)
    assert False, "an illegal memory access"

def test_second():
    assert not conftest.lost

def test_third():
    assert not conftest.lost
"""


@in_one_and_several
def test_a_lost_device_fails_no_other_test(run, cores):
    found = run(cores, conftest=LOST, test_after=AFTER)
    failed = {test for test, outcome in found.outcomes.items() if outcome.outcome == "failed"}
    assert failed == {"test_after.py::test_first"}
    assert "illegal memory access" in found.outcomes["test_after.py::test_first"].said
    rest = ["test_after.py::test_second", "test_after.py::test_third"]
    assert found.missing() == (rest if cores == 1 else [])


CHILD = """
import os, sys
from pathlib import Path
from benchmarks import device_tests
os.sched_getaffinity = lambda process: range(int(sys.argv[3]))
device_tests.run("smoke", Path(sys.argv[1]), paths=[sys.argv[2]])
"""
ENDLESS = """
import pytest, time

pytestmark = pytest.mark.smoke

def test_ends():
    pass

def test_ends_too():
    pass

def test_never_ends():
    time.sleep(3600)
"""


@in_one_and_several
def test_what_has_ended_survives_a_kill(tmp_path, cores):
    (tmp_path / "test_endless.py").write_text(ENDLESS, encoding="utf-8")
    command = [sys.executable, "-c", CHILD, tmp_path / "out", tmp_path, str(cores)]
    child = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, stdout=subprocess.DEVNULL)
    while not (runs := outcomes.read(tmp_path / "out" / outcomes.NAME)) or len(runs[0].outcomes) < 2:
        assert child.poll() is None
        time.sleep(0.1)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    (found,) = outcomes.read(tmp_path / "out" / outcomes.NAME)
    assert sorted(found.outcomes) == ["test_endless.py::test_ends", "test_endless.py::test_ends_too"]
    assert found.missing() == ["test_endless.py::test_never_ends"]
    assert found.status is None
    assert [path.name for path in (tmp_path / "out").iterdir()] == [outcomes.NAME]
