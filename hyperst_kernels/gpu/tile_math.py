"""Rows of a matrix as a tile: loading and storing them, sums over features, lengths out of any range."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.gpu.scalars import rounded_product, sqrt_rn


@triton.jit
def pick(values, i):
    """Value i of a tuple: of all that a launch over several matrices was given, that of this program's own."""
    chosen = values[0]
    for k in tl.static_range(1, len(values)):
        chosen = tl.where(i == k, values[k], chosen)
    return chosen


@triton.jit
def load_rows(pointer, rows, columns, stride, n, d, DTYPE: tl.constexpr):
    """Rows of a matrix (n d) as a tile, zero beyond its ends; ``rows`` are 64 bit, so offsets do not overflow."""
    inside = (rows < n)[:, None] & (columns < d)[None, :]
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], inside, other=0).to(DTYPE)


@triton.jit
def store_rows(pointer, rows, columns, tile, n, d):
    """Write a tile over rows of a contiguous matrix (n d)."""
    inside = (rows < n)[:, None] & (columns < d)[None, :]
    tl.store(pointer + rows[:, None] * d + columns[None, :], tile.to(pointer.dtype.element_ty), inside)


@triton.jit
def load_each(pointer, rows, n, DTYPE: tl.constexpr):
    """One number per row."""
    return tl.load(pointer + rows, rows < n, other=0).to(DTYPE)


@triton.jit
def store_each(pointer, rows, values, n):
    tl.store(pointer + rows, values.to(pointer.dtype.element_ty), rows < n)


@triton.jit
def dot(x, y):
    """Sum of x * y over each row: the same bits in all threads that share a row.

    Unrounded, a thread's own product would be fused into the first addition between threads.
    """
    return tl.sum(rounded_product(x, y), axis=1)


@triton.jit
def scale_of(x):
    """A power of two for each row that brings its squares into range, and its inverse; 1 wherever that serves."""
    size = tl.max(tl.abs(x), axis=1)
    if x.dtype == tl.float64:
        small, large = 3.872591914849318e-121, 3.121748550315992e144  # 2^-400, 2^480
        up, down = 4.149515568880993e180, 2.409919865102884e-181  # 2^600, 2^-600
    else:
        small, large = 9.094947017729282e-13, 1.152921504606847e18  # 2^-40, 2^60
        # 2^100; 2^-70, which leaves small numbers of a long row above the least one
        up, down = 1.2676506002282294e30, 8.470329472543003e-22
    tiny, huge = size < small, size > large
    scale = tl.where(huge, down, tl.where(tiny, up, 1.0)).to(x.dtype)
    return scale, tl.where(huge, 1 / down, tl.where(tiny, 1 / up, 1.0)).to(x.dtype)


@triton.jit
def norm(x):
    """|x| of each row, also where its square overflows or vanishes."""
    scale, unscale = scale_of(x)
    x = x * scale[:, None]
    return sqrt_rn(dot(x, x)) * unscale


@triton.jit
def block(ROWS: tl.constexpr):
    """Rows and columns of this program's block."""
    rows = tl.program_id(0).to(tl.int64) * ROWS.BLOCK_ROWS + tl.arange(0, ROWS.BLOCK_ROWS)
    return rows, tl.arange(0, ROWS.BLOCK_D)


def summed(partial: Tensor, like: Tensor) -> Tensor:
    """The gradient of a 0-d tensor from one number per row."""
    return partial.sum(dtype=torch.float64).to(like.dtype)
