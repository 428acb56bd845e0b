"""Runs ``tests/kernels/triton`` in Triton's interpreter: the flag is read on import, so in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kernels.triton import AVAILABLE

HERE = Path(__file__).parent
MODULES = ["test_row_wise.py", *sorted(f"triton/{path.name}" for path in (HERE / "triton").glob("test_*.py"))]


def run(module: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--timeout=900", str(HERE / module)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def runs():
    """All modules, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield {module: pool.submit(run, module) for module in MODULES}


@pytest.mark.timeout(1800)
@pytest.mark.skipif(AVAILABLE, reason="the kernels' tests run in this process: in the interpreter, or on a GPU")
@pytest.mark.parametrize("module", MODULES)
def test_kernels_in_the_interpreter(module, runs):
    done = runs[module].result()
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
