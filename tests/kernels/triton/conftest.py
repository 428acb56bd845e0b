"""Only where kernels run; ``tests/kernels/test_interpreter.py`` starts the process in which they do on a CPU."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.triton import AVAILABLE

collect_ignore_glob = [] if AVAILABLE else ["test_*.py"]


@pytest.fixture(autouse=True)
def _memory_starts_as_nan():
    """Deterministic mode fills what ``torch.empty`` returns with NaN: numbers that no kernel wrote show."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
