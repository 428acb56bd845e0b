"""The green gate: a family's tests, run before its speed is compared with anything."""

from __future__ import annotations

import functools
import subprocess
import sys

from benchmarks.results import REPOSITORY

# accuracy of the positives, and memory that does not grow with the square of the batch
GUARD = "tests/benchmarks/test_guard.py"


@functools.cache
def green(tests: str) -> bool:
    """Whether a file of tests passes, in a process of its own and once in a run; what fails is printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--tb=short", tests]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout)
    return done.returncode == 0
