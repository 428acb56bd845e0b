"""InfoNCE over distances without the matrix: log-sum-exps of both directions in one pass, gradients in two.

One tile of the product serves rows and columns. With the terms of each row (``_prepare``), all geometries are
z_ij = t_i b_j + a_i - s_i s_j <x_i, y_j> and a logit that falls with z. Positives never enter: they are computed row by
row from exact differences, and the log-sum-exp runs over negatives only.

A tile that holds a near pair (``NEAR``), whose product has lost its digits, is flagged by the forward pass and left to
kernels that work feature by feature. The flags are kept: every later pass splits the pairs in the same way, whatever its
own rounding says.

Backward, the launch table chooses: one kernel whose programs own rows, run for the queries and, arguments swapped, for the
keys ("contrastive pull"); or, where its accumulators do not fit into registers, blocks of weights that meet the points in
library products. All sums have a fixed order, unless ``atomic`` allows one run of the kernel to serve both sides.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.cpu.geometry import geometry_of
from hyperst_kernels.gpu import distance as row_wise
from hyperst_kernels.gpu import launch, maps
from hyperst_kernels.gpu.contrastive_near import _near_gradient, _near_log_sum_exps
from hyperst_kernels.gpu.contrastive_pull import PARTS, _pull_of_rows, _weights
from hyperst_kernels.gpu.contrastive_tiles import NOWHERE, _log_sum_exps, _merge
from hyperst_kernels.gpu.pairwise import NEAR_TILE
from hyperst_kernels.gpu.tile_math import at_least, dot, load_rows, sinhc, store_each

GEOMETRIES = {"lorentz": 0, "euclidean": 1, "cosine": 2}
# z beside what it was subtracted from, below which a pair is near: it keeps 15 of 23 bits, and half of that error counts.
NEAR = {torch.float32: 2.0**-8, torch.float64: 2.0**-16}
BLOCK = 8192  # rows and columns whose weights are in memory together
CHUNK = 1 << 16  # rows whose temporaries of d numbers are in memory together
WORKSPACE = 1 << 25  # numbers that the programs of the forward pass may hold for the columns
LN_2 = 0.6931471805599453


# ------------------------------------------------------------------------------------------------------ prepared rows


class _Side(NamedTuple):
    """Queries or keys (r d); norm, scale s, time t, excess a and t / s of each (r); the largest excess ()."""

    vectors: Tensor
    norm: Tensor
    scale: Tensor
    time: Tensor
    excess: Tensor
    ratio: Tensor
    largest: Tensor


@triton.jit
def _terms(
    x_ptr, c_ptr, out_ptr, x_stride, n, d, GEOMETRY: tl.constexpr, TANGENT: tl.constexpr, ROUNDED: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows, columns = maps.block(BLOCK_ROWS, BLOCK_D)
    x = load_rows(x_ptr, rows, columns, x_stride, n, d, DTYPE)
    norm = tl.sqrt(dot(x, x))
    if ROUNDED:
        x = x.to(tl.bfloat16).to(DTYPE)
    square = dot(x, x)
    if GEOMETRY == 0:
        c = tl.load(c_ptr)
        scale = tl.sqrt(c) + 0 * square
        if TANGENT:
            scale *= sinhc(c * square)
        reach = scale * tl.sqrt(square)
        excess = reach * (reach / (1 + tl.sqrt(1 + reach * reach)))
        time = 1 + excess
    elif GEOMETRY == 1:  # |x|^2 + |y|^2 - 2 <x, y>
        scale, time, excess = 1.4142135623730951 + 0 * square, 1 + 0 * square, square
    else:  # 1 - cos
        scale, time, excess = 1 / at_least(tl.sqrt(square), 1e-12), 1 + 0 * square, 0.5 + 0 * square
    store_each(out_ptr, rows, norm, n)
    store_each(out_ptr + n, rows, scale, n)
    store_each(out_ptr + 2 * n, rows, time, n)
    store_each(out_ptr + 3 * n, rows, excess, n)
    store_each(out_ptr + 4 * n, rows, time / scale, n)


def _prepare(vectors: Tensor, c: Tensor, geometry: str, tangent: bool, precision: str) -> _Side:
    vectors = launch.unit_stride(vectors)
    terms = c.new_empty(5, len(vectors))
    flags = {"GEOMETRY": GEOMETRIES[geometry], "TANGENT": tangent, "ROUNDED": _rounded(vectors, precision)}
    launch.over_rows(_terms, "map", vectors, vectors, c, terms, vectors.stride(0), **flags)
    norm, scale, time, excess, ratio = terms
    return _Side(vectors, norm, scale, time, excess, ratio, excess.amax())


def _rounded(vectors: Tensor, precision: str) -> bool:
    return precision == "bf16" and vectors.dtype == torch.float32


# --------------------------------------------------------------------------------------------------------------- run


class _Run:
    """What forward and backward launch alike: prepared sides, settings, constants."""

    def __init__(
        self,
        queries: Tensor,
        keys: Tensor,
        c: Tensor,
        logit_scale: Tensor,
        exclude_ids: Tensor | None,
        geometry: str,
        tangent: bool,
        symmetric: bool,
        precision: str,
    ):
        self.n, self.m, self.d = len(queries), len(keys), queries.shape[1]
        self.c, self.scale, self.geometry, self.tangent = c, logit_scale, geometry, tangent
        self.symmetric, self.near, self.precision = symmetric, geometry != "cosine", precision
        self.x, self.y = (_prepare(v, c, geometry, tangent, precision) for v in (queries, keys))
        self.ids = queries.new_empty(0, dtype=torch.int64) if exclude_ids is None else exclude_ids.contiguous()
        # logit = -slope * (distance but for 1/sqrt(c)) = -steepness ln 2 * remoteness
        self.slope = logit_scale / c.sqrt() if geometry == "lorentz" else logit_scale
        self.steepness = self.slope if geometry == "lorentz" else self.slope / LN_2
        self.table = launch.settings("contrastive", self.d, queries.dtype)
        self.tiles = (triton.cdiv(self.n, self.table["rows"]), triton.cdiv(self.m, self.table["columns"]))
        self.constants = {
            "GEOMETRY": GEOMETRIES[geometry],
            "EXCLUDE": exclude_ids is not None,
            "DTYPE": launch.triton_dtype(c.dtype),
        }
        tile = NEAR_TILE[c.dtype]
        self.exactly = {**self.constants, "TANGENT": tangent, "TILE": tile}
        self.near_grid = (triton.cdiv(self.n, tile),), (triton.cdiv(self.m, tile),)

    def product(self, table: dict[str, int]) -> dict:
        """Constants of a kernel that multiplies tiles."""
        return {
            "FAST": self.c.dtype == torch.float32 and launch.architecture().startswith("cuda"),
            "ROUNDED": _rounded(self.x.vectors, self.precision),
            "PRECISION": launch.product_precision(self.x.vectors, self.precision),
            "OPERAND": launch.operand_dtype(self.x.vectors.dtype),
            "BLOCK_N": table["rows"],
            "BLOCK_M": table["columns"],
            "BLOCK_D": table["inner"],
            "EVEN": self.d % table["inner"] == 0,
            "num_warps": table["warps"],
            "num_stages": table["stages"],
            **self.constants,
        }

    def strides(self) -> tuple[int, int]:
        return self.x.vectors.stride(0), self.y.vectors.stride(0)

    def both_ways(self) -> tuple[tuple, tuple]:
        """(rows, columns, strides and block sizes of the flags, numbers of rows and columns), and the same swapped."""
        rows, columns = self.table["rows"], self.table["columns"]
        x, y = self.x, self.y
        return (
            (x, y, (self.tiles[1], 1), (rows, columns), (self.n, self.m)),
            (y, x, (1, self.tiles[1]), (columns, rows), (self.m, self.n)),
        )


def flags_shape(n: int, m: int, queries: Tensor, geometry: str) -> tuple[int, int]:
    """Of the flags that `forward` returns: one per tile, none where no pair is near."""
    if geometry == "cosine":
        return 0, 0
    table = launch.settings("contrastive", queries.shape[1], queries.dtype)
    return -(-n // table["rows"]), -(-m // table["columns"])


# ----------------------------------------------------------------------------------------------------------- forward


def forward(
    queries: Tensor,
    keys: Tensor,
    c: Tensor,
    logit_scale: Tensor,
    exclude_ids: Tensor | None,
    geometry: str,
    tangent: bool,
    symmetric: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """LSE over negatives of each row (n) and each of the first n columns (n or 0), positives (n), flags of the tiles."""
    run = _Run(queries, keys, c, logit_scale, exclude_ids, geometry, tangent, symmetric, precision)
    n = run.n
    flags = torch.empty(flags_shape(n, run.m, queries, geometry), dtype=torch.int8, device=queries.device)
    with launch.on_device_of(queries):
        rows, columns = _log_sums(run, flags)
        if run.near:
            for found, (x, y, strides, size, lengths) in zip((rows, columns), run.both_ways(), strict=True):
                if len(found):
                    exact = c.new_empty(n)
                    _near_log_sum_exps[run.near_grid[0]](
                        x.vectors, y.vectors, c, x.norm, y.norm, run.ids, run.scale / LN_2, flags, exact,
                        x.vectors.stride(0), y.vectors.stride(0), *strides, n, lengths[1], run.d,
                        BLOCK_N=size[0], BLOCK_M=size[1], **run.exactly,
                    )  # fmt: skip
                    found.copy_(torch.logaddexp2(found, exact))
    return rows * LN_2, columns * LN_2, _positives(run), flags


def _log_sums(run: _Run, flags: Tensor) -> tuple[Tensor, Tensor]:
    """log2-sum-exps of rows (n) and columns (n or 0) over unflagged tiles, by strips of keys; sets the flags."""
    c, n, x, y = run.c, run.n, run.x, run.y
    step, programs = run.table["columns"], min(run.tiles[0], run.table["programs"])
    strip = max(1, WORKSPACE // (2 * programs * step)) * step if run.symmetric else run.m
    rows, columns = c.new_full((n,), -torch.inf), c.new_empty(n if run.symmetric else 0)
    for left in range(0, run.m, strip):
        width = min(strip, run.m - left)
        keys, scales, excesses = (t[left : left + width] for t in (y.vectors, y.scale, y.excess))
        part = c.new_empty(n)
        workspace = c.new_zeros(programs, 2, width if run.symmetric else 0)
        workspace[:, 0] = NOWHERE.value  # the nearest remoteness of each column; beside it, the sum of powers
        _log_sum_exps[(programs,)](
            x.vectors, keys, x.scale, scales, x.time, x.excess, excesses, y.largest, run.ids, run.ids[left:],
            run.steepness, part, workspace, flags[:, left // step :], *run.strides(), run.tiles[1], n, width, run.d, left,
            NEAR[c.dtype], SYMMETRIC=run.symmetric, WHOLE=run.d <= run.table["inner"], **run.product(run.table),
        )  # fmt: skip
        rows = torch.logaddexp2(rows, part)
        if run.symmetric and left < n:
            found = columns[left : left + width]
            _merge[(triton.cdiv(len(found), 1024),)](
                workspace, run.steepness, found, programs, width, len(found), DTYPE=run.constants["DTYPE"], BLOCK=1024
            )
    return rows, columns


def _chunks(n: int) -> list[slice]:
    """Of n rows, so many at a time that their temporaries stay small."""
    return [slice(first, first + CHUNK) for first in range(0, n, CHUNK)]


def _positive_pairs(run: _Run, some: slice) -> tuple[Tensor, Tensor]:
    """Queries and keys of the pairs (i, i), in the geometry's dtype."""
    return run.x.vectors[some].to(run.c.dtype), run.y.vectors[: run.n][some].to(run.c.dtype)


