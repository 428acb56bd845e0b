"""The gradient over unflagged tiles from blocks of weights, which meet the points in library products.

For features too wide for the accumulators of `backward_rows`, and for float32 ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.gpu.contrastive.backward_rows import shares
from hyperst_kernels.gpu.contrastive.forward import (
    NOWHERE,
    Keys,
    Rows,
    load_steepness,
    row_stats,
    tile_of_pairs,
)
from hyperst_kernels.gpu.contrastive.geometry import EXCESS, RATIO, SCALE, is_extreme, largest_of, remoteness_of
from hyperst_kernels.gpu.contrastive.inputs import LossInputs, Sums, Upstream, operand_arg
from hyperst_kernels.gpu.contrastive.operands import each_key
from hyperst_kernels.gpu.scalars import rounded_product
from hyperst_kernels.gpu.split_products import Weights, multiply, parts_of, parts_of_weights, store_parts
from hyperst_kernels.gpu.tile_math import load_each

BLOCK = 8192  # rows and columns whose weights are in memory together


class BlockOfPairs(NamedTuple):
    """Pairs whose weights are in memory together: the first row and column, and how many tiles of columns."""

    row: tl.tensor
    column: tl.tensor
    tiles: tl.tensor


class TileSums(NamedTuple):
    """Sums over the tiles of a block: of share times remoteness (tiles), and of weights times t / s of the other side, for each row
    (tiles of columns, rows) and for each column (tiles of rows, columns), with strides from tile to tile.
    """

    remoteness: tl.tensor
    rows: tl.tensor
    columns: tl.tensor
    row_stride: tl.tensor
    column_stride: tl.tensor


@triton.jit
def weights_of_tile(
    top, left, owned, keys, x, ids, steepness_ptr, upstream, remoteness_ptr,
    CAREFUL: tl.constexpr, SYMMETRIC: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """G_ij s_i s_j of a tile; stores its sum of share times remoteness."""
    DTYPE: tl.constexpr = TILING.DTYPE
    rows, steepness = top + tl.arange(0, TILING.BLOCK_N), load_steepness(steepness_ptr)
    stats = row_stats(x.stats, ids.rows, rows, x.longest, owned.n, TILING)
    z, part, _, scale_y, _ = tile_of_pairs(rows, owned, keys, stats, top, left, 0, CAREFUL, False, TILING)
    remoteness, slope = remoteness_of(z, TILING.GEOMETRY, TILING.FAST, CAREFUL)
    remoteness = tl.where(part, remoteness, NOWHERE)
    lse, grad = load_each(upstream.row_lse, rows, owned.n, DTYPE), load_each(upstream.row_grad, rows, owned.n, DTYPE)
    column_lse, column_grad = (
        each_key(upstream.column_lse, left, keys.m, CAREFUL, DTYPE, TILING.BLOCK_M),
        each_key(upstream.column_grad, left, keys.m, CAREFUL, DTYPE, TILING.BLOCK_M),
    )
    share = shares(remoteness, steepness, lse, column_lse, grad, column_grad, True, SYMMETRIC)
    tl.store(remoteness_ptr, tl.sum(share * remoteness))
    return share * slope * stats.scale[:, None] * scale_y[None, :]


@triton.jit
def store_times(row_place, column_place, weight, top, left, x, y, MASKED: tl.constexpr, TILING: tl.constexpr):
    """Store a tile's sums of weights times t / s of the other side: of each row and of each column.

    Rounded before they are added up: threads that share a row, or a column, then have the same bits.
    """
    ratio_x = load_each(x.stats + RATIO * x.longest, top + tl.arange(0, TILING.BLOCK_N), x.length, TILING.DTYPE)
    ratio_y = each_key(y.stats + RATIO * y.longest, left, y.length, MASKED, TILING.DTYPE, TILING.BLOCK_M)
    tl.store(row_place, tl.sum(rounded_product(weight, ratio_y[None, :]), axis=1))
    tl.store(column_place, tl.sum(rounded_product(weight, ratio_x[:, None]), axis=0))


@triton.jit
def store_tile(weights, weight, height, width, inside, SPLIT: tl.constexpr):
    """Store a tile of a block of weights; return it as it is stored."""
    i, j = tl.arange(0, weight.shape[0]), tl.arange(0, weight.shape[1])
    corner = weights.ptr + tl.cast(height, tl.int64) * weights.stride + width
    return store_parts(corner + (i[:, None] * weights.stride + j[None, :]), weight, inside, weights.part_stride, SPLIT)


@triton.jit
def _weights(
    x, y, ids, steepness_ptr, upstream, flag_ptr, flag_stride, weights, sums, block,
    SPLIT: tl.constexpr, SYMMETRIC: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """G_ij s_i s_j of a block of pairs, 0 in flagged tiles; and `TileSums`.

    SPLIT: a weight is the sum of two numbers, one in each part.
    """
    BLOCK_N: tl.constexpr = TILING.BLOCK_N
    BLOCK_M: tl.constexpr = TILING.BLOCK_M
    height, width = tl.program_id(0) // block.tiles * BLOCK_N, tl.program_id(0) % block.tiles * BLOCK_M
    top, left = tl.cast(block.row + height, tl.int64), tl.cast(block.column + width, tl.int64)
    i, j = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    n, m, longest = x.length, y.length, x.longest
    inside = (i < n - top)[:, None] & (j < m - left)[None, :]
    row_place = sums.rows + (width // BLOCK_M).to(tl.int64) * sums.row_stride + height + i
    column_place = sums.columns + (height // BLOCK_N).to(tl.int64) * sums.column_stride + width + j
    owned = Rows(x.vectors, x.stride, n, x.d)
    keys = Keys(y.vectors, y.stride, m, y.stats + SCALE * longest, y.stats + EXCESS * longest, ids.columns, 0)
    flagged = False
    if TILING.CANCELS:
        flagged = tl.load(flag_ptr + top // BLOCK_N * flag_stride + left // BLOCK_M) != 0
    careful = (left < top + BLOCK_N) & (top < left + BLOCK_M) | (top + BLOCK_N > n) | (left + BLOCK_M > m)
    if TILING.CANCELS:
        a, b = largest_of(x.stats, longest), largest_of(y.stats, longest)
        careful = careful | is_extreme(a + b + a * b, tl.load(steepness_ptr), TILING.GEOMETRY, TILING.DTYPE)
    if flagged:
        tl.store(sums.remoteness + tl.program_id(0), 0.0)
        store_tile(weights, tl.zeros([BLOCK_N, BLOCK_M], TILING.DTYPE), height, width, inside, SPLIT)
        tl.store(row_place, tl.zeros([BLOCK_N], TILING.DTYPE))
        tl.store(column_place, tl.zeros([BLOCK_M], TILING.DTYPE))
    elif careful:
        weight = weights_of_tile(
            top, left, owned, keys, x, ids, steepness_ptr, upstream, sums.remoteness + tl.program_id(0),
            True, SYMMETRIC, TILING,
        )  # fmt: skip
        weight = store_tile(weights, weight, height, width, inside, SPLIT)
        if TILING.CANCELS:
            store_times(row_place, column_place, tl.where(inside, weight, 0), top, left, x, y, True, TILING)
    else:
        weight = weights_of_tile(
            top, left, owned, keys, x, ids, steepness_ptr, upstream, sums.remoteness + tl.program_id(0),
            False, SYMMETRIC, TILING,
        )  # fmt: skip
        weight = store_tile(weights, weight, height, width, None, SPLIT)
        if TILING.CANCELS:
            store_times(row_place, column_place, weight, top, left, x, y, False, TILING)


def grad_points_by_blocks(
    inputs: LossInputs, upstream: Upstream, flags: Tensor, row_chunk: slice, sums: Sequence[Sums]
) -> Tensor:
    """Add to the sums of some rows, whole blocks, of all features, and return the queries' sum of remoteness ().

    Whatever can be is computed outside the loop over blocks: a GPU waits for a CPU that launches much more for each.
    """
    c = inputs.c
    rows, columns = inputs.table["rows"], inputs.table["columns"]
    # one part of bfloat16 features, which is as precise as they are
    parts = 1 if inputs.dtype == torch.bfloat16 else parts_of_weights(c.dtype, inputs.precision)
    dtype = torch.bfloat16 if parts else c.dtype
    weights = torch.empty(max(1, parts), min(BLOCK, inputs.n), min(BLOCK, inputs.m), dtype=dtype, device=c.device)
    out = Weights(weights, weights.stride(0), weights.stride(1))
    down, across = (triton.cdiv(x, tile) for x, tile in zip(weights.shape[1:], (rows, columns), strict=True))
    row_times, column_times = c.new_empty(across, down * rows), c.new_empty(down, across * columns)
    if not inputs.cancels:  # no times
        row_times, column_times = row_times[:0], column_times[:0]

    def operand(number: int, some: slice) -> tuple[Tensor, ...]:
        side = inputs.sides[number]
        if parts == 2 and side.halves is not None:
            return tuple(half[some, : inputs.d] for half in side.halves.chunk(2, 1))
        return parts_of(side.vectors[some], dtype, len(weights))

    constants = inputs.product(inputs.table)
    scale_grad = c.new_zeros((), dtype=torch.float64)
    for term in inputs.queries:
        x, y, of_term = operand_arg(term.x), operand_arg(term.y), Upstream(*(v[term.number] for v in upstream))
        for top in range(0, term.n, BLOCK):
            of_rows = operand(term.owner, slice(top, top + BLOCK))
            found = c.new_zeros(triton.cdiv(term.m, BLOCK), triton.cdiv(BLOCK, rows) * triton.cdiv(BLOCK, columns))
            for number, left in enumerate(range(0, term.m, BLOCK)):
                for_rows, for_columns = (row_chunk.start <= first < row_chunk.stop for first in (top, left))
                if not (for_rows or for_columns):
                    continue
                height, width = min(BLOCK, term.n - top), min(BLOCK, term.m - left)
                tiles_n, tiles_m = triton.cdiv(height, rows), triton.cdiv(width, columns)
                _weights[(tiles_n * tiles_m,)](
                    x, y, inputs.ids, inputs.steepness, of_term, flags[term.number], flags.stride(1), out,
                    TileSums(found[number], row_times, column_times, row_times.stride(0), column_times.stride(0)),
                    BlockOfPairs(top, left, tiles_m), SYMMETRIC=term.symmetric, SPLIT=parts == 2, **constants,
                )  # fmt: skip
                block = weights[:, :height, :width]
                if for_rows:
                    some = slice(top - row_chunk.start, top - row_chunk.start + height)
                    others = operand(term.partner, slice(left, left + width))
                    _add(sums[term.owner], some, multiply(block, others), row_times[:tiles_m, :height])
                if for_columns:
                    some = slice(left - row_chunk.start, left - row_chunk.start + width)
                    _add(sums[term.partner], some, multiply(block.mT, of_rows), column_times[:tiles_n, :width])
            if row_chunk.start <= top < row_chunk.stop:
                scale_grad += found.sum(dtype=torch.float64)
    for side, (points, times) in zip(inputs.sides, sums, strict=True):
        points /= side.scale[row_chunk, None]
        times /= side.scale[row_chunk]
    return scale_grad


def _add(sums: Sums, some: slice, products: Tensor, times: Tensor) -> None:
    """Add to the sums of ``some`` rows products (r d) and, of each tile, those of times (tiles r).

    In one call each: ``+=`` of a slice would also copy it onto itself.
    """
    sums.points[some].add_(products)
    if len(times):
        sums.times[some].add_(times.sum(0))
