"""Tiles of features that a kernel multiplies, whole or split into two numbers each; their products; and a number of each key."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from hyperst_kernels.gpu.scalars import INTERPRETED


class Tiling(NamedTuple):
    """What a kernel that multiplies tiles knows when it is compiled.

    GEOMETRY: its place in `GEOMETRIES`; CANCELS: products lose digits, so that pairs are flagged, and rows have times; EXCLUDE:
    pairs of one id are left out; FAST: the instruction for logarithms of a GPU. Of the product: ROUNDED features, or SPLIT ones,
    each the sum of two numbers in matrices side by side, PRECISION for ``tl.dot``, DTYPE of results, OPERAND that of tiles.
    Blocks of rows, columns and features; EVEN: BLOCK_D divides d.
    """

    GEOMETRY: int
    EXCLUDE: bool
    CANCELS: bool
    FAST: bool
    ROUNDED: bool
    SPLIT: bool
    PRECISION: str
    DTYPE: tl.dtype
    OPERAND: tl.dtype
    EVEN: bool
    BLOCK_N: int
    BLOCK_M: int
    BLOCK_D: int


@triton.jit
def rows_of(pointer, first, start, stride, n, d, TILING: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK_D features of the rows from ``first`` (64 bit) on. Beyond the end the last row again: such pairs take no part.

    EVEN: BLOCK_D divides d. Masks would cost more than the arithmetic of some tiles.
    """
    rows = tl.minimum(tl.arange(0, BLOCK), (n - 1 - first).to(tl.int32))
    features = start + tl.arange(0, TILING.BLOCK_D)
    place = pointer + first * stride + (rows[:, None] * stride + features[None, :])
    if TILING.EVEN:
        tile = tl.load(place).to(TILING.OPERAND)
    else:
        tile = tl.load(place, (features < d)[None, :], other=0).to(TILING.OPERAND)
    if TILING.ROUNDED:
        tile = tile.to(tl.bfloat16)
        if INTERPRETED:  # which cannot multiply bf16
            tile = tile.to(tl.float32)
    return tile


@triton.jit
def parts_of_rows(pointer, first, start, stride, n, d, TILING: tl.constexpr, BLOCK: tl.constexpr):
    """Tiles whose sum is `rows_of`: of SPLIT features what was rounded and what rounding took, else all in the first."""
    tile = rows_of(pointer, first, start, stride, n, d, TILING, BLOCK)
    if TILING.SPLIT:
        return tile, rows_of(pointer + d, first, start, stride, n, d, TILING, BLOCK)
    return tile, tile


@triton.jit
def add_product(product, x, y, TILING: tl.constexpr):
    """Add x y^T to a tile, of `parts_of_rows`; of SPLIT features but for the product of what rounding took, smallest first.

    These three are added up by themselves: tensor cores cut digits off with each addition, and the sum of all features is larger.
    """
    if TILING.SPLIT:
        own = tl.dot(x[1], tl.trans(y[0]), input_precision=TILING.PRECISION, out_dtype=TILING.DTYPE)
        own = tl.dot(x[0], tl.trans(y[1]), own, input_precision=TILING.PRECISION, out_dtype=TILING.DTYPE)
        return product + tl.dot(x[0], tl.trans(y[0]), own, input_precision=TILING.PRECISION, out_dtype=TILING.DTYPE)
    return tl.dot(x[0], tl.trans(y[0]), product, input_precision=TILING.PRECISION, out_dtype=TILING.DTYPE)


@triton.jit
def each_key(pointer, start, m, MASKED: tl.constexpr, DTYPE: tl.constexpr, BLOCK_M: tl.constexpr):
    """A number of each key from ``start`` on, 0 beyond the end."""
    j = tl.arange(0, BLOCK_M)
    if MASKED:
        return tl.load(pointer + start + j, j < m - start, other=0).to(DTYPE)
    return tl.load(pointer + start + j).to(DTYPE)
