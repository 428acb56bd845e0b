"""Ranks in one process: each takes its part in turn, and leaves for the others what it would send."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from hyperst_kernels.schemes import Block, Merge


class Turns:
    """What ranks would exchange: each leaves it here, and finds that of the others once all had a turn."""

    def __init__(self) -> None:
        self.all_had_one = False
        self.found: dict[str, dict[int, list[Tensor]]] = {"columns": {}, "stats": {}, "gradients": {}}


class OneOf:
    """The scheme of one rank: ``shards`` of keys by number and their ids, in one block or in a ring."""

    def __init__(self, rank: int, shards: Sequence[Block], ring: bool, turns: Turns):
        self.rank, self.ring, self.turns, self.ranks = rank, ring, turns, self
        self.order = [(rank + step) % len(shards) for step in range(len(shards))]
        self.shards = [shards[k]._replace(own=k == rank) for k in self.order]
        if not ring:
            keys = {k: torch.cat([shard.keys[k] for shard in self.shards]) for k in shards[0].keys}
            given = [torch.cat(parts) for parts in zip(*(x.given for x in self.shards), strict=True)]
            self.shards = [Block(keys, given, True)]
        self.rows = [len(shards[k].keys[min(shards[k].keys)]) for k in self.order]

    def blocks(self, keys):
        return iter(self.shards)

    def blocks_again(self, keys, stats):
        if stats is None and self.turns.all_had_one:
            return ((block, None) for block in self.shards)
        self.turns.found["stats"].setdefault(self.rank, [stats])
        if not self.turns.all_had_one:
            return iter(())
        of_all = [self.turns.found["stats"][k][0] for k in self.order]
        return zip(self.shards, of_all if self.ring else [torch.cat(of_all, -1)], strict=True)

    def columns(self, merge):
        return Returned(self, "columns", 1, merge)

    def gradients(self):
        return Returned(self, "gradients", 0, torch.add)

    def mean(self, numbers: Tensor) -> Tensor:
        return numbers / len(self.order)

    def of_later_turns(self, keys: Sequence[int]) -> list[Tensor]:
        """What ranks whose turns come later add to the gradients of this one's keys, by key."""
        late = [parts[self.rank] for other, parts in self.turns.found["gradients"].items() if other > self.rank]
        return list(sum(late).split([self.shards[0].keys[k].shape[1] for k in keys], 1)) if late else []


class Returned:
    """Parts of every rank's keys, from this rank, and the own ones from all."""

    def __init__(self, scheme: OneOf, name: str, dim: int, merge: Merge):
        self.scheme, self.found, self.dim, self.merge, self.parts = scheme, scheme.turns.found[name], dim, merge, []

    def add(self, values: Tensor) -> None:
        self.parts += [values] if self.scheme.ring else values.split(self.scheme.rows, self.dim)

    def own(self) -> Tensor:
        scheme = self.scheme
        if self.parts:
            self.found[scheme.rank] = [self.parts[scheme.order.index(k)] for k in range(len(scheme.order))]
        own = [parts[scheme.rank] for parts in self.found.values()]
        if not own:
            width = sum(x.shape[1] for x in scheme.shards[0].keys.values())
            return torch.zeros(scheme.rows[0], width)
        return functools.reduce(self.merge, own)
