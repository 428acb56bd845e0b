"""What a pass of the loss asks of a GPU, counted without one: kernels that it launches, and calls of PyTorch that launch others.

Tensors are on PyTorch's "meta" device, which has no numbers: whatever waits for one, a copy to the CPU, a size or a branch that
depends on data, raises. What runs here can be captured in a CUDA graph as far as PyTorch is concerned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from hyperst_kernels.gpu import contrastive, split_products
from hyperst_kernels.reference.contrastive import Pairing
from tests.kernels import ahead_of_time

# allocations, views in a list, and types alone
_NO_LAUNCH = (
    *("split", "split_with_sizes", "unbind", "promote_types"),
    *("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"),
)


class Launches(NamedTuple):
    """Kernels of this library, and calls of PyTorch that start one of its own: neither views nor allocations."""

    kernels: int
    calls: int


class Calls(TorchDispatchMode):
    """Notes such calls by name, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if not function.is_view and name not in _NO_LAUNCH:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def of_loss(
    target: str,
    n: int,
    dim: int,
    dtype: torch.dtype,
    pairings: Sequence[Pairing] = ahead_of_time.PAIR,
    geometry: str = "lorentz",
) -> tuple[Launches, Launches]:
    """Of the forward and of the backward pass of n pairs with ``dim`` features."""
    started: list[str] = []
    c = torch.ones((), dtype=torch.float64 if dtype == torch.float64 else torch.float32, device="meta")
    matrices = 1 + max(max(p.queries, p.keys) for p in pairings)
    x = [torch.empty(n, dim, dtype=dtype, device="meta") for _ in range(matrices)]
    given, flags = (x, None, c, c, None), (pairings, geometry, True, "bf16x3")
    with ahead_of_time.compiling_for(target), contextlib.ExitStack() as stack:
        if target.startswith("sm_"):  # where a product with a float32 result is one call
            stack.enter_context(mock.patch.object(split_products, "product", torch.mm))
        JITFunction.run = lambda self, *arguments, **options: started.append(self.__name__)
        with Calls() as forward:
            *sums, tiles = contrastive.forward(*given, *flags)
        first, upstream = len(started), torch.empty_like(sums[0], dtype=c.dtype)
        with Calls() as backward:
            slopes = contrastive.of_losses(upstream, upstream, *sums, x, pairings)
            contrastive.backward(slopes, *given, tiles, *flags, False)
    return Launches(first, len(forward.found)), Launches(len(started) - first, len(backward.found))
