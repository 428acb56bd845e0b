"""Runs ``tests/kernels/triton`` in Triton's interpreter: the flag is read on import, so in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.triton import AVAILABLE

HERE = Path(__file__).parent
MODULES = ["test_row_wise.py", *sorted(f"triton/{path.name}" for path in (HERE / "triton").glob("test_*.py"))]


@pytest.mark.skipif(AVAILABLE, reason="the kernels' tests run in this process: in the interpreter, or on a GPU")
@pytest.mark.parametrize("module", MODULES)
def test_kernels_in_the_interpreter(module):
    assert not torch.cuda.is_available()
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", str(HERE / module)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
