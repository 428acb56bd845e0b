"""``hyperst-kernels tune``: measure the launch settings of every kind of kernel on the GPU at hand, and keep the best.

Nothing is tuned behind a user's back: the shipped table serves every launch until this command has written another one,
which holds only what was measured and is read first from then on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from hyperst_kernels.gpu import contrastive, distance, launch, maps, pairwise
from hyperst_kernels.reference.contrastive import Pairing

Settings = dict[str, int]
Measure = Callable[[Callable[[], object]], float]  # seconds, or whatever is less for the better
ROWS, SIDE = 1 << 16, 8192  # rows of the row-wise kernels, rows and columns of the matrix
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
# what does not fit into registers or shared memory, or is no valid launch: not a candidate on this GPU
_UNFIT = ("out of resource", "OutOfResources", "PassManager", "invalid argument")


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


def _pull_candidates() -> Iterator[Settings]:
    yield {}  # blocks of weights and library products
    for columns in (32, 64):
        for warps in (4, 8):
            for stages in (2, 3):
                yield {"rows": 128, "columns": columns, "warps": warps, "stages": stages}


def _problems(
    d: int, dtype: torch.dtype, device: str
) -> Iterator[tuple[str, Iterable[Settings], Callable[[], object]]]:
    """Kind, candidates, and the launch that stands for the kind."""
    c = torch.ones((), dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=device)
    x, y = (torch.randn(ROWS, d, device=device, dtype=dtype) for _ in range(2))
    grad = torch.ones(ROWS, device=device, dtype=dtype)
    yield "map", _row_candidates(d), lambda: maps.exp_map0_backward(y, x, c, c)
    yield "pair", _row_candidates(d), lambda: distance.distance_backward(grad, x, y, c, True)
    x, y = x[:SIDE], y[:SIDE]
    if dtype != torch.float64:
        yield "product", _product_candidates(d), lambda: pairwise.pairwise_distance(x, y, c, True, "bf16x3")
    if dtype in (torch.float32, torch.float64):
        yield "plain product", _product_candidates(d), lambda: pairwise.pairwise_distance(x, y, c, True, "ieee")
    given, flags = ([x, y], None, c, c, None), ([Pairing(0, 1, True)], "lorentz", True, "bf16x3")
    if dtype != torch.float64:
        yield "contrastive", _loss_candidates(d), lambda: contrastive.forward(*given, *flags)
    if dtype == torch.bfloat16 and d <= 256:
        found = contrastive.forward(*given, *flags)
        upstream = torch.ones_like(found[0])
        yield (
            "contrastive pull",
            _pull_candidates(),
            lambda: contrastive.backward(upstream, upstream, *given, *found, *flags, False),
        )


def tuned(dims: Iterable[int], dtypes: Iterable[str], measure: Measure, device: str, tell=print) -> dict[str, dict]:
    """The part of a launch table, kind -> "bucket:dtype" -> settings, that ``measure`` finds best."""
    table: dict[str, dict] = {}
    for d in dims:
        for name in dtypes:
            for kind, candidates, run in _problems(d, DTYPES[name], device):
                times: list[tuple[float, Settings]] = []
                for values in candidates:
                    try:
                        with launch.forced(kind, values):
                            times.append((measure(run), values))
                    except Exception as error:  # Triton raises several kinds for what does not fit
                        if not any(mark in f"{type(error).__name__} {error}" for mark in _UNFIT):
                            raise
                best = min(times, key=lambda entry: entry[0])
                shipped = measure(run)
                # noise must not unseat the shipped setting
                keep = best[1] if best[0] < 0.98 * shipped else launch.lookup(kind, d, DTYPES[name])
                table.setdefault(kind, {})[f"{launch.bucket(d)}:{name}"] = keep
                tell(f"{kind}, D = {d}, {name}: {keep}, {shipped / min(best[0], shipped):.2f} x the setting before")
    return table


def write(found: dict[str, dict], path: Path) -> None:
    """Merge what was found for this architecture into the user's table, atomically."""
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    mine = table.setdefault(launch.architecture(), {})
    for kind, entries in found.items():
        mine.setdefault(kind, {}).update(entries)
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
    tune.add_argument("--dims", type=int, nargs="+", default=[128, 256, 512, 768, 1024], help="numbers of features")
    tune.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    tune.add_argument("--output", type=Path, default=launch.user_table_path(), help="the table (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("hyperst-kernels tune: no GPU on this machine, nothing to measure", file=sys.stderr)
        return 1
    import triton

    def measure(run: Callable[[], object]) -> float:
        return triton.testing.do_bench(run, return_mode="median")

    write(tuned(options.dims, options.dtypes, measure, "cuda"), options.output)
    print(f"written: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
