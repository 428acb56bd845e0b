"""What a rank gives to torch.distributed and gets from it, counted in bytes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def of_others(world_size: int, shards: list[torch.Tensor]) -> int:
    """Bytes of a list with a tensor for each rank, all of one size, but for the own one."""
    assert len({x.numel() for x in shards}) == 1
    return size(shards) * (world_size - 1) // world_size


class Traffic(TorchDispatchMode):
    """While it is active, ``found`` grows by the kind and the bytes of each collective and message, as libraries exchange them.

    Bytes are those that a rank receives in an all-gather, and sends to others in a reduce-scatter (also one by scatters, as gloo's
    backward pass of torch.distributed.nn.all_gather) or a message; of an all-reduce of z bytes, 2 (W - 1) z / W.
    """

    def __init__(self, world_size: int):
        super().__init__()
        self.world_size = world_size
        self.found: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            counted = self._counted(func.name().removeprefix("c10d::"), args)
            self.found += [counted] if counted[1] else []
        return func(*args, **(kwargs or {}))

    def _counted(self, name: str, args: tuple) -> tuple[str, int]:
        others = self.world_size - 1
        if name == "allgather_":
            return "all-gather", of_others(self.world_size, args[0][0])
        if name == "_allgather_base_":
            return "all-gather", size(args[:1]) * others // self.world_size
        if name == "reduce_scatter_":
            return "reduce-scatter", of_others(self.world_size, args[1][0])
        if name == "_reduce_scatter_base_":
            return "reduce-scatter", size(args[1:2]) * others // self.world_size
        if name == "scatter_":  # lists are empty where another rank is the source
            return "reduce-scatter", of_others(self.world_size, args[1][0]) if args[1] else 0
        if name == "allreduce_":
            return "all-reduce", 2 * size(args[0]) * others // self.world_size
        if name in ("send", "recv_"):
            return "send", size(args[0]) if name == "send" else 0
        raise NotImplementedError(f"bytes of c10d::{name}")
