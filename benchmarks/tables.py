"""Markdown tables from rows of results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from benchmarks import accuracy, contrastive, end_to_end, peers, recall
from benchmarks.markdown import markdown
from benchmarks.measure import AGAIN
from benchmarks.problem import OURS
from benchmarks.results import Row

RED = "tests fail: no ratio"
WIDTHS, THREADS, LOSSES = "by width", "by threads", "by loss"  # settings of studies


def number(value: float, digits: int = 3) -> str:
    """Three significant digits, thousands without an exponent."""
    if math.isnan(value):
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
        return f"{value:.{decimals}f}"
    return f"{value:.{digits - 2}e}"


def milliseconds(row: Row | None) -> str:
    return "-" if row is None else row.note or number(1e3 * row.median)


def ratio(row: Row | None) -> str:
    """Median, and from the 20th to the 80th percentile."""
    return RED if row is None else f"{row.median:.2f} ({row.p20:.2f} .. {row.p80:.2f})"


def bytes_(row: Row | None) -> str:
    if row is None:
        return "-"
    return row.note or f"{number(row.median / 2**20)} MiB"


def find(rows: Iterable[Row], **fields) -> Row | None:
    """The last row with these fields."""
    found = [row for row in rows if all(getattr(row, key) == value for key, value in fields.items())]
    return found[-1] if found else None


def pick(rows: Iterable[Row], **fields) -> list[Row]:
    return [row for row in rows if all(getattr(row, key) == value for key, value in fields.items())]


def _providers(rows: list[Row]) -> list[str]:
    """Ours first, then by their time, those without one last."""
    median = {row.provider: row.median for row in rows if row.metric == "both s"}
    return sorted(median, key=lambda name: (name != OURS, name == AGAIN, math.isnan(median[name]), median[name]))


def loss_table(rows: list[Row], n: int, d: int) -> str:
    """Times, ratio and peak memory of every provider of the contrastive loss on one shape."""
    here = pick(rows, operation=contrastive.OPERATIONS[0], n=n, d=d, setting="")
    lines = []
    for name in _providers(here):

        def of(metric: str, name: str = name) -> Row | None:
            return find(here, provider=name, metric=metric)

        both = of("both s")
        if both is None or both.note:
            lines.append([name, "", "", both.note if both else "-", "", ""])
            continue
        times = [milliseconds(of(f"{phase} s")) for phase in ("forward", "backward", "both")]
        lines.append([name, *times, ratio(of("ratio both")), "" if name == AGAIN else bytes_(of("peak bytes"))])
    head = [f"B = {n}, D = {d}", "forward, ms", "backward, ms", "both, ms", "time / ours", "peak memory"]
    return markdown(head, lines)


def losses_table(rows: list[Row], operations: Iterable[str]) -> str:
    """A line for each loss: time of the obvious implementation over ours, eager and compiled, and both peaks of memory."""
    lines = []
    for operation in operations:
        here = pick(rows, operation=operation, setting=LOSSES)
        ours = find(here, provider=OURS, metric="both s")
        if ours is None:
            continue
        ratios = [ratio(find(here, provider=name, metric="ratio both")) for name in (peers.EAGER, peers.COMPILED)]
        peaks = [bytes_(find(here, provider=name, metric="peak bytes")) for name in (OURS, peers.EAGER)]
        lines.append([operation, milliseconds(ours), *ratios, *peaks])
    shape = next((f"B = {row.n}, D = {row.d}" for row in pick(rows, setting=LOSSES)), "")
    return markdown([shape, "ours, ms", "eager / ours", "compiled / ours", "peak memory", "eager's"], lines)


def operator_table(rows: list[Row], operations: Iterable[str]) -> str:
    """Time of ours and time of each peer over ours, both passes, with the noise beside them."""
    names = [peers.EAGER, peers.COMPILED, peers.GEOOPT, peers.GEOOPT_BALL, peers.HYPLL]
    lines, rows = [], pick(rows, setting="")
    for operation in operations:
        ours = find(rows, operation=operation, provider=OURS, metric="both s")
        if ours is None:
            continue

        def cell(name: str, operation: str = operation) -> str:
            found = find(rows, operation=operation, provider=name, metric="both s")
            if found is None:
                return ""
            compared = find(rows, operation=operation, provider=name, metric="ratio both")
            return found.note or (f"{compared.median:.2f}" if compared else RED)

        noise = find(rows, operation=operation, provider=AGAIN, metric="ratio both")
        spread = f"{noise.p20:.2f} .. {noise.p80:.2f}" if noise else ""
        shape = f"{operation} {ours.n} x {ours.d}"
        lines.append([shape, milliseconds(ours), spread, *map(cell, names)])
    return markdown(["operation", "ours, ms", f"{AGAIN} / ours", *(f"{name} / ours" for name in names)], lines)


def error_table(rows: list[Row], operations: Iterable[str]) -> str:
    """Worst relative error of value and gradient of every provider, on the shapes of the speed table's kind."""
    names = [OURS, peers.EAGER, peers.GEOOPT, peers.GEOOPT_BALL, peers.HYPLL]
    lines = []
    for operation in operations:

        def cell(name: str, operation: str = operation) -> str:
            value = find(rows, operation=operation, provider=name, metric="error value")
            slope = find(rows, operation=operation, provider=name, metric="error gradient")
            if value is None or slope is None:
                return value.note if value else ""
            return f"{value.median:.0e}, {slope.median:.0e}"

        lines.append([operation, *map(cell, names)])
    return markdown(["value, gradient", *names], lines)


