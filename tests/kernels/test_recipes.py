"""Recipes for several processes: two over gloo, started as their users start them, end with the weights of one."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels import ranks
from tests.kernels.test_replicas import EXAMPLES, example

ACCELERATE = importlib.util.find_spec("accelerate") is not None
STEPS = 5 * 1024 // 64
# stands for SLURM's own on one machine: a process for each of two tasks
SRUN = """#!/bin/bash
test "$1" = --kill-on-bad-exit=1 && shift
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=2 "$@" & processes+=($!)
done
for process in "${processes[@]}"; do wait "$process" || exit; done
"""
SCONTROL = """#!/bin/bash
test "$*" = "show hostnames node[7-8]" && printf 'localhost\\nanother\\n'
"""


def run(command: list[str | Path], folder: Path, **environment: str) -> tuple[str, dict[str, torch.Tensor]]:
    """What a recipe prints, and the weights that it writes."""
    folder.mkdir(exist_ok=True)
    ours = {"PYTHONPATH": str(EXAMPLES.parents[1]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **ours, **environment}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, torch.load(folder / "model.pt")


def torchrun(name: str, folder: Path) -> tuple[str, dict[str, torch.Tensor]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return run([*command, EXAMPLES / f"{name}.py"], folder, ACCELERATE_USE_CPU="true")


def with_torchrun(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    model, _ = example("torchrun_loop").train(torch.device("cpu"))
    return model.state_dict()


def with_accelerate(rank: int, world_size: int) -> dict[str, torch.Tensor] | None:
    if not ACCELERATE:
        return None
    loop = example("accelerate_loop")
    in_order = loop.DataLoaderConfiguration(use_seedable_sampler=True)
    model, _ = loop.train(loop.Accelerator(cpu=True, dataloader_config=in_order))
    return model.state_dict()


@pytest.fixture(name="alone", scope="module")
def _alone(tmp_path_factory):
    """By name, the weights of a recipe in one process, which takes the rows of all."""
    cases = {"torchrun_loop": with_torchrun, "accelerate_loop": with_accelerate}
    return {name: weights for name, (weights,) in ranks.run(1, tmp_path_factory.mktemp("alone"), cases).items()}


def check(found: tuple[str, dict[str, torch.Tensor]], expected: dict[str, torch.Tensor]) -> None:
    """One rank writes one line, the loss falls, and weights are one process's but for the rounding of every step."""
    (line,) = found[0].splitlines()
    first, last = (float(line.split()[k].strip(",")) for k in (1, 3))
    assert last < 0.6 * first  # 0.38
    rounding = STEPS * torch.finfo(torch.float32).eps
    torch.testing.assert_close(found[1], expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("name", ["torchrun_loop", "accelerate_loop"])
def test_two_processes_of_torchrun_train_as_one(name, alone, tmp_path):
    if name == "accelerate_loop" and not ACCELERATE:
        pytest.skip("accelerate is not installed")
    check(torchrun(name, tmp_path), alone[name])


def test_two_tasks_of_slurm_train_as_one(alone, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (programs / "python").write_text(f'#!/bin/bash\nexec "{sys.executable}" "$@"\n')
    (programs / "python").chmod(0o755)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # sbatch copies the script elsewhere, and starts it where it was submitted
    for name in ("slurm_loop", "torchrun_loop", "learned_curvature", "toy"):
        (tmp_path / f"{name}.py").symlink_to(EXAMPLES / f"{name}.py")
    found = run(
        ["bash", EXAMPLES / "slurm.sbatch"],
        tmp_path,
        PATH=f"{programs}{os.pathsep}{os.environ['PATH']}",
        SLURM_JOB_ID=str(port - 10000),
        SLURM_JOB_NODELIST="node[7-8]",
    )
    check(found, alone["torchrun_loop"])
