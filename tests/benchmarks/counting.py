"""What a computation asks of PyTorch, counted, not timed: the same on every machine, idle or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile


class Counts(NamedTuple):
    """Most bytes held at once beyond what was there before, the largest single piece, and calls of PyTorch operators."""

    peak: int
    largest: int
    calls: int


def count(run: Callable[[], object]) -> Counts:
    """Of one call of ``run``, on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), k, e.nbytes()) for k, e in enumerate(events) if e.name() == "[memory]")
    held = peak = largest = 0
    for _, _, change in changes:
        held += change
        peak, largest = max(peak, held), max(largest, change)
    return Counts(peak, largest, sum(e.name().startswith("aten::") for e in events))
