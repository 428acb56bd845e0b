"""How keys meet the queries of every rank: all gathered at once, or a shard at a time in a ring. Kernels never communicate.

A scheme yields blocks of keys, the first of which begins with the own ones, and brings what each rank has for a block back to the
rank whose keys they are: sums over columns, and gradients.

With N keys of all ranks, W ranks, and t terms, a rank receives in a forward pass (W - 1)/W of the keys, and 8 s t bytes for each of
them; in a backward pass 8 w t bytes for each of them, and sends (W - 1)/W of the keys' gradients in float32 (float64 for
float64). A plain softmax has s = 1 sum and w = 2 numbers for slopes, other ones 6 and 5, or 8 and 6 if smoothed (8 and 5 if
debiased), a sigmoid none. A ring sends the keys again in the backward pass, and holds two shards in place of all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch import distributed as dist

from hyperst_kernels.distributed import Gather, Ranks, in_ring, reduce_scatter

Features = Mapping[int, Tensor]  # matrices of one dtype by their number
Merge = Callable[[Tensor, Tensor], Tensor]
GATHERED_AT_MOST = 32 << 30  # bytes of keys and their gradients: 11 million of 512 bfloat16 numbers


class Block(NamedTuple):
    """Some keys (w d) by their number, what travels with them (w, ...), and whether the first are positives of the own queries."""

    keys: Features
    given: Sequence[Tensor]
    own: bool

    @property
    def width(self) -> int:
        return len(next(iter(self.keys.values())))


class Returned(Protocol):
    """What comes home: ``add`` is called for each block in turn, ``own`` gives the sum over ranks of the own keys'."""

    def add(self, values: Tensor) -> None: ...

    def own(self) -> Tensor: ...


class Scheme(Protocol):
    """See the module."""

    ranks: Ranks

    def blocks(self, keys: Features) -> Iterator[Block]:
        """Yield all keys; the own ones are given."""

    def blocks_again(self, keys: Features, stats: Tensor | None) -> Iterator[tuple[Block, Tensor | None]]:
        """Yield the same blocks with numbers (... w) of each key, where those of the own ones (... m) are given."""

    def columns(self, merge: Merge) -> Returned:
        """Sums (s w) over a rank's rows, to be merged."""

    def gradients(self) -> Returned:
        """Gradients (w d) from a rank's rows, to be added."""


def scheme_of(
    name: str, gather: Gather, rows: Sequence[int], given: Sequence[Tensor], keys: Sequence[Tensor]
) -> Scheme:
    """The scheme of that name, or for "auto" the one that fits.

    ``rows`` are the keys of every rank, ``given`` (m, ...) travels with the own ones.
    """
    numbers = sum(rows) * sum(x.shape[1] for x in keys)
    if name == "auto":
        name = "ring" if numbers * (keys[0].element_size() + 4) > GATHERED_AT_MOST else "gather"
    return Ring(gather.ranks, rows, given) if name == "ring" else Gathered(gather, rows, given)


class Gathered:
    """All keys in one block, the own ones first and then those of the ranks that follow."""

    def __init__(self, gather: Gather, rows: Sequence[int], given: Sequence[Tensor]):
        self.ranks, self.gather, self.rows, self.given = gather.ranks, gather, rows, given
        self.block: Block | None = None  # of the forward pass

    def blocks(self, keys: Features) -> Iterator[Block]:
        everything = _split(self.gather.plain(joined(keys), self.rows), keys)
        self.block = Block(everything, [self.gather.plain(x, self.rows) for x in self.given], True)
        yield self.block

    def blocks_again(self, keys: Features, stats: Tensor | None) -> Iterator[tuple[Block, Tensor | None]]:
        assert self.block is not None
        yield self.block, None if stats is None else _turned(self.gather.plain(_turned(stats, 0), self.rows), -1)

    def columns(self, merge: Merge) -> Returned:
        return _Exchanged(self.ranks, self.rows, merge)

    def gradients(self) -> Returned:
        return _Scattered(self.ranks, self.rows)


class _Exchanged:
    """Every rank sends each other one its part, and merges what it gets in the order of ranks."""

    def __init__(self, ranks: Ranks, rows: Sequence[int], merge: Merge):
        self.ranks, self.rows, self.merge = ranks, rows, merge

    def add(self, values: Tensor) -> None:
        ranks, number = self.ranks, values.shape[0]
        ring = values.split(in_ring(self.rows, ranks), 1)
        parts = [ring[(rank - ranks.rank) % ranks.size].reshape(-1) for rank in range(ranks.size)]
        own = self.rows[ranks.rank]
        found = values.new_empty(ranks.size, number, own)
        dist.all_to_all_single(
            found.view(-1),
            torch.cat(parts),
            [number * own] * ranks.size,
            [len(part) for part in parts],
            group=ranks.group,
        )
        self.found = functools.reduce(self.merge, found)

    def own(self) -> Tensor:
        return self.found


