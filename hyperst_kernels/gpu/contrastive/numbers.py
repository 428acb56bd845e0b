"""What becomes of a few numbers of each row: of its sums on the way out, of its upstream gradients on the way in.

One launch each, where PyTorch would need dozens of calls: a small batch takes as long as a CPU needs to make them.
Log-sum-exps are float64 in every geometry's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels._precision import LARGEST_LOGIT
from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.contrastive.geometry import LN_2, LORENTZ, unit_of_remoteness
from hyperst_kernels.gpu.contrastive.inputs import LossInputs, Upstream
from hyperst_kernels.gpu.scalars import exp, log1p
from hyperst_kernels.gpu.tile_math import pick
from hyperst_kernels.reference.contrastive import Pairing, Slopes

BLOCK = tl.constexpr(256)  # numbers of a program
# In float32: a logit is a product less a rounded product, whose rounding is a power of two in the sum, and overflows beyond
# the first; the backward pass by rows may round a distance to its neighbour, which takes a factor of e^2 at the second.
LARGEST, LARGEST_BY_ROWS = 2.0**27, 2.0**24
_LN_2 = tl.constexpr(LN_2)


@triton.jit
def log_add(a, b):
    """log(e^a + e^b), -inf where both are."""
    larger = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    smaller = tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
    nothing = larger == float("-inf")
    return tl.where(nothing, larger, larger + log1p(exp(smaller - tl.where(nothing, 0, larger))))


@triton.jit
def sigmoid(x):
    return 1 / (1 + exp(-x))


@triton.jit
def _add_sums(sums_ptrs, exact_ptrs, out_ptrs, sizes, LARGEST: tl.constexpr):
    """log(2^a + 2^b) of sums over unflagged and over flagged tiles; NaN beyond LARGEST, but for -inf: there is no sum."""
    t = tl.program_id(1)
    size = pick(sizes, t)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(pick(sums_ptrs, t) + i, i < size, other=0) * _LN_2
    if exact_ptrs is not None:
        total = log_add(total, tl.load(pick(exact_ptrs, t) + i, i < size, other=0) * _LN_2)
    total = tl.where((tl.abs(total) > LARGEST) & (total != float("-inf")), float("nan"), total)
    tl.store(pick(out_ptrs, t) + i, total, i < size)


def add_sums(matrices: Sequence[Tensor], cancels: bool, like: Tensor) -> list[Tensor]:
    """Logits (t n) of each matrix (2 t n) of log2-sum-exps: over unflagged tiles and, where products cancel, over flagged ones.

    NaN in place of those that the kernels' numbers in the dtype of ``like`` do not hold.
    """
    out = [x.new_empty(x.shape[1:]) for x in matrices]
    sums, exact = (tuple(row for x in matrices for row in x[k]) for k in range(2))
    _add_sums[(triton.cdiv(max(map(len, sums)), BLOCK.value), len(sums))](
        sums, exact if cancels else None, tuple(row for x in out for row in x), tuple(map(len, sums)),
        LARGEST=LARGEST if like.dtype == torch.float32 else float("inf"), **launch.OPTIONS,
    )  # fmt: skip
    return out


@triton.jit
def _of_losses(
    grad_rows_ptr, grad_columns_ptr, rows_ptr, columns_ptr, positives_ptr, row_lse_ptr, column_lse_ptr, column_grad_ptr,
    shares_ptr, owns, n, m,
):  # fmt: skip
    t = tl.program_id(1)
    own = pick(owns, t)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place, inside = tl.cast(t, tl.int64) * n + i, i < n
    positive = tl.load(positives_ptr + place, inside, other=0)
    by_row, by_column = tl.load(rows_ptr + place, inside, other=0), tl.load(columns_ptr + place, inside, other=0)
    grad_rows, grad_columns = (
        tl.load(grad_rows_ptr + place, inside, other=0), tl.load(grad_columns_ptr + place, inside, other=0)
    )  # fmt: skip
    # of each pair of rows (i, i): minus its share of dL/dlogit
    share = grad_rows * sigmoid(by_row - positive).to(grad_rows.dtype)
    share += grad_columns * sigmoid(by_column - positive).to(grad_rows.dtype)
    tl.store(row_lse_ptr + place, log_add(by_row, positive), inside)
    tl.store(shares_ptr + place, share, inside)
    key = tl.cast(t, tl.int64) * m + i
    tl.store(column_lse_ptr + key, tl.where(i < own, log_add(by_column, positive), 0), i < m)
    tl.store(column_grad_ptr + key, tl.where(i < own, grad_columns, 0), i < m)


@launch.on_own_device
def of_losses(
    grad_rows: Tensor,
    grad_columns: Tensor,
    row_negatives: Tensor,
    column_negatives: Tensor,
    positives: Tensor,
    features: Sequence[Tensor],
    pairings: Sequence[Pairing],
) -> Slopes:
    """From gradients of the losses of rows and columns, and what `forward` gave, all (t n)."""
    terms, n = positives.shape
    m = max(features[p.keys].shape[0] for p in pairings)
    given = [x.contiguous() for x in (grad_rows, grad_columns, row_negatives, column_negatives, positives)]
    row_lse, shares = torch.empty_like(given[2]), torch.empty_like(given[0])
    lse, grad = row_lse.new_empty(terms, m), shares.new_empty(terms, m)
    # keys beyond the queries have no loss, nor has any of a term that is not symmetric
    owns = tuple(features[p.queries].shape[0] if p.symmetric else 0 for p in pairings)
    _of_losses[(triton.cdiv(max(n, m), BLOCK.value), terms)](
        *given, row_lse, lse, grad, shares, owns, n, m, **launch.OPTIONS
    )
    return Slopes(row_lse, given[0], lse, grad, given[4], shares)


@triton.jit
def _round_one(lse_ptr, grad_ptr, out_ptr, weight_ptr, for_points_ptr, place, inside, factor, LARGEST: tl.constexpr):
    """A log-sum-exp in units of log2(e) and the geometry's dtype; what rounding takes from its power goes to the gradient.

    The gradient is NaN where rounding leaves no weight.
    """
    lse, grad = tl.load(lse_ptr + place, inside, other=0), tl.load(grad_ptr + place, inside, other=0)
    grad = tl.where(tl.abs(lse) > LARGEST, float("nan"), grad)
    lse = lse / _LN_2
    rounded = lse.to(grad.dtype)
    grad *= exp((rounded.to(lse.dtype) - lse) * _LN_2).to(grad.dtype)
    tl.store(out_ptr + place, rounded, inside)
    tl.store(weight_ptr + place, grad, inside)
    tl.store(for_points_ptr + place, grad * factor, inside)


@triton.jit
def _upstream(
    slopes, upstream, for_points, weights_ptr, scale_ptr, slope_ptr, n, m, UNIT: tl.constexpr, LARGEST: tl.constexpr
):  # fmt: skip
    t = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    factor = -tl.load(slope_ptr) * UNIT
    _round_one(
        slopes.row_lse, slopes.row_grad, upstream.row_lse, upstream.row_grad, for_points.row_grad, t * n + i, i < n, factor,
        LARGEST,
    )  # fmt: skip
    _round_one(
        slopes.column_lse, slopes.column_grad, upstream.column_lse, upstream.column_grad, for_points.column_grad, t * m + i,
        i < m, factor, LARGEST,
    )  # fmt: skip
    share = tl.load(slopes.shares + t * n + i, i < n, other=0)
    tl.store(weights_ptr + t * n + i, tl.load(scale_ptr) * share, i < n)


def upstream_of(slopes: Slopes, inputs: LossInputs, by_rows: bool) -> tuple[Upstream, Upstream, Tensor]:
    """`Upstream` of softmax weights and of points, and the weights (t n) of the positives' own distances."""
    slopes = Slopes(*(x.contiguous() for x in slopes))
    grad, (terms, n), m = slopes.row_grad, slopes.row_grad.shape, slopes.column_grad.shape[1]
    largest = LARGEST_BY_ROWS if by_rows else LARGEST
    if grad.dtype == torch.float64:
        largest = LARGEST_LOGIT[grad.dtype]
    rows, columns = (x.new_empty(3, *x.shape) for x in (grad, slopes.column_grad))
    upstream = Upstream(rows[0], rows[1], columns[0], columns[1])
    for_points = upstream._replace(row_grad=rows[2], column_grad=columns[2])
    weights = torch.empty_like(slopes.shares)
    _upstream[(triton.cdiv(max(n, m), BLOCK.value), terms)](
        slopes, upstream, for_points, weights, inputs.scale, inputs.slope, n, m, UNIT=inputs.unit, LARGEST=largest,
        **launch.OPTIONS,
    )  # fmt: skip
    return upstream, for_points, weights


