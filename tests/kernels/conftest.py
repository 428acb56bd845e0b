"""Tests are left out that this process has no backend for, see `tests.kernels.backends`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.kernels.backends import AVAILABLE, INTERPRETED, present

HERE = Path(__file__).parent
# without it cuBLAS refuses deterministic mode; it is read before anything runs on the device
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# tests that run on whatever the process has, not parametrised by backend
ON_ANY = (
    "test_empty.py",
    "test_extreme_losses.py",
    "test_pair_loss.py",
    "test_pair_loss_mpmath.py",
    "test_pair_loss_targets.py",
    "test_retrieval.py",
)


def backend_of(item: pytest.Item) -> str | None:
    """The backend that a test names, or "triton" where it is about kernels."""
    if hasattr(item, "callspec") and "backend" in item.callspec.params:
        return item.callspec.params["backend"]
    kernels = item.path.parent == HERE / "triton" or (AVAILABLE and item.path.name in ON_ANY)
    return "triton" if kernels or item.get_closest_marker("triton") else None


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, out = [], []
    for item in items:
        backend = backend_of(item) if HERE in item.path.parents else None
        if backend == "triton":
            item.add_marker("triton")
        # an empty set of parameters has another backend than those
        runs = present(backend) if backend else not INTERPRETED or HERE not in item.path.parents
        (kept if runs else out).append(item)
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = kept


@pytest.fixture(autouse=True)
def _memory_starts_as_nan(request):
    """Deterministic mode fills what ``torch.empty`` returns with NaN: numbers that no kernel wrote show."""
    if backend_of(request.node) != "triton" or request.node.path.name in ON_ANY:
        yield
        return
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
