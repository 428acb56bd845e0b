"""Tasks in processes of this machine that each work through several: what ends one, be it the memory, ends no other."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

__all__ = ["Ended", "end_with_parent", "run_in_processes"]

Task = TypeVar("Task")


@dataclass(frozen=True)
class Ended:
    """The outcome of a task whose process has ended before it was done: why, in one line."""

    reason: str


def run_in_processes(
    tasks: Iterable[Task], makers: Sequence[Callable[[], Callable[[Task], Any]]]
) -> Generator[tuple[Task, Any], None, None]:
    """Yield each task with what came of it, as it ends: what its process returned, or :class:`Ended`.

    Args:
        tasks: picklable; the next one is taken when a process is free for it.
        makers: one for each process, picklable: called in it once, it returns what does a task. That must raise nothing: an
            error ends its process. Another process takes the place of one that has ended.

    Closing the iterator, or KeyboardInterrupt, ends the processes.
    """
    waiting = iter(tasks)
    free = [_Worker(maker) for maker in reversed(makers)]
    busy: dict[Connection, tuple[Task, _Worker]] = {}
    try:
        while True:
            while free and (task := next(waiting, None)) is not None:
                worker = free.pop()
                busy[worker.start(task)] = (task, worker)
            if not busy:
                return
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                task, worker = busy.pop(connection)
                outcome = worker.receive()
                free.append(worker)
                yield task, outcome
    finally:
        workers = [*free, *(worker for _, worker in busy.values())]
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


class _Worker:
    """A process, and another one after it has ended."""

    def __init__(self, maker: Callable[[], Callable[[Any], Any]]) -> None:
        self.maker = maker
        self.process: SpawnProcess | None = None
        self.connection: Connection | None = None

    def start(self, task: Any) -> Connection:
        """Give the process a task, and return where its outcome will come."""
        if self.connection is None:
            context = multiprocessing.get_context("spawn")  # neither CUDA nor threads survive a fork
            self.connection, other = context.Pipe()
            self.process = context.Process(target=_work, args=(self.maker, other))
            self.process.start()
            other.close()  # the child's copy is the only one, so that its end is seen
        with suppress(BrokenPipeError):  # it has ended, which is what is received
            self.connection.send(task)
        return self.connection

    def receive(self) -> Any:
        """Return the outcome of the task."""
        assert self.connection is not None
        assert self.process is not None
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.connection.close()
            self.process.join()
            code = self.process.exitcode
            self.process = self.connection = None
            return Ended(f"its process ended with exit code {code} before it was done (killed, or out of memory?)")

    def terminate(self) -> None:
        """Begin to end the process."""
        if self.process is not None:
            self.process.terminate()

    def join(self) -> None:
        """Wait for its end."""
        if self.process is not None:
            self.process.join()


def _work(maker: Callable[[], Callable[[Any], Any]], connection: Connection) -> None:
    """What a process does until its parent ends it."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        do = maker()
        while True:
            connection.send(do(connection.recv()))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):  # the process that started this one says so
        sys.exit(1)


def end_with_parent() -> None:
    """End this process when the one that started it is gone: killed itself, it ends no other, and may be started again."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