def _positives(run: _Run) -> Tensor:
    """Logits of the pairs (i, i), from exact differences in the geometry's dtype."""
    out = run.c.new_empty(run.n)
    for some in _chunks(run.n):
        pairs = _positive_pairs(run, some)
        if run.geometry == "lorentz":
            out[some] = row_wise.distance(*pairs, run.c, run.tangent)
        else:
            out[some] = geometry_of(run.geometry, run.c, run.tangent).exact(*pairs)
    return -run.scale * out


# ---------------------------------------------------------------------------------------------------------- backward


class _Upstream(NamedTuple):
    """Of rows or columns (r): log-sum-exp with the positive in units of log2(e), and the gradient of the loss."""

    lse: Tensor
    grad: Tensor


def backward(
    grad_rows: Tensor,
    grad_columns: Tensor,
    queries: Tensor,
    keys: Tensor,
    c: Tensor,
    logit_scale: Tensor,
    exclude_ids: Tensor | None,
    row_negatives: Tensor,
    column_negatives: Tensor,
    positives: Tensor,
    flags: Tensor,
    geometry: str,
    tangent: bool,
    symmetric: bool,
    precision: str,
    atomic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries (n d), keys (m d), c () and logit_scale () from those of the row and column losses."""
    run = _Run(queries, keys, c, logit_scale, exclude_ids, geometry, tangent, symmetric, precision)
    of_rows = _Upstream(torch.logaddexp(row_negatives, positives) / LN_2, grad_rows.contiguous())
    of_columns = _Upstream(c.new_zeros(run.m), c.new_zeros(run.m))
    if symmetric:
        of_columns.lse[: run.n] = torch.logaddexp(column_negatives, positives) / LN_2
        of_columns.grad[: run.n] = grad_columns
    with launch.on_device_of(queries):
        dx, dy, along = _pull(run, of_rows, of_columns, flags, atomic)
        if run.near:
            along = along + _add_near(run, of_rows, of_columns, flags, dx, dy)
    d_scale = along + _add_positives(run, dx, dy, grad_rows, grad_columns, row_negatives, column_negatives, positives)
    dc = torch.zeros_like(c)
    if geometry == "lorentz":  # d is homogeneous in the features and 1/sqrt(c); d_scale is s dL/ds here
        homogeneity = sum(
            torch.linalg.vecdot(v[some].to(dv), dv[some]).sum(dtype=torch.float64)
            for v, dv in ((queries, dx), (keys, dy))
            for some in _chunks(len(v))
        )
        dc = ((homogeneity - d_scale) / (2 * c.double())).to(c.dtype)
    return dx.to(queries.dtype), dy.to(keys.dtype), dc, (d_scale / logit_scale.double()).to(c.dtype)


def _add_near(run: _Run, of_rows: _Upstream, of_columns: _Upstream, flags: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Add the gradients of the pairs of flagged tiles, and return their share of s dL/ds."""
    along = []
    ways = zip((dx, dy), (of_rows, of_columns), (of_columns, of_rows), run.both_ways(), run.near_grid, strict=True)
    for out, mine, other, (x, y, strides, size, lengths), grid in ways:
        along.append(run.c.new_empty(lengths[0]))
        _near_gradient[grid](
            x.vectors, y.vectors, run.c, x.norm, y.norm, run.ids, run.scale, flags, mine.lse, other.lse, mine.grad,
            other.grad, out, along[-1], x.vectors.stride(0), y.vectors.stride(0), *strides, *lengths, run.d,
            BLOCK_N=size[0], BLOCK_M=size[1], **run.exactly,
        )  # fmt: skip
    return along[0].sum(dtype=torch.float64) * LN_2


def _add_positives(run, dx, dy, grad_rows, grad_columns, row_negatives, column_negatives, positives) -> Tensor:
    """Add the gradients of the positives' own pulls, and return their share of s dL/ds."""
    pull = grad_rows * torch.sigmoid(row_negatives - positives)
    if run.symmetric:
        pull = pull + grad_columns * torch.sigmoid(column_negatives - positives)
    weights = run.scale * pull
    for some in _chunks(run.n):
        pairs = _positive_pairs(run, some)
        if run.geometry == "lorentz":
            *changes, _ = row_wise.distance_backward(weights[some], *pairs, run.c, run.tangent)
        else:
            gradients = geometry_of(run.geometry, run.c, run.tangent).exact_gradient(*pairs)
            changes = [weights[some, None] * g for g in gradients]
        for out, change in zip((dx, dy[: run.n]), changes, strict=True):
            out[some] += change
    return -(pull.double() * positives.double()).sum()


def _pull(
    run: _Run, of_rows: _Upstream, of_columns: _Upstream, flags: Tensor, atomic: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of all unflagged pairs by queries and keys in the geometry's dtype, and their share of s dL/ds."""
    # logits fall by slope times what the kernels' slopes are in
    of_rows, of_columns = (side._replace(grad=side.grad * -run.slope) for side in (of_rows, of_columns))
    table = launch.lookup("contrastive pull", run.d, run.x.vectors.dtype)
    if table:
        pulls, times, along = _pull_by_rows(run, of_rows, of_columns, flags, table, atomic)
    else:
        pulls, times, along = _pull_in_blocks(run, of_rows, of_columns, flags)
    for side, pull, time in zip((run.x, run.y), pulls, times, strict=True):
        for some in _chunks(len(pull)):
            pull[some] = _to_features(run, side, some, pull[some], time[some])
    return pulls[0], pulls[1], along.sum(dtype=torch.float64) * (LN_2 if run.geometry == "lorentz" else 1)


def _pull_by_rows(
    run: _Run, of_rows: _Upstream, of_columns: _Upstream, flags: Tensor, table: dict[str, int], atomic: bool
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """sum_j G_ij s_j y_j and sum_j G_ij t_j of queries and keys, and sums of dL/dlogit times the logit."""
    sides = (run.x, run.y)
    fresh = run.c.new_zeros if atomic else run.c.new_empty
    pulls, times, along = [fresh(s.vectors.shape) for s in sides], [fresh(len(s.norm)) for s in sides], fresh(run.n)
    for i, (x, y, strides, size, lengths) in enumerate(run.both_ways()[: 1 if atomic else 2]):
        mine, other = (of_columns, of_rows) if i else (of_rows, of_columns)
        flagged = flags.sum(1 - i, dtype=torch.int32)
        _pull_of_rows[(triton.cdiv(lengths[0], table["rows"]),)](
            x.vectors, y.vectors, x.scale, y.scale, x.time, x.excess, y.excess, y.largest, x.ratio,
            _split(y.ratio, y.vectors.dtype), run.ids, run.steepness,
            mine.lse, other.lse, mine.grad, other.grad, flags, flagged, pulls[i], times[i], along,
            pulls[1 - i], times[1 - i], x.vectors.stride(0), y.vectors.stride(0), *strides, *lengths, run.d,
            ROW_SHARE=i == 0 or run.symmetric, COLUMN_SHARE=i == 1 or run.symmetric, ALONG=i == 0, ATOMIC=atomic,
            FLAG_N=size[0] if run.near else 0, FLAG_M=size[1] if run.near else 0,
            **run.product({**table, "inner": launch.bucket(run.d)}),
        )  # fmt: skip
    return pulls, times, along


def _pull_in_blocks(
    run: _Run, of_rows: _Upstream, of_columns: _Upstream, flags: Tensor
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The same from blocks of weights G_ij s_i s_j and library products."""
    x, y, c = run.x, run.y, run.c
    parts = _parts_of_weights(run)
    pulls = [c.new_zeros(side.vectors.shape) for side in (x, y)]
    times = [c.new_zeros(len(side.norm)) for side in (x, y)]
    dtype = torch.bfloat16 if parts else c.dtype
    weights = torch.empty(max(1, parts), min(BLOCK, run.n), min(BLOCK, run.m), dtype=dtype, device=c.device)
    along = c.new_zeros(run.tiles)
    for top in range(0, run.n, BLOCK):
        for left in range(0, run.m, BLOCK):
            height, width = min(BLOCK, run.n - top), min(BLOCK, run.m - left)
            tiles_m = triton.cdiv(width, run.table["columns"])
            _weights[(triton.cdiv(height, run.table["rows"]) * tiles_m,)](
                x.vectors, y.vectors, x.scale, y.scale, x.time, x.excess, y.excess, x.largest, y.largest, run.ids,
                run.steepness, of_rows.lse, of_columns.lse, of_rows.grad, of_columns.grad, flags, weights, along,
                *run.strides(), weights.stride(0), weights.stride(1), run.n, run.m, run.d, top, left, tiles_m,
                SYMMETRIC=run.symmetric, SPLIT=parts == 2, **run.product(run.table),
            )  # fmt: skip
            block = weights[:, :height, :width]
            some, others = slice(top, top + height), slice(left, left + width)
            for i, rows, columns, weight, side in ((0, some, others, block, y), (1, others, some, block.mT, x)):
                pulls[i][rows] += _multiply(weight, side.vectors[columns])
                if run.geometry != "cosine":
                    ratio = _split(side.ratio[columns], dtype)
                    for part in weight:
                        times[i][rows] += _product(part, ratio).sum(1)
    for i, side in enumerate((x, y)):
        pulls[i] /= side.scale[:, None]
        times[i] /= side.scale
    return pulls, times, along


def _parts_of_weights(run: _Run) -> int:
    """In how many bf16 numbers a weight is held; 0: in one of the geometry's dtype.

    bf16 has the range that weights of 1/n^2 need, float16 has not. Products of two parts take a third of the time of
    those in float32, where the device has them with results in float32.
    """
    if run.x.vectors.dtype == torch.bfloat16:
        return 1
    return 0 if run.c.dtype == torch.float64 or run.precision == "ieee" or torch.version.hip else 2


def _multiply(weight: Tensor, vectors: Tensor) -> Tensor:
    """Weights, the sum of their parts (p r k), times vectors (k d); but for the product of the smallest parts."""
    if weight.dtype != torch.bfloat16:
        return weight[0] @ vectors.to(weight)
    high = vectors.bfloat16()
    if len(weight) == 1:
        return _product(weight[0], high)
    low = (vectors - high.to(torch.promote_types(vectors.dtype, torch.float32))).bfloat16()
    return _product(weight[0], high) + (_product(weight[0], low) + _product(weight[1], high))


def _product(x: Tensor, y: Tensor) -> Tensor:
    """The product of two matrices in the precision it is accumulated in."""
    if x.dtype != torch.bfloat16:
        return x @ y
    if x.is_cuda and torch.version.hip is None:
        return torch.mm(x, y, out_dtype=torch.float32)
    return x.float() @ y.float()


def _split(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(r PARTS) numbers of ``dtype`` whose row sums are x (r)."""
    parts = x.new_zeros(len(x), PARTS.value)
    for i in range(3 if dtype == torch.bfloat16 else 1):
        parts[:, i] = (x - parts.sum(1)).to(dtype)
    return parts.to(dtype)


def _to_features(run: _Run, side: _Side, some: slice, pull: Tensor, time: Tensor) -> Tensor:
    """dL/dX = (sum w t) X / t - sum w Y of some rows, carried from the operands X of the product to the features."""
    vectors = side.vectors[some].to(pull.dtype)
    if run.geometry == "cosine":
        scale = side.scale[some, None]
        points = vectors * scale
        return (points * torch.linalg.vecdot(points, pull)[:, None] - pull) * scale
    grad = (time / side.ratio[some])[:, None] * vectors - pull
    if run.geometry == "euclidean":
        return grad * 2**0.5
    grad = grad * run.c.sqrt()
    if not run.tangent:
        return grad
    return maps.exp_map0_backward(grad, vectors, torch.ones_like(run.c), run.c)[0]
