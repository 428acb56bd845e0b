"""Modules of hyperst before they had rooms: their old names import the new ones, with a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "hyperst.alignment": "hyperst.model.alignment",
    "hyperst.configuration": "hyperst.config",
    "hyperst.encoders": "hyperst.model.backbones",
    "hyperst.prediction": "hyperst.predict",
    "hyperst.training": "hyperst.train",
}


class _OldNames(MetaPathFinder, Loader):
    """Finds a module under the name it had."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        """A module is made as usual, and another takes its place."""

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        warnings.warn(f"{module.__name__} is now {new}", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = import_module(new)


def install() -> None:
    """Let the import system find modules under their old names."""
    sys.meta_path.append(_OldNames())
