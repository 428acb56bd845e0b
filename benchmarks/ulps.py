"""Errors of functions of one number over all normal float32 numbers, in units of the last place: docs/accuracy.md.

python -m benchmarks.ulps                  # every number: hours for "GPU arithmetic", minutes for the others
python -m benchmarks.ulps --stride 997     # every 997th
python -m benchmarks.ulps --path PyTorch   # one path alone; NAMES of functions after the options
python -m benchmarks.ulps --redraw         # the page again from the last results

Numbers are compared with float64, whose own error is 1e-6 of these units; the worst is compared once more in 300 digits.
A path is a process of its own, since kernels are chosen on import. Each function is written when it is done.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import mpmath
import numpy as np
import torch

import hyperst_kernels as hk
from benchmarks import tables
from benchmarks.oracle import SCALARS
from benchmarks.results import FOLDER, REPOSITORY, Row, append, read_since
from hyperst_kernels.cpu.native import bindings
from hyperst_kernels.reference import scalars

CODE, CALLS, GPU = "machine code", "PyTorch", "GPU arithmetic"
ENVIRONMENT = {CODE: {}, CALLS: {}, GPU: {"TRITON_INTERPRET": "1", "HYPERST_TEST_ARITHMETIC": "approximate"}}
RESULTS, PAGE = FOLDER / "ulps.csv", REPOSITORY / "docs" / "accuracy.md"
BLOCK = 1 << 20
TINY, HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
WORST = "worst ulp"


class Function(NamedTuple):
    """What it computes on a path, in float64 and in any number of digits, for arguments from ``low`` to ``high``."""

    name: str
    run: Callable[[np.ndarray], np.ndarray]
    wide: Callable[[np.ndarray], np.ndarray]
    exact: Callable
    low: float
    high: float


def numbers(low: float, high: float, stride: int) -> Iterator[np.ndarray]:
    """Float32 numbers between two, each stride-th, in blocks: negative ones away from 0 first; none that is subnormal."""
    first, last = (int(np.float32(max(abs(end), TINY)).view(np.uint32)) for end in (low, high))
    pieces = (
        [(first, last, 1)]
        if low > 0
        else [(int(np.float32(TINY).view(np.uint32)), e, s) for e, s in ((first, -1), (last, 1))]
    )
    for start, end, sign in pieces:
        for block in range(start, end + 1, BLOCK * stride):
            bits = np.arange(block, min(block + BLOCK * stride, end + 1), stride, dtype=np.uint32)
            yield np.float32(sign) * bits.view(np.float32)


def units(value: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """|value - truth| in units of the last place of the truth as a float32 number; 0 where the truth is no normal one."""
    size = np.abs(truth)
    normal = (size >= TINY) & (size <= HUGE)
    _, exponent = np.frexp(np.where(normal, size, 1.0))
    off = np.ldexp(np.abs(np.where(normal, value.astype(np.float64) - truth, 0.0)), 24 - exponent)
    return np.where(np.isnan(off), np.inf, off)


def measure(function: Function, path: str, stride: int) -> Row:
    worst, at, got, over, count = -1.0, np.float32(0), np.float32(0), 0, 0
    for x in numbers(function.low, function.high, stride):
        with np.errstate(all="ignore"):
            value = function.run(x)
            off = units(value, function.wide(x.astype(np.float64)))
        i = int(off.argmax())
        if off[i] > worst:
            worst, at, got = float(off[i]), x[i], value[i]
        over, count = over + int((off > 1).sum()), count + len(x)
    with mpmath.workdps(300):
        truth = function.exact(mpmath.mpf(float(at)))
        spacing = mpmath.mpf(2) ** (mpmath.frexp(abs(truth))[1] - 24)
        checked = float(abs(mpmath.mpf(float(got)) - truth) / spacing)
    if not np.isclose(checked, worst, rtol=1e-3, atol=1e-3):
        raise ValueError(f"{path}, {function.name} at {at!r}: {worst} ulp from float64, {checked} from 300 digits")
    about = (
        f"at={float(at):.9g} low={function.low:.9g} high={function.high:.9g} over={over / count:.3g} stride={stride}"
    )
    return Row.of(
        [checked], operation=function.name, provider=path, n=count, d=1, dtype="float32", metric=WORST, setting=about
    )


# ------------------------------------------------------------------------------------------------------- the functions


def wide(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function of the kernels in float64."""
    known: dict[str, Callable] = {
        "exp": np.exp,
        "expm1": np.expm1,
        "log1p": np.log1p,
        "asinh": np.arcsinh,
        "sinh": np.sinh,
        "cosh": np.cosh,
        "tanh": np.tanh,
        "atan_unit": np.arctan,
        "hypot1": lambda x: np.hypot(1, x),
        "sinhc_scaled": lambda p: -np.expm1(-2 * p) / (2 * p),
    }
    return known.get(name) or (lambda x: getattr(scalars, name)(torch.from_numpy(x)).numpy())


