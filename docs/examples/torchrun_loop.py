"""A plain loop under DistributedDataParallel, a process for each device: `torchrun --nproc-per-node 2 torchrun_loop.py`."""

from __future__ import annotations

import math
import os

import torch
import torch.distributed as dist
import toy
from learned_curvature import Model
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def join(rank: int, world_size: int, local_rank: int) -> torch.device:
    """Meet the other processes at MASTER_ADDR and MASTER_PORT; the device of this one."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo", rank=rank, world_size=world_size)
    return device


def train(device: torch.device, epochs: int = 5, batch: int = 64) -> tuple[Model, list[float]]:
    """A trained model, the same on every rank, and the loss of each epoch. ``batch`` is that of all ranks together."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    pairs = TensorDataset(*toy.pairs(1024))
    sampler = DistributedSampler(pairs)  # gives each rank other rows, in an order that the epoch decides
    loader = DataLoader(pairs, batch // world_size, sampler=sampler)
    model = Model(rank, world_size).to(device)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    history = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        total = torch.zeros((), device=device)
        for image, text in loader:
            optimizer.zero_grad()
            loss = wrapped(image.to(device), text.to(device))
            loss.backward()  # the mean over ranks of gradients is the gradient of the loss of all rows
            optimizer.step()
            with torch.no_grad():
                model.log_scale.clamp_(max=math.log(100))
            total += loss.detach()
        dist.all_reduce(total)  # a rank's loss is its part: their mean is the loss
        history.append(total.item() / world_size / len(loader))
    return model, history


def report(model: Model, history: list[float]) -> None:
    """One rank writes."""
    if dist.get_rank() == 0:
        torch.save(model.state_dict(), "model.pt")
        print(f"loss {history[0]:.3f} -> {history[-1]:.3f}, curvature -{model.lift.curvature.item():.3f}")


if __name__ == "__main__":
    report(*train(join(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))))
    dist.destroy_process_group()
