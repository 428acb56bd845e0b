"""Every number and picture of README and docs/benchmarks.md, measured on this machine's processor.

python -m benchmarks.run            # measures (under 20 minutes on two cores), appends to benchmarks/results, writes the pages
python -m benchmarks.run --redraw   # the pages again from the last results of this machine
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks import (
    accuracy,
    blocked,
    contrastive,
    distance,
    end_to_end,
    entailment,
    figures,
    maps,
    measure,
    peers,
    recall,
    results,
)
from benchmarks import tables as t
from benchmarks.gate import GUARD, green
from benchmarks.markdown import replace_between
from benchmarks.problem import OURS
from benchmarks.results import REPOSITORY, Row
from benchmarks.tables import THREADS, WIDTHS

FAMILIES = {"maps": maps, "distance": distance, "entailment": entailment, "blocked": blocked}
LOSS = contrastive.OPERATIONS[0]
LOSSES = "losses"
LARGEST_PEER = 16384  # beyond, one step of a peer that fits takes minutes


@dataclass(frozen=True)
class Suite:
    """What is measured, and for how many seconds a problem is repeated (each provider five times at least)."""

    row_wise: tuple[int, int] = (16384, 128)
    pairwise: tuple[int, int] = (512, 128)
    blocked: tuple[int, int] = (2048, 128)
    losses: tuple[int, int] = (4096, 128)
    errors: tuple[int, int] = (512, 32)
    operator_budget: float = 2.0
    loss_shapes: tuple[tuple[int, int], ...] = ((4096, 512),)
    losses_budget: float = 10.0
    keops_shape: tuple[int, int] = (2048, 8)
    loss_budget: float = 20.0
    scaling_dim: int = 128
    scaling_batches: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
    widths: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    width_batch: int = 2048
    threads_shape: tuple[int, int] = (2048, 512)
    threads: tuple[int, ...] = tuple(sorted({1, torch.get_num_threads()}))
    training_batches: tuple[int, ...] = (128, 512, 2048, 4096)
    crops_batch: int = 128
    recall_batches: tuple[int, ...] = (256, 2048, 32768)
    recall_steps: int = 20
    radii: tuple[float, ...] = accuracy.RADII
    separations: tuple[float, ...] = accuracy.SEPARATIONS
    scales: tuple[float, ...] = accuracy.SCALES
    pair_separations: tuple[float, ...] = accuracy.PAIR_SEPARATIONS
    gated: bool = True


def gate(suite: Suite, tests: tuple[str, ...]) -> bool:
    """Whether speeds may be compared: a family's tests, accuracy of positives and memory pass."""
    return not suite.gated or all(green(path) for path in (*tests, GUARD))


def operators(suite: Suite) -> Iterator[Row]:
    """Speed and error of maps, distances and cones."""
    for module in FAMILIES.values():
        passed = gate(suite, module.TESTS)
        for operation in module.OPERATIONS:
            matrices = {"pairwise_distance": suite.pairwise, **dict.fromkeys(blocked.OPERATIONS, suite.blocked)}
            shapes = [matrices.get(operation, suite.row_wise), suite.errors]
            abouts = [{"operation": operation, "n": n, "d": d, "dtype": "float32"} for n, d in shapes]
            problem = module.setup(operation, *shapes[0])
            yield from measure.speed(problem, abouts[0], budget=suite.operator_budget, green=passed)
            problem = module.setup(operation, *shapes[1])
            yield from measure.errors(problem, abouts[1], [p for p in problem.factories if p != peers.COMPILED])


def loss(suite: Suite) -> Iterator[Row]:
    """Speed and peak memory of the contrastive loss, and KeOps where it is made for: few features."""
    passed = gate(suite, contrastive.TESTS)
    for n, d in suite.loss_shapes:
        problem = contrastive.setup(LOSS, n, d)
        yield from measure.speed(problem, _about(n, d), budget=suite.loss_budget, green=passed)
        for provider in problem.factories:
            yield from measure.isolated("contrastive", LOSS, provider, n, d, repeats=1)
    n, d = suite.keops_shape
    few = (OURS, peers.EAGER, peers.KEOPS, peers.PRODUCTS)
    yield from measure.speed(contrastive.setup(LOSS, n, d), _about(n, d), budget=5, green=passed, providers=few)


