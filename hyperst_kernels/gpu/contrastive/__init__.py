"""InfoNCE over distances without the matrix: log-sum-exps of both directions in one pass, gradients in two.

One tile of the product serves rows and columns. Positives never enter: they are computed row by row from exact
differences, and the log-sum-exp runs over negatives only.

A tile that holds a pair whose product has cancelled is flagged by the forward pass and left to kernels that
work feature by feature. The flags are kept: every later pass splits the pairs in the same way, whatever its own rounding
says.

Backward, the launch table chooses: one kernel whose programs own rows, run for the queries and, arguments swapped, for the
keys ("contrastive backward"); or, where its accumulators do not fit into registers, blocks of weights that meet the points in
library products. All sums have a fixed order, unless ``atomic`` allows one run of the kernel to serve both sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.contrastive.backward_blocks import BLOCK, grad_points_by_blocks
from hyperst_kernels.gpu.contrastive.backward_rows import grad_points_by_rows
from hyperst_kernels.gpu.contrastive.centred import centred_sums
from hyperst_kernels.gpu.contrastive.centred_gradients import add_centred_gradients
from hyperst_kernels.gpu.contrastive.exact import (
    _cancelled_gradients,
    _cancelled_log_sum_exps,
    _positive_gradients,
    _positives,
)
from hyperst_kernels.gpu.contrastive.forward import FARTHEST, KeyArgs, LogSums, _log_sum_exps, _merge
from hyperst_kernels.gpu.contrastive.geometry import _to_features, _to_gradients
from hyperst_kernels.gpu.contrastive.inputs import (
    CANCELLED,
    Flags,
    LossInputs,
    Sums,
    TermView,
    Upstream,
    flags_shape,
    matrix_args,
    matrix_args_of,
    operand_args,
    rounds,
)
from hyperst_kernels.gpu.contrastive.numbers import add_sums, of_losses, scalar_gradients, upstream_of
from hyperst_kernels.reference.contrastive import Pairing, Slopes

__all__ = ["backward", "flags_shape", "forward", "of_losses"]

WORKSPACE = 1 << 25  # numbers that the programs of the forward pass may hold for the columns
SUMS = 1 << 28  # float32 numbers of half-precision gradients that may be in memory together


# ----------------------------------------------------------------------------------------------------------- forward


@launch.on_own_device
def forward(
    features: Sequence[Tensor],
    factors: Tensor | None,
    c: Tensor,
    logit_scale: Tensor,
    ids: tuple[Tensor, Tensor] | None,
    pairings: Sequence[Pairing],
    geometry: str,
    tangent: bool,
    precision: str,
    all_columns: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """LSE over negatives of each row and of each of the first n columns, positives (t n), flags of the tiles (t i j).

    Sums and positives are logits in float64. What does not exist is -inf in the sums and 0 among the positives: columns
    without a loss, rows beyond a term's own. ``all_columns``: the sums of all m.
    """
    inputs = LossInputs(features, factors, c, logit_scale, ids, pairings, geometry, tangent, precision)
    width = inputs.m if all_columns else inputs.n
    # log2-sum-exps of each term, over unflagged tiles and over flagged ones
    sums = c.new_full((2, len(pairings), inputs.n + width), -torch.inf, dtype=torch.float64)
    rows, columns = sums[:, :, : inputs.n].unbind(), sums[:, :, inputs.n :].unbind()
    positives = c.new_empty(len(pairings), inputs.n, dtype=torch.float64)
    flags = torch.zeros(flags_shape(features, pairings, geometry), dtype=torch.int8, device=c.device)
    for symmetric in (True, False):
        terms = [term for term in inputs.queries if term.symmetric == symmetric]
        if terms:
            _log_sums(inputs, terms, flags, rows[0], columns[0], all_columns)
    if inputs.centres:
        centred_sums(inputs, flags, rows[0], columns[0], all_columns)
    if inputs.cancels:
        _cancelled_sums(inputs, inputs.queries, flags, rows[1], True)
        _cancelled_sums(inputs, [term for term in inputs.keys if term.symmetric], flags, columns[1], all_columns)
    launch.over_rows(
        _positives, "pair", tuple(t.x.vectors for t in inputs.queries), *matrix_args(inputs.queries), c, logit_scale,
        positives, inputs.n,
        GEOMETRY=inputs.constants["GEOMETRY"], TANGENT=tangent,
    )  # fmt: skip
    row_sums, column_sums = add_sums((sums[:, :, : inputs.n], sums[:, :, inputs.n :]), inputs.cancels, c)
    return row_sums, column_sums, positives, flags


def _log_sums(
    inputs: LossInputs, terms: Sequence[TermView], flags: Tensor, sums: Tensor, columns: Tensor, all_columns: bool
) -> None:
    """log2-sum-exps over unflagged tiles of terms that are all symmetric or all not, a chunk of keys at a time.

    Puts in place those of the rows and those of the columns, and sets the flags.
    """
    c, symmetric, step = inputs.c, terms[0].symmetric, inputs.table["columns"]
    xs, ys = operand_args(terms)
    n, m = max(xs.lengths), max(ys.lengths)
    programs = min(triton.cdiv(n, inputs.table["rows"]), triton.cdiv(inputs.table["programs"], len(terms)))
    key_chunk = max(1, WORKSPACE // (2 * len(terms) * programs * step)) if symmetric else triton.cdiv(m, step)
    for first in range(0, triton.cdiv(m, step), key_chunk):
        found = sums if first == 0 else torch.full_like(sums, -torch.inf)
        left, tiles = first * step, min(key_chunk, triton.cdiv(m, step) - first)
        workspace = c.new_zeros(len(terms), programs, tiles if symmetric else 0, 2, step)
        workspace[:, :, :, 0].fill_(FARTHEST.value)
        keys = slice(left, left + tiles * step)
        some = KeyArgs(
            tuple(x[keys] for x in ys.vectors), ys.strides, tuple(len(x[keys]) for x in ys.vectors),
            tuple(t.y.scale[keys] for t in terms), tuple(t.y.excess[keys] for t in terms), tuple(t.y.largest for t in terms),
            inputs.ids.columns[keys], left, tiles,
        )  # fmt: skip
        own = Flags(tuple(flags[t.number, :, first:] for t in terms), flags.stride(1), 1)
        _log_sum_exps[(programs, len(terms))](
            xs, some, inputs.ids.rows, inputs.steepness, LogSums(tuple(found[t.number] for t in terms), workspace),
            own, CANCELLED[c.dtype],
            SYMMETRIC=symmetric, ALL_COLUMNS=all_columns, WHOLE=inputs.d <= inputs.table["inner"], **inputs.product(inputs.table),
        )  # fmt: skip
        if symmetric and left < (m if all_columns else n):
            out = tuple(columns[term.number, left:] for term in terms)
            inside = tuple(max(0, (term.m if all_columns else term.n) - left) for term in terms)
            _merge[(tiles, len(terms))](
                workspace, out, programs, tiles, inside, DTYPE=inputs.constants["DTYPE"], BLOCK_M=step, **launch.OPTIONS
            )
        if found is not sums:
            sums.copy_(torch.logaddexp2(sums, found))


def _cancelled_sums(inputs: LossInputs, terms: Sequence[TermView], flags: Tensor, sums: Tensor, of_all: bool) -> None:
    """Put log2-sum-exps over flagged tiles in place, of all rows or of those that have a positive."""
    if not terms:
        return
    own, size = inputs.flagged(terms, flags)
    _cancelled_log_sum_exps[inputs.exact_grid(terms, sums.shape[1])](
        *matrix_args(terms), inputs.c, inputs.ids_of(terms), inputs.exact_steepness, own,
        tuple(sums[t.number] for t in terms), tuple(t.n if of_all else t.pairs for t in terms), **inputs.exactly(size),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- backward


@launch.on_own_device
def backward(
    slopes: Slopes,
    features: Sequence[Tensor],
    factors: Tensor | None,
    c: Tensor,
    logit_scale: Tensor,
    ids: tuple[Tensor, Tensor] | None,
    flags: Tensor,
    pairings: Sequence[Pairing],
    geometry: str,
    tangent: bool,
    precision: str,
    atomic: bool,
    unrounded: bool = False,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Gradients of the features, factors (f, or 0), c () and logit_scale (); ``unrounded``: those of features in c's dtype."""
    d, dtype = features[0].shape[1], features[0].dtype
    table = launch.lookup("contrastive backward", d, dtype) if _multiplies(dtype) else {}
    parts = dtype if table else None
    inputs = LossInputs(features, factors, c, logit_scale, ids, pairings, geometry, tangent, precision, parts)
    gradients = [torch.empty(x.shape, dtype=c.dtype if unrounded else x.dtype, device=x.device) for x in features]
    upstream, for_points, of_positives = upstream_of(slopes, inputs, bool(table))
    # <x, dL/dx> of the features' rows; of the queries', shares of s dL/ds over unflagged and, with the keys', over flagged tiles
    terms, longest = len(pairings), max(map(len, features))
    each = c.new_zeros(len(features) + 3 * terms, longest)
    by_rows, by_tiles, cancelled = each.split((len(features), terms, 2 * terms))
    atomic = atomic and bool(table.get("atomic", 1))  # 0: with a second product the kernel does not fit into registers
    of_blocks = []
    for row_chunk in _row_chunks(inputs, unrounded or (atomic and bool(table))):
        sums = _no_sums(inputs, row_chunk, gradients)
        if table:
            grad_points_by_rows(inputs, for_points, flags, table, atomic, row_chunk, sums, by_tiles)
        else:
            of_blocks.append(grad_points_by_blocks(inputs, for_points, flags, row_chunk, sums))
        if inputs.centres:
            add_centred_gradients(inputs, for_points, flags, row_chunk, sums, by_tiles)
        _finish_row_chunk(inputs, upstream, flags, row_chunk, of_positives, sums, gradients, by_rows, cancelled)
        del sums  # before those of the next chunk are there
    if of_blocks and inputs.centres:
        of_blocks.append(by_tiles.sum(dtype=torch.float64))
    return gradients, *scalar_gradients(
        inputs, slopes, factors, by_rows, by_tiles if table else None, sum(of_blocks[1:], of_blocks[0]) if of_blocks else None,
        cancelled[:terms] if inputs.cancels else None,
    )  # fmt: skip


