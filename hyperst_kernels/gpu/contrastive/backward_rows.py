"""Kernels of the gradient over unflagged tiles: what all keys add to each query's, and with swapped arguments vice versa.

With share_ij = dL/d logit_ij, made of the softmaxes of its row and its column, G_ij = dL/dz_ij = share_ij times the slope
of the logit. The gradient of the point X_i is (sum_j G_ij t_j) X_i / t_i - sum_j G_ij Y_j. Weights are rounded before both sums:
a rounding then errs in the size of a pair's part, not in its direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.contrastive.forward import (
    NOWHERE,
    Keys,
    Rows,
    RowStats,
    diagonal_tiles,
    load_steepness,
    row_stats,
    tile_of_pairs,
)
from hyperst_kernels.gpu.contrastive.geometry import EXCESS, RATIO, SCALE, is_extreme, largest_of, remoteness_of
from hyperst_kernels.gpu.contrastive.inputs import (
    LossInputs,
    Sums,
    TermView,
    Upstream,
    matrix_args,
    rounds,
    sums_of,
)
from hyperst_kernels.gpu.contrastive.operands import each_key, parts_of_rows
from hyperst_kernels.gpu.split_products import PARTS
from hyperst_kernels.gpu.tile_math import load_each, pick


@triton.jit
def shares(
    remoteness, steepness, row_lse, column_lse, row_grad, column_grad,
    ROW_SHARE: tl.constexpr, COLUMN_SHARE: tl.constexpr,
):  # fmt: skip
    """Return dL / d logit in the unit of the upstream gradients: from the softmax over the row and from that over the column."""
    share = tl.zeros_like(remoteness)
    if ROW_SHARE:
        share = tl.exp2(tl.fma(remoteness, -steepness, -row_lse[:, None])) * row_grad[:, None]
    if COLUMN_SHARE:
        share += tl.exp2(tl.fma(remoteness, -steepness, -column_lse[None, :])) * column_grad[None, :]
    return share


@triton.jit
def parts_of(pointer, first, m, TILING: tl.constexpr):
    """The numbers (BLOCK_M PARTS) whose sums are t / s of the keys from ``first`` on."""
    keys = tl.minimum(tl.arange(0, TILING.BLOCK_M), (m - 1 - first).to(tl.int32))
    return tl.load(pointer + first * PARTS + (keys[:, None] * PARTS + tl.arange(0, PARTS)[None, :])).to(TILING.OPERAND)


class Form(NamedTuple):
    """What the kernel below knows when it is compiled, beside its tiles.

    Whether pairs have a share by their row and by their column; SCALE_GRAD: whether s dL/ds is summed; ATOMIC: whether the keys'
    gradients are summed too; and the tiles of flags, 0 where there are none.
    """

    ROW_SHARE: bool
    COLUMN_SHARE: bool
    SCALE_GRAD: bool
    ATOMIC: bool
    FLAG_N: int
    FLAG_M: int


class OwnedBlock(NamedTuple):
    """The block of rows that a program owns: where it begins, its features, numbers of each row, and steepness."""

    first: tl.tensor
    tile: tuple[tl.tensor, tl.tensor]
    stats: RowStats
    lse: tl.tensor
    grad: tl.tensor
    ratio: tl.tensor
    steepness: tl.tensor


class KeySums(NamedTuple):
    """`Sums` of all keys, to which programs add."""

    points: tl.tensor
    times: tl.tensor


class KeyUpstream(NamedTuple):
    """Numbers of each key, beside `Keys`, and flags with their strides by row and by key."""

    lse_ptr: tl.tensor
    grad_ptr: tl.tensor
    ratio_ptr: tl.tensor
    flag_ptr: tl.tensor
    flag_row_stride: tl.tensor
    flag_column_stride: tl.tensor


@triton.jit
def add_tile(
    points, times, scale_grad, start, block, owned, keys, of_keys, other,
    MASKED: tl.constexpr, CAREFUL: tl.constexpr, FORM: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """Add what the keys of one tile give to the rows; to ``other``, if ATOMIC, what the rows give to the keys.

    CAREFUL: as in `remoteness_of`; and pairs may be in flagged blocks, or rows beyond the end, whose shares are anything.
    """
    BLOCK_N: tl.constexpr = TILING.BLOCK_N
    BLOCK_M: tl.constexpr = TILING.BLOCK_M
    DTYPE: tl.constexpr = TILING.DTYPE
    start = tl.cast(start, tl.int64)
    n, m, d = owned.n, keys.m, owned.d
    z, part, _, scale_y, y = tile_of_pairs(
        block.tile, owned, keys, block.stats, block.first, start, 0, MASKED, True, TILING
    )
    remoteness, slope = remoteness_of(z, TILING.GEOMETRY, TILING.FAST, CAREFUL)
    remoteness = tl.where(part, remoteness, NOWHERE)
    if CAREFUL and FORM.FLAG_N > 0:
        rows, columns = block.first + tl.arange(0, BLOCK_N), start + tl.arange(0, BLOCK_M)
        down, right = rows // FORM.FLAG_N * of_keys.flag_row_stride, columns // FORM.FLAG_M * of_keys.flag_column_stride
        place = of_keys.flag_ptr + (down[:, None] + right[None, :])
        flags = tl.load(place, (rows < n)[:, None] & (columns < m)[None, :], other=0)
        remoteness = tl.where(flags == 0, remoteness, NOWHERE)
    share = shares(
        remoteness, block.steepness, block.lse, each_key(of_keys.lse_ptr, start, m, MASKED, DTYPE, BLOCK_M), block.grad,
        each_key(of_keys.grad_ptr, start, m, MASKED, DTYPE, BLOCK_M), FORM.ROW_SHARE, FORM.COLUMN_SHARE,
    )  # fmt: skip
    if FORM.SCALE_GRAD:
        scale_grad += tl.sum(share * remoteness, axis=1)
    share *= slope
    weight = (share * scale_y[None, :]).to(y.dtype)
    points = tl.dot(weight, y, points, input_precision=TILING.PRECISION, out_dtype=DTYPE)
    if TILING.CANCELS:
        ratio_y = parts_of(of_keys.ratio_ptr, start, m, TILING).to(y.dtype)
        times = tl.dot(weight, ratio_y, times, input_precision=TILING.PRECISION, out_dtype=DTYPE)
    if FORM.ATOMIC:
        back = (share * block.stats.scale[:, None]).to(y.dtype)
        back_points = tl.dot(tl.trans(back), block.tile[0], input_precision=TILING.PRECISION, out_dtype=DTYPE)
        columns, features = start + tl.arange(0, BLOCK_M), tl.arange(0, TILING.BLOCK_D)
        inside = (columns < m)[:, None] & (features < d)[None, :]
        tl.atomic_add(other.points + columns[:, None] * d + features[None, :], back_points, inside)
        if TILING.CANCELS:
            tl.atomic_add(other.times + columns, tl.sum(back.to(DTYPE) * block.ratio[:, None], axis=0), columns < m)
    return points, times, scale_grad


@triton.jit
def _grad_points(
    xs, ys, ratio_y_ptrs, ids, steepness_ptr, upstream, flags, sums, scale_grad_ptrs, others, top, last,
    FORM: tl.constexpr, TILING: tl.constexpr,
):  # fmt: skip
    """Add sum_j G_ij s_j y_j (r d) and sum_j G_ij t_j (r) to those of a block of rows.

    Of the rows from ``top`` to before ``last``; results begin with the first of them. SCALE_GRAD: also store sum_j share_ij
    remoteness_ij. ATOMIC: adds the same for the columns to ``others``, in whatever order programs come. t / s of a key comes as
    the sum of PARTS numbers.
    """
    BLOCK_N: tl.constexpr = TILING.BLOCK_N
    BLOCK_M: tl.constexpr = TILING.BLOCK_M
    BLOCK_D: tl.constexpr = TILING.BLOCK_D
    DTYPE: tl.constexpr = TILING.DTYPE
    t, longest, d = tl.program_id(1), xs.longest, xs.d
    x_stats, y_stats = pick(xs.stats, t), pick(ys.stats, t)
    first = top + tl.program_id(0).to(tl.int64) * BLOCK_N
    n = tl.minimum(pick(xs.lengths, t), last)
    m = tl.where(first < n, pick(ys.lengths, t), 0)
    owned = Rows(pick(xs.vectors, t), pick(xs.strides, t), n, d)
    keys = Keys(
        pick(ys.vectors, t), pick(ys.strides, t), m, y_stats + SCALE * longest, y_stats + EXCESS * longest, ids.columns, 0
    )  # fmt: skip
    of_keys = KeyUpstream(
        pick(upstream.column_lse, t), pick(upstream.column_grad, t), pick(ratio_y_ptrs, t), pick(flags.ptrs, t),
        flags.row_stride, flags.column_stride,
    )  # fmt: skip
    other = KeySums(pick(others.points, t), pick(others.times, t))
    rows, features = first + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    steepness = load_steepness(steepness_ptr)
    stats = row_stats(x_stats, ids.rows, rows, longest, n, TILING)
    lse, grad = (
        load_each(pick(upstream.row_lse, t), rows, n, DTYPE), load_each(pick(upstream.row_grad, t), rows, n, DTYPE)
    )  # fmt: skip
    careful = first + BLOCK_N > n
    if FORM.FLAG_N > 0:
        careful = careful | (tl.max(tl.load(pick(flags.counts, t) + rows // FORM.FLAG_N, rows < n, other=0)) > 0)
    widest = tl.max(stats.time) * largest_of(y_stats, longest) + tl.max(stats.excess)
    careful = careful | is_extreme(widest, steepness, TILING.GEOMETRY, DTYPE)
    tile = parts_of_rows(owned.ptr, first, 0, owned.stride, n, d, TILING, BLOCK_N)
    ratio = lse
    if FORM.ATOMIC:
        ratio = load_each(x_stats + RATIO * longest, rows, n, DTYPE)
    block = OwnedBlock(first, tile, stats, lse, grad, ratio, steepness)
    points, times = tl.zeros([BLOCK_N, BLOCK_D], DTYPE), tl.zeros([BLOCK_N, PARTS], DTYPE)
    scale_grad = tl.zeros([BLOCK_N], DTYPE)
    if careful:
        for start in range(0, m, BLOCK_M):
            points, times, scale_grad = add_tile(
                points, times, scale_grad, start, block, owned, keys, of_keys, other, True, True, FORM, TILING
            )  # fmt: skip
    else:
        whole, low, high = diagonal_tiles(first, m, BLOCK_N, BLOCK_M)
        for step in range(0, whole - (high - low)):
            number = tl.where(step < low, step, step + high - low)
            points, times, scale_grad = add_tile(
                points, times, scale_grad, number * BLOCK_M, block, owned, keys, of_keys, other, False, False, FORM,
                TILING,
            )  # fmt: skip
        for step in range(low, high + tl.cdiv(m, BLOCK_M) - whole):
            number = tl.where(step < high, step, whole)
            points, times, scale_grad = add_tile(
                points, times, scale_grad, number * BLOCK_M, block, owned, keys, of_keys, other, True, False, FORM,
                TILING,
            )  # fmt: skip
    place = pick(sums.points, t) + (rows - top)[:, None] * d + features[None, :]
    inside, time_place, time = (
        (rows < n)[:, None] & (features < d)[None, :], pick(sums.times, t) + rows - top, tl.sum(times, axis=1)
    )  # fmt: skip
    if FORM.ATOMIC:  # other programs may add to the same
        tl.atomic_add(place, points, inside)
        tl.atomic_add(time_place, time, rows < n)
    else:
        points, time = points + tl.load(place, inside, other=0), time + tl.load(time_place, rows < n, other=0)
        tl.debug_barrier()  # in place: several threads may have read what one of them writes
        tl.store(place, points, inside)
        tl.store(time_place, time, rows < n)
    if FORM.SCALE_GRAD:
        tl.store(pick(scale_grad_ptrs, t) + rows - top, scale_grad, rows < n)


def grad_points_by_rows(
    inputs: LossInputs,
    upstream: Upstream,
    flags: Tensor,
    table: dict[str, int],
    atomic: bool,
    row_chunk: slice,
    sums: Sequence[Sums],
    scale_grad: Tensor,
) -> None:
    """Add to the sums of some rows of all features, atomically of all; of the queries, sums of remoteness (t longest)."""
    nothing = inputs.c.new_empty(0, dtype=inputs.dtype)
    constants = inputs.product({**table, "inner": launch.bucket(inputs.d)})
    for terms in _launches(inputs, atomic):
        symmetric, swapped = terms[0].symmetric, terms[0].swapped
        own, size = inputs.flagged(terms, flags)
        form = Form(
            ROW_SHARE=symmetric or not swapped, COLUMN_SHARE=symmetric or swapped, SCALE_GRAD=not swapped, ATOMIC=atomic,
            **(size if inputs.cancels else {"FLAG_N": 0, "FLAG_M": 0}),
        )  # fmt: skip
        rows = min(row_chunk.stop - row_chunk.start, max(term.n for term in terms))
        _grad_points[(triton.cdiv(rows, table["rows"]), len(terms))](
            *matrix_args(terms), tuple(nothing if t.y.parts is None else t.y.parts for t in terms),
            inputs.ids_of(terms), inputs.steepness,
            upstream.of(terms), own, sums_of(sums, [t.owner for t in terms]),
            tuple(scale_grad[t.number, row_chunk.start :] for t in terms),
            sums_of(sums, [t.partner for t in terms]), row_chunk.start, row_chunk.stop,
            FORM=form, **constants,
        )  # fmt: skip


def _launches(inputs: LossInputs, atomic: bool) -> Iterator[list[TermView]]:
    """Yield terms that one launch serves: of the same compiled code and, unless sums are atomic, of different owners."""
    for side in (inputs.queries,) if atomic else (inputs.queries, inputs.keys):
        for symmetric in (True, False):
            terms = [term for term in side if term.symmetric == symmetric]
            if atomic and terms:
                yield terms
            elif terms:
                yield from rounds(terms)
