"""How a step of a loss would scale to more threads than this machine has, from the instructions that each thread executes.

python -m benchmarks.threads                           # prints tables; needs valgrind, its headers and a C compiler
python -m benchmarks.threads --shapes 512x128 --threads 1 64

One forward and backward pass runs under valgrind's callgrind with as many threads as asked for, on however many cores. What a
thread waits costs no instructions, nor does memory: a prediction is an upper bound of the speed-up.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.markdown import markdown

SHAPES, THREADS = ("512x128", "4096x128", "4096x512"), (1, 2, 4, 8, 16, 32, 64)
# Requests to the running callgrind are macros of its header.
SWITCH = """
#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void stop(void) { CALLGRIND_STOP_INSTRUMENTATION; }
"""
_NAME = re.compile(r"(c?)(ob|fn)=\((\d+)\)(?: (.*))?")

Counts = Counter[tuple[str, str]]  # instructions by object and function, without those of what it calls


def counts(lines: Iterable[str]) -> Counts:
    """Return the instructions of a profile of callgrind."""
    names: dict[tuple[str, str], str] = {}
    place = {"ob": "", "fn": ""}
    found: Counts = Counter()
    of_call = False
    for line in lines:
        if match := _NAME.match(line):
            called, kind, number, name = match.groups()
            if name is not None:
                names[kind, number] = name.strip()
            if not called:
                place[kind] = names[kind, number]
        elif line.startswith("calls="):
            of_call = True  # the next line is what the callee costs
        elif re.match(r"[-+*\d]", line):
            if not of_call:
                found[place["ob"], place["fn"]] += int(line.split()[1])
            of_call = False
    return found


def part(place: tuple[str, str]) -> str:
    """Return what an object and function belong to."""
    name, function = Path(place[0]).name, place[1]
    if name.startswith("_library"):
        return "native code"
    if name.startswith("libtorch_cpu"):
        return "products (MKL)" if "mkl" in function.lower() else "PyTorch"
    if name.startswith("libgomp"):
        return "OpenMP"
    return (
        "Python" if "python" in name else "PyTorch" if name.startswith(("libtorch", "libc10")) else "system libraries"
    )


def by_part(of: Counts) -> Counter[str]:
    """Return the instructions of the parts."""
    found: Counter[str] = Counter()
    for place, number in of.items():
        found[part(place)] += number
    return found


def serial(alone: int, main: int, threads: int) -> float:
    """Return what is not divided of ``alone`` instructions at one thread, if the main thread of several executes ``main``."""
    return (threads * main - alone) / (threads - 1)


def scaling(runs: dict[int, list[Counts]]) -> str:
    """A table of predicted speed-ups: for each number of threads, the instructions of every thread, the main one first."""
    lines = []
    for threads, of in runs.items():
        totals = [sum(thread.values()) for thread in of]
        alone = sum(runs[1][0].values())
        figures = (f"{totals[0] / 1e6:.1f}", f"{max(totals) / 1e6:.1f}", f"{sum(totals) / 1e6:.0f}")
        lines.append([str(threads), *figures, f"{alone / max(totals):.1f}"])
    head = ["threads", "main thread, 10^6 instructions", "busiest thread", "all threads", "predicted speed-up"]
    return markdown(head, lines)


def parts(runs: dict[int, list[Counts]]) -> str:
    """A table of what is serial of each part, in percent of all instructions at one thread, from the largest number of threads."""
    threads = max(runs)
    alone, main = by_part(runs[1][0]), by_part(runs[threads][0])
    every, lines = sum(alone.values()), []
    for name, number in alone.most_common():
        share = 100 * serial(number, main[name], threads) / every
        lines.append([name, f"{number / 1e6:.1f}", f"{main[name] / 1e6:.2f}", f"{share:.2f}"])
    return markdown(["part", "1 thread, 10^6", f"main thread of {threads}, 10^6", "serial, % of all"], lines)


def step(shape: Sequence[int], threads: int, switch: Path) -> None:
    """Run one counted step of the contrastive loss, after two others."""
    import torch

    from hyperst_kernels import contrastive_loss

    torch.set_num_threads(threads)
    n, d = shape
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, d, generator=generator).div_(d**0.5).requires_grad_() for _ in range(2))
    c, scale = (torch.tensor(number, requires_grad=True) for number in (1.0, 14.0))
    library = ctypes.CDLL(str(switch))
    for counted in (False, False, True):
        if counted:
            library.start()
        torch.autograd.grad(contrastive_loss(x, y, c, logit_scale=scale), (x, y, c, scale))
    library.stop()


def needed() -> None:
    """Say what is not installed."""
    for tool, package in (("valgrind", "valgrind with its headers"), ("cc", "a C compiler")):
        if shutil.which(tool) is None:
            raise SystemExit(
                f"benchmarks.threads counts instructions with {tool}, which is not there: install {package}"
            )


def measured(shape: str, threads: int, folder: Path, switch: Path) -> list[Counts]:
    """Return the instructions of every thread of a step, the main thread's first."""
    out = folder / f"{shape}-{threads}"
    options = ("--tool=callgrind", "--instr-atstart=no", "--separate-threads=yes", f"--callgrind-out-file={out}")
    worker = (
        sys.executable,
        "-m",
        "benchmarks.threads",
        "--shapes",
        shape,
        "--threads",
        str(threads),
        "--switch",
        switch,
    )
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(["valgrind", *options, *worker], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"valgrind ended with {done.returncode} at {shape} on {threads} threads:\n{done.stderr[-2000:]}"
        )
    profiles = sorted(folder.glob(f"{out.name}-*"))
    found = [counts(path.read_text(encoding="utf-8", errors="replace").splitlines()) for path in profiles]
    return [of for of in found if of]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="rows x features")
    parser.add_argument("--threads", nargs="+", type=int, default=THREADS, help="numbers of threads, 1 among them")
    parser.add_argument("--switch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.switch is not None:
        step([int(number) for number in options.shapes[0].split("x")], options.threads[0], options.switch)
        return
    if 1 not in options.threads or len(options.threads) < 2:
        parser.error(f"--threads needs 1 and another number, got {' '.join(map(str, options.threads))}")
    needed()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, switch = folder / "switch.c", folder / "switch.so"
        source.write_text(SWITCH, encoding="utf-8")
        built = subprocess.run(["cc", "-shared", "-fPIC", "-o", switch, source], capture_output=True, text=True)
        if built.returncode:
            raise SystemExit(
                f"valgrind's header callgrind.h does not compile, install valgrind with its headers:\n{built.stderr}"
            )
        for shape in options.shapes:
            runs = {threads: measured(shape, threads, folder, switch) for threads in sorted(options.threads)}
            print(f"{shape}\n\n{scaling(runs)}\n\n{parts(runs)}\n", flush=True)


if __name__ == "__main__":
    main()
