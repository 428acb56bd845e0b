"""The kernels' tests on the device, spread over processes, each outcome on disk when its test ends."""

from __future__ import annotations

import datetime
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import device, outcomes, results

SMOKE, ALL = "smoke", "tests"
MARK = "triton"
# where tests of that mark are, but for what runs the same everywhere: other files may need more than a GPU's machine has
PATHS = (
    *(f"tests/kernels/test_{name}.py" for name in ("maps", "transport", "poincare", "distance", "entailment")),
    *(
        f"tests/kernels/test_{name}.py"
        for name in (
            "distance_matrix",
            "extreme_losses",
            "pair_blocks",
            "pair_loss",
            "pair_loss_mpmath",
            "pair_loss_targets",
            "pair_rectangle",
            "rectangle",
            "retrieval",
        )
    ),
    *(f"tests/kernels/test_{name}.py" for name in ("scalars", "compile", "func", "launch", "tune")),
    "tests/kernels/triton",
)
# seconds, after which a process is given up and its test has failed: a kernel that never ends is not to be interrupted
LIMIT = 480


def about() -> dict[str, str]:
    """What outcomes have to agree in to count together: sources and device."""
    return {"sources": results.digest(), "device": device.name()}


def command(selection: str, log: Path, operators: Iterable[str] = (), paths: Sequence[str] = PATHS) -> list[str]:
    """How pytest is called: in as many processes as there are cores where pytest-xdist is installed."""
    cores = len(os.sched_getaffinity(0))
    spread = ["-n", str(cores), "--dist", "worksteal"] if importlib.util.find_spec("xdist") and cores > 1 else []
    chosen = ["-m", SMOKE if selection == SMOKE else MARK]
    chosen += ["--operators", ",".join(operators)] if operators else []
    told = ["-q", "--no-header", "--no-summary", "--tb=short", "-p", "no:warnings"]
    limit = [f"--timeout={LIMIT}", "--timeout-method=thread"]
    plugin = ["-p", "benchmarks.outcome_plugin", "--outcomes", str(log)]
    return [sys.executable, "-m", "pytest", *told, *limit, *plugin, *spread, *chosen, *paths]


def run(selection: str, folder: Path, operators: Iterable[str] = (), paths: Sequence[str] = PATHS) -> int:
    """Run all tests, or those of a selection, or of some operators; pytest's exit status."""
    log = folder.resolve() / outcomes.NAME
    started = datetime.datetime.now().isoformat(timespec="seconds")
    outcomes.append(log, about={**about(), "selection": selection, "started": started, "versions": results.versions()})
    # one thread for each of the processes; cuBLAS sums in a fixed order only with a workspace of its own
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return subprocess.run(
        command(selection, log, operators, paths), cwd=results.REPOSITORY, env=environment, check=False
    ).returncode


def known(folder: Path) -> list[outcomes.Run]:
    """Runs that a folder has of these sources on this device."""
    return outcomes.read(folder / outcomes.NAME, **about())