def _finish_row_chunk(
    inputs: LossInputs, upstream: Upstream, flags: Tensor, row_chunk: slice, of_positives: Tensor, sums: Sequence[Sums],
    gradients: Sequence[Tensor], by_rows: Tensor, cancelled: Tensor,
) -> None:  # fmt: skip
    """Make gradients of the sums of some rows over unflagged tiles, with flagged tiles and positives."""
    vectors, xs = tuple(side.vectors[: row_chunk.stop] for side in inputs.sides), matrix_args_of(inputs.sides)
    points = tuple(own.points for own in sums)
    launch.over_rows(
        _to_features, "map", vectors, xs, points, tuple(own.times for own in sums), inputs.c, row_chunk.start,
        GEOMETRY=inputs.constants["GEOMETRY"], TANGENT=inputs.tangent, UNIT=inputs.unit,
    )  # fmt: skip
    if inputs.cancels:
        _add_cancelled_gradients(inputs, upstream, flags, row_chunk, sums, cancelled)
    _add_positives(inputs, of_positives, row_chunk, sums)
    launch.over_rows(
        _to_gradients, "map", vectors, xs, points, tuple(gradients), by_rows, by_rows.shape[1], row_chunk.start
    )


def _multiplies(dtype: torch.dtype) -> bool:
    """Whether a kernel can multiply what it has computed: of float64 numbers, Triton compiles no such product."""
    return dtype != torch.float64 or launch.architecture() == "interpreter"


