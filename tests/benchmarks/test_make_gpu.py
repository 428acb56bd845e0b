"""Which interpreter ``make gpu`` takes, with scripts in place of interpreters: nothing is installed and no GPU is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from benchmarks.results import REPOSITORY

# answers whether it reaches a GPU, says what it is asked to run, and stands for the ``python -m venv`` of an installation
PYTHON = """#!/bin/sh
case "$1" in
  -c) exit {answer} ;;
  *) echo "{name} runs $*" ;;
esac
"""


@pytest.fixture
def run(tmp_path):
    """``make gpu`` in a folder of its own, with some interpreters that reach a GPU and some that do not."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for part in ("pyproject.toml", ".ci/torch_for_this_machine.py", ".ci/constraints.txt"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / part).touch()
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "touch", "test"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))

    def make(*arguments, tools=(), **interpreters):
        places = {"mine": "bin/mine", "python3": "bin/python3", "venv": ".venv/bin/python"}
        for name, reaches in interpreters.items():
            path = tmp_path / places[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(PYTHON.format(answer=0 if reaches else 1, name=name), encoding="utf-8")
            path.chmod(0o755)
        for name in tools:
            (tmp_path / "bin" / name).symlink_to(shutil.which("true"))
        command = [shutil.which("make"), "--no-print-directory", *arguments, "gpu"]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key != "PYTHON"}
        environment = {**clean, "PATH": str(tmp_path / "bin")}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return make


def test_the_one_that_is_named_comes_first(run):
    assert run("PYTHON=mine", mine=True, python3=True, venv=True) == ["mine runs -m benchmarks.gpu"]


def test_then_python3(run):
    assert run("PYTHON=mine", mine=False, python3=True, venv=True) == ["python3 runs -m benchmarks.gpu"]


def test_then_what_was_installed_before(run):
    assert run("PYTHON=absent", python3=False, venv=True) == ["venv runs -m benchmarks.gpu"]


def test_without_a_gpu_nothing_is_installed(run):
    assert run(python3=False) == ["no GPU on this machine: nothing to check"]


def test_with_a_gpu_and_no_interpreter_that_reaches_it_one_is_installed(run):
    said = run(python3=False, venv=False, tools=["nvidia-smi"])
    assert any("pip install" in line for line in said)
    assert said[-1] == "venv runs -m benchmarks.gpu"


def test_a_dry_run_runs_nothing(run):
    assert not any(line.startswith("python3 runs") for line in run("-n", python3=True))
