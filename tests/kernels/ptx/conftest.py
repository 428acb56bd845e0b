"""Only in a process of its own: ``HYPERST_TEST_PTX=1 python -m pytest tests/kernels/ptx``."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.ptx import AVAILABLE

collect_ignore_glob = [] if AVAILABLE else ["*.py"]
if AVAILABLE:
    from tests.kernels.ptx.launch import as_cpu_kernels

    torch.set_num_threads(1)
    as_cpu_kernels()


@pytest.fixture(autouse=True)
def _memory_starts_as_nan():
    """Deterministic mode fills what ``torch.empty`` returns with NaN: numbers that no kernel wrote show."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