def _row_chunks(inputs: LossInputs, whole: bool) -> list[slice]:
    """Rows of all features whose gradients are summed together, whole blocks of them; all, where no memory can be saved."""
    longest = max(len(side.vectors) for side in inputs.sides)
    if whole or inputs.dtype == inputs.c.dtype:
        return [slice(0, longest)]
    height = max(1, SUMS // (len(inputs.sides) * inputs.d * BLOCK)) * BLOCK
    return [slice(top, min(top + height, longest)) for top in range(0, longest, height)]


def _no_sums(inputs: LossInputs, row_chunk: slice, gradients: Sequence[Tensor]) -> list[Sums]:
    """Zeros for each of the features: in place of its gradient, where that has the precision."""
    mine = [gradient[row_chunk] for gradient in gradients]
    in_place = mine[0].dtype == inputs.c.dtype
    shapes = [x.shape for x in mine if not in_place] + [x.shape[:1] for x in mine]
    sizes = [-(-shape.numel() // 16) * 16 for shape in shapes]  # aligned for wide loads
    pieces = inputs.c.new_zeros(sum(sizes)).split(sizes)
    zeros = [piece[: shape.numel()].view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
    points, times = [x.zero_() for x in mine] if in_place else zeros[: len(mine)], zeros[-len(mine) :]
    return [Sums(*both) for both in zip(points, times, strict=True)]


def _add_cancelled_gradients(
    inputs: LossInputs, upstream: Upstream, flags: Tensor, row_chunk: slice, sums: Sequence[Sums], cancelled: Tensor
) -> None:
    """Add the gradients of the pairs of flagged tiles; put sums of dL/dlogit times the distance (2 t longest) in place."""
    count, rows = len(inputs.queries), row_chunk.stop - row_chunk.start
    for terms in (*rounds(inputs.queries), *rounds(inputs.keys)):
        own, size = inputs.flagged(terms, flags)
        _cancelled_gradients[inputs.exact_grid(terms, rows)](
            *matrix_args(terms), inputs.c, inputs.ids_of(terms), inputs.scale, inputs.exact_steepness, own, upstream.of(terms),
            tuple(sums[t.owner].points for t in terms),
            tuple(cancelled[int(t.swapped) * count + t.number, row_chunk.start :] for t in terms),
            row_chunk.start, row_chunk.stop, **inputs.exactly(size),
        )  # fmt: skip


def _add_positives(inputs: LossInputs, weights: Tensor, row_chunk: slice, sums: Sequence[Sums]) -> None:
    """Add the gradients of the positives' own distances."""
    for terms in rounds([*inputs.queries, *inputs.keys]):
        pairs = tuple(t.x.vectors[: min(t.pairs, row_chunk.stop)] for t in terms)
        launch.over_rows(
            _positive_gradients, "pair", pairs, *matrix_args(terms), inputs.c, tuple(weights[t.number] for t in terms),
            tuple(sums[t.owner].points for t in terms), row_chunk.start,
            GEOMETRY=inputs.constants["GEOMETRY"], TANGENT=inputs.tangent,
        )  # fmt: skip
