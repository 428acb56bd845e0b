"""The smoke tests leave out no kernel and no variant of the loss: launches are noted while they run in the interpreter."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.backends import AVAILABLE
from tests.kernels.launched import kernels

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Names of kernels with the constants that each was launched with."""
    path = tmp_path_factory.mktemp("launched") / "found.json"
    environment = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "HYPERST_LAUNCHED": str(path)}
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "tests.kernels.launched", "-m", "smoke"]
    done = subprocess.run(
        [*command, "--timeout=1200", str(HERE / "triton")],
        env={**os.environ, **environment},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return json.loads(path.read_text(encoding="utf-8"))


pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(AVAILABLE, reason="the smoke tests run in this process: in the interpreter, or on a GPU"),
]


def test_every_kernel_is_launched(launched):
    assert {name for name, _ in launched} == set(kernels())
    assert len(kernels()) > 30


def test_every_way_to_the_gradient_of_the_loss_is_taken(launched):
    """In every geometry, over one and both directions, with and without pairs that are left out."""
    taken = set()
    for name, constants in launched:
        if name == "contrastive.backward_blocks._weights":
            taken.add(("blocks", constants["GEOMETRY"], constants["SYMMETRIC"], constants["EXCLUDE"]))
        elif name == "contrastive.backward_rows._grad_points":
            way = "atomic" if constants["ATOMIC"] == "True" else "rows"
            both = constants["ROW_SHARE"] == constants["COLUMN_SHARE"] == "True"
            taken.add((way, constants["GEOMETRY"], str(both), constants["EXCLUDE"]))
    flags = ("False", "True")
    assert taken == set(itertools.product(("blocks", "rows", "atomic"), "012", flags, flags))


def test_kernels_compute_in_both_precisions(launched):
    """All but sums by rows, whose products in float64 Triton does not compile."""
    computed = {}
    for name, constants in launched:
        if "DTYPE" in constants:
            computed.setdefault(name, set()).add(constants["DTYPE"])
    assert {name for name, dtypes in computed.items() if len(dtypes) == 1} == {"contrastive.backward_rows._grad_points"}
