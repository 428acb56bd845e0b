"""What a run on a device has found, in a few lines: failures first, then each operator, then times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from benchmarks.outcomes import Run, failures, objections
from benchmarks.results import Row

MOST = 11_000  # characters
IN_FULL = 6  # failures whose last lines are shown
LAST = 700  # characters of them


def failed(runs: Sequence[Run]) -> Iterator[str]:
    """What failing tests said at the end, and the names of the others that failed."""
    found = failures(runs)
    for k, (test, outcome) in enumerate(found.items()):
        yield f"FAILED {test}"
        if k < IN_FULL:
            yield from (f"    {line}" for line in outcome.said[-LAST:].splitlines())


def tests(runs: Iterable[Run]) -> Iterator[str]:
    """How many of each run passed, and whether it came to its end."""
    for run in runs:
        count = {kind: 0 for kind in ("passed", "skipped", "failed")}
        for outcome in run.outcomes.values():
            count[outcome.outcome] += 1
        missing, seconds = run.missing(), sum(outcome.seconds for outcome in run.outcomes.values())
        said = ", ".join(f"{number} {kind}" for kind, number in count.items())
        ended = "cut off" if run.status is None else f"pytest's status {run.status}"
        yield f"{run.about['selection']}: {said}, {len(missing)} not run, {seconds:.0f} s in all processes, {ended}"
        slowest = max(run.outcomes.items(), key=lambda item: item[1].seconds, default=None)
        if slowest:
            yield f"    the longest: {slowest[1].seconds:.0f} s, {slowest[0].rsplit('::', 1)[-1]}"


def operators(runs: Sequence[Run]) -> Iterator[str]:
    """Which operators may be timed."""
    found = objections(runs)
    yield "green: " + (", ".join(name for name, why in found.items() if not why) or "none")
    yield from (f"not green: {name}: {why}" for name, why in found.items() if why)


def times(rows: Iterable[Row]) -> Iterator[str]:
    """A line for each provider of an operation and shape."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        key = f"{row.operation} {row.n} x {row.d} {row.dtype} | {row.provider}"
        lines.setdefault(key, []).append(row.note or f"{row.metric} {row.median:.4g}")
    yield from (f"{key}: {', '.join(values)}" for key, values in lines.items())


def summary(runs: Sequence[Run], rows: Sequence[Row]) -> str:
    """All of it, cut where it would be too long to be read at the end of a log."""
    text = "\n".join([*failed(runs), *tests(runs), *operators(runs), *times(rows)])
    return text if len(text) <= MOST else text[:MOST].rsplit("\n", 1)[0] + "\n(more in the files)"
