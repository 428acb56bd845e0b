"""Collectives around the losses, by torch.distributed. Kernels never communicate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if torch.distributed.is_available():
    # Before there is a group: functions of this module hold on, as defaults, to the group that is there when it is imported, and
    # DistributedDataParallel imports it. Threads then outlive destroy_process_group, and gloo's may abort the end of the process.
    import torch.distributed.nn

SCHEMES = ("auto", "gather", "ring")
Checked = TypeVar("Checked")
Sizes = tuple[int, int, int]  # rows of queries, rows of keys, and 1 where each query has a logit scale of its own
# gives anything, facts that must be alike on every rank, and the own sizes; or raises
Check = Callable[[], tuple[Checked, Mapping[str, object], Sizes]]


def place(group: torch.distributed.ProcessGroup | None, rank: int = 0, world_size: int = 1) -> tuple[int, int]:
    """Return rank and world size of this process: those of ``group``, which numbers that are given must not contradict.

    Without a group, (0, 1) is one process on its own, and other numbers are those of the default group.
    """
    given = (rank, world_size)
    if group is None and given == (0, 1):
        return given
    if not torch.distributed.is_initialized():
        raise ValueError(f"world_size must be 1 where torch.distributed is not initialised, got {world_size}")
    found = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
    name = "the default group" if group is None else "group"
    if found[0] < 0:
        raise ValueError(f"{name} must hold this process, of rank {torch.distributed.get_rank()}; it does not")
    if given not in ((0, 1), found):
        raise ValueError(
            f"rank and world_size must be those of this process in {name}, rank={found[0]} and world_size={found[1]}, got "
            f"rank={rank} and world_size={world_size}"
        )
    return found


class Group:
    """The process group that a module holds. Copies of the module share it; the default group is not held, so that pickles load."""

    def __init__(self, group: torch.distributed.ProcessGroup | None):
        self.held = None if group is None or group is torch.distributed.group.WORLD else group

    def __deepcopy__(self, memo: dict) -> Group:
        return self


class Ranks:
    """The processes of a group: what all must agree on before they exchange tensors."""

    def __init__(self, group: torch.distributed.ProcessGroup | None = None):
        self.group = group
        self.rank, self.size = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)

    def agree(self, check: Check[Checked]) -> tuple[Checked, list[Sizes]]:
        """Return what ``check`` gives, and the sizes of every rank; see `hyperst_kernels.agreement.agree`."""
        from hyperst_kernels.agreement import agree  # what it needs of torch.compile takes a second to import

        return agree(self, check)

    def mean(self, numbers: Tensor) -> Tensor:
        """Of the same numbers on every rank, without a gradient."""
        torch.distributed.all_reduce(numbers := numbers.clone(), group=self.group)
        return numbers / self.size

    def shared(self, *numbers: Any) -> list[Any]:
        """The same numbers, whose gradients are the mean over ranks: of every rank alike, they learn without drifting apart."""
        learnt = [x for x in numbers if isinstance(x, Tensor) and x.requires_grad]
        found = iter(_Shared.apply(self, *learnt) if learnt and torch.is_grad_enabled() else learnt)
        return [next(found) if isinstance(x, Tensor) and x.requires_grad else x for x in numbers]

    def mean_with_grad(self, x: Tensor) -> Tensor:
        """Likewise, where what every rank makes of it has gradients of the mean over ranks."""
        return _Mean.apply(self, x)

    def least(self, numbers: Tensor) -> Tensor:
        """Likewise."""
        least = torch.distributed.ReduceOp.MIN
        torch.distributed.all_reduce(numbers := numbers.clone(), op=least, group=self.group)
        return numbers


class Gather:
    """Rows of all ranks, the own first and then those of the ranks that follow it, in a ring. Ranks may hold unequally many."""

    def __init__(self, ranks: Ranks, with_grad: bool):
        self.ranks, self.with_grad = ranks, with_grad

    def __call__(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        """(n, ...) to (N, ...), where rank r holds rows[r] and N is their sum.

        With gradients, that of the own rows is the sum over ranks, in float32 or float64; without, other ranks' rows have none.
        """
        if self.with_grad:
            return _GatherWithGrad.apply(x, self.ranks, tuple(rows))
        return torch.cat([x, self.plain(x, rows)[x.shape[0] :]]) if x.requires_grad else self.plain(x, rows)

    @torch.no_grad()
    def plain(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        """Without a gradient."""
        return _all_gather(x, self.ranks, rows)

    def side_by_side(self, matrices: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
        """Several matrices (n, d) of one dtype, in one collective."""
        if len(matrices) == 1:
            return [self(matrices[0], rows)]
        everything = self(torch.cat(list(matrices), 1), rows)
        return [x.contiguous() for x in everything.split([x.shape[1] for x in matrices], 1)]


class _GatherWithGrad(torch.autograd.Function):
    """All-gather whose backward pass is a reduce-scatter."""

    @staticmethod
    def forward(x: Tensor, ranks: Ranks, rows: tuple[int, ...]) -> Tensor:
        return _all_gather(x, ranks, rows)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.ranks, ctx.rows = inputs
        ctx.dtype = x.dtype

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return reduce_scatter(grad, ctx.ranks, ctx.rows).to(ctx.dtype), None, None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ranks: Ranks, *numbers: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks = ranks
        return tuple(x.view_as(x) for x in numbers)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        means = ctx.ranks.mean(torch.cat([x.double().flatten() for x in grads])).split([x.numel() for x in grads])
        return None, *(mean.view_as(x).to(x.dtype) for mean, x in zip(means, grads, strict=True))


class _Mean(torch.autograd.Function):
    """The mean over ranks, whose gradient is the mean of theirs."""

    @staticmethod
    def forward(ctx, ranks: Ranks, x: Tensor) -> Tensor:
        ctx.ranks = ranks
        return ranks.mean(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return None, ctx.ranks.mean(grad)


def _all_gather(x: Tensor, ranks: Ranks, rows: Sequence[int]) -> Tensor:
    most = max(rows)
    everything = x.new_empty(ranks.size * most, *x.shape[1:])
    if most == 0:
        return everything
    ring = everything.split(most)  # in the order of the result, so that equal shards are written where they belong
    shards = [ring[(rank - ranks.rank) % ranks.size] for rank in range(ranks.size)]
    torch.distributed.all_gather(shards, _padded(x.contiguous(), most), group=ranks.group)
    if min(rows) == most:
        return everything
    return torch.cat([shard[:n] for shard, n in zip(ring, in_ring(rows, ranks), strict=True)])


def reduce_scatter(grad: Tensor, ranks: Ranks, rows: Sequence[int]) -> Tensor:
    """The own rows of the sum over ranks of (N, ...): (n, ...). Half precision would lose a digit with every rank."""
    most = max(rows)
    grad = grad.to(torch.promote_types(grad.dtype, torch.float32))
    own = grad.new_empty(most, *grad.shape[1:])
    if most > 0:
        ring = grad.contiguous().split(in_ring(rows, ranks))
        parts = [_padded(ring[(rank - ranks.rank) % ranks.size], most) for rank in range(ranks.size)]
        torch.distributed.reduce_scatter(own, parts, group=ranks.group)
    return own[: rows[ranks.rank]]


def in_ring(rows: Sequence[int], ranks: Ranks) -> list[int]:
    """Rows of the ranks from the own one on."""
    return [*rows[ranks.rank :], *rows[: ranks.rank]]


def _padded(x: Tensor, rows: int) -> Tensor:
    """With zeros below: collectives take shards of one size."""
    return x if x.shape[0] == rows else torch.cat([x, x.new_zeros(rows - x.shape[0], *x.shape[1:])])
