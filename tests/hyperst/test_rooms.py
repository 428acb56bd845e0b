"""What a notebook imports, the old names of modules, and what is imported on the way."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import hyperst
from hyperst._old_names import MOVED


@pytest.mark.parametrize("name", hyperst.__all__)
def test_names_of_a_notebook(name):
    assert getattr(hyperst, name).__name__ == name


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(hyperst, "nothing")  # noqa: B009


@pytest.mark.parametrize("old", MOVED)
def test_old_names_of_modules(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=MOVED[old]):
        module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])


def test_prediction_needs_no_lightning():
    script = "import sys, hyperst.run, hyperst.predict; assert 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
