"""Kernels of the gradient over unflagged tiles: the pull of all keys on each query, and by swapped arguments vice versa.

With share_ij = dL/d logit_ij, made of the softmaxes of its row and its column, G_ij = dL/dz_ij = share_ij times the slope
of the logit. The point X_i is pulled by (sum_j G_ij t_j) X_i / t_i - sum_j G_ij Y_j. Weights are rounded before both sums:
a rounding then errs in the size of a pair's pull, not in its direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.contrastive.forward import (
    NOWHERE,
    OVERFLOWS,
    Keys,
    Rows,
    RowTerms,
    diagonal_tiles,
    each_key,
    load_steepness,
    remoteness_of,
    row_terms,
    rows_of,
    tile_of_pairs,
)
from hyperst_kernels.gpu.contrastive.geometry import EXCESS, RATIO, SCALE, largest_of
from hyperst_kernels.gpu.contrastive.inputs import (
    Role,
    Run,
    Sums,
    Upstream,
    rounds,
    sums_of,
    views_of,
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


class Form(NamedTuple):
    """What a kernel of pulls knows when it is compiled, beside its tiles.

    Whether pairs have a share by their row and by their column; ALONG: whether the shares of s dL/ds are summed; ATOMIC: whether
    the keys are pulled too; and the tiles of flags, 0 where there are none.
    """

    ROW_SHARE: bool
    COLUMN_SHARE: bool
    ALONG: bool
    ATOMIC: bool
    FLAG_N: int
    FLAG_M: int


class Pulled(NamedTuple):
    """The block of rows that a program owns: where it begins, its features, and numbers of each row."""

    first: tl.tensor
    tile: tl.tensor
    terms: RowTerms
    lse: tl.tensor
    grad: tl.tensor
    ratio: tl.tensor


class PulledKeys(NamedTuple):
    """Where the sums of pulls on all keys, and of weighted times, are added up."""

    pull: tl.tensor
    time: tl.tensor


class Pulling(NamedTuple):
    """Numbers of each key, beside `Keys`, and flags with their strides by row and by key."""

    lse_ptr: tl.tensor
    grad_ptr: tl.tensor
    ratio_ptr: tl.tensor
    flag_ptr: tl.tensor
    flag_row_stride: tl.tensor
    flag_column_stride: tl.tensor


@triton.jit
def add_tile(
    pull, times, along, start, block, owned, keys, pulling, other, steepness,
    MASKED: tl.constexpr, CAREFUL: tl.constexpr, FORM: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """Add the pulls of the keys of one tile; to ``other``, if ATOMIC, those on the keys.

    CAREFUL: z may be large, the pairs of some rows in flagged blocks, or some rows beyond the end, whose shares are anything.
    """
    BLOCK_N: tl.constexpr = TILING.BLOCK_N
    BLOCK_M: tl.constexpr = TILING.BLOCK_M
    DTYPE: tl.constexpr = TILING.DTYPE
    start = tl.cast(start, tl.int64)
    n, m, d = owned.n, keys.m, owned.d
    z, part, _, scale_y, y = tile_of_pairs(
        block.tile, owned, keys, block.terms, block.first, start, 0, MASKED, True, TILING
    )
    remoteness, slope = remoteness_of(z, TILING.GEOMETRY, TILING.FAST, CAREFUL)
    remoteness = tl.where(part, remoteness, NOWHERE)
    if CAREFUL and FORM.FLAG_N > 0:
        rows, columns = block.first + tl.arange(0, BLOCK_N), start + tl.arange(0, BLOCK_M)
        down, right = rows // FORM.FLAG_N * pulling.flag_row_stride, columns // FORM.FLAG_M * pulling.flag_column_stride
        place = pulling.flag_ptr + (down[:, None] + right[None, :])
        flags = tl.load(place, (rows < n)[:, None] & (columns < m)[None, :], other=0)
        remoteness = tl.where(flags == 0, remoteness, NOWHERE)
    share = shares(
        remoteness, steepness, block.lse, each_key(pulling.lse_ptr, start, m, MASKED, DTYPE, BLOCK_M), block.grad,
        each_key(pulling.grad_ptr, start, m, MASKED, DTYPE, BLOCK_M), FORM.ROW_SHARE, FORM.COLUMN_SHARE,
    )  # fmt: skip
    if FORM.ALONG:
        along += tl.sum(share * remoteness, axis=1)
    share *= slope
    weight = (share * scale_y[None, :]).to(y.dtype)
    pull = tl.dot(weight, y, pull, input_precision=TILING.PRECISION, out_dtype=DTYPE)
    if TILING.GEOMETRY != 2:
        ratio_y = parts_of(pulling.ratio_ptr, start, m, TILING).to(y.dtype)
        times = tl.dot(weight, ratio_y, times, input_precision=TILING.PRECISION, out_dtype=DTYPE)
    if FORM.ATOMIC:
        back = (share * block.terms.scale[:, None]).to(y.dtype)
        pulled = tl.dot(tl.trans(back), block.tile, input_precision=TILING.PRECISION, out_dtype=DTYPE)
        columns, features = start + tl.arange(0, BLOCK_M), tl.arange(0, TILING.BLOCK_D)
        inside = (columns < m)[:, None] & (features < d)[None, :]
        tl.atomic_add(other.pull + columns[:, None] * d + features[None, :], pulled, inside)
        if TILING.GEOMETRY != 2:
            tl.atomic_add(other.time + columns, tl.sum(back.to(DTYPE) * block.ratio[:, None], axis=0), columns < m)
    return pull, times, along


@triton.jit
def _pull_of_rows(
    xs, ys, ratio_y_ptrs, ids_ptr, steepness_ptr, upstream, flags, sums, along_ptrs, others, longest, d, top, last,
    FORM: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """Add sum_j G_ij s_j y_j (r d) and sum_j G_ij t_j (r) to those of a block of rows.

    Of the rows from ``top`` to before ``last``; results begin with the first of them. ALONG: also store sum_j share_ij
    remoteness_ij. ATOMIC: adds the same for the columns to ``others``, in whatever order programs come. t / s of a key comes as
    the sum of PARTS numbers.
    """
    BLOCK_N: tl.constexpr = TILING.BLOCK_N
    BLOCK_M: tl.constexpr = TILING.BLOCK_M
    BLOCK_D: tl.constexpr = TILING.BLOCK_D
    DTYPE: tl.constexpr = TILING.DTYPE
    t = tl.program_id(1)
    x_terms, y_terms = pick(xs.terms, t), pick(ys.terms, t)
    first = top + tl.program_id(0).to(tl.int64) * BLOCK_N
    n = tl.minimum(pick(xs.lengths, t), last)
    m = tl.where(first < n, pick(ys.lengths, t), 0)
    owned = Rows(pick(xs.vectors, t), pick(xs.strides, t), n, d)
    keys = Keys(
        pick(ys.vectors, t), pick(ys.strides, t), m, y_terms + SCALE * longest, y_terms + EXCESS * longest, ids_ptr
    )  # fmt: skip
    pulling = Pulling(
        pick(upstream.column_lse, t), pick(upstream.column_grad, t), pick(ratio_y_ptrs, t), pick(flags.ptrs, t),
        flags.row_stride, flags.column_stride,
    )  # fmt: skip
    other = PulledKeys(pick(others.pull, t), pick(others.time, t))
    rows, features = first + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    steepness = load_steepness(steepness_ptr)
    terms = row_terms(x_terms, ids_ptr, rows, longest, n, TILING)
    lse, grad = (
        load_each(pick(upstream.row_lse, t), rows, n, DTYPE), load_each(pick(upstream.row_grad, t), rows, n, DTYPE)
    )  # fmt: skip
    careful = first + BLOCK_N > n
    if FORM.FLAG_N > 0:
        careful = careful | (tl.max(tl.load(pick(flags.counts, t) + rows // FORM.FLAG_N, rows < n, other=0)) > 0)
    if TILING.GEOMETRY == 0 and tl.float64 != DTYPE:
        careful = careful | (2 * (tl.max(terms.time) * largest_of(y_terms, longest) + tl.max(terms.excess)) > OVERFLOWS)
    tile = rows_of(owned.ptr, first, 0, owned.stride, n, d, TILING, BLOCK_N)
    ratio = lse
    if FORM.ATOMIC:
        ratio = load_each(x_terms + RATIO * longest, rows, n, DTYPE)
    block = Pulled(first, tile, terms, lse, grad, ratio)
    pull, times = tl.zeros([BLOCK_N, BLOCK_D], DTYPE), tl.zeros([BLOCK_N, PARTS], DTYPE)
    along = tl.zeros([BLOCK_N], DTYPE)
    if careful:
        for start in range(0, m, BLOCK_M):
            pull, times, along = add_tile(
                pull, times, along, start, block, owned, keys, pulling, other, steepness, True, True, FORM, TILING
            )  # fmt: skip
    else:
        whole, low, high = diagonal_tiles(first, m, BLOCK_N, BLOCK_M)
        for step in range(0, whole - (high - low)):
            number = tl.where(step < low, step, step + high - low)
            pull, times, along = add_tile(
                pull, times, along, number * BLOCK_M, block, owned, keys, pulling, other, steepness, False, False, FORM, TILING
            )  # fmt: skip
        for step in range(low, high + tl.cdiv(m, BLOCK_M) - whole):
            number = tl.where(step < high, step, whole)
            pull, times, along = add_tile(
                pull, times, along, number * BLOCK_M, block, owned, keys, pulling, other, steepness, True, False, FORM, TILING
            )  # fmt: skip
    place = pick(sums.pull, t) + (rows - top)[:, None] * d + features[None, :]
    inside, time_place, time = (
        (rows < n)[:, None] & (features < d)[None, :], pick(sums.time, t) + rows - top, tl.sum(times, axis=1)
    )  # fmt: skip
    if FORM.ATOMIC:  # other programs may add to the same
        tl.atomic_add(place, pull, inside)
        tl.atomic_add(time_place, time, rows < n)
    else:
        pull, time = pull + tl.load(place, inside, other=0), time + tl.load(time_place, rows < n, other=0)
        tl.debug_barrier()  # in place: several threads may have read what one of them writes
        tl.store(place, pull, inside)
        tl.store(time_place, time, rows < n)
    if FORM.ALONG:
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
    constants = run.product({**table, "inner": launch.bucket(run.d)})
    for roles in _launches(run, atomic):
        symmetric, swapped = roles[0].symmetric, roles[0].swapped
        own, size = run.flagged(roles, flags)
        form = Form(
            ROW_SHARE=symmetric or not swapped, COLUMN_SHARE=symmetric or swapped, ALONG=not swapped, ATOMIC=atomic,
            **(size if run.near else {"FLAG_N": 0, "FLAG_M": 0}),
        )  # fmt: skip
        rows = min(along.shape[1], max(role.n for role in roles))
        _pull_of_rows[(triton.cdiv(rows, table["rows"]), len(roles))](
            *views_of(roles), tuple(parts[r.partner] for r in roles), run.ids, run.steepness, upstream.of(roles), own,
            sums_of(sums, [r.owner for r in roles]), tuple(along[r.term] for r in roles),
            sums_of(sums, [r.partner for r in roles]), run.stride_of_terms, run.d, stripe.start, stripe.stop,
            FORM=form, **constants,
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
