"""Cells in processes of their own: what ends one, be it the memory, ends no other."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Literal

from hyperst.cv.cells import Cell, run_cell
from hyperst.on_ray import run_on_ray
from hyperst.pool import Ended, end_with_parent

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
    context = multiprocessing.get_context("spawn")  # neither CUDA nor threads survive a fork
    threads = max(1, (os.cpu_count() or 1) // workers)
    waiting = list(cells)
    running: dict[int, tuple[Cell, SpawnProcess, Connection]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                cell = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_in_process, args=(cell, threads, sender))
                process.start()
                sender.close()  # the child's copy is the only one, so that its end is seen
                running[process.sentinel] = (cell, process, receiver)
            for sentinel in [key for key in wait(list(running)) if isinstance(key, int)]:
                cell, process, receiver = running.pop(sentinel)
                process.join()
                yield cell, _outcome(cell, process.exitcode, receiver)
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.join()


def _attempt(cell: Cell) -> str | None:
    try:
        run_cell(cell)
    except Exception as error:  # one cell's failure, of any kind, stops no other
        traceback.print_exc()
        return _one_line(error)
    return None


def _in_process(cell: Cell, threads: int, sender: Connection) -> None:
    """What a process does: the cell, its output in a log, and what went wrong sent back."""
    import torch

    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        sender.send(_logged_attempt(cell))
    except KeyboardInterrupt:  # the process that started this one says so
        sys.exit(1)


def _logged_attempt(cell: Cell) -> str | None:
    with _log(cell).open("w", encoding="utf-8", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        return _attempt(cell)


def _logged_attempts() -> Callable[[Cell], str | None]:
    """What does cells in a process of Ray."""
    return _logged_attempt


def _outcome(cell: Cell, exitcode: int | None, receiver: Connection) -> str | None:
    with receiver:
        try:
            return receiver.recv()
        except EOFError:
            return (
                f"its process ended with exit code {exitcode} before the cell was done (killed, or out of memory?); see "
                f"{_log(cell)}"
            )


def _log(cell: Cell) -> Path:
    folder = cell.cells.parent / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{cell.name}.txt"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST] or type(error).__name__
