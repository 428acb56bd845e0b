"""A large batch in the memory of a small one, exactly: gradients of the features first, then of the encoders in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
import toy
from torch import Tensor, nn

from hyperst_kernels import HyperbolicContrastiveLoss, LorentzLift

WIDTH, DIM, CHUNK = 256, 16, 4096


class Encoders(nn.Module):
    """An image and a text encoder, their lift, and the logit scale."""

    def __init__(self) -> None:
        super().__init__()
        words = nn.EmbeddingBag(toy.CODE * toy.DIGITS, WIDTH)
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, WIDTH), nn.GELU(), nn.Linear(WIDTH, DIM))
        self.text = nn.Sequential(words, nn.GELU(), nn.Linear(WIDTH, DIM))
        self.lift = LorentzLift(DIM, ("image", "text"), output="tangent")
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tangent vectors of images and texts, the logit scale, the curvature."""
        scale = self.log_scale.clamp(max=math.log(100)).exp()
        return self.lift(self.image(image), "image"), self.lift(self.text(text), "text"), scale, self.lift.curvature


def train(batch: int, steps: int) -> Encoders:
    """Encoders after ``steps`` steps of Adam on new pairs, ``batch`` at a time in chunks of 4096."""
    torch.manual_seed(0)
    encoders = Encoders()
    loss = HyperbolicContrastiveLoss()
    optimizer = torch.optim.Adam(encoders.parameters(), lr=0.01, betas=(0.9, 0.99))
    for _ in range(steps):
        image, text = toy.pairs(batch)
        optimizer.zero_grad()
        chunks = list(zip(image.split(CHUNK), text.split(CHUNK), strict=True))
        backward_in_chunks(encoders, lambda *out: loss(*out[:3], curvature=out[3]), chunks)
        optimizer.step()
    return encoders


def recall_at_1(encoders: Encoders, rows: int = 4096) -> float:
    """Share of new images whose nearest text, of as many, is their own."""
    torch.manual_seed(1)
    with torch.no_grad():
        image, text, _, curvature = encoders(*toy.pairs(rows))
        ranking = HyperbolicContrastiveLoss().similarity(image, text, curvature=curvature)
    return float((ranking.argmax(1) == torch.arange(rows)).float().mean())


def embed(model: Callable, chunk: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    """What the model gives of a chunk. The seed makes dropout repeat itself in the second pass."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model(*chunk)


def backward_in_chunks(model: Callable, loss: Callable, chunks: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Add the gradients of ``loss(*model outputs)`` over all chunks to ``.grad``; returns the loss, 0-d.

    ``model(*chunk)`` gives the image and text features, (b, d) each, of one chunk, and after them the numbers that the loss
    depends on beside features: its logit scale, its curvature. It may be a DistributedDataParallel, whose gradients are
    then averaged once, in the last chunk.
    """
    seeds = torch.randint(2**62, (len(chunks),)).tolist()
    with torch.no_grad():
        parts = [embed(model, chunk, seed) for chunk, seed in zip(chunks, seeds, strict=True)]
    image, text = (torch.cat([part[k] for part in parts]).requires_grad_() for k in (0, 1))
    numbers = [number.detach().requires_grad_() for number in parts[0][2:]]
    value = loss(image, text, *numbers)
    value.backward()  # reaches features and numbers, not yet the model
    rows = [len(part[0]) for part in parts]
    grads = list(zip(image.grad.split(rows), text.grad.split(rows), strict=True))
    last = len(chunks) - 1
    for i, (chunk, seed, grad) in enumerate(zip(chunks, seeds, grads, strict=True)):
        of_numbers = [number.grad if i == last else torch.zeros_like(number) for number in numbers]
        with nullcontext() if i == last else getattr(model, "no_sync", nullcontext)():
            torch.autograd.backward(embed(model, chunk, seed), [*grad, *of_numbers])
    return value.detach()


if __name__ == "__main__":
    for batch in (256, 2048, 32768):  # the last takes minutes
        print(f"batch {batch}: recall@1 {recall_at_1(train(batch, steps=20)):.3f}")
