"""Errors of functions of one number over all normal float32 numbers, in units of the last place: docs/accuracy.md.

python -m benchmarks.ulps                  # every number: hours for "GPU arithmetic", minutes for the others
python -m benchmarks.ulps --stride 997     # every 997th
python -m benchmarks.ulps --path PyTorch   # one path alone; NAMES of functions after the options
python -m benchmarks.ulps --path GPU       # every number on the GPU at hand: a minute
python -m benchmarks.ulps --redraw         # the page again from the last results

Numbers are compared with float64, whose own error is 1e-6 of these units; the worst is compared once more in 300 digits.
A path is a process of its own, since kernels are chosen on import. Each function is written when it is done.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import mpmath
import torch
from torch import Tensor

import hyperst_kernels as hk
from benchmarks.markdown import markdown, replace_between
from benchmarks.oracle import SCALARS
from benchmarks.results import FOLDER, REPOSITORY, Row, append, read_since
from hyperst_kernels.cpu.native import bindings
from hyperst_kernels.reference import scalars

CODE, CALLS, ARITHMETIC, GPU = "machine code", "PyTorch", "GPU arithmetic", "GPU"
ENVIRONMENT = {CODE: {}, CALLS: {}, ARITHMETIC: {"TRITON_INTERPRET": "1", "HYPERST_TEST_ARITHMETIC": "approximate"}}
RESULTS, PAGE = FOLDER / "ulps.csv", REPOSITORY / "docs" / "accuracy.md"
BLOCK = {"cpu": 1 << 20, "cuda": 1 << 25}
TINY, HUGE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
WORST = "worst ulp"


class Function(NamedTuple):
    """What it computes on a path, in float64 and in any number of digits, for arguments from ``low`` to ``high``."""

    name: str
    run: Callable[[Tensor], Tensor]
    wide: Callable[[Tensor], Tensor]
    exact: Callable
    low: float
    high: float


def numbers(low: float, high: float, stride: int, place: str = "cpu") -> Iterator[Tensor]:
    """Float32 numbers between two, each stride-th, in blocks: negative ones away from 0 first; none that is subnormal."""
    first, last, tiny = (int(torch.tensor(float(max(abs(end), TINY))).view(torch.int32)) for end in (low, high, 0))
    pieces = [(first, last, 1)] if low > 0 else [(tiny, first, -1), (tiny, last, 1)]
    for start, end, sign in pieces:
        for block in range(start, end + 1, BLOCK[place] * stride):
            stop = min(block + BLOCK[place] * stride, end + 1)
            yield sign * torch.arange(block, stop, stride, dtype=torch.int32, device=place).view(torch.float32)


def units(value: Tensor, truth: Tensor) -> Tensor:
    """|value - truth| in units of the last place of the truth as a float32 number; 0 where the truth is no normal one."""
    size = truth.abs()
    normal = (size >= TINY) & (size <= HUGE)
    _, exponent = torch.frexp(torch.where(normal, size, 1.0))
    per_unit = (1047 - exponent.long() << 52).view(torch.float64)  # 2^(24 - exponent)
    off = torch.where(normal, value.double() - truth, 0.0).abs() * per_unit
    return torch.where(off.isnan(), math.inf, off)


def measure(function: Function, path: str, stride: int) -> Row:
    worst, at, got, over, count = -1.0, 0.0, 0.0, 0, 0
    for x in numbers(function.low, function.high, stride, "cuda" if path == GPU else "cpu"):
        value = function.run(x)
        off = units(value, function.wide(x.double()))
        i = int(off.argmax())
        if off[i] > worst:
            worst, at, got = float(off[i]), float(x[i]), float(value[i])
        over, count = over + int((off > 1).sum()), count + len(x)
    with mpmath.workdps(300):
        truth = function.exact(mpmath.mpf(at))
        spacing = mpmath.mpf(2) ** (mpmath.frexp(abs(truth))[1] - 24)
        checked = float(abs(mpmath.mpf(got) - truth) / spacing)
    if not math.isclose(checked, worst, rel_tol=1e-3, abs_tol=1e-3):
        raise ValueError(f"{path}, {function.name} at {at:.9g}: {worst} ulp from float64, {checked} from 300 digits")
    about = f"at={at:.9g} low={function.low:.9g} high={function.high:.9g} over={over / count:.3g} stride={stride}"
    return Row.of(
        [checked], operation=function.name, provider=path, n=count, d=1, dtype="float32", metric=WORST, setting=about
    )


# ------------------------------------------------------------------------------------------------------- the functions


def wide(name: str) -> Callable[[Tensor], Tensor]:
    """A function of the kernels in float64."""
    known: dict[str, Callable] = {
        "exp": torch.exp,
        "expm1": torch.expm1,
        "log1p": torch.log1p,
        "asinh": torch.asinh,
        "sinh": torch.sinh,
        "cosh": torch.cosh,
        "tanh": torch.tanh,
        "atan_unit": torch.atan,
        "hypot1": hypot1,
        "sinhc_scaled": lambda p: -torch.expm1(-2 * p) / (2 * p),
    }
    return known.get(name) or getattr(scalars, name)


def hypot1(x: Tensor) -> Tensor:
    return torch.hypot(torch.ones_like(x), x)


def of_rows() -> Iterator[Function]:
    """Public functions of one feature at c = 1, and their derivatives."""

    def run(function: Callable, x: Tensor) -> Tensor:
        return function(x[:, None]).reshape(len(x), -1)[:, 0]

    def slope(function: Callable, x: Tensor) -> Tensor:
        at = x[:, None].requires_grad_()
        return torch.autograd.grad(function(at).sum(), at)[0][:, 0]

    aperture = 2 * 0.1
    functions: dict[str, tuple[Callable, Callable, Callable, float, float]] = {
        "exp_map0": (hk.exp_map0, torch.sinh, mpmath.sinh, TINY, 88.5),
        "log_map0": (hk.log_map0, torch.asinh, mpmath.asinh, TINY, HUGE),
        "distance0": (hk.distance0, torch.asinh, mpmath.asinh, TINY, HUGE),
        "lift": (hk.lift, hypot1, SCALARS["hypot1"], TINY, HUGE),
        "lorentz_to_poincare": (
            hk.lorentz_to_poincare,
            lambda x: x / (1 + hypot1(x)),
            lambda x: x / (1 + mpmath.hypot(1, x)),
            TINY,
            5e6,
        ),
        "poincare_to_lorentz": (
            hk.poincare_to_lorentz,
            lambda p: 2 * p / ((1 - p) * (1 + p)),
            lambda p: 2 * p / (1 - p * p),
            TINY,
            1 - 2.0**-24,
        ),
        "half_aperture": (
            hk.half_aperture,
            lambda x: torch.asin((aperture / x).clamp(max=1)),
            lambda x: mpmath.asin(min(mpmath.mpf(1), mpmath.mpf(aperture) / x)),
            TINY,
            HUGE,
        ),
    }
    slopes: dict[str, tuple[Callable, Callable]] = {
        "exp_map0": (torch.cosh, mpmath.cosh),
        "log_map0": (lambda x: 1 / hypot1(x), lambda x: 1 / mpmath.hypot(1, x)),
        "distance0": (lambda x: 1 / hypot1(x), lambda x: 1 / mpmath.hypot(1, x)),
    }
    for name, (function, in_float64, exact, low, high) in functions.items():
        yield Function(name, partial(run, function), in_float64, exact, low, high)
        if name in slopes:
            yield Function(f"{name}, slope", partial(slope, function), *slopes[name], low, high)


def root(z: Tensor) -> Tensor:
    return torch.sqrt(z) * torch.sqrt(1 + z)


def of_machine_code() -> Iterator[Function]:
    """What the loss and distance matrices are made of, entry by entry."""

    def run(name: str, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        getattr(bindings.library(), f"hyperst_{name}")(x.data_ptr(), out.data_ptr(), len(x))
        return out

    def of_matrices(which: int, x: Tensor) -> Tensor:
        out = torch.empty(2, len(x))
        bindings.call("distances", x, len(x), 1.0, out[0], 1.0, out[1])
        return out[which]

    yield Function("exp2", partial(run, "exp2"), torch.exp2, lambda x: mpmath.mpf(2) ** x, -126.0, 127.0)
    yield Function("log1p", partial(run, "log1p"), torch.log1p, mpmath.log1p, TINY, 4e19)  # of a root
    yield Function(
        "asinh(sqrt z)",
        partial(of_matrices, 0),
        lambda z: torch.asinh(torch.sqrt(z)),
        lambda z: mpmath.asinh(mpmath.sqrt(z)),
        TINY,
        HUGE,
    )
    yield Function("sqrt(z (1 + z))", partial(of_matrices, 1), root, lambda z: mpmath.sqrt(z * (1 + z)), TINY, HUGE)


# what the kernels give them: radii overflow at 88.7
RANGES = {
    "exp": (-87.0, 88.5),
    "expm1": (-HUGE, 88.5),
    "sinh": (TINY, 88.5),
    "cosh": (TINY, 88.5),
    "sinhc": (TINY, 7000.0),
    "kappa": (TINY, 7000.0),
    "atan_unit": (TINY, 1.0),
}
# z of pairs in the hot loops of the loss, and in the careful ones: up to where they end
HOT, CAREFUL = (2.0**-7, 1e18), (TINY, 1.6e38)


def of_the_gpu() -> Iterator[Function]:
    """Functions of the device kernels: on a GPU, or in the interpreter with a GPU's arithmetic."""
    from benchmarks import ulp_kernels

    for name, exact in SCALARS.items():
        yield Function(name, partial(ulp_kernels.run, name), wide(name), exact, *RANGES.get(name, (TINY, HUGE)))
    in_float64 = (
        lambda z: 2 * torch.asinh(torch.sqrt(z / 2)) / math.log(2),
        lambda z: 0.5 / root(z / 2),
    )
    exact_ones = (
        lambda z: 2 * mpmath.asinh(mpmath.sqrt(z / 2)) / mpmath.log(2),
        lambda z: 1 / mpmath.sqrt(z * (2 + z)),
    )
    for names, (low, high) in ((ulp_kernels.HOT, HOT), (ulp_kernels.CAREFUL, CAREFUL)):
        for name, part in names.items():
            yield Function(name, partial(ulp_kernels.run, name), in_float64[part], exact_ones[part], low, high)