def losses(suite: Suite) -> Iterator[Row]:
    """Speed and peak memory of every loss beside the obvious implementation."""
    n, d = suite.losses
    for family, module in (("contrastive", contrastive), ("blocked", blocked)):
        passed = gate(suite, module.TESTS)
        for operation in module.OPERATIONS:
            providers = (OURS, peers.EAGER, peers.COMPILED)
            about = {"operation": operation, "n": n, "d": d, "dtype": "float32", "setting": t.LOSSES}
            problem = module.setup(operation, n, d)
            yield from measure.speed(problem, about, budget=suite.losses_budget, green=passed, providers=providers)
            for provider in providers[:2]:
                found = measure.isolated(family, operation, provider, n, d, repeats=1)
                yield from (replace(row, setting=t.LOSSES) for row in found)


def scaling(suite: Suite) -> Iterator[Row]:
    """Time and peak memory by batch, each provider in a process of its own; what cannot fit is not tried."""
    providers = (OURS, peers.EAGER, peers.COMPILED, peers.CHUNKED, peers.OPEN_CLIP, peers.PRODUCTS)
    for provider in providers:
        peak = 0.0
        for n in suite.scaling_batches:
            if 4 * peak > _available():
                for metric in ("peak bytes", "alone both s"):
                    note = f"{measure.OUT_OF_MEMORY}: needs {4 * peak / 2**30:.0f} GiB"
                    yield Row(**_about(n, suite.scaling_dim), provider=provider, metric=metric, note=note)
                break
            if provider != OURS and n > LARGEST_PEER:
                break
            repeats = 4 if n <= 2048 else 2 if n <= 8192 or provider == peers.COMPILED else 1  # the first one compiles
            found = measure.isolated("contrastive", LOSS, provider, n, suite.scaling_dim, repeats)
            yield from found
            if found[0].note:
                break
            peak = found[0].median


