"""InfoNCE over distances without the matrix: log-sum-exps of both directions in one pass, gradients in two.

One tile of the product serves rows and columns. Positives never enter: they are computed row by row from exact
differences, and the log-sum-exp runs over negatives only.

A tile that holds a near pair, whose product has lost its digits, is flagged by the forward pass and left to kernels that
work feature by feature. The flags are kept: every later pass splits the pairs in the same way, whatever its own rounding
says.

Backward, the launch table chooses: one kernel whose programs own rows, run for the queries and, arguments swapped, for the
keys ("contrastive pull"); or, where its accumulators do not fit into registers, blocks of weights that meet the points in
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
from hyperst_kernels.gpu.contrastive.backward_blocks import BLOCK, pull_in_blocks
from hyperst_kernels.gpu.contrastive.backward_rows import pull_by_rows
from hyperst_kernels.gpu.contrastive.forward import FARTHEST, KeyViews, _log_sum_exps, _merge
from hyperst_kernels.gpu.contrastive.geometry import _to_features, _to_gradients
from hyperst_kernels.gpu.contrastive.inputs import (
    LN_2,
    NEAR,
    Flags,
    Role,
    Run,
    Sums,
    Upstream,
    flags_shape,
    rounds,
    views_of,
)
from hyperst_kernels.gpu.contrastive.near import _near_gradient, _near_log_sum_exps
from hyperst_kernels.gpu.contrastive.positives import _positive_pulls, _positives
from hyperst_kernels.reference.contrastive import Pairing

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
    exclude_ids: Tensor | None,
    pairings: Sequence[Pairing],
    geometry: str,
    tangent: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """LSE over negatives of each row and of each of the first n columns, positives (t n), flags of the tiles (t i j).

    Sums and positives are logits in float64. What does not exist is -inf in the sums and 0 among the positives: columns
    without a loss, rows beyond a term's own.
    """
    run = Run(features, factors, c, logit_scale, exclude_ids, pairings, geometry, tangent, precision)
    shape = (len(pairings), run.n)
    columns, positives = c.new_full(shape, -torch.inf, dtype=torch.float64), c.new_empty(shape, dtype=torch.float64)
    found: dict[int, Tensor] = {}
    flags = torch.zeros(flags_shape(features, pairings, geometry), dtype=torch.int8, device=c.device)
    for symmetric in (True, False):
        roles = [role for role in run.queries if role.symmetric == symmetric]
        if roles:
            found.update(zip([role.term for role in roles], _log_sums(run, roles, flags, columns), strict=True))
    rows = torch.stack([found[t] for t in range(len(pairings))])
    if run.near:
        _add_near_sums(run, run.queries, flags, rows)
        _add_near_sums(run, [role for role in run.keys if role.symmetric], flags, columns)
    launch.over_rows(
        _positives, "pair", tuple(r.x.vectors for r in run.queries), *views_of(run.queries), c, logit_scale,
        positives, run.stride_of_terms, run.n,
        GEOMETRY=run.constants["GEOMETRY"], TANGENT=tangent,
    )  # fmt: skip
    return _held(rows * LN_2, c.dtype), _held(columns * LN_2, c.dtype), positives, flags


def _held(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """NaN in place of sums of logits that the kernels' numbers do not hold."""
    if dtype != torch.float32:
        return logits
    return logits.masked_fill((logits.abs() > LARGEST) & (logits != -torch.inf), torch.nan)


