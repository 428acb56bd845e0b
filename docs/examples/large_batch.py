"""A large batch in the memory of a small one, exactly: gradients of the features first, then of the encoders in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


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
