"""Only where kernels run; ``tests/kernels/test_interpreter.py`` starts the process in which they do on a CPU."""

from __future__ import annotations

import os

import pytest
import torch

from tests.kernels.triton import AVAILABLE

# without it cuBLAS refuses deterministic mode; it is read before anything runs on the device
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

collect_ignore_glob = [] if AVAILABLE else ["test_*.py"]


@pytest.fixture(autouse=True)
def _memory_starts_as_nan():
    """Deterministic mode fills what ``torch.empty`` returns with NaN: numbers that no kernel wrote show."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
