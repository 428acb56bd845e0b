"""The gradient over centred tiles: what all keys add to each query's, and with swapped arguments vice versa.

Of the point X_i = M + xi_i it is sum_j G_ij ((tau_j - tau_i) X_i / t_i + xi_i - eta_j), in which nothing is beside the points'
spread but what it is multiplied with. It is added to the sums that `_to_features` makes gradients of, in their form: less
sum_j G_ij Y_j, with no part of the times.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.gpu.contrastive.backward_rows import shares
from hyperst_kernels.gpu.contrastive.centred import (
    CENTRED,
    centre_of,
    centred,
    centred_pairs,
    centring,
    of_terms,
    points_of,
    scales_and_times,
)
from hyperst_kernels.gpu.contrastive.exact import taking_part
from hyperst_kernels.gpu.contrastive.forward import NOWHERE, load_steepness
from hyperst_kernels.gpu.contrastive.geometry import remoteness_of
from hyperst_kernels.gpu.contrastive.inputs import LossInputs, Sums, Upstream, matrix_args, rounds
from hyperst_kernels.gpu.tile_math import dot, load_each, pick

CHUNK = 64  # features of which sums are taken at a time


@triton.jit
def add_in_place(place, change, inside):
    """Add to what no other program writes."""
    total = tl.load(place, inside, other=0) + change
    tl.debug_barrier()  # several threads may have read what one of them writes
    tl.store(place, total, inside)
    tl.debug_barrier()  # and may read it again


@triton.jit
def _centred_gradients(
    xs, ys, x_numbers, y_numbers, ids, steepness_ptr, flags, upstream, points_ptrs, scale_grad_ptrs, top, last,
    SCALE_GRAD: tl.constexpr, CHUNK: tl.constexpr, CENTRING: tl.constexpr,
):  # fmt: skip
    """Add to `Sums.points` of the rows from ``top`` to before ``last``, and to sums of share times remoteness if SCALE_GRAD."""
    BLOCK_N: tl.constexpr = CENTRING.BLOCK_N
    t = tl.program_id(1)
    first = top + tl.program_id(0).to(tl.int64) * BLOCK_N
    n, m, block = tl.minimum(pick(xs.lengths, t), last), pick(ys.lengths, t), first // CENTRING.FLAG_N
    flag_ptr, points_ptr = pick(flags.ptrs, t) + block * flags.row_stride, pick(points_ptrs, t)
    if tl.load(pick(flags.counts, t) + block, first < n, other=0) > 0:
        x, y = points_of(xs, x_numbers, t, n), points_of(ys, y_numbers, t, m)
        rows, steepness = first + tl.arange(0, BLOCK_N), load_steepness(steepness_ptr)
        row_lse, row_grad = (
            load_each(pick(upstream.row_lse, t), rows, n, tl.float32),
            load_each(pick(upstream.row_grad, t), rows, n, tl.float32),
        )  # fmt: skip
        weights, delays, total = (
            tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
        )  # fmt: skip
        for start in range(0, m, CENTRING.BLOCK_M):
            if tl.load(flag_ptr + start // CENTRING.FLAG_M * flags.column_stride) == CENTRED:
                columns = tl.cast(start, tl.int64) + tl.arange(0, CENTRING.BLOCK_M)
                z, time, times, _, _ = centred_pairs(x, y, rows, columns, first, CENTRING)
                remoteness, slope = remoteness_of(z, CENTRING.GEOMETRY, CENTRING.FAST, True)
                part = taking_part(ids, rows, columns, n, m, CENTRING.EXCLUDE)
                remoteness = tl.where(part, remoteness, NOWHERE)
                column_lse, column_grad = (
                    load_each(pick(upstream.column_lse, t), columns, m, tl.float32),
                    load_each(pick(upstream.column_grad, t), columns, m, tl.float32),
                )  # fmt: skip
                share = shares(remoteness, steepness, row_lse, column_lse, row_grad, column_grad, True, True)
                if SCALE_GRAD:
                    total += dot(share, remoteness)
                weight = share * slope
                weights += tl.sum(weight, axis=1)
                delays += dot(weight, times[None, :] - time[:, None])
                scale = load_each(y.scale_ptr, columns, m, tl.float64)
                for left in range(0, xs.d, CHUNK):
                    features = left + tl.arange(0, CHUNK)
                    v = centred(y, columns, features, scale, centre_of(x, first, features))
                    pull = tl.dot(weight, v, input_precision=CENTRING.WEIGHTS, out_dtype=tl.float32)
                    place = points_ptr + (rows - top)[:, None] * xs.d + features[None, :]
                    add_in_place(place, pull, (rows < n)[:, None] & (features < xs.d)[None, :])
        scale = load_each(x.scale_ptr, rows, n, tl.float64)
        along = delays / tl.where(rows < n, load_each(x.time_ptr, rows, n, tl.float64), 1).to(tl.float32)
        for left in range(0, xs.d, CHUNK):
            features = left + tl.arange(0, CHUNK)
            centre = centre_of(x, first, features)
            u = centred(x, rows, features, scale, centre)
            pull = weights[:, None] * u + along[:, None] * (u + centre[None, :].to(tl.float32))
            place = points_ptr + (rows - top)[:, None] * xs.d + features[None, :]
            add_in_place(place, -pull, (rows < n)[:, None] & (features < xs.d)[None, :])
        if SCALE_GRAD:
            add_in_place(pick(scale_grad_ptrs, t) + rows - top, total, rows < n)


def add_centred_gradients(
    inputs: LossInputs, upstream: Upstream, flags: Tensor, row_chunk: slice, sums: Sequence[Sums], scale_grad: Tensor
) -> None:
    """Add to the sums of some rows of all features over centred tiles; of the queries, to sums of remoteness (t longest)."""
    numbers, rows = scales_and_times(inputs), row_chunk.stop - row_chunk.start
    for terms in (*rounds(inputs.queries), *rounds(inputs.keys)):
        own, size = inputs.flagged(terms, flags)
        constants = centring(inputs, size)
        grid = triton.cdiv(rows, constants["CENTRING"].BLOCK_N), len(terms)
        _centred_gradients[grid](
            *matrix_args(terms), *of_terms(numbers, terms), inputs.ids_of(terms), inputs.steepness, own, upstream.of(terms),
            tuple(sums[t.owner].points for t in terms),
            tuple(scale_grad[t.number, row_chunk.start :] for t in terms),
            row_chunk.start, row_chunk.stop, SCALE_GRAD=not terms[0].swapped, CHUNK=CHUNK, **constants,
        )  # fmt: skip
