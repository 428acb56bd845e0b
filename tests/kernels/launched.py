"""Which kernels the library has, and a pytest plugin that notes which of them were launched, and with what constants.

HYPERST_LAUNCHED=found.json python -m pytest -p tests.kernels.launched ...
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from pathlib import Path

import pytest
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from hyperst_kernels import gpu

_found: set[str] = set()  # lines of JSON


def functions_of_triton() -> dict[str, JITFunction | InterpretedFunction]:
    """By "module.name": all of the library."""
    functions = {}
    for place in pkgutil.walk_packages(gpu.__path__, f"{gpu.__name__}."):
        module = importlib.import_module(place.name)
        for name, value in vars(module).items():
            if isinstance(value, (JITFunction, InterpretedFunction)) and value.fn.__module__ == module.__name__:
                functions[f"{place.name.removeprefix(gpu.__name__ + '.')}.{name}"] = value
    return functions


def kernels() -> dict[str, JITFunction | InterpretedFunction]:
    """Those that no other one calls."""
    functions = functions_of_triton()
    called = {id(f.fn.__globals__.get(name)) for f in functions.values() for name in f.fn.__code__.co_names}
    return {name: f for name, f in functions.items() if id(f) not in called}


def pytest_sessionstart() -> None:
    def note(name: str):
        def launched(*arguments, **options) -> None:
            bundles = [value._asdict() for value in options.values() if hasattr(value, "_asdict")]
            known = {key: value for found in (options, *bundles) for key, value in found.items()}
            constants = {
                key: str(value) for key, value in known.items() if key.isupper() and not hasattr(value, "_asdict")
            }
            _found.add(json.dumps([name, constants], sort_keys=True))

        return launched

    for name, kernel in kernels().items():
        kernel.add_pre_run_hook(note(name))


def pytest_sessionfinish(session: pytest.Session) -> None:
    Path(os.environ["HYPERST_LAUNCHED"]).write_text("[" + ",\n".join(sorted(_found)) + "]\n", encoding="utf-8")
