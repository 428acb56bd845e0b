"""The check on a real device: every kernel's tests there, then bandwidths and times, in one table.

    python -m benchmarks.gpu [--rows 1048576] [--dim 512] [--side 16384]

Row-wise kernels are set against a copy measured in the same run; the matrix of distances against the textbook formula
(cosh form, one cuBLAS product). Nothing is timed unless the tests pass. The table is printed and written to
``benchmarks/results/``. Where there is no GPU this says so and succeeds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
TESTS = ["tests/kernels/triton", "tests/kernels/test_row_wise.py", "tests/kernels/test_contrastive.py"]
Row = dict[str, str | float]


def tests_pass() -> bool:
    """The kernels' tests on the device, each result computed twice among them."""
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "--timeout=1200", *TESTS]).returncode == 0


def seconds(run: Callable[[], object]) -> float:
    """Median of many runs, each with a cold cache."""
    import triton

    return triton.testing.do_bench(run, warmup=50, rep=300, return_mode="median") / 1e3


def row_wise(n: int, d: int) -> list[Row]:
    """Bytes that have to move, over the time it took, as a share of what a copy reaches."""
    from hyperst_kernels.gpu import distance, entailment, maps

    c = torch.ones((), device="cuda")
    x, y, g = (torch.randn(n, d, device="cuda") / d**0.5 for _ in range(3))
    each, target = torch.ones(n, device="cuda"), torch.empty_like(x)
    matrix, column = x.nbytes, each.nbytes
    hinges = ([x], [y], c, [0.7], 0.1, True)
    work: list[tuple[str, int, Callable[[], object]]] = [
        ("copy", 2 * matrix, lambda: target.copy_(x)),
        ("exp_map0 with scale (LorentzLift)", 2 * matrix, lambda: maps.exp_map0(x, c, c)),
        ("  backward", 3 * matrix + 2 * column, lambda: maps.exp_map0_backward(g, x, c, c)),
        ("log_map0", 2 * matrix, lambda: maps.log_map0(x, c)),
        ("  backward", 3 * matrix + column, lambda: maps.log_map0_backward(g, x, c)),
        ("exp_map", 3 * matrix, lambda: maps.exp_map(x, y, c)),
        ("  backward", 5 * matrix + column, lambda: maps.exp_map_backward(g, x, y, c)),
        ("log_map", 3 * matrix, lambda: maps.log_map(x, y, c)),
        ("  backward", 5 * matrix + column, lambda: maps.log_map_backward(g, x, y, c)),
        ("lorentz_to_poincare", 2 * matrix, lambda: maps.lorentz_to_poincare(x, c)),
        ("inner", 2 * matrix + column, lambda: distance.inner(x, y, c)),
        ("distance", 2 * matrix + column, lambda: distance.distance(x, y, c, True)),
        ("  backward", 4 * matrix + 2 * column, lambda: distance.distance_backward(each, x, y, c, True)),
        ("half_aperture", matrix + column, lambda: entailment.half_aperture(x, c, 0.1, True)),
        ("exterior_angle", 2 * matrix + column, lambda: entailment.exterior_angle(x, y, c, True)),
        ("entailment hinge", 2 * matrix + column, lambda: entailment.entailment_hinges(*hinges)),
        ("  backward", 4 * matrix + 2 * column, lambda: entailment.entailment_hinges_backward(each[None], *hinges)),
    ]
    rows: list[Row] = []
    for name, size, run in work:
        took = seconds(run)
        copy = rows[0]["GB/s"] if rows else size / took / 1e9
        rate = size / took / 1e9
        rows.append({"kernel": name, "ms": took * 1e3, "GB/s": rate, "of copy": rate / float(copy)})
    return rows


def pairwise(n: int, d: int) -> list[Row]:
    """The matrix of distances beside the formula everybody writes first."""
    from hyperst_kernels.gpu import pairwise as kernels

    c = torch.ones((), device="cuda")
    x, y = (torch.randn(n, d, device="cuda") / d**0.5 for _ in range(2))

    def textbook() -> torch.Tensor:
        x_t, y_t = (torch.sqrt(1 + (z * z).sum(1)) for z in (x, y))
        return torch.acosh((x_t[:, None] * y_t - x @ y.T).clamp(min=1 + 1e-8))

    rows: list[Row] = [{"kernel": f"textbook distance matrix {n} x {n}, cuBLAS float32", "ms": seconds(textbook) * 1e3}]
    for precision in ("ieee", "bf16x3", "tf32", "bf16"):
        took = seconds(lambda precision=precision: kernels.pairwise_distance(x, y, c, True, precision))
        rows.append(
            {"kernel": f"pairwise_distance {precision}", "ms": took * 1e3, "x": float(rows[0]["ms"]) / took / 1e3}
        )
    matrix = kernels.pairwise_distance(x, y, c, True, "bf16x3")
    took = seconds(lambda: kernels.pairwise_distance_backward(matrix, x, y, c, matrix, True, "bf16x3"))
    rows.append({"kernel": "  backward", "ms": took * 1e3})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1 << 20)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--side", type=int, default=16384, help="rows and columns of the distance matrix")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU on this machine: nothing to check")
        return 0
    if not tests_pass():
        print("the kernels' tests fail on this device: nothing is timed")
        return 1
    import triton

    rows = [*row_wise(options.rows, options.dim), *pairwise(options.side, options.dim)]
    device = torch.cuda.get_device_name()
    header = f"{device}, torch {torch.__version__}, triton {triton.__version__}, {datetime.date.today()}"
    print(f"{header}\nB = {options.rows}, D = {options.dim}, float32")
    for row in rows:
        figures = "  ".join(f"{value:9.3f} {name}" for name, value in row.items() if name != "kernel")
        print(f"  {row['kernel']:55} {figures}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.date.today()}-{device.replace(' ', '-').lower()}-geometry.json"
    path.write_text(json.dumps({"where": header, **vars(options), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
