"""The command on a machine without a GPU: what it runs and in which order, what it times, and what a kill leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import device, device_tests, device_times, gpu, outcomes, results
from benchmarks.concerns import HINGES, OPERATORS, PAIRS
from benchmarks.problem import OURS
from benchmarks.results import REPOSITORY, Row

METER = device.Meter("cpu")


def row(operator, metric="forward s", value=1.0):
    return Row.of([value], operation=operator, provider=OURS, n=8, d=4, dtype="float32", metric=metric)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where times are written, each operator's being two rows."""
    rows = ("forward s", "share of copy forward")
    monkeypatch.setattr(device_times, "timings", lambda operator, meter: (row(operator, metric) for metric in rows))
    return tmp_path


@pytest.fixture
def tested(folder):
    """Outcomes of one test of each operator named."""

    def tested(**found):
        tests = {operator: f"test_operators.py::test_opcheck[{operator}]" for operator in found}
        tests |= {PAIRS: "test_distance_matrix.py::test_precisions[ieee]", HINGES: "test_operators.py::test_hinges"}
        path = folder / outcomes.NAME
        outcomes.append(path, about={**device_tests.about(), "selection": "smoke"})
        outcomes.append(path, planned=[tests[operator] for operator in found])
        for operator, outcome in found.items():
            outcomes.append(path, test=tests[operator], outcome=outcome)

    return tested


def written(folder):
    rows, _ = results.read_last(results.path_for("cpu", folder))
    return [(row.operation, row.metric, row.setting) for row in rows]


def test_only_what_is_green_is_timed(folder, tested, capsys):
    tested(exp_map0="passed", inner="failed", pairwise_distance="passed")
    gpu.bench(OPERATORS, folder, "run", False, METER)
    metrics = ("forward s", "share of copy forward")
    assert written(folder) == [(operator, metric, "") for operator in ("exp_map0", PAIRS) for metric in metrics]
    said = capsys.readouterr().out
    assert "inner: not timed, 1 failed, as test_opcheck[inner]" in said
    assert f"log_map0: not timed, {outcomes.NOT_RUN}" in said


def test_what_is_not_green_has_no_ratios(folder, tested):
    tested(exp_map0="passed", inner="failed")
    gpu.bench(["exp_map0", "inner"], folder, "run", True, METER)
    assert written(folder) == [
        ("exp_map0", "forward s", ""),
        ("exp_map0", "share of copy forward", ""),
        ("inner", "forward s", "checked=0"),
    ]


def test_an_operator_that_fails_is_a_row_and_the_next_one_follows(folder, tested, monkeypatch):
    def timings(operator, meter):
        yield row(operator)
        if operator == "inner":
            raise RuntimeError("out of luck")

    monkeypatch.setattr(device_times, "timings", timings)
    tested(inner="passed", lift="passed")
    gpu.bench(["inner", "lift"], folder, "run", False, METER)
    rows, _ = results.read_last(results.path_for("cpu", folder))
    assert [(row.operation, row.note) for row in rows] == [
        ("inner", ""),
        ("inner", "failed: RuntimeError out of luck"),
        ("lift", ""),
    ]


def test_after_a_lost_device_the_rest_is_timed_in_another_process(folder, tested, monkeypatch):
    def timings(operator, meter):
        raise RuntimeError("an illegal memory access")
        yield

    started = []
    monkeypatch.setattr(device_times, "timings", timings)
    monkeypatch.setattr(device, "is_lost", lambda: True)
    results.commit(), results.versions()  # ask git before nothing can be started any more
    monkeypatch.setattr(gpu.subprocess, "run", lambda command, **options: started.append(command))
    tested(inner="passed", lift="passed", distance="passed")
    gpu.bench(["inner", "lift", "distance"], folder, "run", False, METER)
    assert [command[3:] for command in started] == [["--bench", "lift", "distance", "--out", str(folder)]]
    assert len(written(folder)) == 1
    gpu.bench(["distance"], folder, "run", False, METER)
    assert len(started) == 1


CHILD = """
import sys, time
from pathlib import Path
from benchmarks import device, device_times, gpu
from benchmarks.results import Row

def timings(operator, meter):
    for k in range(3):
        yield Row.of([1.0], operation=operator, provider="ours", n=k, d=4, dtype="float32", metric="forward s")
    time.sleep(3600)

device_times.timings = timings
gpu.bench(["inner"], Path(sys.argv[1]), "run", True, device.Meter("cpu"))
"""