SOME = tl.constexpr(1024)  # numbers that are added up at a time


@triton.jit
def sum_of(pointer, other_ptr, size):
    """The sum of so many numbers, or of their products with others, in float64 and a fixed order."""
    total, some = tl.zeros([SOME], tl.float64), tl.arange(0, SOME)
    for start in range(0, size, SOME):
        number = tl.load(pointer + start + some, some < size - start, other=0).to(tl.float64)
        if other_ptr is not None:
            number *= tl.load(other_ptr + start + some, some < size - start, other=0).to(tl.float64)
        total += number
    return tl.sum(total, axis=0)


@triton.jit
def _scalar_gradients(
    by_rows_ptr, shares_ptr, diagonal_ptr, tiles_ptr, remoteness_ptr, cancelled_ptr, factors_ptr, c_ptr, scale_ptr,
    sizes, d_factors_ptr, dc_ptr, ds_ptr, GEOMETRY: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    features, longest, pairs, rows = sizes
    scale = tl.load(scale_ptr).to(tl.float64)
    scale_grad = -sum_of(shares_ptr, diagonal_ptr, pairs)  # s dL/ds
    if tiles_ptr is not None:
        scale_grad += UNIT * sum_of(tiles_ptr, None, rows)
    if remoteness_ptr is not None:
        scale_grad += UNIT * tl.load(remoteness_ptr)
    if cancelled_ptr is not None:
        scale_grad -= scale * sum_of(cancelled_ptr, None, rows)
    total = 0 * scale
    for k in range(0, features):
        along = sum_of(by_rows_ptr + tl.cast(k, tl.int64) * longest, None, longest)  # <x, dL/dx>
        total += along
        if factors_ptr is not None:
            along = along / tl.load(factors_ptr + k).to(tl.float64)
            tl.store(d_factors_ptr + k, along.to(d_factors_ptr.dtype.element_ty))
    dc = 0 * scale
    if GEOMETRY == LORENTZ:  # d is homogeneous in the features and 1/sqrt(c)
        dc = (total - scale_grad) * 0.5 / tl.load(c_ptr).to(tl.float64)
    tl.store(dc_ptr, dc.to(dc_ptr.dtype.element_ty))
    tl.store(ds_ptr, (scale_grad / scale).to(ds_ptr.dtype.element_ty))


def scalar_gradients(
    inputs: LossInputs,
    slopes: Slopes,
    factors: Tensor | None,
    by_rows: Tensor,
    tiles: Tensor | None,
    remoteness: Tensor | None,
    cancelled: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the factors (f, or 0), c () and logit_scale ().

    From <x, dL/dx> (f longest) of the features, sums of remoteness times weights of points over unflagged tiles, (t longest) or (),
    and sums over flagged ones of dL/dlogit times the distance (t longest).
    """
    c = inputs.c
    sizes = (*by_rows.shape, slopes.shares.numel(), len(inputs.queries) * by_rows.shape[1])
    d_factors = c.new_empty(0 if factors is None else len(factors))
    dc, ds = c.new_empty(()), c.new_empty(())
    _scalar_gradients[(1,)](
        by_rows, slopes.shares.contiguous(), slopes.diagonal.contiguous(), tiles, remoteness, cancelled, factors, c,
        inputs.scale, sizes, d_factors, dc, ds, GEOMETRY=inputs.constants["GEOMETRY"],
        UNIT=unit_of_remoteness(inputs.geometry) / inputs.unit, num_warps=16, **launch.OPTIONS,
    )  # fmt: skip
    return d_factors, dc, ds
