"""Fixtures shared by every test: where the real sections are, and deterministic hypothesis runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# One fixed sequence of examples per test and no per-example deadline: CI machines are slow and shared. Other numbers, and
# as many as asked for, with HYPERST_TEST_EXAMPLES: see tests/kernels.
settings.register_profile(
    "project", deadline=None, derandomize="HYPERST_TEST_EXAMPLES" not in os.environ, max_examples=60
)
settings.load_profile("project")

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first: the processes of the device kernels' tests."""
    items.sort(key=lambda item: "test_interpreter.py" not in item.nodeid)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real spatial transcriptomics sections: ``HYPERST_DATA``, else ``../shared/data``, else skip."""
    chosen = os.environ.get("HYPERST_DATA")
    folder = Path(chosen) if chosen else REPOSITORY.parent / "shared" / "data"
    if not (folder / "her2st").is_dir():
        pytest.skip(f"real sections not found at {folder}: set HYPERST_DATA to the folder that holds her2st/ and mob/")
    return folder
