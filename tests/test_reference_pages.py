"""Pages of the reference that are made from the code are those of this code, and name everything that is public."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import hyperst_kernels

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    subprocess.run([sys.executable, REFERENCE / "generate.py", folder], check=True)
    return folder


@pytest.mark.parametrize("page", ["command_line.md", "configuration.md", "image_formats.md"])
def test_a_page_is_that_of_the_code(generated, page):
    assert (generated / page).read_text(encoding="utf-8") == (REFERENCE / page).read_text(encoding="utf-8")


def test_every_public_name_has_a_page():
    listed = set(re.findall(r"^   (\w+)$", (REFERENCE / "hyperst_kernels.rst").read_text(encoding="utf-8"), re.M))
    assert listed == set(hyperst_kernels.__all__) - {"__version__"} | {"interop", "metric_learning"}