def of_rows() -> Iterator[Function]:
    """Public functions of one feature at c = 1, and their derivatives."""

    def run(function: Callable, x: np.ndarray) -> np.ndarray:
        out = function(torch.from_numpy(x)[:, None])
        return out.reshape(len(x), -1)[:, 0].numpy()

    def slope(function: Callable, x: np.ndarray) -> np.ndarray:
        at = torch.from_numpy(x)[:, None].requires_grad_()
        return torch.autograd.grad(function(at).sum(), at)[0][:, 0].numpy()

    aperture = 2 * 0.1
    functions: dict[str, tuple[Callable, Callable, Callable, float, float]] = {
        "exp_map0": (hk.exp_map0, np.sinh, mpmath.sinh, TINY, 88.5),
        "log_map0": (hk.log_map0, np.arcsinh, mpmath.asinh, TINY, HUGE),
        "distance0": (hk.distance0, np.arcsinh, mpmath.asinh, TINY, HUGE),
        "lift": (hk.lift, lambda x: np.hypot(1, x), SCALARS["hypot1"], TINY, HUGE),
        "lorentz_to_poincare": (
            hk.lorentz_to_poincare,
            lambda x: x / (1 + np.hypot(1, x)),
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
            lambda x: np.arcsin(np.minimum(1, aperture / x)),
            lambda x: mpmath.asin(min(mpmath.mpf(1), mpmath.mpf(aperture) / x)),
            TINY,
            HUGE,
        ),
    }
    slopes: dict[str, tuple[Callable, Callable]] = {
        "exp_map0": (np.cosh, mpmath.cosh),
        "log_map0": (lambda x: 1 / np.hypot(1, x), lambda x: 1 / mpmath.hypot(1, x)),
        "distance0": (lambda x: 1 / np.hypot(1, x), lambda x: 1 / mpmath.hypot(1, x)),
    }
    for name, (function, in_float64, exact, low, high) in functions.items():
        yield Function(name, partial(run, function), in_float64, exact, low, high)
        if name in slopes:
            yield Function(f"{name}, slope", partial(slope, function), *slopes[name], low, high)


def of_machine_code() -> Iterator[Function]:
    """What the loss and distance matrices are made of, entry by entry."""

    def run(name: str, x: np.ndarray) -> np.ndarray:
        at, out = torch.from_numpy(x), torch.empty(len(x))
        getattr(bindings.library(), f"hyperst_{name}")(at.data_ptr(), out.data_ptr(), len(x))
        return out.numpy()

    def of_matrices(which: int, x: np.ndarray) -> np.ndarray:
        at, out = torch.from_numpy(x), torch.empty(2, len(x))
        bindings.call("distances", at, len(x), 1.0, out[0], 1.0, out[1])
        return out[which].numpy()

    root = lambda z: np.sqrt(z) * np.sqrt(1 + z)  # noqa: E731
    yield Function("exp2", partial(run, "exp2"), np.exp2, lambda x: mpmath.mpf(2) ** x, -126.0, 127.0)
    yield Function("log1p", partial(run, "log1p"), np.log1p, mpmath.log1p, TINY, 4e19)  # of a root
    yield Function(
        "asinh(sqrt z)",
        partial(of_matrices, 0),
        lambda z: np.arcsinh(np.sqrt(z)),
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


def of_the_gpu() -> Iterator[Function]:
    """Functions of the device kernels, in the interpreter with a GPU's arithmetic."""
    import triton
    import triton.language as tl

    from benchmarks import gpu_arithmetic
    from hyperst_kernels.gpu import tile_math

    gpu_arithmetic.install()

    @triton.jit
    def each(function: tl.constexpr, x_ptr, out_ptr, n, SIZE: tl.constexpr):
        where = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
        x = tl.load(x_ptr + where, where < n, 1.0)
        tl.store(out_ptr + where, function(x), where < n)

    def run(name: str, x: np.ndarray) -> np.ndarray:
        at, out, size = torch.from_numpy(x), torch.empty(len(x)), 1 << 16
        each[(triton.cdiv(len(x), size),)](getattr(tile_math, name), at, out, len(x), SIZE=size)
        return out.numpy()

    for name, exact in SCALARS.items():
        yield Function(name, partial(run, name), wide(name), exact, *RANGES.get(name, (TINY, HUGE)))


def functions(path: str) -> list[Function]:
    if path == GPU:
        return list(of_the_gpu())
    return [*of_rows(), *of_machine_code()] if path == CODE else list(of_rows())


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
    return tables.markdown(["function", "from .. to", "worst, ulp", "at", "over 1 ulp", "numbers"], lines)


def write() -> None:
    rows = read_since(RESULTS, "")
    for path in ENVIRONMENT:
        tables.replace_between(PAGE, path, table(rows, path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="functions, default all")
    parser.add_argument("--path", choices=ENVIRONMENT)
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
        if any(os.environ.get(name) != value for name, value in ENVIRONMENT[given.path].items()):
            os.execve(
                sys.executable,
                [sys.executable, "-m", "benchmarks.ulps", *sys.argv[1:]],
                {**os.environ, **ENVIRONMENT[given.path]},
            )
        if given.path == CODE and bindings.library() is None:
            parser.error("the package was installed without a C++ compiler: there is no machine code to measure")
        if given.path == CALLS:
            bindings.usable = lambda x: False
        run = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
        for function in functions(given.path):
            if not given.names or function.name in given.names:
                row = measure(function, given.path, given.stride)
                append([row], RESULTS, run)
                print(f"{given.path}: {function.name} {row.median:.2f} ulp ({row.setting})", flush=True)
    write()


if __name__ == "__main__":
    main()
