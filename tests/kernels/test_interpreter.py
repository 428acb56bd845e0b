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

from tests.kernels.backends import AVAILABLE
from tests.kernels.ptx import AVAILABLE as ON_PTX

HERE = Path(__file__).parent
FILES = {  # of a job
    "rows": [f"test_{name}.py" for name in ("maps", "transport", "poincare", "distance", "entailment")],
    "distance_matrix": ["test_distance_matrix.py"],
    "scalars": ["test_scalars.py"],
    "calls": [*(f"test_{name}.py" for name in ("empty", "compile", "func", "launch", "tune")), "triton/test_graphs.py"],
    "extreme_losses": ["test_extreme_losses.py"],
    "pair_blocks": ["test_pair_blocks.py"],
    "rectangle": ["test_rectangle.py", "test_pair_rectangle.py"],
    "centred_tiles": ["triton/test_centred_tiles.py"],
    **{
        name: [f"triton/test_{name}.py"]
        for name in ("contrastive_kernel", "fused_arithmetic", "hierarchy", "smoke", "split_features")
    },
    "ptx": ["ptx/test_arithmetic.py", "ptx/test_executor.py"],
    "ptx contrastive": ["ptx/test_contrastive.py"],
    "ptx centred": ["ptx/test_centred_tiles.py"],
    "ptx kernels": ["ptx/test_kernels.py"],
}
KERNELS = [name for name in FILES if not name.startswith("ptx")]
# what each mode has to show: no arithmetic changes calls; in "plain" the smoke tests are run by test_smoke_selection.py
GROUPS = {
    "plain": [name for name in KERNELS if name != "smoke"],
    "contracted": [name for name in KERNELS if name not in ("calls", "smoke")],
    "approximate": [
        "rows",
        "distance_matrix",
        "pair_blocks",
        "rectangle",
        "scalars",
        "fused_arithmetic",
        "smoke",
        "split_features",
    ],
    "ptx": [name for name in FILES if name.startswith("ptx")],
}
LONG = ["ptx contrastive", "contrastive_kernel", "hierarchy", "ptx kernels"]
JOBS = sorted(
    ((mode, name) for mode, names in GROUPS.items() for name in names),
    key=lambda job: LONG.index(job[1]) if job[1] in LONG else len(LONG),
)


def run(mode: str, name: str) -> subprocess.CompletedProcess:
    files = [str(HERE / file) for file in FILES[name]]
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--timeout=1500", *files]
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
@pytest.mark.parametrize("job", JOBS, ids=": ".join)
def test_device_kernels(job, runs):
    done = runs[job].result()
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
