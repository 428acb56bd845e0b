"""Machine code of each instruction set, as a fixture; not in `conftest.py`, where some processes must not import the library."""

from __future__ import annotations

import pytest

from hyperst_kernels._constants import INSTRUCTION_SETS
from hyperst_kernels.cpu.native import bindings


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request):
    """One that the processor has, in use."""
    before = bindings.instruction_set()
    if bindings.instruction_set(request.param) != request.param:
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    bindings.instruction_set(before)
