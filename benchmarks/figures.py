"""The pictures of the documentation, from rows of results. Colours: Okabe & Ito, told apart by the colour-blind; cividis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks import accuracy, contrastive, end_to_end, peers, recall
from benchmarks.measure import OUT_OF_MEMORY
from benchmarks.problem import OURS
from benchmarks.results import REPOSITORY, Row
from benchmarks.tables import THREADS, WIDTHS, exponent, pick

FOLDER = REPOSITORY / "docs" / "figures"
STYLE = {
    OURS: ("#0072B2", "o"),
    peers.EAGER: ("#D55E00", "s"),
    peers.COMPILED: ("#E69F00", "D"),
    peers.CHUNKED: ("#009E73", "^"),
    peers.OPEN_CLIP: ("#CC79A7", "v"),
    peers.PRODUCTS: ("#555555", "x"),
}
WORST, BEST = 1.0, 1e-7  # ends of the colour scale of errors


def _save(figure: Figure, name: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})
    return path


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _log_axes(axes: Axes, ticks: list[int], x: str, y: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    axes.set_xticks(ticks, [f"{t:,}" if t < 10000 else f"{t // 1024}k" for t in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(True, which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)


def _line(axes: Axes, name: str, points: Sequence[tuple[float, float]], label: str) -> None:
    colour, marker = STYLE[name]
    axes.plot(*zip(*sorted(points), strict=True), color=colour, marker=marker, linewidth=1.8, markersize=6, label=label)


def scaling(rows: list[Row], d: int, folder: Path) -> Path:
    """Time and peak memory against batch, with the exponents of the last three points."""
    figure = _figure(11, 5.4)
    panels = figure.subplots(1, 2)
    here = pick(rows, operation=contrastive.OPERATIONS[0], d=d, setting="")
    for axes, metric, unit, title in (
        (panels[0], "alone both s", 1.0, "forward + backward, s"),
        (panels[1], "peak bytes", 2.0**20, "peak memory beyond the inputs, MiB"),
    ):
        every = pick(here, metric=metric)
        for name in (name for name in STYLE if pick(every, provider=name)):
            mine = pick(every, provider=name)
            points = [(row.n, row.median / unit) for row in mine if not row.note]
            if points:
                label = f"{name}: B^{exponent(points):.1f}" if len(points) > 1 else name
                stopped = [f", {OUT_OF_MEMORY} at {row.n // 1024}k" for row in mine if OUT_OF_MEMORY in row.note]
                _line(axes, name, points, label + "".join(stopped))
        _log_axes(axes, sorted({row.n for row in every}), f"batch B (D = {d}, float32)", title)
        axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    return _save(figure, "scaling", folder)


def width_and_threads(rows: list[Row], n_width: int, shape: tuple[int, int], folder: Path) -> Path:
    """Time against features, and against threads."""
    figure = _figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    loss = pick(rows, operation=contrastive.OPERATIONS[0], metric="both s")
    by_width = [row for row in pick(loss, setting=WIDTHS) if row.n == n_width]
    by_threads = [row for row in pick(loss, setting=THREADS) if (row.n, row.d) == shape]
    for name in STYLE:
        points = [(row.d, row.median) for row in by_width if row.provider == name]
        if points:
            _line(left, name, points, name)
        points = sorted({row.threads: row.median for row in by_threads if row.provider == name and row.threads}.items())
        if len(points) > 1:
            _line(right, name, points, f"{name}: {points[0][1] / points[-1][1]:.2f} x")
    _log_axes(left, sorted({row.d for row in by_width}), f"features D (B = {n_width})", "forward + backward, s")
    threads = sorted({row.threads for row in by_threads if row.threads})
    _log_axes(right, threads, f"threads (B = {shape[0]}, D = {shape[1]})", "forward + backward, s")
    for axes in (left, right):
        axes.legend(fontsize=9)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    return _save(figure, "width_and_threads", folder)


def _short(value: float) -> str:
    """1e-6 rather than 1e-06."""
    return f"{value:g}" if value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")


def _heat(axes: Axes, rows: list[Row], metric: str, x: str, y: str, pairs: int) -> object:
    """Errors as colours; where something is not finite, its number of ``pairs``."""
    xs, ys = (sorted({row.settings[key] for row in rows}) for key in (x, y))
    image, counts = np.full((len(ys), len(xs)), np.nan), np.zeros((len(ys), len(xs)))
    for row in rows:
        place = ys.index(row.settings[y]), xs.index(row.settings[x])
        if row.metric == f"error {metric}":
            image[place] = row.median
        if row.metric == f"not finite {metric}":
            counts[place] = row.median
    axes.set_facecolor("#ffffff")
    mesh = axes.pcolormesh(np.clip(image, BEST, WORST), norm=LogNorm(BEST, WORST), cmap="cividis", edgecolors="white")
    for i, j in zip(*np.nonzero(counts), strict=True):
        text = "NaN" if counts[i, j] == pairs else f"{counts[i, j]:.0f}"
        colour = "black" if math.isnan(image[i, j]) or image[i, j] > 1e-3 else "white"
        axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(np.arange(len(xs)) + 0.5, [_short(v) for v in xs], rotation=90, fontsize=8)
    axes.set_yticks(np.arange(len(ys)) + 0.5, [_short(v) for v in ys], fontsize=8)
    axes.tick_params(length=0)
    return mesh


def _heat_maps(
    rows: list[Row], x: str, y: str, pairs: int, titles: tuple[str, str], size: tuple[float, float]
) -> Figure:
    names = [name for name in dict.fromkeys(row.provider for row in rows) if not pick(rows, provider=name)[0].note]
    figure = _figure(*size)
    panels = figure.subplots(2, len(names), sharex=True, sharey=True, squeeze=False)
    mesh = None
    for column, name in enumerate(names):
        for line, metric in enumerate(("value", "gradient")):
            mesh = _heat(panels[line, column], pick(rows, provider=name), metric, x, y, pairs)
        panels[0, column].set_title(name, fontsize=11)
        panels[1, column].set_xlabel(f"{x}")
    for line, title in enumerate(titles):
        panels[line, 0].set_ylabel(f"{title}\n{y}")
    bar = figure.colorbar(mesh, ax=panels, shrink=0.8, pad=0.01)  # type: ignore[arg-type]
    bar.set_label("worst relative error")
    return figure


def accuracy_of_distance(rows: list[Row], folder: Path) -> Path:
    """Heat map of every library over radius x separation."""
    here = pick(rows, operation=accuracy.DISTANCE)
    titles = ("distance", "gradient")
    return _save(_heat_maps(here, "separation", "radius", accuracy.N, titles, (16, 5.6)), "accuracy_distance", folder)


def accuracy_of_loss(rows: list[Row], folder: Path) -> Path:
    """Heat map of ours and the textbook's over logit scale x separation of the positives."""
    here = pick(rows, operation=accuracy.LOSS)
    titles = ("loss", "gradient")
    return _save(_heat_maps(here, "separation", "scale", 1, titles, (7.5, 5.2)), "accuracy_loss", folder)