def _log_sums(run: Run, roles: Sequence[Role], flags: Tensor, columns: Tensor) -> Tensor:
    """log2-sum-exps over unflagged tiles of terms that are all symmetric or all not, by strips of keys.

    Returns those of the rows (r n), puts in place those of the columns (t n), and sets the flags.
    """
    c, symmetric, step = run.c, roles[0].symmetric, run.table["columns"]
    xs, ys = views_of(roles)
    n, m = max(xs.lengths), max(ys.lengths)
    programs = min(triton.cdiv(n, run.table["rows"]), triton.cdiv(run.table["programs"], len(roles)))
    strip = max(1, WORKSPACE // (2 * len(roles) * programs * step)) if symmetric else triton.cdiv(m, step)
    found = []
    for first in range(0, triton.cdiv(m, step), strip):
        found.append(c.new_full((len(roles), run.n), -torch.inf, dtype=torch.float64))
        left, tiles = first * step, min(strip, triton.cdiv(m, step) - first)
        workspace = c.new_zeros(len(roles), programs, tiles if symmetric else 0, 2, step)
        workspace[:, :, :, 0] = FARTHEST.value
        keys = slice(left, left + tiles * step)
        some = KeyViews(
            tuple(r.y.vectors[keys] for r in roles), ys.strides, tuple(len(r.y.vectors[keys]) for r in roles),
            tuple(r.y.scale[keys] for r in roles), tuple(r.y.excess[keys] for r in roles), tuple(r.y.largest for r in roles),
        )  # fmt: skip
        own = Flags(tuple(flags[r.term, :, first:] for r in roles), flags.stride(1), 1)
        _log_sum_exps[(programs, len(roles))](
            xs, some, run.ids, run.ids[keys], run.steepness, found[-1], workspace, own, run.stride_of_terms, run.n, run.d,
            left, tiles, NEAR[c.dtype], SYMMETRIC=symmetric, WHOLE=run.d <= run.table["inner"], **run.product(run.table),
        )  # fmt: skip
        if symmetric and left < n:
            out = tuple(columns[role.term, left:] for role in roles)
            inside = tuple(max(0, role.n - left) for role in roles)
            _merge[(tiles, len(roles))](
                workspace, out, programs, tiles, inside, DTYPE=run.constants["DTYPE"], BLOCK_M=step, **launch.OPTIONS
            )
    return functools.reduce(torch.logaddexp2, found)


def _add_near_sums(run: Run, roles: Sequence[Role], flags: Tensor, sums: Tensor) -> None:
    """Take the pairs of flagged tiles into log2-sum-exps."""
    if not roles:
        return
    exact = torch.full_like(sums, -torch.inf)
    own, size = run.flagged(roles, flags)
    _near_log_sum_exps[run.near_grid(roles, run.n)](
        *views_of(roles), run.c, run.ids, run.exact_steepness, own, tuple(exact[r.term] for r in roles),
        run.stride_of_terms, tuple(r.pairs for r in roles), run.d, **run.exactly(size),
    )  # fmt: skip
    torch.logaddexp2(sums, exact, out=sums)


# ---------------------------------------------------------------------------------------------------------- backward


@launch.on_own_device
def backward(
    grad_rows: Tensor,
    grad_columns: Tensor,
    features: Sequence[Tensor],
    factors: Tensor | None,
    c: Tensor,
    logit_scale: Tensor,
    exclude_ids: Tensor | None,
    row_negatives: Tensor,
    column_negatives: Tensor,
    positives: Tensor,
    flags: Tensor,
    pairings: Sequence[Pairing],
    geometry: str,
    tangent: bool,
    precision: str,
    atomic: bool,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Gradients of the features, factors (f, or 0), c () and logit_scale () from those of the row and column losses (t n)."""
    run = Run(features, factors, c, logit_scale, exclude_ids, pairings, geometry, tangent, precision)
    gradients = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in features]
    table = launch.lookup("contrastive pull", run.d, run.dtype) if _multiplies(run.dtype) else {}
    upstream = _upstream(run, grad_rows, grad_columns, row_negatives, column_negatives, positives, bool(table))
    # of each pair of rows (i, i): minus its share of dL/dlogit
    by_row, by_column = (torch.sigmoid(v - positives).to(c.dtype) for v in (row_negatives, column_negatives))
    shares = grad_rows * by_row + grad_columns * by_column
    along = -(shares.double() * positives.double()).sum()  # s dL/ds
    by_rows = c.new_zeros(len(features), max(map(len, features)))  # <x, dL/dx>
    atomic = atomic and bool(table.get("atomic", 1))  # 0: with a second product the kernel does not fit into registers
    of_positives = logit_scale * shares
    for stripe in _stripes(run, atomic and bool(table)):
        along += _add_stripe(run, upstream, flags, table, atomic, stripe, of_positives, gradients, by_rows)
    by_features = by_rows.sum(1, dtype=torch.float64)
    dc = torch.zeros_like(c)
    if geometry == "lorentz":  # d is homogeneous in the features and 1/sqrt(c)
        dc = ((by_features.sum() - along) / (2 * c.double())).to(c.dtype)
    d_factors = c.new_zeros(0) if factors is None else (by_features / factors).to(c.dtype)
    return gradients, d_factors, dc, (along / logit_scale.double()).to(c.dtype)


def _add_stripe(
    run: Run, upstream: Upstream, flags: Tensor, table: dict[str, int], atomic: bool, stripe: slice, of_positives: Tensor,
    gradients: Sequence[Tensor], by_rows: Tensor,
) -> Tensor:  # fmt: skip
    """Put the gradients of some rows in place, and return the queries' share of s dL/ds.

    The sums of a stripe are let go of before those of the next one are there.
    """
    sums = [_no_sums(run, k, stripe, gradient) for k, gradient in enumerate(gradients)]
    if table:
        along = pull_by_rows(run, upstream, flags, table, atomic, stripe, sums)
    else:
        along = pull_in_blocks(run, upstream, flags, stripe, sums)
    vectors = tuple(side.vectors[: stripe.stop] for side in run.sides)
    terms, strides = tuple(side.terms for side in run.sides), tuple(x.stride(0) for x in vectors)
    pulls = tuple(own.pull for own in sums)
    launch.over_rows(
        _to_features, "map", vectors, vectors, terms, pulls, tuple(own.time for own in sums), run.c, strides,
        run.stride_of_terms, stripe.start, GEOMETRY=run.constants["GEOMETRY"], TANGENT=run.tangent, UNIT=run.unit,
    )  # fmt: skip
    if run.near:
        along += _add_near_gradients(run, upstream, flags, stripe, sums)
    _add_positives(run, of_positives, stripe, sums)
    launch.over_rows(
        _to_gradients, "map", vectors, vectors, terms, pulls, tuple(gradients), by_rows, strides,
        run.stride_of_terms, by_rows.shape[1], stripe.start,
    )  # fmt: skip
    return along


def _multiplies(dtype: torch.dtype) -> bool:
    """Whether a kernel can multiply what it has computed: of float64 numbers, Triton compiles no such product."""
    return dtype != torch.float64 or launch.architecture() == "interpreter"


def _upstream(run: Run, grad_rows, grad_columns, row_negatives, column_negatives, positives, by_rows: bool) -> Upstream:
    lse, grad = row_negatives.new_zeros(len(run.keys), run.m), grad_columns.new_zeros(len(run.keys), run.m)
    for role in run.keys:
        if role.symmetric:  # keys beyond the queries have no loss
            t, n = role.term, role.m
            lse[t, :n] = torch.logaddexp(column_negatives[t, :n], positives[t, :n])
            grad[t, :n] = grad_columns[t, :n]
    largest = LARGEST_BY_ROWS if by_rows else LARGEST
    if grad.dtype == torch.float64:
        largest = LARGEST_LOGIT[grad.dtype]
    of_rows = torch.logaddexp(row_negatives, positives)
    return Upstream(*_rounded(of_rows, grad_rows, largest), *_rounded(lse, grad, largest))


def _rounded(lse: Tensor, grad: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Log-sum-exps in units of log2(e) and the geometry's dtype; what rounding takes from their powers goes to the gradient.

    The gradient is NaN where rounding leaves no weight.
    """
    grad = grad.masked_fill(lse.abs() > largest, torch.nan)
    lse = lse / LN_2
    rounded = lse.to(grad.dtype)
    return rounded, grad * torch.exp2(rounded - lse).to(grad.dtype)


def _stripes(run: Run, whole: bool) -> list[slice]:
    """Rows of all features whose gradients are summed together, whole blocks of them; all, where no memory can be saved."""
    longest = max(len(side.vectors) for side in run.sides)
    if whole or run.dtype == run.c.dtype:
        return [slice(0, longest)]
    height = max(1, SUMS // (len(run.sides) * run.d * BLOCK)) * BLOCK
    return [slice(top, min(top + height, longest)) for top in range(0, longest, height)]


def _no_sums(run: Run, k: int, stripe: slice, gradient: Tensor) -> Sums:
    """Zeros for one of the features: in place of its gradient, where that has the precision."""
    mine = gradient[stripe]
    pull = mine.zero_() if mine.dtype == run.c.dtype else run.c.new_zeros(mine.shape)
    return Sums(pull, run.c.new_zeros(len(mine)))


def _add_near_gradients(run: Run, upstream: Upstream, flags: Tensor, stripe: slice, sums: Sequence[Sums]) -> Tensor:
    """Add the gradients of the pairs of flagged tiles, and return their share of s dL/ds."""
    along = run.c.new_zeros(2, len(run.queries), stripe.stop - stripe.start)
    for roles in (*rounds(run.queries), *rounds(run.keys)):
        own, size = run.flagged(roles, flags)
        _near_gradient[run.near_grid(roles, along.shape[2])](
            *views_of(roles), run.c, run.ids, run.scale, run.exact_steepness, own, upstream.of(roles),
            tuple(sums[r.owner].pull for r in roles), tuple(along[int(r.swapped), r.term] for r in roles),
            run.stride_of_terms, run.d, stripe.start, stripe.stop, **run.exactly(size),
        )  # fmt: skip
    return -run.scale * along[0].sum(dtype=torch.float64)


def _add_positives(run: Run, weights: Tensor, stripe: slice, sums: Sequence[Sums]) -> None:
    """Add the gradients of the positives' own pulls."""
    for roles in rounds([*run.queries, *run.keys]):
        pairs = tuple(r.x.vectors[: min(r.pairs, stripe.stop)] for r in roles)
        launch.over_rows(
            _positive_pulls, "pair", pairs, *views_of(roles), run.c, tuple(weights[r.term] for r in roles),
            tuple(sums[r.owner].pull for r in roles), run.stride_of_terms, stripe.start,
            GEOMETRY=run.constants["GEOMETRY"], TANGENT=run.tangent,
        )  # fmt: skip
