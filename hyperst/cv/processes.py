"""Cells in processes of their own: what ends one, be it the memory, ends no other."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from hyperst.cv.cells import Cell, run_cell
from hyperst.on_ray import run_on_ray
from hyperst.pool import Ended, run_in_processes

__all__ = ["run_cells"]

_LONGEST = 4000  # characters of an error: a pipe that nobody reads yet holds 64 KiB


def run_cells(
    cells: Sequence[Cell], workers: int | None, engine: Literal["local", "ray"] = "local"
) -> Iterator[tuple[Cell, str | None]]:
    """Run cells, ``workers`` at a time, and yield each as it ends, with None or what went wrong in one line.

    The processes share the processor's cores. What a cell says stands in ``logs/CELL.txt`` beside the folder of the cells. With 0
    ``workers`` the cells run one after another in this process. ``engine`` "ray": processes of a Ray cluster, see
    :func:`hyperst.on_ray.run_on_ray`, also for None ``workers``, which is 1 here.

    KeyboardInterrupt, or closing the iterator, ends the processes; what they have finished of a cell is gone on with later.
    """
    if engine == "ray":
        placed = [replace(cell, cells=cell.cells.absolute()) for cell in cells]  # a process may have another folder
        for cell, outcome in run_on_ray(placed, _logged_attempts, workers) if placed else ():
            yield cell, outcome.reason if isinstance(outcome, Ended) else outcome
        return
    workers = 1 if workers is None else workers
    if workers == 0:
        for cell in cells:
            yield cell, _attempt(cell)
        return
    do_cells = partial(_cells_of_process, max(1, (os.cpu_count() or 1) // workers))
    with closing(run_in_processes(cells, [do_cells] * workers)) as ended:
        for cell, outcome in ended:
            yield cell, f"{outcome.reason}; see {_log(cell)}" if isinstance(outcome, Ended) else outcome


def _attempt(cell: Cell) -> str | None:
    try:
        run_cell(cell)
    except Exception as error:  # one cell's failure, of any kind, stops no other
        traceback.print_exc()
        return _one_line(error)
    return None


def _cells_of_process(threads: int) -> Callable[[Cell], str | None]:
    """What does cells in a process of this machine."""
    import torch

    torch.set_num_threads(threads)
    return _logged_attempt


def _logged_attempt(cell: Cell) -> str | None:
    with _log(cell).open("w", encoding="utf-8", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        return _attempt(cell)


def _logged_attempts() -> Callable[[Cell], str | None]:
    """What does cells in a process of Ray."""
    return _logged_attempt


def _log(cell: Cell) -> Path:
    folder = cell.cells.parent / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{cell.name}.txt"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST] or type(error).__name__