def training(rows: list[Row], folder: Path) -> Path:
    """Spots per second of HyperST, the share of the loss, and recall of the large-batch example, against batch."""
    figure = _figure(13, 4.2)
    speed, share, recalls = figure.subplots(1, 3)
    steps = pick(rows, operation=end_to_end.STEP, setting="images=0")
    sizes = sorted({row.n for row in steps})
    for name in (OURS, peers.EAGER):
        for axes, metric, unit in ((speed, "spots/s", 1), (share, "share of loss", 100)):
            _line(axes, name, [(row.n, unit * row.median) for row in pick(steps, provider=name, metric=metric)], name)
    _log_axes(speed, sizes, "batch", "HyperST training, spots/s")
    _log_axes(share, sizes, "batch", "share of the loss in a step, %")
    share.set_yscale("linear")
    share.set_ylim(0, 100)
    speed.set_yscale("linear")
    speed.set_ylim(bottom=0)
    found = pick(rows, operation=recall.RECALL, metric="recall@1")
    points = [(row.n, row.median) for row in found]
    _line(recalls, OURS, points, OURS)
    _log_axes(
        recalls,
        sorted(row.n for row in found),
        "batch, gradients in chunks",
        f"recall@1 after {found[0].settings['steps']:.0f} steps",
    )
    recalls.set_yscale("linear")
    recalls.set_ylim(0, 1)
    for axes in (speed, share):
        axes.legend(fontsize=9)
    return _save(figure, "training", folder)


def draw(rows: list[Row], suite, folder: Path = FOLDER) -> list[Path]:
    """Every picture."""
    return [
        scaling(rows, suite.scaling_dim, folder),
        width_and_threads(rows, suite.width_batch, suite.threads_shape, folder),
        accuracy_of_distance(rows, folder),
        accuracy_of_loss(rows, folder),
        training(rows, folder),
    ]
