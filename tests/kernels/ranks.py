"""Several processes over gloo: one start for all cases of a test module, each case a function of the process's rank."""

from __future__ import annotations

import datetime
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing

# what takes long to import, once, in the process that all others are forked from
PRELOADED = ["hyperst_kernels.agreement", "torch.distributed.nn", "pytest"]
Case = Callable[[int, int], Any]
SECONDS = 20  # after which a process that waits for another gives up


def join(rank: int, world_size: int, folder: str | Path) -> None:
    """Meet the other processes; the default group afterwards."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=SECONDS),
    )


def leave() -> None:
    """End this process at once: threads of the group abort Python's end where caches of PyTorch's hold on to the group."""
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)


def one_rank(rank: int, world_size: int, folder: str, cases: dict[str, Case]) -> None:
    join(rank, world_size, folder)
    found = {}
    for name, case in cases.items():
        try:
            found[name] = case(rank, world_size)
        except Exception as error:
            found[name] = error
    torch.save(found, f"{folder}/{rank}.pt")
    leave()


def run(world_size: int, folder: Path, cases: dict[str, Case]) -> dict[str, list[Any]]:
    """What every case gave on every rank: what it returned, or the error it raised."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    torch.multiprocessing.start_processes(
        one_rank, (world_size, str(folder), cases), nprocs=world_size, start_method="forkserver"
    )
    results = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]
    return {name: [result[name] for result in results] for name in cases}


def raised(found: list[Any]) -> list[Any]:
    """Return what a case gave on every rank, or raise the first error among it."""
    for each in found:
        if isinstance(each, Exception):
            raise each
    return found
