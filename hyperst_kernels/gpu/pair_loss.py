"""The functions of `hyperst_kernels.blocked.pairs` for a GPU: each reads a block of distances once.

A cost, scale times distance, is the sum of two numbers: the rounded product and what rounding took. Less the nearest cost, which is
a rounded product, it keeps its digits however large the scale is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.blocked.pairs import Pairs, PowerSums, Weights
from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.scalars import exp, log1p, rounded_product
from hyperst_kernels.gpu.tile_math import load_each

FARTHEST = tl.constexpr(float("inf"))
# Rows and columns of a tile, where a program owns rows and where it owns columns.
OWNS_ROWS, OWNS_COLUMNS = {4: (8, 256), 8: (4, 64)}, {4: (32, 64), 8: (16, 16)}  # by bytes of a number


# integers of which a compiler is to know nothing: each value that is 1, or a multiple of 16, would be a compilation of its own
UNSPECIALIZED = ["diagonal", "sums_stride"]


class BlockOfPairs(NamedTuple):
    """Distances (n m) in one piece, scales of the rows, ids of rows and columns, and the least distances of their negatives."""

    ptr: tl.tensor
    n: tl.tensor
    m: tl.tensor
    scale_ptr: tl.tensor
    row_ids: tl.tensor
    column_ids: tl.tensor
    excluded_rows: tl.tensor
    excluded_columns: tl.tensor
    row_limits: tl.tensor
    column_limits: tl.tensor


class Kind(NamedTuple):
    """What these kernels know when they are compiled: positives by ids or on the diagonal, pairs left out by ids, or because they
    are near, whether smoothed targets need the number of negatives and the sum of their costs, and the tile."""

    BY_IDS: bool
    EXCLUDE: bool
    LIMIT: bool
    SMOOTH: bool
    DTYPE: tl.dtype
    BLOCK_N: int
    BLOCK_M: int


class WeightArgs(NamedTuple):
    """`Weights` of rows or of columns."""

    nearest: tl.tensor
    nearest_negative: tl.tensor
    positive: tl.tensor
    constant: tl.tensor
    negative: tl.tensor
    constant_negative: tl.tensor


@triton.jit
def classes(block, diagonal, rows, columns, KIND: tl.constexpr):
    """Which pairs of a tile are positives, by ids or in column ``diagonal`` + i of row i, and which negatives."""
    inside = (rows < block.n)[:, None] & (columns < block.m)[None, :]
    if KIND.BY_IDS:
        ids = tl.load(block.row_ids + rows, rows < block.n, other=0)
        others = tl.load(block.column_ids + columns, columns < block.m, other=0)
        positive = inside & (ids[:, None] == others[None, :])
    else:
        positive = inside & ((diagonal + rows)[:, None] == columns[None, :])
    negative = inside & (positive == 0)
    if KIND.EXCLUDE:
        ids = tl.load(block.excluded_rows + rows, rows < block.n, other=0)
        others = tl.load(block.excluded_columns + columns, columns < block.m, other=0)
        negative = negative & (ids[:, None] != others[None, :])
    return positive, negative


@triton.jit
def beyond_limits(block, which, distance, negative, AXIS: tl.constexpr, KIND: tl.constexpr):
    """Which of the negatives of a tile are some of its rows (AXIS 1), or of its columns (AXIS 0)."""
    if KIND.LIMIT:
        if AXIS == 1:
            limit = load_each(block.row_limits, which, block.n, KIND.DTYPE)
        else:
            limit = load_each(block.column_limits, which, block.m, KIND.DTYPE)
        negative = negative & ((distance < tl.expand_dims(limit, AXIS)) == 0)
    return negative


@triton.jit
def costs(block, rows, columns, DTYPE: tl.constexpr):
    """Distances of a tile, their scales, and the two parts of their costs."""
    inside = (rows < block.n)[:, None] & (columns < block.m)[None, :]
    distance = tl.load(block.ptr + rows[:, None] * block.m + columns[None, :], inside, other=1)
    scale = load_each(block.scale_ptr, rows, block.n, DTYPE)[:, None] + 0 * distance
    high = rounded_product(scale, distance)
    return distance, scale, high, tl.fma(scale, distance, -high)


@triton.jit
def origin_of(nearest):
    """What costs are compared with: 0 where there are none."""
    return tl.where(nearest < FARTHEST, nearest, 0)


@triton.jit
def add_part(nearest, total, high, low, part, AXIS: tl.constexpr):
    """Take the pairs of a tile that take part into sums of powers.

    Returns the nearest cost and the total; how far costs are beyond the nearest, and how far that has moved.
    """
    before = nearest
    nearest = tl.minimum(before, tl.min(tl.where(part, high, FARTHEST), axis=AXIS))
    origin = origin_of(nearest)
    apart = (high - tl.expand_dims(origin, AXIS)) + low
    back = tl.where(before < FARTHEST, before - origin, 0)
    total = total * exp(-back) + tl.sum(tl.where(part, exp(-apart), 0), axis=AXIS)
    return nearest, total, apart, back


@triton.jit
def add_costs(spread, number, apart, back, part, AXIS: tl.constexpr):
    """Take the pairs of a tile that take part into the sum of costs beyond the nearest, and count them."""
    spread += rounded_product(number, back) + tl.sum(tl.where(part, apart, 0), axis=AXIS)
    return spread, number + tl.sum(part.to(number.dtype), axis=AXIS)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _powers(block, diagonal, sums_ptr, sums_stride, AXIS: tl.constexpr, KIND: tl.constexpr):
    """Take a block into the sums of its rows (AXIS 1) or of its columns (AXIS 0)."""
    DTYPE: tl.constexpr = KIND.DTYPE
    OWN: tl.constexpr = KIND.BLOCK_N if AXIS == 1 else KIND.BLOCK_M
    STEP: tl.constexpr = KIND.BLOCK_M if AXIS == 1 else KIND.BLOCK_N
    own = tl.program_id(0) * OWN + tl.arange(0, OWN)
    if AXIS == 1:
        length, end = block.n, block.m
    else:
        length, end = block.m, block.n
    nearest, total, spread = tl.full([OWN], FARTHEST, DTYPE), tl.zeros([OWN], DTYPE), tl.zeros([OWN], DTYPE)
    nearest_negative, total_negative = tl.full([OWN], FARTHEST, DTYPE), tl.zeros([OWN], DTYPE)
    number, spread_negative, number_negative = tl.zeros([OWN], DTYPE), tl.zeros([OWN], DTYPE), tl.zeros([OWN], DTYPE)
    for start in range(0, end, STEP):
        other = start + tl.arange(0, STEP)
        if AXIS == 1:
            positive, negative = classes(block, diagonal, own, other, KIND)
            distance, _, high, low = costs(block, own, other, DTYPE)
        else:
            positive, negative = classes(block, diagonal, other, own, KIND)
            distance, _, high, low = costs(block, other, own, DTYPE)
        negative = beyond_limits(block, own, distance, negative, AXIS, KIND)
        nearest_negative, total_negative, apart, back = add_part(
            nearest_negative, total_negative, high, low, negative, AXIS
        )
        if KIND.SMOOTH:
            spread_negative, number_negative = add_costs(spread_negative, number_negative, apart, back, negative, AXIS)
        if tl.max(positive.to(tl.int32)) != 0:  # most tiles hold none
            nearest, total, apart, back = add_part(nearest, total, high, low, positive, AXIS)
            spread, number = add_costs(spread, number, apart, back, positive, AXIS)
    place, inside = sums_ptr + own, own < length
    _add(place, sums_stride, inside, nearest, total, spread, number, True)
    place += 4 * sums_stride
    _add(place, sums_stride, inside, nearest_negative, total_negative, spread_negative, number_negative, KIND.SMOOTH)


@triton.jit
def _add(place, stride, inside, nearest, total, spread, number, SPREAD: tl.constexpr):
    """Take sums into those in memory, which are float64."""
    nearest = nearest.to(tl.float64)
    before = tl.load(place, inside, other=0)
    least = tl.minimum(before, nearest)
    origin = origin_of(least)
    back, behind = tl.where(before < FARTHEST, before - origin, 0), tl.where(nearest < FARTHEST, nearest - origin, 0)
    both = tl.load(place + stride, inside, other=0) * tl.exp(-back) + total.to(tl.float64) * tl.exp(-behind)
    if SPREAD:
        counted = tl.load(place + 3 * stride, inside, other=0)
        wide = tl.load(place + 2 * stride, inside, other=0) + counted * back
        wide += spread.to(tl.float64) + number.to(tl.float64) * behind
    tl.debug_barrier()  # in place: several threads may have read what one of them writes
    tl.store(place, least, inside)
    tl.store(place + stride, both, inside)
    if SPREAD:
        tl.store(place + 2 * stride, wide, inside)
        tl.store(place + 3 * stride, counted + number.to(tl.float64), inside)


@triton.jit
def add_in_place(place, values, inside):
    """Add numbers to float64 ones that no other program adds to."""
    sums = tl.load(place, inside, other=0) + values.to(tl.float64)
    tl.debug_barrier()  # in place: several threads may have read what one of them writes
    tl.store(place, sums, inside)


@triton.jit
def signed_logits(block, diagonal, rows, columns, bias, KIND: tl.constexpr):
    """Logits of negatives, minus those of positives; and both classes, distances and scales."""
    positive, negative = classes(block, diagonal, rows, columns, KIND)
    distance, scale, high, low = costs(block, rows, columns, KIND.DTYPE)
    logit = (bias - high) - low
    return tl.where(positive, -logit, logit), positive, negative, distance, scale


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _sigmoid(block, diagonal, bias_ptr, losses_ptr, KIND: tl.constexpr):
    """Add the losses of the pairs of a block to those of its rows."""
    DTYPE: tl.constexpr = KIND.DTYPE
    BLOCK_N: tl.constexpr = KIND.BLOCK_N
    rows, bias = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.load(bias_ptr)
    total = tl.zeros([BLOCK_N], DTYPE)
    for start in range(0, block.m, KIND.BLOCK_M):
        columns = start + tl.arange(0, KIND.BLOCK_M)
        logit, positive, negative, _, _ = signed_logits(block, diagonal, rows, columns, bias, KIND)
        loss = tl.maximum(logit, 0, propagate_nan=tl.PropagateNan.ALL) + log1p(exp(-tl.abs(logit)))
        total += tl.sum(tl.where(positive | negative, loss, 0), axis=1)
    add_in_place(losses_ptr + rows, total, rows < block.n)


@triton.jit
def put_gradients(block, out_ptr, rows, columns, slope, distance, scale, by_distance, by_logit):
    """Store dL / d distance of a tile, and add to sums of its rows."""
    inside = (rows < block.n)[:, None] & (columns < block.m)[None, :]
    tl.store(out_ptr + rows[:, None] * block.m + columns[None, :], -scale * slope, inside)
    return by_distance + tl.sum(rounded_product(slope, distance), axis=1), by_logit + tl.sum(slope, axis=1)


@triton.jit
def add_sums(block, sums_ptr, sums_stride, rows, by_distance, by_logit):
    """Add sums of some rows to those in memory (2 n)."""
    add_in_place(sums_ptr + rows, by_distance, rows < block.n)
    add_in_place(sums_ptr + sums_stride + rows, by_logit, rows < block.n)


@triton.jit
def softmax_slopes(weights, which, length, positive, negative, high, low, AXIS: tl.constexpr, KIND: tl.constexpr):
    """dL/dlogit of a tile by the softmax over its rows (AXIS 1), or over its columns (AXIS 0)."""
    DTYPE: tl.constexpr = KIND.DTYPE
    nearest = tl.expand_dims(load_each(weights.nearest, which, length, DTYPE), AXIS)
    nearest_negative = tl.expand_dims(load_each(weights.nearest_negative, which, length, DTYPE), AXIS)
    power = exp((tl.where(positive, nearest, nearest_negative) - high) - low)
    factor = tl.expand_dims(load_each(weights.positive, which, length, DTYPE), AXIS)
    factor_negative = tl.expand_dims(load_each(weights.negative, which, length, DTYPE), AXIS)
    constant = tl.expand_dims(load_each(weights.constant, which, length, DTYPE), AXIS)
    if KIND.SMOOTH:
        constant_negative = tl.expand_dims(load_each(weights.constant_negative, which, length, DTYPE), AXIS)
        slope = rounded_product(tl.where(positive, factor, factor_negative), power)
        return tl.where(positive | negative, slope - tl.where(positive, constant, constant_negative), 0)
    of_positive = rounded_product(factor + 0 * power, power) - constant
    return tl.where(positive, of_positive, tl.where(negative, factor_negative * power, 0))


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _softmax_gradients(
    block, diagonal, of_rows, of_columns, out_ptr, sums_ptr, sums_stride, SYMMETRIC: tl.constexpr, KIND: tl.constexpr
):
    """dL / d distance (n m); adds to sums of dL/dlogit times distance, and of dL/dlogit, of each row."""
    DTYPE: tl.constexpr = KIND.DTYPE
    BLOCK_N: tl.constexpr = KIND.BLOCK_N
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    by_distance, by_logit = tl.zeros([BLOCK_N], DTYPE), tl.zeros([BLOCK_N], DTYPE)
    for start in range(0, block.m, KIND.BLOCK_M):
        columns = start + tl.arange(0, KIND.BLOCK_M)
        positive, negative = classes(block, diagonal, rows, columns, KIND)
        distance, scale, high, low = costs(block, rows, columns, DTYPE)
        own = beyond_limits(block, rows, distance, negative, 1, KIND)
        slope = softmax_slopes(of_rows, rows, block.n, positive, own, high, low, 1, KIND)
        if SYMMETRIC:
            own = beyond_limits(block, columns, distance, negative, 0, KIND)
            slope += softmax_slopes(of_columns, columns, block.m, positive, own, high, low, 0, KIND)
        by_distance, by_logit = put_gradients(
            block, out_ptr, rows, columns, slope, distance, scale, by_distance, by_logit
        )
    add_sums(block, sums_ptr, sums_stride, rows, by_distance, by_logit)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _sigmoid_gradients(block, diagonal, bias_ptr, grad_ptr, out_ptr, sums_ptr, sums_stride, KIND: tl.constexpr):
    """The same of the sigmoid loss, from the gradients of the losses of rows."""
    DTYPE: tl.constexpr = KIND.DTYPE
    BLOCK_N: tl.constexpr = KIND.BLOCK_N
    rows, bias = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.load(bias_ptr)
    grad = load_each(grad_ptr, rows, block.n, DTYPE)[:, None]
    by_distance, by_logit = tl.zeros([BLOCK_N], DTYPE), tl.zeros([BLOCK_N], DTYPE)
    for start in range(0, block.m, KIND.BLOCK_M):
        columns = start + tl.arange(0, KIND.BLOCK_M)
        logit, positive, negative, distance, scale = signed_logits(block, diagonal, rows, columns, bias, KIND)
        tail = exp(-tl.abs(logit))
        sigmoid = tl.where(logit > 0, 1, tail) / (1 + tail)
        slope = grad * tl.where(positive, -sigmoid, tl.where(negative, sigmoid, 0))
        by_distance, by_logit = put_gradients(
            block, out_ptr, rows, columns, slope, distance, scale, by_distance, by_logit
        )
    add_sums(block, sums_ptr, sums_stride, rows, by_distance, by_logit)


def _arguments(values: Tensor, pairs: Pairs) -> BlockOfPairs:
    """A block, as kernels take it."""
    nothing, (n, m) = values.new_empty(0, dtype=torch.int64), values.shape
    ids, excluded = pairs.positives or (nothing, nothing), pairs.exclude_ids or (nothing, nothing)
    return BlockOfPairs(values, n, m, pairs.scale, *ids, *excluded, *(pairs.limits or (values, values)))


def _launch(
    kernel: triton.JITFunction,
    values: Tensor,
    pairs: Pairs,
    *arguments,
    axis: int = 1,
    smooth: bool = False,
    **constants,
) -> None:
    """Launch a kernel whose programs own rows of a block (axis 1), or columns (axis 0)."""
    own, step = (OWNS_ROWS if axis == 1 else OWNS_COLUMNS)[values.element_size()]
    tile = (own, step) if axis == 1 else (step, own)
    flags = (pairs.positives is not None, pairs.exclude_ids is not None, pairs.limits is not None, smooth)
    kind = Kind(*flags, launch.triton_dtype(values.dtype), *tile)
    kernel[(triton.cdiv(values.shape[1 - axis], own),)](
        _arguments(values, pairs),
        pairs.diagonal,
        *arguments,
        KIND=kind,
        **constants,
        **launch.OPTIONS,
    )


@launch.on_own_device
def add_powers(values: Tensor, pairs: Pairs, rows: Tensor, columns: Tensor | None) -> None:
    """Take a block (r w) into the `PowerSums` of its rows (6 or 8, r) and, unless None, of its columns (w)."""
    smooth = len(rows) == len(PowerSums._fields)
    _launch(_powers, values, pairs, rows, rows.stride(0), smooth=smooth, AXIS=1)
    if columns is not None:
        _launch(_powers, values, pairs, columns, columns.stride(0), axis=0, smooth=smooth, AXIS=0)


@launch.on_own_device
def add_sigmoid(values: Tensor, pairs: Pairs, bias: Tensor, losses: Tensor) -> None:
    """Add the sigmoid losses of a block (r w) to those of its rows (r), float64."""
    _launch(_sigmoid, values, pairs, bias, losses)


@launch.on_own_device
def softmax_gradients(
    values: Tensor, pairs: Pairs, rows: Weights, columns: Weights | None, out: Tensor, sums: Tensor
) -> None:
    """Put dL / d distance into ``out`` (r w); add to ``sums`` (2 r) those of dL/dlogit times distance, and of dL/dlogit."""
    weights = [
        WeightArgs(*(side.nearest if x is None else x for x in side))  # an address that is not read
        for side in (rows, columns or rows)
    ]
    flags = {"smooth": rows.constant_negative is not None, "SYMMETRIC": columns is not None}
    _launch(_softmax_gradients, values, pairs, *weights, out, sums, sums.stride(0), **flags)


@launch.on_own_device
def sigmoid_gradients(values: Tensor, pairs: Pairs, bias: Tensor, grad: Tensor, out: Tensor, sums: Tensor) -> None:
    """Do the same for the sigmoid loss, from the gradients of the losses of rows (r)."""
    _launch(_sigmoid_gradients, values, pairs, bias, grad, out, sums, sums.stride(0))
