"""The tables of `python -m benchmarks.cluster`, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cluster.estimate import Cluster, Estimate
from benchmarks.cluster.published import TABLE_1, TABLE_2
from benchmarks.cluster.schemes import SCHEMES, Problem
from benchmarks.markdown import markdown

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float, unit: str = "") -> str:
    """Three digits, with the prefix of a power of 1000.

    >>> number(23_456_789, "B")
    '23.5 MB'
    """
    size, prefix = next(((size, prefix) for size, prefix in _PREFIXES if value >= size), (1.0, ""))
    value /= size
    digits = 0 if value >= 100 or value == 0 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {prefix}{unit}".rstrip()


def duration(seconds: float) -> str:
    """Milliseconds, seconds, minutes or hours.

    >>> duration(0.0123), duration(7500)
    ('12.3 ms', '2.08 h')
    """
    for size, unit in ((3600.0, "h"), (60.0, "min"), (1.0, "s")):
        if seconds >= size:
            return number(seconds / size, unit)
    return number(1000 * seconds, "ms")


def rows_of(batch: int) -> str:
    """In units of 1024 or 1024^2 rows, where it is a multiple of them.

    >>> rows_of(32768), rows_of(2**20)
    ('32k', '1M')
    """
    for size, unit in ((2**20, "M"), (2**10, "k")):
        if batch % size == 0:
            return f"{batch // size}{unit}"
    return str(batch)


def steps(cluster: Cluster, gpus: Sequence[int], batches: Sequence[int], dim: int) -> str:
    """Time and memory of a step on each GPU, bold where it is least time of what fits."""
    lines = []
    for ranks in gpus:
        for batch in batches:
            found = _each(cluster, Problem(batch, ranks, dim))
            best = winner(cluster, found)
            lines.append(
                [str(ranks), rows_of(batch), *(_step(cluster, each, name == best) for name, each in found.items())]
            )
    return markdown(["GPUs", "batch", *SCHEMES], lines)


def winner(cluster: Cluster, found: dict[str, Estimate]) -> str | None:
    """The fastest that fits; of two that take equally long, the one that takes less memory."""
    fitting = [name for name, each in found.items() if cluster.fits(each)]
    return min(fitting, key=lambda name: (found[name].seconds, found[name].memory), default=None)


def _step(cluster: Cluster, found: Estimate, best: bool) -> str:
    memory = number(found.memory, "B")
    if not cluster.fits(found):
        return f"out of memory: {memory}"
    time = duration(found.seconds)
    return f"**{time}**, {memory}" if best else f"{time}, {memory}"


def demands(cluster: Cluster, gpus: Sequence[int], batches: Sequence[int], dim: int) -> str:
    """Operations of a step on each GPU, and bytes that it sends or receives."""
    lines = []
    for ranks in gpus:
        for batch in batches:
            found = _each(cluster, Problem(batch, ranks, dim)).values()
            lines.append(
                [str(ranks), rows_of(batch), *(f"{number(e.operations)}, {number(e.traffic, 'B')}" for e in found)]
            )
    return markdown(["GPUs", "batch", *SCHEMES], lines)


def largest(cluster: Cluster, gpus: Sequence[int], dim: int) -> str:
    """The largest batch whose loss fits."""
    lines = [[str(ranks), *(number(cluster.largest_batch(name, ranks, dim)) for name in SCHEMES)] for ranks in gpus]
    return markdown(["GPUs", *SCHEMES], lines)


def published() -> str:
    """Memory of the loss that a paper has measured, beside the formulas."""
    lines = []
    for point in (*TABLE_1, *TABLE_2):
        name = point.scheme + (", offloaded" if point.offloaded else "")
        sizes = [str(point.ranks), f"{point.thousands}k", str(point.dim)]
        lines.append([name, *sizes, f"{point.gigabytes:.2f}", f"{point.predicted():.3f}"])
    return markdown(["loss", "GPUs", "batch", "D", "published, GB", "formula, GB"], lines)


def _each(cluster: Cluster, problem: Problem) -> dict[str, Estimate]:
    return {name: cluster.estimate(name, problem) for name in SCHEMES}