def _available() -> int:
    """Bytes of memory that are free or can be freed."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    return 1024 * int(re.search(r"MemAvailable:\s+(\d+)", text)[1])  # type: ignore[index]


def widths_and_threads(suite: Suite) -> Iterator[Row]:
    """Time by features, and by threads."""
    few = (OURS, peers.EAGER, peers.PRODUCTS)
    passed = gate(suite, contrastive.TESTS)
    for d in suite.widths:
        about = {**_about(suite.width_batch, d), "setting": WIDTHS}
        yield from measure.speed(
            contrastive.setup(LOSS, suite.width_batch, d), about, budget=3, green=passed, providers=few
        )
    n, d = suite.threads_shape
    usual = torch.get_num_threads()
    for threads in suite.threads:
        torch.set_num_threads(threads)
        about = {**_about(n, d), "setting": THREADS}
        yield from measure.speed(contrastive.setup(LOSS, n, d), about, budget=5, green=passed, providers=few)
    torch.set_num_threads(usual)


def errors(suite: Suite) -> Iterator[Row]:
    """The accuracy of distances and of the loss."""
    yield from accuracy.distance_errors(suite.radii, suite.separations)
    yield from accuracy.loss_errors(suite.scales, suite.pair_separations)


def training(suite: Suite) -> Iterator[Row]:
    """HyperST, and the large-batch example."""
    passed = gate(suite, contrastive.TESTS)
    for n in suite.training_batches:
        yield from end_to_end.rows(n, budget=10, green=passed)
    yield from end_to_end.rows(suite.crops_batch, budget=10, backbone="conv+stain", green=passed)
    yield from recall.rows(suite.recall_batches, suite.recall_steps)


STAGES: dict[str, Callable[[Suite], Iterator[Row]]] = {
    "errors": errors,
    "operators": operators,
    "loss": loss,
    LOSSES: losses,
    "scaling": scaling,
    "widths and threads": widths_and_threads,
    "training": training,
}


def _about(n: int, d: int) -> dict:
    return {"operation": LOSS, "n": n, "d": d, "dtype": "float32"}


def _where(about: dict[str, str]) -> str:
    return f"{about['device']}; {about['versions']}; commit {about['commit']}, {about['run'][:10]}."


def page_of_losses(rows: list[Row], about: dict[str, str], folder: Path = REPOSITORY) -> None:
    """Write the table with a line for each loss into README.md."""
    operations = (LOSS, *blocked.OPERATIONS)
    replace_between(folder / "README.md", LOSSES, f"{t.losses_table(rows, operations)}\n\n{_where(about)}")


def pages(rows: list[Row], about: dict[str, str], suite: Suite, folder: Path = REPOSITORY) -> None:
    """Write the tables into README.md and docs/benchmarks.md, and draw the figures."""
    row_wise = [operation for module in FAMILIES.values() for operation in module.OPERATIONS]
    where = _where(about)
    loss_tables = "\n\n".join(t.loss_table(rows, n, d) for n, d in suite.loss_shapes)
    measured = [row for row in rows if row.provider != peers.MEMEFF]  # which takes CUDA tensors alone
    in_short = "\n\n".join(t.loss_table(measured, n, d) for n, d in suite.loss_shapes)
    for page, name, content in (
        ("README.md", "benchmark", f"{in_short}\n\n{where}"),
        ("docs/benchmarks.md", "where", where),
        ("docs/benchmarks.md", "loss", loss_tables),
        ("docs/benchmarks.md", "few features", t.loss_table(rows, *suite.keops_shape)),
        ("docs/benchmarks.md", "scaling", t.scaling_table(rows, suite.scaling_dim)),
        ("docs/benchmarks.md", "threads", t.threads_table(rows, *suite.threads_shape)),
        ("docs/benchmarks.md", "operators", t.operator_table(rows, row_wise)),
        ("docs/benchmarks.md", "errors", t.error_table(rows, row_wise)),
        ("docs/benchmarks.md", "accuracy", t.accuracy_table(rows)),
        ("docs/benchmarks.md", "training", t.end_to_end_table(rows)),
        ("docs/benchmarks.md", "recall", t.recall_table(rows)),
    ):
        replace_between(folder / page, name, content)
    page_of_losses(rows, about, folder)
    figures.draw(rows, suite, folder / "docs" / "figures")


def measure_all(suite: Suite, path: Path, stages: Sequence[str] = tuple(STAGES)) -> None:
    """Run stages and append the rows of each as soon as it has ended."""
    run = datetime.datetime.now().isoformat(timespec="seconds")
    for name in stages:
        start = time.perf_counter()
        rows = list(STAGES[name](suite))
        results.append(rows, path, run)
        print(f"{name}: {len(rows)} rows in {time.perf_counter() - start:.0f} s", flush=True)
        for row in rows:
            if row.metric in ("ratio both", "spots/s", "recall@1") or row.note:
                shape = f"{row.operation} {row.n} x {row.d} {row.setting}"
                print(f"  {shape:45} {row.provider:14} {row.metric:10} {row.note or f'{row.median:.3f}'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redraw", action="store_true", help="measure nothing, write pages and figures again")
    parser.add_argument("--losses", action="store_true", help="measure one stage and write the table of losses")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    os.environ.setdefault("PYTHONWARNINGS", "ignore::DeprecationWarning")
    suite, path = Suite(), results.path_for()
    if options.losses:
        path = path.with_stem(f"{path.stem}-{LOSSES}")  # beside the results of the last whole run
        measure_all(suite, path, [LOSSES])
        page_of_losses(*results.read_last(path))
        return
    if not options.redraw:
        measure_all(suite, path)
    pages(*results.read_last(path), suite)
    print(f"{path.relative_to(REPOSITORY)}, README.md, docs/benchmarks.md and docs/figures are up to date")


if __name__ == "__main__":
    main()
