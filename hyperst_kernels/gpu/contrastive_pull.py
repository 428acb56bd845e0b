"""Kernels of the gradient over unflagged tiles: the pull of all keys on each query, and by swapped arguments vice versa.

With share_ij = dL/d logit_ij, made of the softmaxes of its row and its column, G_ij = dL/dz_ij = share_ij times the slope
of the logit. The point X_i is pulled by (sum_j G_ij t_j) X_i / t_i - sum_j G_ij Y_j. Weights are rounded before both sums:
a rounding then errs in the size of a pair's pull, not in its direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.contrastive_rows import EXCESS, RATIO, SCALE, largest_of
from hyperst_kernels.gpu.contrastive_run import (
    Role,
    Run,
    Sums,
    Upstream,
    lengths_of,
    rounds,
    strides_of,
    vectors_of,
)
from hyperst_kernels.gpu.contrastive_tiles import (
    NOWHERE,
    OVERFLOWS,
    Keys,
    Rows,
    diagonal_tiles,
    each_key,
    load_steepness,
    remoteness_of,
    row_terms,
    rows_of,
    tile_of_pairs,
)
from hyperst_kernels.gpu.tile_math import load_each, pick

PARTS = tl.constexpr(16)  # the fewest columns of a product


@triton.jit
def shares(
    remoteness, steepness, row_lse, column_lse, row_pull, column_pull,
    ROW_SHARE: tl.constexpr, COLUMN_SHARE: tl.constexpr,
):  # fmt: skip
    """dL / d logit times what the pulls carry: the softmax over the row and that over the column."""
    share = tl.zeros_like(remoteness)
    if ROW_SHARE:
        share = tl.exp2(tl.fma(remoteness, -steepness, -row_lse[:, None])) * row_pull[:, None]
    if COLUMN_SHARE:
        share += tl.exp2(tl.fma(remoteness, -steepness, -column_lse[None, :])) * column_pull[None, :]
    return share


@triton.jit
def parts_of(pointer, first, m, TILING: tl.constexpr):
    """The numbers (BLOCK_M PARTS) whose sums are t / s of the keys from ``first`` on."""
    keys = tl.minimum(tl.arange(0, TILING.BLOCK_M), (m - 1 - first).to(tl.int32))
    return tl.load(pointer + first * PARTS + (keys[:, None] * PARTS + tl.arange(0, PARTS)[None, :])).to(TILING.OPERAND)


@triton.jit
def add_tile(
    pull, times, along, start, x_tile, owned, keys, ratio_x, ratio_y_ptr, steepness,
    column_lse_ptr, column_pull_ptr, flag_ptr, other_pull_ptr, other_time_ptr, first, terms, row_lse,
    row_pull, flag_row_stride, flag_column_stride, MASKED: tl.constexpr, CAREFUL: tl.constexpr,
    ROW_SHARE: tl.constexpr, COLUMN_SHARE: tl.constexpr, ALONG: tl.constexpr, ATOMIC: tl.constexpr,
    FLAG_N: tl.constexpr, FLAG_M: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """Add the pulls of the keys of one tile.

    CAREFUL: z may be large, the pairs of some rows in flagged blocks, or some rows beyond the end, whose shares are anything.
    """
    BLOCK_N: tl.constexpr = TILING.BLOCK_N
    BLOCK_M: tl.constexpr = TILING.BLOCK_M
    DTYPE: tl.constexpr = TILING.DTYPE
    start = tl.cast(start, tl.int64)
    n, m, d = owned.n, keys.m, owned.d
    z, part, _, scale_y, y = tile_of_pairs(x_tile, owned, keys, terms, first, start, 0, MASKED, True, TILING)
    remoteness, slope = remoteness_of(z, TILING.GEOMETRY, TILING.FAST, CAREFUL)
    remoteness = tl.where(part, remoteness, NOWHERE)
    if CAREFUL and FLAG_N > 0:
        rows, columns = first + tl.arange(0, BLOCK_N), start + tl.arange(0, BLOCK_M)
        place = (rows // FLAG_N * flag_row_stride)[:, None] + (columns // FLAG_M * flag_column_stride)[None, :]
        flags = tl.load(flag_ptr + place, (rows < n)[:, None] & (columns < m)[None, :], other=0)
        remoteness = tl.where(flags == 0, remoteness, NOWHERE)
    share = shares(
        remoteness, steepness, row_lse, each_key(column_lse_ptr, start, m, MASKED, DTYPE, BLOCK_M), row_pull,
        each_key(column_pull_ptr, start, m, MASKED, DTYPE, BLOCK_M), ROW_SHARE, COLUMN_SHARE,
    )  # fmt: skip
    if ALONG:
        along += tl.sum(share * remoteness, axis=1)
    share *= slope
    weight = (share * scale_y[None, :]).to(y.dtype)
    pull = tl.dot(weight, y, pull, input_precision=TILING.PRECISION, out_dtype=DTYPE)
    if TILING.GEOMETRY != 2:
        ratio_y = parts_of(ratio_y_ptr, start, m, TILING).to(y.dtype)
        times = tl.dot(weight, ratio_y, times, input_precision=TILING.PRECISION, out_dtype=DTYPE)
    if ATOMIC:
        back = (share * terms.scale[:, None]).to(y.dtype)
        pulled = tl.dot(tl.trans(back), x_tile, input_precision=TILING.PRECISION, out_dtype=DTYPE)
        columns, features = start + tl.arange(0, BLOCK_M), tl.arange(0, TILING.BLOCK_D)
        inside = (columns < m)[:, None] & (features < d)[None, :]
        tl.atomic_add(other_pull_ptr + columns[:, None] * d + features[None, :], pulled, inside)
        if TILING.GEOMETRY != 2:
            tl.atomic_add(other_time_ptr + columns, tl.sum(back.to(DTYPE) * ratio_x[:, None], axis=0), columns < m)
    return pull, times, along


@triton.jit
def _pull_of_rows(
    x_ptrs, y_ptrs, x_terms_ptrs, y_terms_ptrs, ratio_y_ptrs, ids_ptr, steepness_ptr,
    row_lse_ptrs, column_lse_ptrs, row_pull_ptrs, column_pull_ptrs, flag_ptrs, flagged_ptrs,
    pull_ptrs, time_ptrs, along_ptrs, other_pull_ptrs, other_time_ptrs,
    x_strides, y_strides, flag_row_stride, flag_column_stride, longest, ns, ms, d, top, last,
    ROW_SHARE: tl.constexpr, COLUMN_SHARE: tl.constexpr, ALONG: tl.constexpr, ATOMIC: tl.constexpr,
    FLAG_N: tl.constexpr, FLAG_M: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """Add sum_j G_ij s_j y_j (r d) and sum_j G_ij t_j (r) to those of a block of rows.

    Of the rows from ``top`` to before ``last``; results begin with the first of them. ALONG: also store sum_j share_ij
    remoteness_ij. ATOMIC: adds the same for the columns to other_pull (m d) and other_time (m), in whatever order programs
    come. ``flagged`` counts the flags of each row of flagged blocks; t / s of a key comes as the sum of PARTS numbers.
    """
    BLOCK_N: tl.constexpr = TILING.BLOCK_N
    BLOCK_M: tl.constexpr = TILING.BLOCK_M
    BLOCK_D: tl.constexpr = TILING.BLOCK_D
    DTYPE: tl.constexpr = TILING.DTYPE
    t = tl.program_id(1)
    x_terms, y_terms, ratio_y_ptr, flag_ptr = (
        pick(x_terms_ptrs, t), pick(y_terms_ptrs, t), pick(ratio_y_ptrs, t), pick(flag_ptrs, t)
    )  # fmt: skip
    column_lse_ptr, column_pull_ptr = pick(column_lse_ptrs, t), pick(column_pull_ptrs, t)
    other_pull_ptr, other_time_ptr = pick(other_pull_ptrs, t), pick(other_time_ptrs, t)
    first = top + tl.program_id(0).to(tl.int64) * BLOCK_N
    n = tl.minimum(pick(ns, t), last)
    m = tl.where(first < n, pick(ms, t), 0)
    owned = Rows(pick(x_ptrs, t), pick(x_strides, t), n, d)
    keys = Keys(
        pick(y_ptrs, t), pick(y_strides, t), m, y_terms + SCALE * longest, y_terms + EXCESS * longest, ids_ptr
    )  # fmt: skip
    rows, features = first + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    steepness = load_steepness(steepness_ptr)
    terms = row_terms(x_terms, ids_ptr, rows, longest, n, TILING)
    row_lse, row_pull = (
        load_each(pick(row_lse_ptrs, t), rows, n, DTYPE), load_each(pick(row_pull_ptrs, t), rows, n, DTYPE)
    )  # fmt: skip
    careful = first + BLOCK_N > n
    if FLAG_N > 0:
        careful = careful | (tl.max(tl.load(pick(flagged_ptrs, t) + rows // FLAG_N, rows < n, other=0)) > 0)
    if TILING.GEOMETRY == 0 and tl.float64 != DTYPE:
        careful = careful | (2 * (tl.max(terms.time) * largest_of(y_terms, longest) + tl.max(terms.excess)) > OVERFLOWS)
    x_tile = rows_of(owned.ptr, first, 0, owned.stride, n, d, TILING, BLOCK_N)
    ratio_x = row_lse
    if ATOMIC:
        ratio_x = load_each(x_terms + RATIO * longest, rows, n, DTYPE)
    pull, times = tl.zeros([BLOCK_N, BLOCK_D], DTYPE), tl.zeros([BLOCK_N, PARTS], DTYPE)
    along = tl.zeros([BLOCK_N], DTYPE)
    if careful:
        for start in range(0, m, BLOCK_M):
            pull, times, along = add_tile(
                pull, times, along, start, x_tile, owned, keys, ratio_x, ratio_y_ptr, steepness, column_lse_ptr,
                column_pull_ptr, flag_ptr, other_pull_ptr, other_time_ptr, first, terms, row_lse, row_pull, flag_row_stride,
                flag_column_stride, True, True,
                ROW_SHARE, COLUMN_SHARE, ALONG, ATOMIC, FLAG_N, FLAG_M, TILING,
            )  # fmt: skip
    else:
        whole, low, high = diagonal_tiles(first, m, BLOCK_N, BLOCK_M)
        for step in range(0, whole - (high - low)):
            tile = tl.where(step < low, step, step + high - low)
            pull, times, along = add_tile(
                pull, times, along, tile * BLOCK_M, x_tile, owned, keys, ratio_x, ratio_y_ptr, steepness, column_lse_ptr,
                column_pull_ptr, flag_ptr, other_pull_ptr, other_time_ptr, first, terms, row_lse, row_pull, flag_row_stride,
                flag_column_stride, False, False,
                ROW_SHARE, COLUMN_SHARE, ALONG, ATOMIC, FLAG_N, FLAG_M, TILING,
            )  # fmt: skip
        for step in range(low, high + tl.cdiv(m, BLOCK_M) - whole):
            tile = tl.where(step < high, step, whole)
            pull, times, along = add_tile(
                pull, times, along, tile * BLOCK_M, x_tile, owned, keys, ratio_x, ratio_y_ptr, steepness, column_lse_ptr,
                column_pull_ptr, flag_ptr, other_pull_ptr, other_time_ptr, first, terms, row_lse, row_pull, flag_row_stride,
                flag_column_stride, True, False,
                ROW_SHARE, COLUMN_SHARE, ALONG, ATOMIC, FLAG_N, FLAG_M, TILING,
            )  # fmt: skip
    place = pick(pull_ptrs, t) + (rows - top)[:, None] * d + features[None, :]
    inside, time_place, time = (
        (rows < n)[:, None] & (features < d)[None, :], pick(time_ptrs, t) + rows - top, tl.sum(times, axis=1)
    )  # fmt: skip
    if ATOMIC:  # other programs may add to the same
        tl.atomic_add(place, pull, inside)
        tl.atomic_add(time_place, time, rows < n)
    else:
        pull, time = pull + tl.load(place, inside, other=0), time + tl.load(time_place, rows < n, other=0)
        tl.debug_barrier()  # in place: several threads may have read what one of them writes
        tl.store(place, pull, inside)
        tl.store(time_place, time, rows < n)
    if ALONG:
        tl.store(pick(along_ptrs, t) + rows - top, along, rows < n)


def pull_by_rows(
    run: Run,
    upstream: Upstream,
    flags: Tensor,
    table: dict[str, int],
    atomic: bool,
    stripe: slice,
    sums: Sequence[Sums],
) -> Tensor:
    """Add the pulls on some rows of all features, or atomically on all, and return the queries' share of s dL/ds."""
    upstream = upstream.for_pulls(run)
    along = run.c.new_zeros(len(run.queries), stripe.stop - stripe.start)
    parts = [split(side.ratio, run.dtype) for side in run.sides]
    flagged = [flags.sum(axis, dtype=torch.int32) for axis in (2, 1)]
    constants = run.product({**table, "inner": launch.bucket(run.d)})
    for roles in _launches(run, atomic):
        symmetric, swapped = roles[0].symmetric, roles[0].swapped
        own, *strides, size = run.flagged(roles, flags)
        counts = flagged[int(swapped)]
        rows = min(along.shape[1], max(role.n for role in roles))
        _pull_of_rows[(triton.cdiv(rows, table["rows"]), len(roles))](
            *vectors_of(roles), tuple(parts[r.partner] for r in roles), run.ids, run.steepness, *upstream.of(roles),
            own, tuple(counts[role.term] for role in roles),
            tuple(sums[r.owner].pull for r in roles), tuple(sums[r.owner].time for r in roles),
            tuple(along[r.term] for r in roles),
            tuple(sums[r.partner].pull for r in roles), tuple(sums[r.partner].time for r in roles),
            *strides_of(roles), *strides, run.stride_of_terms, *lengths_of(roles), run.d, stripe.start, stripe.stop,
            ROW_SHARE=symmetric or not swapped, COLUMN_SHARE=symmetric or swapped, ALONG=not swapped, ATOMIC=atomic,
            **(size if run.near else {"FLAG_N": 0, "FLAG_M": 0}), **constants,
        )  # fmt: skip
    return run.from_remoteness(along.sum(dtype=torch.float64))


def _launches(run: Run, atomic: bool) -> Iterator[list[Role]]:
    """Roles that one launch serves: of the same compiled code and, unless sums are atomic, of different owners."""
    for side in (run.queries,) if atomic else (run.queries, run.keys):
        for symmetric in (True, False):
            roles = [role for role in side if role.symmetric == symmetric]
            if atomic and roles:
                yield roles
            elif roles:
                yield from rounds(roles)


def split(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(r PARTS) numbers of ``dtype`` whose row sums are x (r)."""
    parts = x.new_zeros(len(x), PARTS.value)
    for i in range(3 if dtype == torch.bfloat16 else 1):
        parts[:, i] = (x - parts.sum(1)).to(dtype)
    return parts.to(dtype)
