"""A large batch in the memory of a small one, exactly: gradients of the features first, then of the encoders in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.lift(self.image(image), "image"), self.lift(self.text(text), "text")

    def loss(self, image: Tensor, text: Tensor) -> Tensor:
        return HyperbolicContrastiveLoss(self.lift.curvature)(
            image, text, self.log_scale.clamp(max=math.log(100)).exp()
        )


def train(batch: int, steps: int) -> Encoders:
    """Encoders after ``steps`` steps of Adam on new pairs, ``batch`` at a time in chunks of 4096."""
    torch.manual_seed(0)
    encoders = Encoders()
    optimizer = torch.optim.Adam(encoders.parameters(), lr=0.01, betas=(0.9, 0.99))
    for _ in range(steps):
        image, text = toy.pairs(batch)
        optimizer.zero_grad()
        backward_in_chunks(encoders, encoders.loss, list(zip(image.split(CHUNK), text.split(CHUNK), strict=True)))
        optimizer.step()
    return encoders


def recall_at_1(encoders: Encoders, rows: int = 4096) -> float:
    """Share of new images whose nearest text, of as many, is their own."""
    torch.manual_seed(1)
    with torch.no_grad():
        image, text = encoders(*toy.pairs(rows))
        ranking = HyperbolicContrastiveLoss(encoders.lift.curvature).similarity(image, text)
    return float((ranking.argmax(1) == torch.arange(rows)).float().mean())


def embed(encoders: Callable, chunk: tuple[Tensor, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Image and text features of a chunk. The seed makes dropout repeat itself in the second pass."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return encoders(*chunk)


def backward_in_chunks(encoders: Callable, loss: Callable, chunks: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Add the gradients of ``loss(image_features, text_features)`` over all chunks to ``.grad``; returns the loss, 0-d.

    ``encoders(*chunk)`` gives the image and text features, (b, d) each, of one chunk.
    """
    seeds = torch.randint(2**62, (len(chunks),)).tolist()
    with torch.no_grad():
        parts = [embed(encoders, chunk, seed) for chunk, seed in zip(chunks, seeds, strict=True)]
    image, text = (torch.cat(features).requires_grad_() for features in zip(*parts, strict=True))
    value = loss(image, text)
    value.backward()  # reaches the features, and once what the loss itself learns: logit scale, curvature
    rows = [len(part[0]) for part in parts]
    grads = zip(image.grad.split(rows), text.grad.split(rows), strict=True)
    for chunk, seed, grad in zip(chunks, seeds, grads, strict=True):
        torch.autograd.backward(embed(encoders, chunk, seed), grad)
    return value.detach()


if __name__ == "__main__":
    for batch in (256, 2048, 32768):  # the last takes minutes
        print(f"batch {batch}: recall@1 {recall_at_1(train(batch, steps=20)):.3f}")
