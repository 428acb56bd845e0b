"""In place of Triton's driver: compiles each kernel that is launched to PTX for sm_80, and executes that.

with running() as run:
    kernel[grid](...)  # on CPU tensors
assert not run.findings
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tests.kernels.ptx.arithmetic import TYPES, bits_of
from tests.kernels.ptx.machine import Machine
from tests.kernels.ptx.memory import global_memory
from tests.kernels.ptx.program import Program, PtxError

ARCHITECTURE = 80  # later ones multiply matrices with instructions that are not covered


class Launch(NamedTuple):
    """A kernel that ran."""

    name: str
    grid: tuple[int, int, int]
    steps: int  # of all blocks of threads
    seconds: float


class Run:
    """What ran inside a block of ``running``, and what was found."""

    def __init__(self, worst: bool):
        self.worst = worst
        self.launches: list[Launch] = []
        self.findings: list[str] = []
        self._seen: set[tuple] = set()

    def note(self, what: str, machine: Machine) -> None:
        """Add a finding, once for each instruction."""
        key = what.split("(")[0], machine.program.name, machine.at.source, machine.at.line
        if key not in self._seen:
            self._seen.add(key)
            self.findings.append(f"{what}: {machine.where()}")


@functools.cache
def _decoded(ptx: str, shared: int, worst: bool) -> Program:
    return Program(ptx, shared, worst)


def program_of(kernel: Any, worst: bool) -> Program:
    """The program of a kernel that Triton compiled."""
    return _decoded(kernel.asm["ptx"], kernel.metadata.shared, worst)


def _flat(types: Sequence, values: Sequence) -> Iterator[tuple[str, Any]]:
    """Arguments with their types, tuples opened; constants are in the code."""
    for kind, value in zip(types, values, strict=True):
        if isinstance(kind, tuple | list):
            yield from _flat(kind, value)
        elif kind != "constexpr":
            yield kind, value


def _bits_of_argument(kind: str, value: Any) -> np.ndarray:
    if kind[0] == "*":
        return np.array([value.data_ptr()], np.uint64)
    if kind in ("fp32", "fp64"):
        return bits_of(np.array([value], TYPES[kind.replace("p", "")]))
    width = max(8, int(kind[1:]))
    return np.array([int(value) & ((1 << width) - 1)], TYPES[f"u{width}"])


def _execute(kernel: Any, bound: Sequence, grid: Sequence[int], run: Run) -> None:
    program = program_of(kernel, run.worst)
    arguments = list(_flat(tuple(kernel.src.signature.values()), bound))
    if len(arguments) + 2 != len(program.parameters):  # two pointers to memory for Triton's own use come last
        raise PtxError(f"{program.name}: {len(arguments)} arguments for {len(program.parameters)} parameters")
    values = [*(_bits_of_argument(*argument) for argument in arguments), *[np.zeros(1, np.uint64)] * 2]
    memory = global_memory([value for kind, value in arguments if kind[0] == "*"], program.granule["global"])
    x, y, z = (*(int(size) for size in grid), 1, 1)[:3]
    machine = Machine(program, dict(zip(program.parameters, values, strict=True)), memory, (x, y, z), run.note)
    before, steps = time.perf_counter(), 0
    with np.errstate(all="ignore"):
        for k in range(x * y * z):
            machine.run((k % x, k // x % y, k // (x * y)))
            steps += machine.steps
    run.launches.append(Launch(program.name, (x, y, z), steps, time.perf_counter() - before))


class _Device:
    """Answers what compilation asks of a device."""

    def __init__(self) -> None:
        from triton.backends.compiler import GPUTarget

        self.target, self.utils = GPUTarget("cuda", ARCHITECTURE, 32), self

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> str:
        return "executed PTX"

    def get_current_stream(self, device: object = None) -> int:
        return 0

    def get_device_properties(self, device: object) -> dict[str, int]:
        return {"max_shared_mem": 166912, "multiprocessor_count": 108, "warpSize": 32, "max_num_regs": 65536}

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def _cache_folder() -> str:
    """Where compiled kernels are kept: apart from others, because these have no machine code."""
    chosen = os.environ.get("TRITON_CACHE_DIR")
    return str(Path(chosen, "ptx") if chosen else Path(tempfile.gettempdir(), f"hyperst-kernels-ptx-{os.getuid()}"))


@contextlib.contextmanager
def running(approximate: str = "exact") -> Iterator[Run]:
    """Every launch of a Triton kernel inside the block compiles for sm_80, and executes its PTX on CPU tensors.

    ``approximate`` is "exact": instructions that a GPU computes approximately are rounded correctly; or "worst": they are
    off by the error that NVIDIA documents, to a side that depends on the argument only, and products of matrices are
    rounded towards zero.
    """
    from triton import knobs
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    if approximate not in ("exact", "worst"):
        raise ValueError(f'approximate is "exact" or "worst", got {approximate!r}')
    found = Run(approximate == "worst")
    launch, device, make_cubin = JITFunction.run, getattr(driver, "_active", None), CUDABackend.make_cubin
    cache = os.environ.get("TRITON_CACHE_DIR")

    def compile_and_execute(self, *args, grid, warmup, **options):
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        if not warmup:
            bind = self.device_caches[driver.active.get_current_device()][4]
            mode = knobs.compilation.instrumentation_mode
            bound, _, _ = bind(*args, **{"debug": self.debug, **options, "instrumentation_mode": mode})
            _execute(kernel, tuple(bound.values()), grid(bound) if callable(grid) else grid, found)
        return kernel

    driver.set_active(_Device())
    JITFunction.run = compile_and_execute
    CUDABackend.make_cubin = lambda *given: b""  # no machine code: it takes most of the time
    os.environ["TRITON_CACHE_DIR"] = _cache_folder()
    try:
        yield found
    finally:
        JITFunction.run, driver._active, CUDABackend.make_cubin = launch, device, make_cubin
        del os.environ["TRITON_CACHE_DIR"]
        if cache is not None:
            os.environ["TRITON_CACHE_DIR"] = cache


def as_cpu_kernels() -> None:
    """Import ``hyperst_kernels`` with its Triton kernels registered for CPU tensors, to be called inside ``running``.

    It does so in Triton's interpreter, whose flag is set for no longer than this: kernels are compiled nonetheless.
    """
    if "hyperst_kernels" in sys.modules:
        from hyperst_kernels.operators import register

        if not register.INTERPRETED or os.environ.get("TRITON_INTERPRET") == "1":
            raise PtxError("hyperst_kernels is already imported, with other kernels for the CPU")
        return
    importlib.import_module("triton.language.extra.libdevice")  # its own functions are compiled
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        importlib.import_module("hyperst_kernels")
    finally:
        del os.environ["TRITON_INTERPRET"]
