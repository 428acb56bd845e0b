"""Exports beside the predictions of a cohort: which are its own, and of which prediction.

``logs/NAME.exports.json`` records of each the content it has, and that of the .h5ad it was made of. A file that is not as
recorded is somebody else's: it is neither taken for an export nor removed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperst.data.identity import sampled_hash
from hyperst.export import FORMATS, export_path
from hyperst.files import write_json_atomic

__all__ = ["SlideExports", "content"]


class SlideExports:
    """The exports of one slide.

    Args:
        prediction: the .h5ad.
        record: where they are recorded.
    """

    def __init__(self, prediction: Path, record: Path) -> None:
        self.prediction, self.record = prediction, record

    def missing(self, endings: tuple[str, ...]) -> list[str]:
        """Those of ``endings`` that are not there, or were made of another prediction than the one that is."""
        recorded = self._recorded()
        if not recorded:
            return list(endings)
        made_of = content(self.prediction)
        return [each for each in endings if not self._own(each, recorded) or recorded[each]["prediction"] != made_of]

    def require_own(self, endings: tuple[str, ...]) -> None:
        """Raise FileExistsError where one of ``endings`` is a file that no cohort wrote, or that was changed since."""
        recorded = self._recorded()
        for ending in endings:
            path = export_path(self.prediction, ending)
            if os.path.lexists(path) and not self._own(ending, recorded):
                raise FileExistsError(
                    f"{path} exists, is not as an export of this cohort was written, and is not overwritten; move or remove it"
                )

    def remove(self, endings: tuple[str, ...] = FORMATS) -> tuple[list[Path], list[Path]]:
        """Remove exports; return those that were, and files of such names that are nobody's export, which are left."""
        recorded = self._recorded()
        removed: list[Path] = []
        left: list[Path] = []
        for ending in endings:
            path = export_path(self.prediction, ending)
            if self._own(ending, recorded):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed.append(path)
            elif os.path.lexists(path):
                left.append(path)
        return removed, left

    def write(self, ending: str, write: Callable[[Path], Any]) -> None:
        """Have ``write`` make an export at a path, and move it to its place when it is recorded: a kill leaves no other file.

        Raises:
            FileExistsError: there is a file that is not of this cohort.
        """
        self.require_own((ending,))
        self.remove((ending,))
        path, made = export_path(self.prediction, ending), self.record.with_suffix(f".{ending}")
        if made.is_dir():  # of a process that was killed; a file is replaced
            shutil.rmtree(made)
        write(made)
        facts = {"prediction": content(self.prediction), "content": content(made)}
        write_json_atomic(self.record, self._recorded() | {ending: facts})
        os.rename(made, path)

    def _own(self, ending: str, recorded: dict[str, Any]) -> bool:
        path = export_path(self.prediction, ending)
        there = path.exists() and not path.is_symlink()
        return ending in recorded and there and recorded[ending]["content"] == content(path)

    def _recorded(self) -> dict[str, Any]:
        try:
            return json.loads(self.record.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # nothing that lies there is known
            return {}


def content(path: Path | None) -> Any:
    """What tells that a file, or the names and sizes in a folder, are the same."""
    try:
        if path is None or path.is_file():
            return path and sampled_hash(path)
        files = sorted(each for each in path.rglob("*") if each.is_file())
        return [[each.relative_to(path).as_posix(), each.stat().st_size] for each in files]
    except OSError as error:
        return str(error)  # which reading it meets as well