def accuracy_table(rows: list[Row]) -> str:
    """Over the grid of radius and separation: worst error, share of cells above 1e-3, and pairs that are not finite."""
    here = pick(rows, operation=accuracy.DISTANCE)
    lines = []
    for name in dict.fromkeys(row.provider for row in here):
        mine = pick(here, provider=name)
        if mine[0].note:
            lines.append([name, mine[0].note, "", "", ""])
            continue
        line = [name]
        for metric in ("value", "gradient"):
            errors = [row.median for row in pick(mine, metric=f"error {metric}")]
            finite = [e for e in errors if not math.isnan(e)]
            bad = sum(row.median for row in pick(mine, metric=f"not finite {metric}"))
            wrong = sum(not e <= 1e-3 for e in errors) / len(errors)
            line += [f"{max(finite):.0e}", f"{100 * wrong:.0f} %", f"{bad:.0f}"]
        lines.append(line)
    head = ["", "distance: worst", "cells over 1e-3", "not finite", "gradient: worst", "cells over 1e-3", "not finite"]
    return markdown(head, lines)


def exponent(points: Iterable[tuple[float, float]]) -> float:
    """Slope of log y over log x by least squares through the last three points."""
    last = [(math.log(x), math.log(y)) for x, y in sorted(points) if y > 0][-3:]
    if len(last) < 2:
        return math.nan
    mean_x, mean_y = (sum(p[k] for p in last) / len(last) for k in (0, 1))
    return sum((x - mean_x) * (y - mean_y) for x, y in last) / sum((x - mean_x) ** 2 for x, _ in last)


def scaling_table(rows: list[Row], d: int) -> str:
    """Time and peak memory of every provider in a process of its own, by batch."""
    here = [
        row
        for row in pick(rows, operation=contrastive.OPERATIONS[0], d=d, setting="")
        if row.metric in ("alone both s", "peak bytes")
    ]
    sizes = sorted({row.n for row in here})
    lines = []
    for name in dict.fromkeys(row.provider for row in here):
        for metric, shown in (("alone both s", lambda r: r.note or f"{number(r.median)} s"), ("peak bytes", bytes_)):
            mine = {row.n: row for row in pick(here, provider=name, metric=metric)}
            fitted = exponent((n, row.median) for n, row in mine.items() if not row.note)
            lines.append(_scaling_line(name, sizes, mine, shown, fitted))
    return markdown(["", *(f"B = {n}" for n in sizes), "exponent"], lines)


def _scaling_line(name: str, sizes: list[int], mine: dict[int, Row], shown: Callable, fitted: float) -> list[str]:
    return [name, *(shown(mine[n]) if n in mine else "" for n in sizes), number(fitted)]


def threads_table(rows: list[Row], n: int, d: int) -> str:
    """Forward + backward by number of threads."""
    here = pick(rows, operation=contrastive.OPERATIONS[0], n=n, d=d, metric="both s", setting=THREADS)
    counts = sorted({row.threads for row in here if row.threads})
    lines = []
    for name in dict.fromkeys(row.provider for row in here if row.provider != AGAIN):
        found = [find(here, provider=name, threads=count) for count in counts]
        if all(found):
            lines.append([name, *map(milliseconds, found), number(found[0].median / found[-1].median)])  # type: ignore[union-attr]
    return markdown([f"B = {n}, D = {d}", *(f"{k} thread{'s' * (k > 1)}, ms" for k in counts), "speed-up"], lines)


def end_to_end_table(rows: list[Row]) -> str:
    """Spots per second and the share of the loss, by batch."""
    here = pick(rows, operation=end_to_end.STEP)
    lines = []
    for setting, n in dict.fromkeys((row.setting, row.n) for row in here):
        mine = pick(here, setting=setting, n=n)

        def of(name: str, metric: str, mine: list[Row] = mine) -> float:
            row = find(mine, provider=name, metric=metric)
            return row.median if row else math.nan

        line = [f"{n}, {'crops' if 'images=1' in setting else 'features'}"]
        for name in (OURS, peers.EAGER):
            line += [number(of(name, "spots/s")), f"{100 * of(name, 'share of loss'):.0f} %"]
        again = find(mine, provider=AGAIN, metric="ratio both")
        lines.append([*line, ratio(find(mine, provider=peers.EAGER, metric="ratio both")), ratio(again)])
    head = ["batch", "ours, spots/s", "loss", "eager, spots/s", "loss", "step, eager / ours", f"{AGAIN} / ours"]
    return markdown(head, lines)


def recall_table(rows: list[Row]) -> str:
    """Recall@1 by batch."""
    here = pick(rows, operation=recall.RECALL)
    lines = []
    for n in dict.fromkeys(row.n for row in here):
        found, took = (find(here, n=n, metric=metric) for metric in ("recall@1", "step s"))
        if found and took:
            lines.append([str(n), f"{found.settings['steps']:.0f}", f"{found.median:.3f}", number(took.median)])
    return markdown(["batch", "steps", "recall@1", "seconds per step"], lines)
