"""A loop with Hugging Face Accelerate: `accelerate launch --num_processes 2 accelerate_loop.py`, or one process by itself.

Without GPUs, `ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 accelerate_loop.py`.
"""

from __future__ import annotations

import math

import torch
import toy
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from learned_curvature import Model
from torch.utils.data import DataLoader, TensorDataset


def train(accelerator: Accelerator, epochs: int = 5, batch: int = 64) -> tuple[Model, list[float]]:
    """A trained model, the same on every rank, and the loss of each epoch. ``batch`` is that of all ranks together."""
    set_seed(0)
    pairs = TensorDataset(*toy.pairs(1024))
    model = Model(accelerator.process_index, accelerator.num_processes)
    # wraps the model in DistributedDataParallel, and has each rank take other batches than the others
    wrapped, optimizer, loader = accelerator.prepare(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        DataLoader(pairs, batch // accelerator.num_processes, shuffle=True),
    )
    history = []
    for _ in range(epochs):
        parts = []
        for image, text in loader:
            optimizer.zero_grad()
            loss = wrapped(image, text)
            accelerator.backward(loss)
            optimizer.step()
            with torch.no_grad():
                model.log_scale.clamp_(max=math.log(100))
            parts.append(loss.detach())
        history.append(accelerator.reduce(torch.stack(parts), "mean").mean().item())
    return accelerator.unwrap_model(wrapped), history


if __name__ == "__main__":
    # rows in one order, however many ranks there are
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    model, history = train(accelerator)
    if accelerator.is_main_process:
        torch.save(model.state_dict(), "model.pt")
    accelerator.print(f"loss {history[0]:.3f} -> {history[-1]:.3f}, curvature -{model.lift.curvature.item():.3f}")
    accelerator.end_training()
