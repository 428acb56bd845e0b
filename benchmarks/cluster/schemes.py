"""What each way to share a loss among W ranks asks of one of them: operations, messages, memory.

B rows in all, n = B / W of a rank, features of D numbers of s bytes, gradients that are summed in a = max(s, 4) bytes; the loss is
the softmax in both directions. A product of matrices over p pairs is 2 p D operations. A message is what a rank receives, or
sends in a reduce-scatter. Memory is that of features, their gradients and all that the loss holds at its peak.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

HEADER = 40  # bytes that each rank sends before anything else: hyperst_kernels.agreement
LOG_SUM = 8  # of the log-sum-exp of a column, float64
COLUMN = 16  # of that, and of its slope
NUMBERS = 4 * 8  # gradients of curvature, logit scale and the factors of both sides, float64
TILES = 2**28  # bytes that the kernels' tiles take at most
PAIRS_OF_A_FLAG = 128 * 64  # a byte for each tile of the forward pass: hyperst_kernels/gpu/launch_table.json
SOFTMAX = 16  # bytes for a pair in open_clip: two matrices of logits and their log-softmaxes, float32
INF_CL = 15  # float32 matrices (n, D) that Inf-CL holds: see `benchmarks.cluster.published`


class Problem(NamedTuple):
    """B, W, D and s."""

    batch: int
    ranks: int
    dim: int
    itemsize: int = 2

    @property
    def rows(self) -> int:
        """n, of the largest rank."""
        return -(-self.batch // self.ranks)

    @property
    def wide(self) -> int:
        """a"""
        return max(self.itemsize, 4)

    @property
    def features(self) -> int:
        """Bytes of the rows of one rank, of one side: n D s."""
        return self.rows * self.dim * self.itemsize

    @property
    def sums(self) -> int:
        """Bytes of gradients for them: n D a."""
        return self.rows * self.dim * self.wide

    @property
    def pairs(self) -> int:
        """n B"""
        return self.rows * self.batch


class Message(NamedTuple):
    kind: str  # "all-gather", "all-to-all", "reduce-scatter", "all-reduce", or "ring", from a neighbour
    bytes: int


@dataclass(frozen=True)
class Scheme:
    """``operations``, ``messages`` and ``memory`` of a rank, of one step.

    ``calls``: how often the fused kernels start, 0 where they are not ours. ``passes``: how often something goes round a ring of
    all ranks; messages of a ring travel while a rank computes.
    """

    operations: Callable[[Problem], int]
    messages: Callable[[Problem], list[Message]]
    memory: Callable[[Problem], int]
    calls: Callable[[Problem], int]
    passes: int = 0


def one_device(p: Problem) -> int:
    """Memory where nothing is gathered: features of both sides and their gradients, 4 B D s; one in float32, 4 B D; tiles and
    their flags.
    """
    return 4 * p.features + 4 * p.rows * p.dim + tiles(p)


def tiles(p: Problem) -> int:
    """Memory of the kernels: 2^28, and n B / 8192 of flags."""
    return TILES + p.pairs // PAIRS_OF_A_FLAG


def operations(p: Problem) -> int:
    """8 n B D: own queries against all keys once, for both directions. One product forward; backward the same again, and two for
    gradients.
    """
    return 8 * p.pairs * p.dim


def gather_messages(p: Problem) -> list[Message]:
    """(W - 1) times: the header and n D s of keys all-gathered, n log-sum-exps of columns sent home, n 16 of them and of their
    slopes all-gathered, n D a of gradients of keys reduce-scattered. Gradients of queries are complete where they are.
    """
    forward = [("all-gather", HEADER), ("all-gather", p.features), ("all-to-all", p.rows * LOG_SUM)]
    backward = [("all-gather", p.rows * COLUMN), ("reduce-scatter", p.sums)]
    return _several(p, *forward, *backward) + _numbers(p)


def gather_memory(p: Problem) -> int:
    """4 n D s; B D s of keys, B D s of their gradients, and B D a of sums of these, once more side by side; 16 B of numbers of
    columns; tiles and flags.
    """
    if p.ranks == 1:
        return one_device(p)
    return 4 * p.features + 2 * p.ranks * (p.features + p.sums) + COLUMN * p.batch + tiles(p)


def ring_messages(p: Problem) -> list[Message]:
    """Keys go W - 1 steps forward and again backward, n D s each, then with n 16 of their log-sum-exps and slopes. Sums for them
    go a step behind, and one more to be home: W n 8 of log-sum-exps forward, W n D a of gradients backward.
    """
    going = _several(p, ("all-gather", HEADER), ("ring", p.features), ("ring", p.features + p.rows * COLUMN))
    home = [Message("ring", p.ranks * (p.rows * LOG_SUM + p.sums))] if p.ranks > 1 else []
    return going + home + _numbers(p)


def ring_memory(p: Problem) -> int:
    """4 n D s; keys that are there and those that come, and gradients of a shard, 3 n D s; sums of these: own, merged, leaving
    and coming, 4 n D a; those of own rows, 2 n D a; for each key of all 8 bytes of a logit; tiles and flags.
    """
    if p.ranks == 1:
        return one_device(p)
    return 7 * p.features + 6 * p.sums + LOG_SUM * p.batch + tiles(p)


def open_clip_operations(p: Problem) -> int:
    """12 n B D: two matrices of logits, each one product forward and two backward."""
    return 12 * p.pairs * p.dim


def open_clip_messages(p: Problem) -> list[Message]:
    """(W - 1) times: n D s of images and of texts all-gathered, and of gradients of both, not wider, reduce-scattered."""
    kinds = ("all-gather", "all-gather", "reduce-scatter", "reduce-scatter")
    return _several(p, *((kind, p.features) for kind in kinds))


def open_clip_memory(p: Problem) -> int:
    """4 n D s; 2 B D s of gathered features; 16 n B, at the end of the forward pass."""
    gathered = 2 * p.ranks * p.features if p.ranks > 1 else 0
    return 4 * p.features + gathered + SOFTMAX * p.pairs


def inf_cl_operations(p: Problem) -> int:
    """16 n B D: a ring for each direction, with the forward product again in the backward pass (arXiv 2410.17243, algorithms)."""
    return 16 * p.pairs * p.dim


def inf_cl_messages(p: Problem) -> list[Message]:
    """For each direction (W - 1) n D 4 of keys forward and again backward, and W n D 4 of their gradients: all in float32."""
    keys = 4 * p.rows * p.dim
    home = [Message("ring", keys)] * 2 if p.ranks > 1 else []
    return _several(p, *[("ring", keys)] * 6) + home


def inf_cl_memory(p: Problem) -> int:
    """15 * 4 n D."""
    return INF_CL * 4 * p.rows * p.dim


def _several(p: Problem, *messages: tuple[str, int]) -> list[Message]:
    """Each W - 1 times."""
    return [Message(kind, (p.ranks - 1) * size) for kind, size in messages] if p.ranks > 1 else []


def _numbers(p: Problem) -> list[Message]:
    return [Message("all-reduce", NUMBERS)] if p.ranks > 1 else []


def _once(p: Problem) -> int:
    return 1


def _each_step(p: Problem) -> int:
    return p.ranks


def _not_ours(p: Problem) -> int:
    return 0


SCHEMES = {
    "gather": Scheme(operations, gather_messages, gather_memory, _once),
    "ring": Scheme(operations, ring_messages, ring_memory, _each_step, passes=2),
    "open_clip": Scheme(open_clip_operations, open_clip_messages, open_clip_memory, _not_ours),
    "Inf-CL": Scheme(inf_cl_operations, inf_cl_messages, inf_cl_memory, _not_ours, passes=4),
}
