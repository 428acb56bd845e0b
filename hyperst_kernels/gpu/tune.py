"""``hyperst-kernels tune``: measure the launch settings of every kind of kernel on the GPU at hand, and keep the best.

Nothing is tuned behind a user's back: the shipped table serves every launch until this command has written another one,
which holds only what was measured and is read first from then on. It is written after every kind, and a kind that it has
from this version of the package and of Triton is not measured again.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from hyperst_kernels._version import __version__
from hyperst_kernels.gpu import contrastive, distance, distance_matrix, launch, maps
from hyperst_kernels.reference.contrastive import Pairing

Settings = dict[str, int]
Measure = Callable[[Callable[[], object]], float]  # seconds, or whatever is less for the better
ROWS, SIDE = 1 << 16, 8192  # rows of the row-wise kernels, rows and columns of the matrix
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
# what does not fit into registers or shared memory, or is no valid launch: not a candidate on this GPU
_UNFIT = ("out of resource", "OutOfResources", "PassManager", "invalid argument")
MEASURED = "measured"  # beside the architectures of a table: what was measured whole, and by which versions


def _row_candidates(d: int) -> Iterator[Settings]:
    for rows in (1, 2, 4, 8, 16):
        for warps in (1, 2, 4, 8, 16):
            if 4 <= rows * launch.bucket(d) // (32 * warps) <= 64:
                yield {"rows": rows, "warps": warps}


def _product_candidates(d: int) -> Iterator[Settings]:
    for rows, columns in ((64, 64), (128, 64), (128, 128), (128, 256)):
        for inner in (16, 32, 64):
            for warps in (4, 8):
                for stages in (2, 3, 4):
                    if inner <= launch.bucket(d):
                        yield {"rows": rows, "columns": columns, "inner": inner, "warps": warps, "stages": stages}


def _loss_candidates(d: int) -> Iterator[Settings]:
    for columns in (64, 128):
        for inner in (32, 64, 128):
            for warps in (4, 8):
                for stages in (2, 3):
                    if inner <= launch.bucket(d):
                        tile = {"rows": 128, "columns": columns, "inner": inner, "warps": warps, "stages": stages}
                        yield from ({**tile, "programs": programs} for programs in (132, 264))


def _backward_candidates(shipped: Settings) -> Iterator[Settings]:
    yield {}  # blocks of weights and library products
    # whether one pass may serve both sides is not measured here; with one stage Triton 3.6 compiles reads beyond shared memory
    kept = {"atomic": shipped["atomic"]} if "atomic" in shipped else {}
    for rows in (64, 128):
        for columns in (32, 64):
            for warps in (4, 8):
                for stages in (2, 3):
                    yield {"rows": rows, "columns": columns, "warps": warps, "stages": stages, **kept}


def distance_of(values: Settings, shipped: Settings) -> float:
    """How much slower a setting is taken to be than the one in use: by each doubling or halving of each of its numbers.

    The settings in use were chosen by what the kernels need of registers and shared memory, which one step changes least;
    a number that only one of two settings has counts as two steps.
    """
    changed = [key for key in values.keys() & shipped.keys() if values[key] != shipped[key]]
    return sum(abs(math.log2(values[key] / shipped[key])) for key in changed) + 2 * len(values.keys() ^ shipped.keys())


def ordered(candidates: Iterable[Settings], shipped: Settings) -> list[Settings]:
    """Candidates other than the setting in use, the nearest to it first."""
    return sorted(
        (values for values in candidates if values != shipped), key=lambda values: distance_of(values, shipped)
    )


class Problem(NamedTuple):
    """A kind of kernel at one d and dtype: candidates, and what makes the launch that stands for it."""

    kind: str
    candidates: Iterable[Settings]
    prepared: Callable[[], Callable[[], object]]


def _problems(d: int, dtype: torch.dtype, device: str) -> Iterator[Problem]:
    @functools.cache
    def given() -> tuple[torch.Tensor, ...]:
        c = torch.ones((), dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=device)
        x, y = (torch.randn(ROWS, d, device=device, dtype=dtype) for _ in range(2))
        return x, y, x[:SIDE], y[:SIDE], torch.ones(ROWS, device=device, dtype=dtype), c

    def maps_backward() -> Callable[[], object]:
        x, y, _, _, _, c = given()
        return lambda: maps.exp_map0_backward(y, x, c, c)

    def pairs_backward() -> Callable[[], object]:
        x, y, _, _, grad, c = given()
        return lambda: distance.distance_backward(grad, x, y, c, True)

    def product(precision: str) -> Callable[[], object]:
        _, _, x, y, _, c = given()
        return lambda: distance_matrix.pairwise_distance(x, y, c, True, precision)

    flags = ([Pairing(0, 1, True)], "lorentz", True, "bf16x3")

    def loss() -> Callable[[], object]:
        _, _, x, y, _, c = given()
        return lambda: contrastive.forward([x, y], None, c, c, None, *flags)

    def backward() -> Callable[[], object]:
        _, _, x, y, _, c = given()
        rows, columns, positives, near = contrastive.forward([x, y], None, c, c, None, *flags)
        upstream = torch.ones_like(rows, dtype=c.dtype)  # sums are kept in float64, gradients are not
        slopes = contrastive.of_losses(upstream, upstream, rows, columns, positives, [x, y], flags[0])
        return lambda: contrastive.backward(slopes, [x, y], None, c, c, None, near, *flags, False)

    yield Problem("map", _row_candidates(d), maps_backward)
    yield Problem("pair", _row_candidates(d), pairs_backward)
    if dtype != torch.float64:
        yield Problem("product", _product_candidates(d), functools.partial(product, "bf16x3"))
    if dtype in (torch.float32, torch.float64):
        yield Problem("plain product", _product_candidates(d), functools.partial(product, "ieee"))
    if dtype != torch.float64:
        yield Problem("contrastive", _loss_candidates(d), loss)
    if dtype == torch.bfloat16 and d <= 256:
        shipped = launch.lookup("contrastive backward", d, dtype)
        yield Problem("contrastive backward", _backward_candidates(shipped), backward)


class Found(NamedTuple):
    """The best settings of a kind, of all its candidates (``whole``) or of those that there was time for."""

    kind: str
    key: str  # "bucket:dtype"
    settings: Settings
    whole: bool = True


def tuned(
    dims: Iterable[int],
    dtypes: Collection[str],
    measure: Measure,
    device: str,
    *,
    known: Collection[tuple[str, str]] = (),
    minutes: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
    tell: Callable[[str], object] = print,
) -> Iterator[Found]:
    """What ``measure`` finds best, kind by kind; nothing of what is ``known``, and no new candidate after so many minutes."""
    until = clock() + 60 * minutes
    for d in dims:
        for name in dtypes:
            key = f"{launch.bucket(d)}:{name}"
            for problem in _problems(d, DTYPES[name], device):
                if (problem.kind, key) in known:
                    tell(f"{problem.kind}, D = {d}, {name}: measured before")
                elif clock() >= until:
                    tell(f"{problem.kind}, D = {d}, {name}: no time left")
                else:
                    yield _best(problem, d, DTYPES[name], key, measure, until, clock, tell)


def _best(
    problem: Problem,
    d: int,
    dtype: torch.dtype,
    key: str,
    measure: Measure,
    until: float,
    clock: Callable[[], float],
    tell: Callable[[str], object],
) -> Found:
    shipped, run = launch.lookup(problem.kind, d, dtype), problem.prepared()
    before = measure(run)
    times: list[tuple[float, Settings]] = [(before, shipped)]
    candidates = ordered(problem.candidates, shipped)
    tried = 0
    for values in candidates:
        if clock() >= until:
            break
        tried += 1
        try:
            with launch.forced(problem.kind, values):
                times.append((measure(run), values))
        except Exception as error:  # Triton raises several kinds for what does not fit
            if not any(mark in f"{type(error).__name__} {error}" for mark in _UNFIT):
                raise
    fastest, values = min(times, key=lambda entry: entry[0])
    # noise must not unseat the shipped setting
    keep = values if fastest < 0.98 * before else shipped
    said = f"{problem.kind}, D = {d}, {key.split(':')[1]}: {keep}, {before / min(fastest, before):.2f} x the setting before"
    whole = tried == len(candidates)
    tell(said if whole else f"{said}, after {tried} of {len(candidates)} candidates")
    return Found(problem.kind, key, keep, whole)


def _versions() -> str:
    return f"hyperst-kernels {__version__}, triton {triton.__version__}"


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def measured(path: Path) -> set[tuple[str, str]]:
    """Kinds and keys that the table at ``path`` has, whole, for this architecture from these versions."""
    entries = _read(path).get(MEASURED, {}).get(launch.architecture(), {})
    return {(kind, key) for kind, keys in entries.items() for key, by in keys.items() if by == _versions()}


def write(found: Found, path: Path) -> None:
    """Merge what was found for this architecture into the user's table, atomically."""
    table = _read(path)
    architecture = launch.architecture()
    table.setdefault(architecture, {}).setdefault(found.kind, {})[found.key] = found.settings
    if found.whole:
        entries = table.setdefault(MEASURED, {}).setdefault(architecture, {})
        entries.setdefault(found.kind, {})[found.key] = _versions()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as part:
        json.dump(table, part, indent=1)
    os.replace(part.name, path)
    launch.forget_tables()


def main(arguments: list[str] | None = None) -> int:
    """The command ``hyperst-kernels``; exit status 1 where there is no GPU to measure on."""
    parser = argparse.ArgumentParser(prog="hyperst-kernels", description="Kernels for hyperbolic contrastive learning.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    tune = commands.add_parser("tune", help="measure launch settings on this GPU and write a table of your own")
    tune.add_argument("--dims", type=int, nargs="+", default=[128, 256, 512, 1024], help="numbers of features")
    tune.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    tune.add_argument("--output", type=Path, default=launch.user_table_path(), help="the table (default: %(default)s)")
    tune.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no candidate after so many minutes (default: no limit)"
    )
    tune.add_argument("--again", action="store_true", help="measure what the table has from these versions as well")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("hyperst-kernels tune: no GPU on this machine, nothing to measure", file=sys.stderr)
        return 1

    def measure(run: Callable[[], object]) -> float:
        return triton.testing.do_bench(run, return_mode="median")

    known = set() if options.again else measured(options.output)
    for found in tuned(options.dims, options.dtypes, measure, "cuda", known=known, minutes=options.minutes):
        write(found, options.output)
    print(f"written: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
