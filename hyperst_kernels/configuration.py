"""What this installation computes with."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform

import torch

from hyperst_kernels._version import __version__
from hyperst_kernels.cpu import memory
from hyperst_kernels.cpu.native import bindings
from hyperst_kernels.operators.register import INTERPRETED, reference_in_use


def show_config() -> str:
    """Return what computes here, a line each: native code, instruction set, threads, Triton, device, limits.

    For reports of faults, and to see whether a wheel was built without a compiler. The environment variable HYPERST_INSTRUCTION_SET
    limits machine code to "AVX2" or the "baseline" of the architecture (SSE2, or NEON on ARM).

    >>> show_config().splitlines()[0].split()[0]
    'hyperst_kernels'
    """
    rows = {
        "hyperst_kernels": f"{__version__}, python {platform.python_version()}, torch {torch.__version__}",
        "CPU": _cpu(),
        "threads": str(torch.get_num_threads()),
        "products kept": f"{memory.kept_bytes / 2**20:.4g} MiB per term at most (limit_cpu_memory)",
        "Triton": _triton(),
        "GPU": _gpu(),
        "reference": "in use for everything (use_reference)" if reference_in_use() else "not in use",
    }
    width = max(map(len, rows)) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in rows.items())


def _cpu() -> str:
    if bindings.library() is None:
        return "PyTorch calls: the package was installed without a C++ compiler, or its library does not load"
    return f"machine code for float32 and half precision, {bindings.instruction_set()}; float64 in PyTorch calls"


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not installed: GPUs compute in PyTorch calls"
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # nightly builds and ROCm have other names for it
        import triton

        version = triton.__version__
    return f"{version}, in its interpreter, on CPU tensors too" if INTERPRETED else version


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none that torch finds"
    names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return ", ".join(names)
