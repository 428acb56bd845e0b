"""Tiles of all pairs, and the kernel that takes log-sum-exps of both directions in one pass over them.

A pair's REMOTENESS grows with its distance and is what the logit, in units of log2(e), is minus ``steepness`` times:
log2(e^(sqrt(c) d)), the Euclidean distance, or 1 - cos. A sum of powers of two over logits then needs one fused
multiply-add and one instruction per term, and the largest logit is the smallest remoteness.

A sum is held as ``total`` times 2^-offset, where the offset is ``steepness`` times the remoteness of the nearest pair, as
rounded, and infinite as long as no pair took part. Pairs that take no part (positives, excluded ones, flagged tiles, beyond the
ends) are infinitely remote, in gradients NOWHERE, and nothing else is: a z that overflows makes the remoteness NaN. Neither
meets a difference of two such numbers, whose result would depend on how a compiler fuses it.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from hyperst_kernels.gpu.contrastive.geometry import EXCESS, SCALE, TIME, is_extreme, remoteness_of
from hyperst_kernels.gpu.contrastive.operands import add_product, each_key, parts_of_rows
from hyperst_kernels.gpu.scalars import rounded_product
from hyperst_kernels.gpu.tile_math import load_each, pick


class Exact(NamedTuple):
    """What a kernel that works feature by feature knows when it is compiled: beside `Tiling`'s, what the vectors are (TANGENT),
    how many rows and columns it looks at together, and the tiles (FLAG_N, FLAG_M) of flags."""

    GEOMETRY: int
    EXCLUDE: bool
    DTYPE: tl.dtype
    TANGENT: bool
    TILE: int
    FLAG_N: int
    FLAG_M: int


class Rows(NamedTuple):
    """A matrix (n d) whose rows a program owns some of."""

    ptr: tl.tensor
    stride: tl.tensor
    n: tl.tensor
    d: tl.tensor


class Keys(NamedTuple):
    """A matrix (m d) whose rows a program walks through, numbers of each, and which of all keys is its first row."""

    ptr: tl.tensor
    stride: tl.tensor
    m: tl.tensor
    scale_ptr: tl.tensor
    excess_ptr: tl.tensor
    ids_ptr: tl.tensor
    first: tl.tensor


class OwnedRows(NamedTuple):
    """The block of rows whose sums a program takes.

    Where the block begins, its features if they are kept, and its stats; steepness, the limit of z beside what it was subtracted
    from, and the z below which a pair may be under it; where flags go, and sums of columns (tiles 2 BLOCK_M).
    """

    first: tl.tensor
    tile: tuple[tl.tensor, tl.tensor]
    stats: RowStats
    steepness: tl.tensor
    limit: tl.tensor
    suspicious: tl.tensor
    flag_ptr: tl.tensor
    workspace_ptr: tl.tensor


class RowStats(NamedTuple):
    """Numbers of each row of a block (BLOCK_N)."""

    scale: tl.tensor
    time: tl.tensor
    excess: tl.tensor
    ids: tl.tensor


FARTHEST = tl.constexpr(float("inf"))  # the smallest z, remoteness or offset of no pair
NOWHERE = tl.constexpr(1e30)  # a remoteness whose power is 0, and 0 times it too


@triton.jit
def tile_of_pairs(
    x_tile, rows, keys, stats, first, start, left, MASKED: tl.constexpr, WHOLE: tl.constexpr, TILING: tl.constexpr
):
    """z of the pairs of a tile, which of them take part, the excesses b and scales of its keys, and the keys if WHOLE.

    Rows from ``first`` and columns from ``start`` on, 64 bit; the first key is that of row ``left``. WHOLE: ``x_tile``
    holds the rows already, all features of them. MASKED: the tile may hold positives, or reach beyond the ends.
    """
    BLOCK_N: tl.constexpr = TILING.BLOCK_N
    BLOCK_M: tl.constexpr = TILING.BLOCK_M
    DTYPE: tl.constexpr = TILING.DTYPE
    y, product = stats.ids, tl.zeros([BLOCK_N, BLOCK_M], DTYPE)
    if WHOLE:
        parts = parts_of_rows(keys.ptr, start, 0, keys.stride, keys.m, rows.d, TILING, BLOCK_M)
        y, product = parts[0], add_product(product, x_tile, parts, TILING)
    else:
        # on sm_100 the products of two steps do not fit beside each other
        for k in tl.range(0, rows.d, TILING.BLOCK_D, disallow_acc_multi_buffer=True):
            x = parts_of_rows(rows.ptr, first, k, rows.stride, rows.n, rows.d, TILING, BLOCK_N)
            y_part = parts_of_rows(keys.ptr, start, k, keys.stride, keys.m, rows.d, TILING, BLOCK_M)
            product = add_product(product, x, y_part, TILING)
    scale_y = each_key(keys.scale_ptr, start, keys.m, MASKED, DTYPE, BLOCK_M)
    b = each_key(keys.excess_ptr, start, keys.m, MASKED, DTYPE, BLOCK_M)
    z = (stats.time[:, None] * b[None, :] + stats.excess[:, None]) - product * stats.scale[:, None] * scale_y[None, :]
    # not 0: slopes stay finite where the weight is 0
    z = tl.maximum(z, 1e-30, propagate_nan=tl.PropagateNan.ALL)
    part = tl.full([BLOCK_N, BLOCK_M], True, tl.int1)
    if MASKED:
        i, j = first.to(tl.int32) + tl.arange(0, BLOCK_N), start.to(tl.int32) + tl.arange(0, BLOCK_M)
        part = ((i - left)[:, None] != j[None, :]) & (i < rows.n)[:, None] & (j < keys.m)[None, :]
    if TILING.EXCLUDE:
        j = tl.arange(0, BLOCK_M)
        ids = tl.load(keys.ids_ptr + start + j, j < keys.m - start, other=0)
        part = part & (stats.ids[:, None] != ids[None, :])
    return z, part, b, scale_y, y


@triton.jit
def row_stats(stats_ptr, ids_ptr, rows, longest, n, TILING: tl.constexpr):
    """Scale, time, excess and id of some rows."""
    ids = rows
    if TILING.EXCLUDE:
        ids = tl.load(ids_ptr + rows, rows < n, other=0)
    return RowStats(
        load_each(stats_ptr + SCALE * longest, rows, n, TILING.DTYPE),
        load_each(stats_ptr + TIME * longest, rows, n, TILING.DTYPE),
        load_each(stats_ptr + EXCESS * longest, rows, n, TILING.DTYPE),
        ids,
    )


@triton.jit
def holds_cancelled(nearest_z, stats, b, limit):
    """Whether the smallest z of a row is below ``limit`` times the widest span of the tile."""
    widest = stats.time * tl.max(b) + stats.excess
    return tl.max((nearest_z <= limit * widest).to(tl.int32)) != 0


@triton.jit
def add_powers(offset, total, remoteness, closest, steepness, ALL: tl.constexpr, AXIS: tl.constexpr):
    """Add 2^(-steepness remoteness) to sums along an axis, whose smallest remoteness is given.

    Both sums are relative to a rounded offset, not to a rounded pair: one fused multiply-add per pair then loses no
    digits, however large the offset is. ALL: every pair takes part.
    """
    before = offset
    offset = tl.minimum(before, steepness * closest)
    origin = offset
    if not ALL:  # no pair may have taken part yet
        origin = tl.where(offset < FARTHEST, offset, 0)
    powers = tl.exp2(tl.fma(remoteness, -steepness, tl.expand_dims(origin, AXIS)))
    return offset, total * tl.exp2(origin - before) + tl.sum(powers, axis=AXIS)


@triton.jit
def load_steepness(pointer):
    """Steepness, and not so small that a power of NOWHERE would be more than 0."""
    steepness = tl.load(pointer)
    return steepness + tl.where(tl.abs(steepness) < 1e-20, 1e-20, 0)


@triton.jit
def diagonal_tiles(row, m, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """How many tiles of columns are whole; the first of those that meet the diagonal from ``row`` on, and the next to the last."""
    whole = m // BLOCK_M
    low = (row // BLOCK_M).to(tl.int32)
    high = ((row + BLOCK_N + BLOCK_M - 1) // BLOCK_M).to(tl.int32)
    return whole, tl.minimum(tl.maximum(low, 0), whole), tl.minimum(tl.maximum(high, 0), whole)


@triton.jit
def add_tile(
    offset, total, start, block, rows, keys,
    MASKED: tl.constexpr, CAREFUL: tl.constexpr, SYMMETRIC: tl.constexpr, ALL_COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """Flag a tile, or add it to the sums of its rows and, in the workspace (tiles 2 BLOCK_M), to those of its columns.

    Of as many columns as there are rows, unless ALL_COLUMNS.
    """
    z, part, b, _, _ = tile_of_pairs(
        block.tile, rows, keys, block.stats, block.first, tl.cast(start, tl.int64), keys.first, MASKED, WHOLE, TILING
    )
    BLOCK_M: tl.constexpr = TILING.BLOCK_M
    ALL: tl.constexpr = not (MASKED or TILING.EXCLUDE)
    smallest = tl.min(tl.where(part, z, FARTHEST), axis=1)
    remoteness, _ = remoteness_of(z, TILING.GEOMETRY, TILING.FAST, CAREFUL)
    remoteness = tl.where(part, remoteness, FARTHEST)
    flag = tl.cast(0, tl.int8)
    if TILING.CANCELS:
        if tl.min(smallest) <= block.suspicious:
            flag = holds_cancelled(smallest, block.stats, b, block.limit).to(tl.int8)
        tl.store(block.flag_ptr + start // BLOCK_M, flag)
    if flag == 0:
        closest = tl.min(remoteness, axis=1)
        offset, total = add_powers(offset, total, remoteness, closest, block.steepness, ALL, 1)
        if SYMMETRIC:  # noqa: SIM102 (known when compiled; the other when run)
            if ALL_COLUMNS or start < rows.n - keys.first:
                j = tl.arange(0, BLOCK_M)
                mine, inside = block.workspace_ptr + 2 * start + j, j < keys.m - start
                closest_row = tl.min(remoteness, axis=0)
                before, sums = tl.load(mine, inside, other=FARTHEST), tl.load(mine + BLOCK_M, inside, other=0)
                before, sums = add_powers(before, sums, remoteness, closest_row, block.steepness, ALL, 0)
                tl.store(mine + BLOCK_M, sums, inside)
                tl.store(mine, before, inside)
    return offset, total


@triton.jit
def log_sum(offset, total):
    """log2 of a sum, in float64: float32 has no digits left behind the point of a large one. -inf where nothing took part."""
    nothing = (offset == FARTHEST) & (total == total)  # a NaN must be seen
    # the nearest pair is a power near 1, unless the rounding of a huge logit took it away
    total = tl.where(nothing, 1, tl.where(total == 0, float("nan"), total))
    digits = tl.log2(total).to(tl.float64) - tl.where(nothing, 0, offset).to(tl.float64)
    return tl.where(nothing, float("-inf"), digits)


class KeyArgs(NamedTuple):
    """Some keys of each term of a launch.

    Vectors with the stride from row to row and how many, a number each, the largest b; ids of keys, which of all keys is the
    first, and how many tiles they are.
    """

    vectors: tuple[tl.tensor, ...]
    strides: tuple[tl.tensor, ...]
    lengths: tuple[tl.tensor, ...]
    scales: tuple[tl.tensor, ...]
    excesses: tuple[tl.tensor, ...]
    largest: tuple[tl.tensor, ...]
    ids_ptr: tl.tensor
    first: tl.tensor
    tiles: tl.tensor


class LogSums(NamedTuple):
    """Where log-sum-exps of the rows of each term go; and sums of columns, for each program."""

    ptrs: tuple[tl.tensor, ...]
    workspace_ptr: tl.tensor


@triton.jit
def _log_sum_exps(
    xs, ys, ids_ptr, steepness_ptr, sums, flags, limit,
    SYMMETRIC: tl.constexpr, ALL_COLUMNS: tl.constexpr, WHOLE: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """Log-sum-exps over some keys.

    A program owns blocks of rows, and a workspace (tiles 2 BLOCK_M) for the columns: offset and total of each.
    """
    BLOCK_N: tl.constexpr = TILING.BLOCK_N
    BLOCK_M: tl.constexpr = TILING.BLOCK_M
    DTYPE: tl.constexpr = TILING.DTYPE
    t, longest, d = tl.program_id(1), xs.longest, xs.d
    x_stats, flag_ptr, n, m = pick(xs.stats, t), pick(flags.ptrs, t), pick(xs.lengths, t), pick(ys.lengths, t)
    owned = Rows(pick(xs.vectors, t), pick(xs.strides, t), n, d)
    keys = Keys(
        pick(ys.vectors, t), pick(ys.strides, t), m, pick(ys.scales, t), pick(ys.excesses, t), ys.ids_ptr, ys.first
    )  # fmt: skip
    steepness, largest_ptr = load_steepness(steepness_ptr), pick(ys.largest, t)
    mine = sums.workspace_ptr + (tl.cast(t, tl.int64) * tl.num_programs(0) + tl.program_id(0)) * ys.tiles * 2 * BLOCK_M
    for number in range(tl.program_id(0), tl.cdiv(n, BLOCK_N), tl.num_programs(0)):
        first = tl.cast(number, tl.int64) * BLOCK_N
        rows = first + tl.arange(0, BLOCK_N)
        flags_of_block = flag_ptr + tl.cast(number, tl.int64) * flags.row_stride
        stats = row_stats(x_stats, ids_ptr, rows, longest, n, TILING)
        # no z is more than twice as large; loaded for each block: a register less in the loops over keys
        widest = tl.max(stats.time) * tl.load(largest_ptr) + tl.max(stats.excess)
        suspicious = limit * widest  # pairs with a smaller z may have cancelled: look closer
        careful = (first + BLOCK_N > n) | is_extreme(widest, steepness, TILING.GEOMETRY, DTYPE)
        x_tile = stats.ids, stats.ids
        if WHOLE:
            x_tile = parts_of_rows(owned.ptr, first, 0, owned.stride, n, d, TILING, BLOCK_N)
        block = OwnedRows(first, x_tile, stats, steepness, limit, suspicious, flags_of_block, mine)
        offset, total = tl.full([BLOCK_N], FARTHEST, DTYPE), tl.zeros([BLOCK_N], DTYPE)
        if careful:
            for start in range(0, m, BLOCK_M):
                offset, total = add_tile(
                    offset, total, start, block, owned, keys, True, True, SYMMETRIC, ALL_COLUMNS, WHOLE, TILING,
                )  # fmt: skip
        else:
            # tiles that meet the diagonal, and one that may reach beyond the end: the others need no masks
            whole, low, high = diagonal_tiles(first - ys.first, m, BLOCK_N, BLOCK_M)
            for step in range(0, whole - (high - low)):
                tile = tl.where(step < low, step, step + high - low)
                offset, total = add_tile(
                    offset, total, tile * BLOCK_M, block, owned, keys, False, False, SYMMETRIC, ALL_COLUMNS, WHOLE, TILING,
                )  # fmt: skip
            for step in range(low, high + tl.cdiv(m, BLOCK_M) - whole):
                tile = tl.where(step < high, step, whole)
                offset, total = add_tile(
                    offset, total, tile * BLOCK_M, block, owned, keys, True, False, SYMMETRIC, ALL_COLUMNS, WHOLE, TILING,
                )  # fmt: skip
        tl.store(pick(sums.ptrs, t) + rows, log_sum(offset, total), rows < n)


@triton.jit
def _merge(workspace_ptr, out_ptrs, programs, tiles, ns, DTYPE: tl.constexpr, BLOCK_M: tl.constexpr):
    """Log-sum-exps of the columns of a tile, of the first n, from the workspaces of all programs, in fixed order."""
    SOME: tl.constexpr = 16  # programs at a time: one after the other, each would wait for its loads
    t, tile = tl.program_id(1), tl.program_id(0)
    j, some = tl.arange(0, BLOCK_M), tl.arange(0, SOME)
    first = workspace_ptr + (tl.cast(t, tl.int64) * programs * tiles + tile) * 2 * BLOCK_M + j
    offset = tl.full([BLOCK_M], FARTHEST, DTYPE)
    for start in range(0, programs, SOME):
        place = first[None, :] + (start + some).to(tl.int64)[:, None] * (2 * BLOCK_M * tiles)
        part = tl.load(place, (start + some < programs)[:, None], other=FARTHEST)
        offset = tl.minimum(offset, tl.min(part, axis=0))
    origin = tl.where(offset < FARTHEST, offset, 0)
    total = tl.zeros([BLOCK_M], DTYPE)
    for start in range(0, programs, SOME):
        place = first[None, :] + (start + some).to(tl.int64)[:, None] * (2 * BLOCK_M * tiles)
        part = tl.load(place, (start + some < programs)[:, None], other=FARTHEST)
        sums = tl.load(place + BLOCK_M, (start + some < programs)[:, None], other=0)
        total += tl.sum(rounded_product(sums, tl.exp2(origin[None, :] - part)), axis=0)
    columns = tile * BLOCK_M + j
    tl.store(pick(out_ptrs, t) + columns, log_sum(offset, total), columns < pick(ns, t))
