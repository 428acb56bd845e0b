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

import functools
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from hyperst_kernels._precision import LARGEST_LOGIT
from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.contrastive.backward_blocks import BLOCK, grad_points_by_blocks
from hyperst_kernels.gpu.contrastive.backward_rows import grad_points_by_rows
from hyperst_kernels.gpu.contrastive.exact import (
    _cancelled_gradients,
    _cancelled_log_sum_exps,
    _positive_gradients,
    _positives,
)
from hyperst_kernels.gpu.contrastive.forward import FARTHEST, KeyArgs, LogSums, _log_sum_exps, _merge
from hyperst_kernels.gpu.contrastive.geometry import LN_2, _to_features, _to_gradients, curvature_grad
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
    rounds,
)
from hyperst_kernels.reference.contrastive import Pairing, Slopes

WORKSPACE = 1 << 25  # numbers that the programs of the forward pass may hold for the columns
# In float32: a logit is a product less a rounded product, whose rounding is a power of two in the sum, and overflows beyond
# the first; the backward pass by rows may round a distance to its neighbour, which takes a factor of e^2 at the second.
LARGEST, LARGEST_BY_ROWS = 2.0**27, 2.0**24
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
    columns = c.new_full((len(pairings), inputs.m if all_columns else inputs.n), -torch.inf, dtype=torch.float64)
    positives = c.new_empty(len(pairings), inputs.n, dtype=torch.float64)
    found: dict[int, Tensor] = {}
    flags = torch.zeros(flags_shape(features, pairings, geometry), dtype=torch.int8, device=c.device)
    for symmetric in (True, False):
        terms = [term for term in inputs.queries if term.symmetric == symmetric]
        if terms:
            found.update(
                zip([t.number for t in terms], _log_sums(inputs, terms, flags, columns, all_columns), strict=True)
            )
    rows = torch.stack([found[t] for t in range(len(pairings))])
    if inputs.cancels:
        _add_cancelled_sums(inputs, inputs.queries, flags, rows, True)
        _add_cancelled_sums(inputs, [term for term in inputs.keys if term.symmetric], flags, columns, all_columns)
    launch.over_rows(
        _positives, "pair", tuple(t.x.vectors for t in inputs.queries), *matrix_args(inputs.queries), c, logit_scale,
        positives, inputs.n,
        GEOMETRY=inputs.constants["GEOMETRY"], TANGENT=tangent,
    )  # fmt: skip
    return _held(rows * LN_2, c.dtype), _held(columns * LN_2, c.dtype), positives, flags


