"""What a rank gives to torch.distributed and gets from it, counted in bytes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


class Traffic(TorchDispatchMode):
    """While it is active, ``found`` grows by the kind and the bytes of each collective and message that a rank of W takes part in.

    Bytes are those that it receives from others, or in a reduce-scatter sends to them, also in one by scatters, as gloo's of
    torch.distributed.nn.all_gather; and all of the tensor in an all-reduce.
    """

    def __init__(self, world_size: int):
        super().__init__()
        self.world_size = world_size
        self.found: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            kind, counted = self._counted(func.name().removeprefix("c10d::"), args)
            self.found += [(kind, counted)] if counted else []
        return func(*args, **(kwargs or {}))

    def _counted(self, name: str, args: tuple) -> tuple[str, int]:
        if name == "allgather_":
            return "all-gather", self._of_others(args[0][0])
        if name == "reduce_scatter_":
            return "reduce-scatter", self._of_others(args[1][0])
        if name == "scatter_":  # without tensors where another rank is the source
            return "reduce-scatter", self._of_others(args[1][0]) if args[1] else 0
        if name == "alltoall_base_":
            return "all-to-all", self._of_others(args[:1])
        if name == "allreduce_":
            return "all-reduce", size(args[0])
        if name in ("send", "recv_"):
            return "ring", size(args[0]) if name == "recv_" else 0
        raise NotImplementedError(f"bytes of c10d::{name}")

    def _of_others(self, shards: Iterable[torch.Tensor]) -> int:
        """Bytes but for a rank's own part, of which there are W alike."""
        assert size(shards) % self.world_size == 0
        return size(shards) * (self.world_size - 1) // self.world_size
