"""Functions of one number as the device kernels have them, over a vector: what `benchmarks.ulps` measures there."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks import gpu_arithmetic
from hyperst_kernels.gpu import launch, scalars
from hyperst_kernels.gpu.contrastive import geometry

HOT = {"remoteness": 0, "remoteness, slope": 1}
CAREFUL = {f"careful {name}": part for name, part in HOT.items()}
SIZE = 1 << 16 if launch.architecture() == "interpreter" else 1024
FAST = tl.constexpr(launch.architecture().startswith("cuda"))

if launch.architecture() == "interpreter":
    gpu_arithmetic.install()


@triton.jit
def _each(function: tl.constexpr, x_ptr, out_ptr, n, N: tl.constexpr):
    where = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    tl.store(out_ptr + where, function(tl.load(x_ptr + where, where < n, 1.0)), where < n)


@triton.jit
def _each_remoteness(x_ptr, out_ptr, n, PART: tl.constexpr, CAREFUL_ONE: tl.constexpr, N: tl.constexpr):
    where = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    z = tl.load(x_ptr + where, where < n, 1.0)
    remoteness, slope = geometry.remoteness_of(z, geometry.LORENTZ, FAST, CAREFUL_ONE)
    tl.store(out_ptr + where, slope if PART == 1 else remoteness, where < n)


def run(name: str, x: Tensor) -> Tensor:
    """A function of `hyperst_kernels.gpu.scalars`, or of the loss, of each of x (n)."""
    out, grid = torch.empty_like(x), (triton.cdiv(len(x), SIZE),)
    if name in HOT or name in CAREFUL:
        part = {**HOT, **CAREFUL}[name]
        _each_remoteness[grid](x, out, len(x), PART=part, CAREFUL_ONE=name in CAREFUL, N=SIZE)
    else:
        _each[grid](getattr(scalars, name), x, out, len(x), N=SIZE)
    return out
