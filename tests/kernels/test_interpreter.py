"""Runs the tests of the device kernels where there is no GPU, in processes of their own: kernels are chosen on import.

In Triton's interpreter, in the arithmetics of `arithmetic`; and on executed PTX, see ``ptx``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kernels.ptx import AVAILABLE as ON_PTX
from tests.kernels.triton import AVAILABLE

HERE = Path(__file__).parent
KERNELS = [
    "test_row_wise.py",
    "test_empty.py",
    "test_extreme_losses.py",
    "test_far_out.py",
    "test_pair_blocks.py",
    *sorted(f"triton/{path.name}" for path in (HERE / "triton").glob("test_*.py")),
]
# what no arithmetic changes, or another test runs
PLAIN_ONLY = ["triton/test_tune.py", "test_empty.py"]
SMOKE = "triton/test_smoke.py"
MODULES = {  # in "plain" the smoke tests are run by test_smoke_selection.py
    "plain": [name for name in KERNELS if name != SMOKE],
    "contracted": [name for name in KERNELS if name not in (*PLAIN_ONLY, SMOKE)],
    "approximate": [
        "test_row_wise.py",
        "test_far_out.py",
        "test_pair_blocks.py",
        "triton/test_scalars.py",
        "triton/test_distance_matrix.py",
        "triton/test_fused_arithmetic.py",
        SMOKE,
    ],
    "ptx": sorted(f"ptx/{path.name}" for path in (HERE / "ptx").glob("test_*.py")),
}
LONG = [
    "ptx/test_contrastive.py",
    "triton/test_contrastive_kernel.py",
    "triton/test_hierarchy.py",
    "ptx/test_kernels.py",
]
JOBS = sorted(
    ((mode, module) for mode, modules in MODULES.items() for module in modules),
    key=lambda job: LONG.index(job[1]) if job[1] in LONG else len(LONG),
)


def run(mode: str, module: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--timeout=1500", str(HERE / module)]
    if mode in ("contracted", "approximate"):
        command += ["-m", "not any_arithmetic"]
    chosen = {"HYPERST_TEST_PTX": "1"} if mode == "ptx" else {"TRITON_INTERPRET": "1", "HYPERST_TEST_ARITHMETIC": mode}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **chosen}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def runs():
    """All jobs, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield {job: pool.submit(run, *job) for job in JOBS}


@pytest.mark.timeout(3600)
@pytest.mark.skipif(AVAILABLE or ON_PTX, reason="the kernels' tests run in this process")
@pytest.mark.parametrize("job", JOBS, ids=" ".join)
def test_device_kernels(job, runs):
    done = runs[job].result()
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