def functions(path: str) -> list[Function]:
    found = {CODE: (of_rows, of_machine_code), CALLS: (of_rows,), ARITHMETIC: (of_the_gpu,), GPU: (of_rows, of_the_gpu)}
    return [function for some in found[path] for function in some()]


# ------------------------------------------------------------------------------------------------------------ the page


def table(rows: list[Row], path: str) -> str:
    last = {row.operation: row for row in rows if row.provider == path and row.metric == WORST}
    lines = []
    for name, row in last.items():
        s = row.settings
        share = "every" if s["stride"] == 1 else f"1 in {s['stride']:.0f}"
        lines.append(
            [
                name,
                f"{s['low']:.3g} .. {s['high']:.3g}",
                f"{row.median:.2f}",
                f"{s['at']:.9g}",
                f"{100 * s['over']:.2g} %",
                share,
            ]
        )
    return markdown(["function", "from .. to", "worst, ulp", "at", "over 1 ulp", "numbers"], lines)


def write() -> None:
    rows = read_since(RESULTS, "")
    for path in (*ENVIRONMENT, GPU):
        replace_between(PAGE, path, table(rows, path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="functions, default all")
    parser.add_argument("--path", choices=(*ENVIRONMENT, GPU))
    parser.add_argument("--stride", type=int, default=1, help="measure every stride-th number")
    parser.add_argument("--redraw", action="store_true")
    given = parser.parse_args()
    if given.stride < 1:
        parser.error(f"--stride must be at least 1, got {given.stride}")
    if not given.redraw and given.path is None:
        for path, environment in ENVIRONMENT.items():
            command = [
                sys.executable,
                "-m",
                "benchmarks.ulps",
                "--path",
                path,
                "--stride",
                str(given.stride),
                *given.names,
            ]
            subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **environment}, check=True)
    elif not given.redraw:
        needed = ENVIRONMENT.get(given.path, {})
        if any(os.environ.get(name) != value for name, value in needed.items()):
            command = [sys.executable, "-m", "benchmarks.ulps", *sys.argv[1:]]
            os.execve(sys.executable, command, {**os.environ, **needed})
        if given.path == GPU and not torch.cuda.is_available():
            parser.error(
                "there is no GPU on this machine: --path 'GPU arithmetic' has its arithmetic in the interpreter"
            )
        if given.path == CODE and bindings.library() is None:
            parser.error("the package was installed without a C++ compiler: there is no machine code to measure")
        if given.path == CALLS:
            bindings.usable = lambda x: False
        run = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
        for function in functions(given.path):
            if not given.names or function.name in given.names:
                row = measure(function, given.path, given.stride)
                append([row], RESULTS, run, "cuda" if given.path == GPU else "cpu")
                print(f"{given.path}: {function.name} {row.median:.2f} ulp ({row.setting})", flush=True)
    write()


if __name__ == "__main__":
    main()
