"""Library products of weights that a kernel stores as the sum of two bf16 matrices: a third of the time of float32 ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

PARTS = tl.constexpr(16)  # the fewest columns of a product


class Weights(NamedTuple):
    """Weights (parts height width) and the strides between their parts and rows."""

    ptr: tl.tensor
    part_stride: tl.tensor
    stride: tl.tensor


@triton.jit
def store_parts(place, x, inside, part_stride, SPLIT: tl.constexpr):
    """Store some numbers, and if SPLIT what rounding took from them in the second part; return them as they are stored."""
    rounded = x.to(place.dtype.element_ty)
    tl.store(place, rounded, inside)
    found = rounded.to(x.dtype)
    if SPLIT:
        rest = (x - found).to(place.dtype.element_ty)
        tl.store(place + part_stride, rest, inside)
        found += rest.to(x.dtype)
    return found


@triton.jit
def store_summands(place, x, inside):
    """Store numbers x as PARTS that add up to them: `summands` of one row each, from ``place`` (r 1) on."""
    DTYPE: tl.constexpr = place.dtype.element_ty
    column = tl.arange(0, PARTS)[None, :]
    part = x.to(DTYPE)
    tile = tl.where(column == 0, part.to(x.dtype)[:, None], 0)
    if tl.bfloat16 == DTYPE:
        found = part.to(x.dtype)
        part = (x - found).to(DTYPE)
        tile = tl.where(column == 1, part.to(x.dtype)[:, None], tile)
        found += part.to(x.dtype)
        tile = tl.where(column == 2, (x - found).to(DTYPE).to(x.dtype)[:, None], tile)
    tl.store(place + column, tile.to(DTYPE), inside[:, None])


def parts_of_weights(dtype: torch.dtype, precision: str) -> int:
    """In how many bf16 numbers a weight of the geometry's dtype is held; 0: in one of that dtype.

    bf16 has the range that weights of 1/n^2 need, float16 has not. Products of two parts take a third of the time of
    those in float32, where the device has them with results in float32.
    """
    return 0 if dtype == torch.float64 or precision == "ieee" or torch.version.hip else 2


def parts_of(vectors: Tensor, dtype: torch.dtype, parts: int) -> tuple[Tensor, ...]:
    """Vectors (k d) as the sum of one or two matrices of a dtype."""
    high = vectors.to(dtype)
    if parts == 1:
        return (high,)
    return high, (vectors - high.to(torch.promote_types(vectors.dtype, torch.float32))).to(dtype)


def multiply(weights: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Weights, the sum of their parts (p r k), times the sum of p matrices (k d); but for the product of the smallest parts."""
    products = [product(w, part) for k, w in enumerate(weights) for part in parts[: len(parts) - k]]
    return functools.reduce(Tensor.add_, reversed(products))


def product(x: Tensor, y: Tensor) -> Tensor:
    """The product of two matrices in the precision it is accumulated in."""
    if x.dtype != torch.bfloat16:
        return x @ y
    if x.is_cuda and torch.version.hip is None:
        return torch.mm(x, y, out_dtype=torch.float32)
    return x.float() @ y.float()


def summands(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (r PARTS) numbers of ``dtype`` whose row sums are x (r)."""
    parts = x.new_zeros(len(x), PARTS.value)
    for i in range(3 if dtype == torch.bfloat16 else 1):
        parts[:, i] = (x - parts.sum(1)).to(dtype)
    return parts.to(dtype)
