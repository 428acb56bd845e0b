"""The device at hand: whether there is one, what it lacks, whether it still answers, clocks and memory."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.problem import Step
from hyperst_kernels.operators.register import INTERPRETED

INTERPRETER = "Triton's interpreter"


def name() -> str:
    """The GPU, or the interpreter where that is asked for; "" where kernels do not run."""
    if INTERPRETED:
        return INTERPRETER
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def lacks() -> str:
    """What Triton needs beside a GPU and does not find: it compiles the call of every kernel with the C compiler."""
    if INTERPRETED:
        return ""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "a C compiler (gcc, clang or $CC)"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton does
    header = Path(sysconfig.get_path("include", scheme), "Python.h")
    return "" if header.is_file() else f"the headers of Python ({header})"


def is_lost() -> bool:
    """Whether every later call on the GPU fails in this process, as after an illegal access."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def seconds(run: Callable[[], object]) -> float:
    """Median of many runs between CUDA events, each with a cold cache."""
    import triton

    return triton.testing.do_bench(run, warmup=50, rep=200, return_mode="median") / 1e3


def seconds_once(run: Callable[[], object]) -> float:
    """One run between CUDA events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def extra_bytes(step: Step) -> int:
    """Most device memory in use during a step, beyond inputs and gradients."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step.forward()
    step.backward()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in step.leaves)


class Meter(NamedTuple):
    """Where things are measured, and with what; tests have another one."""

    place: str = "cuda"
    seconds: Callable[[Callable[[], object]], float] = seconds
    seconds_once: Callable[[Callable[[], object]], float] = seconds_once
    extra_bytes: Callable[[Step], int] = extra_bytes
