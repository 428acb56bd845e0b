"""Collectives around the losses. Kernels never communicate."""

from __future__ import annotations

import torch
from torch import Tensor


class _GatherWithGrad(torch.autograd.Function):
    """All-gather whose backward sums the gradient of every rank for the own shard."""

    @staticmethod
    def forward(x: Tensor, rank: int, world_size: int, group) -> Tensor:
        return torch.cat(_all_gather(x, world_size, group))

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.rank, _, ctx.group = inputs
        ctx.rows = x.shape[0]

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone(memory_format=torch.contiguous_format)  # not ours to change in place
        torch.distributed.all_reduce(grad, group=ctx.group)
        return grad[ctx.rank * ctx.rows : (ctx.rank + 1) * ctx.rows], None, None, None


def _all_gather(x: Tensor, world_size: int, group) -> list[Tensor]:
    shards = [torch.empty_like(x) for _ in range(world_size)]
    torch.distributed.all_gather(shards, x.contiguous(), group=group)
    return shards


class Gather:
    """Features (n, d) of all ranks as (world_size n, d), the own shard first. Ranks must hold equally many rows."""

    def __init__(self, rank: int, world_size: int, with_grad: bool, group=None):
        if not torch.distributed.is_initialized():
            raise ValueError(f"world_size must be 1 where torch.distributed is not initialised, got {world_size}")
        self.rank, self.world_size, self.with_grad, self.group = rank, world_size, with_grad, group

    def __call__(self, x: Tensor) -> Tensor:
        if self.with_grad:
            everything = _GatherWithGrad.apply(x, self.rank, self.world_size, self.group)
            return everything.roll(-self.rank * x.shape[0], 0)
        others = self.plain(x)[x.shape[0] :]
        return torch.cat([x, others])

    @torch.no_grad()
    def plain(self, x: Tensor) -> Tensor:
        """Without a gradient."""
        return torch.cat(_all_gather(x, self.world_size, self.group)).roll(-self.rank * x.shape[0], 0)