def _held(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """NaN in place of sums of logits that the kernels' numbers do not hold."""
    if dtype != torch.float32:
        return logits
    return logits.masked_fill((logits.abs() > LARGEST) & (logits != -torch.inf), torch.nan)


def _log_sums(
    inputs: LossInputs, terms: Sequence[TermView], flags: Tensor, columns: Tensor, all_columns: bool
) -> Tensor:
    """log2-sum-exps over unflagged tiles of terms that are all symmetric or all not, a chunk of keys at a time.

    Returns those of the rows (r n), puts in place those of the columns, and sets the flags.
    """
    c, symmetric, step = inputs.c, terms[0].symmetric, inputs.table["columns"]
    xs, ys = matrix_args(terms)
    n, m = max(xs.lengths), max(ys.lengths)
    programs = min(triton.cdiv(n, inputs.table["rows"]), triton.cdiv(inputs.table["programs"], len(terms)))
    key_chunk = max(1, WORKSPACE // (2 * len(terms) * programs * step)) if symmetric else triton.cdiv(m, step)
    found = []
    for first in range(0, triton.cdiv(m, step), key_chunk):
        found.append(c.new_full((len(terms), inputs.n), -torch.inf, dtype=torch.float64))
        left, tiles = first * step, min(key_chunk, triton.cdiv(m, step) - first)
        workspace = c.new_zeros(len(terms), programs, tiles if symmetric else 0, 2, step)
        workspace[:, :, :, 0] = FARTHEST.value
        keys = slice(left, left + tiles * step)
        some = KeyArgs(
            tuple(t.y.vectors[keys] for t in terms), ys.strides, tuple(len(t.y.vectors[keys]) for t in terms),
            tuple(t.y.scale[keys] for t in terms), tuple(t.y.excess[keys] for t in terms), tuple(t.y.largest for t in terms),
            inputs.ids.columns[keys], left, tiles,
        )  # fmt: skip
        own = Flags(tuple(flags[t.number, :, first:] for t in terms), flags.stride(1), 1)
        _log_sum_exps[(programs, len(terms))](
            xs, some, inputs.ids.rows, inputs.steepness, LogSums(found[-1], inputs.n, workspace), own, CANCELLED[c.dtype],
            SYMMETRIC=symmetric, ALL_COLUMNS=all_columns, WHOLE=inputs.d <= inputs.table["inner"], **inputs.product(inputs.table),
        )  # fmt: skip
        if symmetric and left < (m if all_columns else n):
            out = tuple(columns[term.number, left:] for term in terms)
            inside = tuple(max(0, (term.m if all_columns else term.n) - left) for term in terms)
            _merge[(tiles, len(terms))](
                workspace, out, programs, tiles, inside, DTYPE=inputs.constants["DTYPE"], BLOCK_M=step, **launch.OPTIONS
            )
    return functools.reduce(torch.logaddexp2, found)


def _add_cancelled_sums(
    inputs: LossInputs, terms: Sequence[TermView], flags: Tensor, sums: Tensor, of_all: bool
) -> None:
    """Take the pairs of flagged tiles into log2-sum-exps, of all rows or of those that have a positive."""
    if not terms:
        return
    exact = torch.full_like(sums, -torch.inf)
    own, size = inputs.flagged(terms, flags)
    _cancelled_log_sum_exps[inputs.exact_grid(terms, sums.shape[1])](
        *matrix_args(terms), inputs.c, inputs.ids_of(terms), inputs.exact_steepness, own,
        tuple(exact[t.number] for t in terms), tuple(t.n if of_all else t.pairs for t in terms), **inputs.exactly(size),
    )  # fmt: skip
    torch.logaddexp2(sums, exact, out=sums)


# ---------------------------------------------------------------------------------------------------------- backward


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
    m = max(len(features[p.keys]) for p in pairings)
    lse, grad = row_negatives.new_zeros(len(pairings), m), grad_columns.new_zeros(len(pairings), m)
    for t, pairing in enumerate(pairings):
        if pairing.symmetric:  # keys beyond the queries have no loss
            n = len(features[pairing.queries])
            lse[t, :n] = torch.logaddexp(column_negatives[t, :n], positives[t, :n])
            grad[t, :n] = grad_columns[t, :n]
    # of each pair of rows (i, i): minus its share of dL/dlogit
    by_row, by_column = (torch.sigmoid(v - positives).to(grad) for v in (row_negatives, column_negatives))
    shares = grad_rows * by_row + grad_columns * by_column
    return Slopes(torch.logaddexp(row_negatives, positives), grad_rows, lse, grad, positives, shares)


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
    inputs = LossInputs(features, factors, c, logit_scale, ids, pairings, geometry, tangent, precision)
    gradients = [torch.empty(x.shape, dtype=c.dtype if unrounded else x.dtype, device=x.device) for x in features]
    table = launch.lookup("contrastive backward", inputs.d, inputs.dtype) if _multiplies(inputs.dtype) else {}
    upstream = _upstream(slopes, bool(table))
    scale_grad = -(slopes.shares.double() * slopes.diagonal).sum()  # s dL/ds
    by_rows = c.new_zeros(len(features), max(map(len, features)))  # <x, dL/dx>
    atomic = atomic and bool(table.get("atomic", 1))  # 0: with a second product the kernel does not fit into registers
    of_positives = logit_scale * slopes.shares
    for row_chunk in _row_chunks(inputs, unrounded or (atomic and bool(table))):
        scale_grad += _add_row_chunk(
            inputs, upstream, flags, table, atomic, row_chunk, of_positives, gradients, by_rows
        )
    by_features = by_rows.sum(1, dtype=torch.float64)
    dc = curvature_grad(geometry, by_features.sum(), scale_grad, c)
    d_factors = c.new_zeros(0) if factors is None else (by_features / factors).to(c.dtype)
    return gradients, d_factors, dc, (scale_grad / logit_scale.double()).to(c.dtype)


def _add_row_chunk(
    inputs: LossInputs, upstream: Upstream, flags: Tensor, table: dict[str, int], atomic: bool, row_chunk: slice,
    of_positives: Tensor, gradients: Sequence[Tensor], by_rows: Tensor,
) -> Tensor:  # fmt: skip
    """Put the gradients of some rows in place, and return the queries' share of s dL/ds.

    The sums of a chunk are let go of before those of the next one are there.
    """
    sums = [_no_sums(inputs, k, row_chunk, gradient) for k, gradient in enumerate(gradients)]
    if table:
        scale_grad = grad_points_by_rows(inputs, upstream, flags, table, atomic, row_chunk, sums)
    else:
        scale_grad = grad_points_by_blocks(inputs, upstream, flags, row_chunk, sums)
    vectors, xs = tuple(side.vectors[: row_chunk.stop] for side in inputs.sides), matrix_args_of(inputs.sides)
    points = tuple(own.points for own in sums)
    launch.over_rows(
        _to_features, "map", vectors, xs, points, tuple(own.times for own in sums), inputs.c, row_chunk.start,
        GEOMETRY=inputs.constants["GEOMETRY"], TANGENT=inputs.tangent, UNIT=inputs.unit,
    )  # fmt: skip
    if inputs.cancels:
        scale_grad += _add_cancelled_gradients(inputs, upstream, flags, row_chunk, sums)
    _add_positives(inputs, of_positives, row_chunk, sums)
    launch.over_rows(
        _to_gradients, "map", vectors, xs, points, tuple(gradients), by_rows, by_rows.shape[1], row_chunk.start
    )
    return scale_grad


def _multiplies(dtype: torch.dtype) -> bool:
    """Whether a kernel can multiply what it has computed: of float64 numbers, Triton compiles no such product."""
    return dtype != torch.float64 or launch.architecture() == "interpreter"


def _upstream(slopes: Slopes, by_rows: bool) -> Upstream:
    grad = slopes.row_grad
    largest = LARGEST_BY_ROWS if by_rows else LARGEST
    if grad.dtype == torch.float64:
        largest = LARGEST_LOGIT[grad.dtype]
    of_rows = _rounded(slopes.row_lse, grad, largest)
    return Upstream(*of_rows, *_rounded(slopes.column_lse, slopes.column_grad, largest))


def _rounded(lse: Tensor, grad: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Log-sum-exps in units of log2(e) and the geometry's dtype; what rounding takes from their powers goes to the gradient.

    The gradient is NaN where rounding leaves no weight.
    """
    grad = grad.masked_fill(lse.abs() > largest, torch.nan)
    lse = lse / LN_2
    rounded = lse.to(grad.dtype)
    return rounded, grad * torch.exp2(rounded - lse).to(grad.dtype)


def _row_chunks(inputs: LossInputs, whole: bool) -> list[slice]:
    """Rows of all features whose gradients are summed together, whole blocks of them; all, where no memory can be saved."""
    longest = max(len(side.vectors) for side in inputs.sides)
    if whole or inputs.dtype == inputs.c.dtype:
        return [slice(0, longest)]
    height = max(1, SUMS // (len(inputs.sides) * inputs.d * BLOCK)) * BLOCK
    return [slice(top, min(top + height, longest)) for top in range(0, longest, height)]


def _no_sums(inputs: LossInputs, k: int, row_chunk: slice, gradient: Tensor) -> Sums:
    """Zeros for one of the features: in place of its gradient, where that has the precision."""
    mine = gradient[row_chunk]
    points = mine.zero_() if mine.dtype == inputs.c.dtype else inputs.c.new_zeros(mine.shape)
    return Sums(points, inputs.c.new_zeros(len(mine)))


def _add_cancelled_gradients(
    inputs: LossInputs, upstream: Upstream, flags: Tensor, row_chunk: slice, sums: Sequence[Sums]
) -> Tensor:
    """Add the gradients of the pairs of flagged tiles, and return their share of s dL/ds."""
    scale_grad = inputs.c.new_zeros(2, len(inputs.queries), row_chunk.stop - row_chunk.start)
    for terms in (*rounds(inputs.queries), *rounds(inputs.keys)):
        own, size = inputs.flagged(terms, flags)
        _cancelled_gradients[inputs.exact_grid(terms, scale_grad.shape[2])](
            *matrix_args(terms), inputs.c, inputs.ids_of(terms), inputs.scale, inputs.exact_steepness, own, upstream.of(terms),
            tuple(sums[t.owner].points for t in terms), tuple(scale_grad[int(t.swapped), t.number] for t in terms),
            row_chunk.start, row_chunk.stop, **inputs.exactly(size),
        )  # fmt: skip
    return -inputs.scale * scale_grad[0].sum(dtype=torch.float64)


def _add_positives(inputs: LossInputs, weights: Tensor, row_chunk: slice, sums: Sequence[Sums]) -> None:
    """Add the gradients of the positives' own distances."""
    for terms in rounds([*inputs.queries, *inputs.keys]):
        pairs = tuple(t.x.vectors[: min(t.pairs, row_chunk.stop)] for t in terms)
        launch.over_rows(
            _positive_gradients, "pair", pairs, *matrix_args(terms), inputs.c, tuple(weights[t.number] for t in terms),
            tuple(sums[t.owner].points for t in terms), row_chunk.start,
            GEOMETRY=inputs.constants["GEOMETRY"], TANGENT=inputs.tangent,
        )  # fmt: skip
