"""Pairs of a block whose product has lost digits, to be computed again from differences."""

from __future__ import annotations

from torch import Tensor

from hyperst_kernels.cpu.geometry import CHUNK_NUMBERS
from hyperst_kernels.cpu.tiles import MANY

FEW = 1024  # so many are never too many


def too_many(lost: Tensor) -> bool:
    """Whether differences, pair by pair, would take longer than another way for the whole block."""
    return int(lost.sum()) > MANY * lost.numel() + FEW


def chunks(lost: Tensor, d: int) -> list[tuple[Tensor, Tensor]]:
    """Indices (i, j) of the pairs, as many together as keep their rows of d features in cache."""
    i, j = lost.nonzero(as_tuple=True)
    size = max(1, CHUNK_NUMBERS // d)
    return list(zip(i.split(size), j.split(size), strict=True)) if len(i) else []
