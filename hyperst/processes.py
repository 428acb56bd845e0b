"""The processes that torchrun or srun has started to train one run, as the environment tells each of them. No PyTorch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

__all__ = ["is_first", "refuse_several", "started_processes"]

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def started_processes(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what torchrun tells each of several processes, under its names and with srun's values where srun has started them.

    Empty for a process on its own, inside a SLURM job too: only the tasks of an ``srun`` are processes of one run.

    Raises:
        ValueError: one of several processes, but not which, or unequally many on the machines.

    >>> started_processes({"HOME": "/root"})
    {}
    >>> task = {"PROCID": "5", "STEP_NUM_TASKS": "8", "LOCALID": "1", "STEP_TASKS_PER_NODE": "4(x2)", "JOB_ID": "812345"}
    >>> srun = {f"SLURM_{name}": value for name, value in task.items()} | {"SLURM_STEP_NODELIST": "gpu[07-08]"}
    >>> [*started_processes(srun).values()]
    ['5', '8', '1', '4', 'gpu07', '17345']
    """
    if environment.get("WORLD_SIZE", "1") != "1":
        found = {name: environment[name] for name in _NAMES if name in environment}
    elif environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        found = _of_srun(environment)
    else:
        return {}
    missing = [name for name in _NAMES if name not in found]
    if missing:
        raise ValueError(
            f"this process is one of {found['WORLD_SIZE']} (WORLD_SIZE), but {', '.join(missing)} are not set: start the "
            "processes with torchrun or srun, or one process with --devices"
        )
    if int(found["WORLD_SIZE"]) % int(found["LOCAL_WORLD_SIZE"]):
        raise ValueError(
            f"{found['WORLD_SIZE']} processes are not equally many on each machine, {found['LOCAL_WORLD_SIZE']} on this one; "
            "start as many on every machine (srun --ntasks-per-node)"
        )
    return found


def is_first() -> bool:
    """Whether this process writes and speaks for all of its run: it is alone, or of rank 0."""
    return started_processes().get("RANK", "0") == "0"


def refuse_several(what: str) -> None:
    """Raise ValueError in one of several processes."""
    if started_processes():
        raise ValueError(f"{what} is started once, without torchrun or srun")


def _of_srun(environment: Mapping[str, str]) -> dict[str, str]:
    from lightning.fabric.plugins.environments import SLURMEnvironment

    first = SLURMEnvironment.resolve_root_node_address(environment.get("SLURM_STEP_NODELIST", "127.0.0.1"))
    names = {
        "RANK": environment.get("SLURM_PROCID"),
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID"),
        "LOCAL_WORLD_SIZE": re.sub(r"\D.*", "", environment.get("SLURM_STEP_TASKS_PER_NODE", "")) or None,
        "MASTER_ADDR": environment.get("MASTER_ADDR", first),
        # as every task knows it, and no two jobs of one machine are likely to share it
        "MASTER_PORT": environment.get("MASTER_PORT") or str(15000 + int(environment.get("SLURM_JOB_ID", "0")) % 10000),
    }
    return {name: value for name, value in names.items() if value is not None}
