"""The loop of torchrun_loop.py where `srun` has started the processes: `sbatch slurm.sbatch`."""

from __future__ import annotations

import os

import torch.distributed as dist
from torchrun_loop import join, report, train


def place() -> tuple[int, int, int]:
    """Rank, world size and the number of this process on its node, as SLURM names them."""
    rank, world_size, local_rank = (int(os.environ[f"SLURM_{name}"]) for name in ("PROCID", "NTASKS", "LOCALID"))
    return rank, world_size, local_rank


if __name__ == "__main__":
    report(*train(join(*place())))
    dist.destroy_process_group()