def test_rows_survive_a_kill(folder):
    child = subprocess.Popen([sys.executable, "-c", CHILD, folder], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    # its name has the number of threads, which need not be that of this process
    while sum(path.read_text(encoding="utf-8").count("\n") for path in folder.glob("*.csv")) < 4:
        assert child.poll() is None
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (path,) = folder.glob("*.csv")
    rows, about = results.read_last(path)
    assert [row.n for row in rows] == [0, 1, 2]
    assert about["commit"] == results.commit()


# ------------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def steps(monkeypatch, folder):
    """What the command does on a device of another name, and in which order."""
    done = []
    monkeypatch.setattr(device, "name", lambda: "a device")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a device")
    monkeypatch.setattr(device_tests, "run", lambda *what: done.append(what))
    monkeypatch.setattr(gpu, "bench", lambda names, *rest: done.append(["bench", *names]))
    monkeypatch.setattr(gpu, "tune", lambda minutes, folder: done.append(["tune", minutes]))

    def run(*arguments):
        done.clear()
        assert gpu.main([*arguments, "--out", str(folder)]) == 0
        return list(done)

    return SimpleNamespace(run=run)


def test_without_flags_everything_runs_and_each_alone(steps, folder):
    smoke, everything = (device_tests.SMOKE, folder), (device_tests.ALL, folder)
    untested = (device_tests.SMOKE, folder, list(OPERATORS))
    assert steps.run() == [smoke, everything, untested, ["bench", *OPERATORS]]
    assert steps.run("--smoke") == [smoke]
    assert steps.run("--tests") == [everything]
    assert steps.run("--tune") == [["tune", gpu.MINUTES]]
    assert steps.run("--tune", "3") == [["tune", 3.0]]
    assert steps.run("--smoke", "--bench", PAIRS) == [smoke, (device_tests.SMOKE, folder, [PAIRS]), ["bench", PAIRS]]


def test_before_times_the_tests_run_that_have_not(steps, tested, folder):
    tested(inner="passed", lift="passed")
    assert steps.run("--bench", "lift", "inner") == [["bench", "lift", "inner"]]
    assert steps.run("--bench", "lift", PAIRS)[0] == (device_tests.SMOKE, folder, [PAIRS])
    assert steps.run("--bench", "--unchecked") == [["bench", *OPERATORS]]


def test_a_failure_is_the_exit_status(steps, tested, folder, capsys):
    tested(inner="failed")
    with pytest.raises(AssertionError):
        steps.run("--bench", "lift")
    assert "FAILED test_operators.py::test_opcheck[inner]" in capsys.readouterr().out


def test_what_is_missing_is_said_before_anything_runs(steps, monkeypatch, capsys):
    monkeypatch.setattr(device, "lacks", lambda: "")
    steps.run("--smoke")
    assert "every kernel may fail" not in capsys.readouterr().out
    monkeypatch.setattr(device, "lacks", lambda: "a C compiler")
    steps.run("--smoke")
    assert capsys.readouterr().out.startswith("every kernel may fail: Triton needs a C compiler")


def test_a_compiler_and_the_headers_of_python_are_looked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "INTERPRETED", False)
    monkeypatch.setattr(device.sysconfig, "get_path", lambda name, scheme: str(tmp_path))
    monkeypatch.setenv("CC", "cc")
    assert device.lacks() == f"the headers of Python ({tmp_path / 'Python.h'})"
    (tmp_path / "Python.h").touch()
    assert device.lacks() == ""
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    assert device.lacks() == "a C compiler (gcc, clang or $CC)"


def test_names_that_are_no_operators_are_refused(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--bench", "nothing"])
    assert "invalid choice: 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", ["nan", "-3", "0", "inf", "soon"])
def test_minutes_that_are_none_are_refused(minutes, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--tune", minutes])
    assert "argument --tune" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit):
            gpu.main(["--out", str(folder)])
        assert "argument --out: cannot be made a folder" in capsys.readouterr().err


def test_the_folder_is_that_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("OUT", raising=False)
    assert gpu.parser().parse_args([]).out == results.FOLDER
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu.parser().parse_args([]).out == tmp_path


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_succeeds(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    for flags in ([], ["--smoke"], ["--tests"], ["--bench", "inner"], ["--tune"]):
        command = [sys.executable, "-m", "benchmarks.gpu", *flags, "--out", tmp_path]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        assert done.returncode == 0
        assert done.stdout.startswith("no GPU on this machine: nothing to check")
    assert not list(tmp_path.iterdir())


def test_rows_of_a_run_and_those_after_it_are_read_again(tmp_path):
    path = tmp_path / "a.csv"
    assert results.read_since(path, "2026") == []
    for run in ("2026-01-01T10:00:00", "2026-01-01T10:00:01", "2026-01-01T10:00:02"):
        results.append([row("inner", value=float(run[-1]))], path, run)
    assert [row.median for row in results.read_since(path, "2026-01-01T10:00:01")] == [1.0, 2.0]


def test_a_row_says_its_sources_where_there_is_no_git(monkeypatch):
    results.commit.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert results.commit() == f"sources {results.digest()}"
    results.commit.cache_clear()