class _Scattered:
    def __init__(self, ranks: Ranks, rows: Sequence[int]):
        self.ranks, self.rows = ranks, rows

    def add(self, values: Tensor) -> None:
        self.found = reduce_scatter(values, self.ranks, self.rows)

    def own(self) -> Tensor:
        return self.found


class Ring:
    """A shard at a time, which goes on to the rank before while the next comes from the rank behind, as does what is returned."""

    def __init__(self, ranks: Ranks, rows: Sequence[int], given: Sequence[Tensor]):
        self.ranks, self.rows, self.given = ranks, rows, given

    def blocks(self, keys: Features) -> Iterator[Block]:
        for matrix, *given in self._shards([joined(keys), *self.given]):
            yield self._block(matrix, given, keys)

    def blocks_again(self, keys: Features, stats: Tensor | None) -> Iterator[tuple[Block, Tensor | None]]:
        own = [joined(keys), *self.given, *([] if stats is None else [_turned(stats, 0)])]
        for matrix, *more in self._shards(own):
            of_keys = None if stats is None else _turned(more.pop(), -1)
            yield self._block(matrix, more, keys), of_keys

    def _shards(self, own: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
        ranks, current = self.ranks, own
        for step in range(ranks.size):
            arriving = None
            if step < ranks.size - 1:
                width = self.rows[(ranks.rank + step + 1) % ranks.size]
                arriving = _Arriving(ranks, current, [x.new_empty(width, *x.shape[1:]) for x in own], tag=1)
            self.step = step
            yield current
            if arriving is not None:
                current = arriving.wait()

    def _block(self, matrix: Tensor, given: Sequence[Tensor], keys: Features) -> Block:
        return Block(_split(matrix, keys), given, self.step == 0)

    def columns(self, merge: Merge) -> Returned:
        return _Relay(self.ranks, self.rows, 1, merge)

    def gradients(self) -> Returned:
        return _Relay(self.ranks, self.rows, 0, torch.add)


class _Relay:
    """What every rank adds to a shard's on its way around the ring, a step behind the shard; ``dim`` is that of its keys."""

    def __init__(self, ranks: Ranks, rows: Sequence[int], dim: int, merge: Merge):
        self.ranks, self.rows, self.dim, self.merge, self.step = ranks, rows, dim, merge, 0
        self.arriving: _Arriving | None = None

    def add(self, values: Tensor) -> None:
        if self.arriving is not None:
            values = self.merge(self.arriving.wait()[0], values)
        self.step += 1
        shape = list(values.shape)
        shape[self.dim] = self.rows[(self.ranks.rank + self.step) % self.ranks.size]
        self.arriving = _Arriving(self.ranks, [values], [values.new_empty(shape)], tag=5)

    def own(self) -> Tensor:
        assert self.arriving is not None
        return self.arriving.wait()[0]


class _Arriving:
    """Tensors on their way: ``going`` to the rank before in the ring, ``coming`` from the rank behind."""

    def __init__(self, ranks: Ranks, going: Sequence[Tensor], coming: Sequence[Tensor], tag: int):
        self.going, self.coming = [x.contiguous() for x in going], coming  # what is sent must not be freed
        before, behind = ((ranks.rank + step) % ranks.size for step in (-1, 1))
        both = [(dist.isend, before, self.going), (dist.irecv, behind, coming)]
        self.requests = dist.batch_isend_irecv(
            [
                dist.P2POp(do, tensor, group=ranks.group, tag=tag + number, group_peer=peer)
                for do, peer, tensors in both
                for number, tensor in enumerate(tensors)
            ]
        )

    def wait(self) -> Sequence[Tensor]:
        for request in self.requests:
            request.wait()
        return self.coming


def _turned(x: Tensor, to: int) -> Tensor:
    """Keys, the last dimension or the first, become the first or the last."""
    return x.movedim(-1 - to, to).contiguous()


def joined(features: Features) -> Tensor:
    """Side by side, to travel in one message."""
    matrices = list(features.values())
    return matrices[0] if len(matrices) == 1 else torch.cat(matrices, 1)


def _split(matrix: Tensor, like: Features) -> Features:
    parts = matrix.split([x.shape[1] for x in like.values()], 1)
    return {k: part.contiguous() for k, part in zip(like, parts, strict=True)}
