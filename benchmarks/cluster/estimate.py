"""Seconds of a step from operations and messages, and the largest batch that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.cluster.devices import LAUNCHES, Device
from benchmarks.cluster.links import Link
from benchmarks.cluster.schemes import SCHEMES, Message, Problem

# bytes through a GPU's memory for a pair in open_clip, in mixed precision. Of each of two matrices of logits: bf16 written (2),
# widened (2 + 4), log-softmax (4 + 4); backward the gradient of that (4), that of logits (4 + 4 + 4), narrowed (4 + 2), read by two
# products (2 + 2)
LOGITS_MOVED = 84


class Estimate(NamedTuple):
    """Of one rank and one step. ``traffic`` is the sum of its messages, ``seconds`` what both computing and messages take."""

    operations: int
    traffic: int
    memory: int
    seconds: float


def hops(ranks: int, passes: int, messages: Sequence[Message]) -> int:
    """Messages one after the other: log2 W for each collective, as in a tree, and W - 1 in each pass of a ring."""
    collectives = sum(message.kind != "ring" for message in messages)
    return collectives * (ranks - 1).bit_length() + passes * (ranks - 1)


@dataclass(frozen=True)
class Cluster:
    """GPUs in nodes. What is assumed and not measured: ``attained``, the share of a published bandwidth, and ``hop``, the seconds
    that a message from one GPU to another takes however short it is.
    """

    device: Device
    within: Link
    between: Link
    node: int = 8
    attained: float = 0.8
    hop: float = 1e-5

    def estimate(self, name: str, problem: Problem) -> Estimate:
        """What one scheme asks of each rank."""
        scheme = SCHEMES[name]
        operations, messages = scheme.operations(problem), scheme.messages(problem)
        computing = self.computing(name, problem)
        sending = sum(message.bytes / self.bandwidth(message.kind, problem.ranks) for message in messages)
        sending += self.hop * hops(problem.ranks, scheme.passes, messages)
        seconds = max(computing, sending) if scheme.passes else computing + sending
        return Estimate(operations, sum(message.bytes for message in messages), scheme.memory(problem), seconds)

    def computing(self, name: str, problem: Problem) -> float:
        """Seconds of kernels.

        open_clip's: its products at the rate of a library's, and what goes through memory. Others: as many pairs as their
        operations make of 8 D, at the rate of this library's kernels, which start ``calls`` times. Inf-CL's are taken to be
        as fast.
        """
        scheme = SCHEMES[name]
        operations = scheme.operations(problem)
        if name == "open_clip":
            return operations / self.device.product_rate + LOGITS_MOVED * problem.pairs / self.device.memory_rate
        pairs = operations / (8 * problem.dim)
        return max(scheme.calls(problem) * LAUNCHES, pairs * self.device.seconds_per_pair(problem.dim))

    def bandwidth(self, kind: str, ranks: int) -> float:
        """Bytes per second of each rank.

        Between nodes, a library's collectives enter a node through the adapters of all its GPUs, once for the whole node; a ring
        in order of ranks enters through the adapter of one GPU, and each of its steps waits for that.
        """
        slowest = self.within.rate
        if ranks > self.node:
            slowest = min(slowest, self.between.rate * (1 if kind == "ring" else self.node))
        return self.attained * slowest

    def fits(self, estimate: Estimate) -> bool:
        """Whether the loss alone has room on a device; a model needs its own beside it."""
        return estimate.memory <= self.device.memory

    def largest_batch(self, name: str, ranks: int, dim: int, itemsize: int = 2) -> int:
        """The largest multiple of ``ranks`` that fits."""
        low, high = 0, 1
        memory = SCHEMES[name].memory

        def fit(rows: int) -> bool:
            return memory(Problem(rows * ranks, ranks, dim, itemsize)) <= self.device.memory

        while fit(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fit(middle) else (low, middle)
        return low * ranks
