"""Start the processes of a training on this machine, and end them together."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException, start_processes
from torch.multiprocessing.spawn import ProcessContext, ProcessException

from hyperst.config import RunConfig
from hyperst.processes import started_processes
from hyperst.train.interruption import EXIT_CODE, SIGNALS, Interruption, interruptible
from hyperst.train.together import first_error

__all__ = ["check_devices", "launch"]

_PULSE = 0.2  # seconds between two looks at the processes
_GRACE = 8.0  # seconds that a process has to end by itself when another has failed, and then again before it is killed

Work = Callable[[Callable[[Any], None]], None]


def check_devices(config: RunConfig, devices: int | None) -> None:
    """Raise ValueError for a number of processes that cannot be."""
    if devices is None:
        return
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise ValueError(f"devices (--devices) must be a whole number of at least 1, got {devices!r}")
    here = int(started_processes().get("LOCAL_WORLD_SIZE", devices))
    if here != devices:
        raise ValueError(
            f"devices (--devices) is {devices}, but {here} processes have been started on this machine already; leave it out"
        )
    gpus = torch.cuda.device_count() if config.training.accelerator in ("auto", "gpu", "cuda") else 0
    if 0 < gpus < devices:
        raise ValueError(
            f"devices (--devices) is {devices}, and this machine has {gpus} GPUs: each process needs its own"
        )


def launch(size: int, work: Work, on_message: Callable[[Any], None]) -> None:
    """Run ``work(send)`` in ``size`` new processes of this machine, which :func:`hyperst.train.together.joined` brings together.

    Args:
        work: picklable. What it sends on rank 0 comes to ``on_message`` in this process; what others send is dropped.

    Raises:
        ChildProcessError: a process was killed. KeyboardInterrupt: on Ctrl-C or SIGTERM, of this process or
            one of the new ones, when all have ended.
        Any error of ``work``, that of the process which was the first to have one.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder, interruptible() as interruption:
        # not as an argument: multiprocessing waits for ever where a process ends before it has read a long one
        path = Path(folder) / "work"
        path.write_bytes(pickle.dumps(work))
        interruption.held = True  # until there is what to end
        started = _start_processes((size, store.port, sender, path), size)
        _watch(started, receiver, on_message, store, interruption)


def _start_processes(arguments: tuple[Any, ...], size: int) -> ProcessContext:
    """Start processes that Ctrl-C does not reach before they can handle it: they have this thread's mask."""
    resource_tracker.ensure_running()  # where multiprocessing starts it, it lifts the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        return start_processes(_start, arguments, size, join=False)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _watch(
    started: ProcessContext,
    receiver: Connection,
    on_message: Callable[[Any], None],
    store: dist.Store,
    interruption: Interruption,
) -> None:
    """Hear what the processes say until they end, and end them together."""
    try:
        interruption.release()
        while not started.join(_PULSE, _GRACE):
            _receive(receiver, on_message)
        _receive(receiver, on_message)
    except ProcessException as ended:
        _receive(receiver, on_message)
        raise _reason(ended, started, first_error(store)) from ended
    except KeyboardInterrupt as interrupted:
        _end(started)
        raise first_error(store) or interrupted from None
    finally:
        _end(started)


def _start(rank: int, size: int, port: int, sender: Connection, path: Path) -> None:
    """What a new process does first: it takes its place, as torchrun would give it."""
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_USE_AGENT_STORE="True")  # the store is the parent's
    interruption = Interruption()
    try:
        for number in SIGNALS:
            signal.signal(number, interruption)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        work: Work = pickle.loads(path.read_bytes())
        work(sender.send if rank == 0 else lambda message: None)
    except KeyboardInterrupt:
        sys.exit(EXIT_CODE)


def _receive(receiver: Connection, on_message: Callable[[Any], None]) -> None:
    while receiver.poll():
        on_message(receiver.recv())


def _reason(ended: ProcessException, started: ProcessContext, told: BaseException | None) -> BaseException:
    """Why the processes have ended: one was killed, or what the first to fail has told."""
    killed = isinstance(ended, ProcessExitedException) and ended.exit_code < 0
    if killed or isinstance(told, ConnectionError):
        for rank, process in enumerate(started.processes):
            if (code := process.exitcode) is not None and code < 0 and (not killed or rank == ended.error_index):
                return ChildProcessError(
                    f"the process of rank {rank} was ended by {signal.Signals(-code).name} (out of memory?), the others with it. "
                    "Nothing of the finished epochs is lost: go on with --resume"
                )
    if told is not None:
        return told
    if isinstance(ended, ProcessExitedException) and ended.exit_code == EXIT_CODE:
        return KeyboardInterrupt()
    if isinstance(ended, ProcessExitedException):
        return ChildProcessError(
            f"the process of rank {ended.error_index} ended with exit code {ended.exit_code} and told no reason but what it has "
            "printed; a script must call fit(..., devices=...) under `if __name__ == '__main__':`"
        )
    return ended


def _end(started: ProcessContext) -> None:
    """Interrupt what still runs, and kill what does not end; SIGTERM ends at once what has not begun."""
    alive = [process for process in started.processes if process.is_alive()]
    for process in alive:
        process.terminate()
    until = time.monotonic() + 2 * _GRACE
    for process in alive:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
