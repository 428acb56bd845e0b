"""What the launches of forward and backward share: prepared features, terms seen from either side, constants of kernels.

One launch serves all terms of a hierarchy that its compiled code fits: the second axis of its grid is that of the terms, and
whatever differs between them comes as tuples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from hyperst_kernels._constants import GEOMETRIES
from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.contrastive.forward import Exact
from hyperst_kernels.gpu.contrastive.geometry import (
    PreparedFeatures,
    cancels,
    prepare,
    unit_of_weights,
)
from hyperst_kernels.gpu.contrastive.operands import Tiling
from hyperst_kernels.gpu.exact_pairs import EXACT_TILE
from hyperst_kernels.reference.contrastive import Pairing

# z beside what it was subtracted from, below which a pair has cancelled: it keeps 15 of 23 bits, and half of that error counts.
CANCELLED = {torch.float32: 2.0**-8, torch.float64: 2.0**-16}
CENTRED_FROM = 1 << 30  # pairs, whose kernels take longer than a CPU does to launch them, and some more


class TermView(NamedTuple):
    """A term of the hierarchy seen from the features that own its rows: the queries, or the keys with all else swapped."""

    number: int
    owner: int  # which features x are
    partner: int  # and which are y
    x: PreparedFeatures
    y: PreparedFeatures
    symmetric: bool
    swapped: bool

    @property
    def n(self) -> int:
        return len(self.x.vectors)

    @property
    def m(self) -> int:
        return len(self.y.vectors)

    @property
    def pairs(self) -> int:
        """Rows that have a positive, and a loss."""
        return min(self.n, self.m)


def rounds(terms: Sequence[TermView]) -> Iterator[list[TermView]]:
    """Yield terms that may add to what they own in one launch: no two of a round own the same."""
    while terms:
        first = {term.owner: term for term in reversed(terms)}
        yield [term for term in terms if first[term.owner] is term]
        terms = [term for term in terms if first[term.owner] is not term]


class MatrixArgs(NamedTuple):
    """One side of each term of a launch: its vectors, stats, strides from row to row, and lengths; the stride of stats, and d."""

    vectors: tuple[Tensor, ...]
    stats: tuple[Tensor, ...]
    strides: tuple[int, ...]
    lengths: tuple[int, ...]
    longest: int
    d: int


def matrix_args(terms: Sequence[TermView]) -> tuple[MatrixArgs, MatrixArgs]:
    """Return what most kernels begin with: the side of the rows and that of the columns."""
    return matrix_args_of([t.x for t in terms]), matrix_args_of([t.y for t in terms])


def matrix_args_of(sides: Sequence[PreparedFeatures]) -> MatrixArgs:
    """Return several sides as an argument of a launch."""
    return _together([matrix_arg(side) for side in sides])


def operand_args(terms: Sequence[TermView]) -> tuple[MatrixArgs, MatrixArgs]:
    """`matrix_args` of kernels that read features only to multiply tiles of them."""
    return _together([operand_arg(t.x) for t in terms]), _together([operand_arg(t.y) for t in terms])


def _together(sides: Sequence[MatrixArg]) -> MatrixArgs:
    vectors, stats, strides, lengths, longest, d = zip(*sides, strict=True)
    return MatrixArgs(vectors, stats, strides, lengths, longest[0], d[0])


class MatrixArg(NamedTuple):
    """`MatrixArgs` of one."""

    vectors: Tensor
    stats: Tensor
    stride: int
    length: int
    longest: int
    d: int


def matrix_arg(side: PreparedFeatures) -> MatrixArg:
    """Return one side as an argument of a launch."""
    n, d = side.vectors.shape
    return MatrixArg(side.vectors, side.stats, side.vectors.stride(0), n, side.stats.stride(0), d)


def operand_arg(side: PreparedFeatures) -> MatrixArg:
    """Return one side as an argument of a kernel that reads features only to multiply tiles of them."""
    own = matrix_arg(side)
    if side.halves is None:
        return own
    return own._replace(vectors=side.halves, stride=side.halves.stride(0), d=side.halves.shape[1] // 2)


class Flags(NamedTuple):
    """Flags of each term of a launch, one per tile, and their strides by row and column of tiles."""

    ptrs: tuple[Tensor, ...]
    row_stride: int
    column_stride: int


class Flagged(NamedTuple):
    """`Flags` that are read, and how many each row of tiles has: along most rows there are none to look for."""

    ptrs: tuple[Tensor, ...]
    counts: tuple[Tensor, ...]
    row_stride: int
    column_stride: int


class Sums(NamedTuple):
    """Of some rows, sum_j G_ij s_j y_j (r d) and sum_j G_ij t_j (r) in `LossInputs.unit`: points' gradients are made of both."""

    points: Tensor
    times: Tensor


def sums_of(sums: Sequence[Sums], features: Sequence[int]) -> Sums:
    """`Sums` of these features, as an argument of a launch: a tuple of each."""
    return Sums(tuple(sums[k].points for k in features), tuple(sums[k].times for k in features))  # type: ignore[arg-type]


class Upstream(NamedTuple):
    """Of rows (t n) and columns (t m): log-sum-exp with the positive in units of log2(e), rounded, and gradient of the loss
    times what rounding took from the power of the sum.

    Of points: times what turns a softmax weight into that of a point, in the unit of `Sums`, too.
    """

    row_lse: Tensor
    row_grad: Tensor
    column_lse: Tensor
    column_grad: Tensor

    def of(self, terms: Sequence[TermView]) -> UpstreamOf:
        """As an argument: of each term's rows and of its columns."""
        mine, other = (self.row_lse, self.row_grad), (self.column_lse, self.column_grad)
        if terms[0].swapped:
            mine, other = other, mine
        return UpstreamOf(*(tuple(x[t.number] for t in terms) for x in (*mine, *other)))


class UpstreamOf(NamedTuple):
    """`Upstream` as each term of a launch sees it."""

    row_lse: tuple[Tensor, ...]
    row_grad: tuple[Tensor, ...]
    column_lse: tuple[Tensor, ...]
    column_grad: tuple[Tensor, ...]


@launch.on_own_device
def flags_shape(features: Sequence[Tensor], pairings: Sequence[Pairing], geometry: str) -> tuple[int, int, int]:
    """(t i j) of the flags that `forward` returns: one per tile of each term, none where no product cancels.

    The last row and the last column are of no tile. Without them a small batch would have sizes of 1, which PyTorch treats
    apart when it traces a symbolic batch size: an exported program would serve small batches or large ones.
    """
    if not cancels(geometry):
        return len(pairings), 0, 0
    table = launch.settings("contrastive", features[0].shape[1], features[0].dtype)
    n, m = (max(features[number].shape[0] for number in side) for side in list(zip(*pairings, strict=True))[:2])
    return len(pairings), -(-n // table["rows"]) + 1, -(-m // table["columns"]) + 1


class Ids(NamedTuple):
    """Of rows and of columns (n), (m): pairs of one id take no part."""

    rows: Tensor
    columns: Tensor


class LossInputs:
    """What one pass over all terms is given, forward or backward, and what follows from that."""

    def __init__(
        self,
        features: Sequence[Tensor],
        factors: Tensor | None,
        c: Tensor,
        logit_scale: Tensor,
        ids: tuple[Tensor, Tensor] | None,
        pairings: Sequence[Pairing],
        geometry: str,
        tangent: bool,
        precision: str,
        parts: torch.dtype | None = None,
    ):
        first = features[0]
        self.c, self.scale, self.geometry, self.tangent = c, logit_scale, geometry, tangent
        self.d, self.dtype, self.precision, self.cancels = first.shape[1], first.dtype, precision, cancels(geometry)
        self.table = launch.settings("contrastive", self.d, self.dtype)
        # not by rows, where tiles of features are multiplied by weights, too
        self.split = launch.product_precision(self.dtype, precision) == "bf16x3" and parts is None
        # several terms, ids and other geometries need more registers; tiles of flags are the same
        crowded = len(pairings) > 1 or ids is not None or geometry != "lorentz"
        if self.dtype == torch.float32 and (crowded or not self.split):
            kind = "crowded contrastive" if self.split else "plain contrastive"
            self.table = self.table | launch.lookup(kind, self.d, self.dtype)
        width = triton.cdiv(self.d, self.table["inner"]) * self.table["inner"] if self.split else None
        self.sides = prepare(features, factors, c, logit_scale, geometry, tangent, precision, parts, width)
        self.queries = [self._view(t, p, False) for t, p in enumerate(pairings)]
        self.keys = [self._view(t, p, True) for t, p in enumerate(pairings)]
        self.n, self.m = (max(term.n for term in terms) for terms in (self.queries, self.keys))
        nothing = first.new_empty(0, dtype=torch.int64)
        self.centres = self.cancels and c.dtype == torch.float32 and self.n * self.m >= CENTRED_FROM
        self.ids = Ids(nothing, nothing) if ids is None else Ids(*(x.contiguous() for x in ids))
        # logit = -slope * (distance but for 1/sqrt(c)) = -steepness ln 2 * remoteness
        own = self.sides[0]
        self.slope, self.steepness, self.exact_steepness = own.slope, own.steepness, own.exact_steepness
        self.unit = unit_of_weights(geometry, tangent, first.dtype)
        self._counts: dict[int, Tensor] = {}
        self.constants = {
            "GEOMETRY": GEOMETRIES.index(geometry),
            "EXCLUDE": ids is not None,
            "DTYPE": launch.triton_dtype(c.dtype),
            **launch.OPTIONS,
        }
        self.exact_tile = EXACT_TILE[c.dtype]

    def _view(self, t: int, pairing: Pairing, swapped: bool) -> TermView:
        owner, partner = (pairing.keys, pairing.queries) if swapped else (pairing.queries, pairing.keys)
        return TermView(t, owner, partner, self.sides[owner], self.sides[partner], pairing.symmetric, swapped)

    def ids_of(self, terms: Sequence[TermView]) -> Ids:
        """As the terms of a launch see them."""
        return Ids(self.ids.columns, self.ids.rows) if terms[0].swapped else self.ids

    def product(self, table: dict[str, int]) -> dict:
        """Constants of a kernel that multiplies tiles, and how it is launched."""
        operand = torch.bfloat16 if self.split else self.dtype
        tiling = Tiling(
            self.constants["GEOMETRY"],
            self.constants["EXCLUDE"],
            CANCELS=self.cancels,
            FAST=self.c.dtype == torch.float32 and launch.architecture().startswith("cuda"),
            ROUNDED=self.precision == "bf16" and self.dtype == torch.float32,
            SPLIT=self.split,
            PRECISION=launch.product_precision(operand, self.precision),
            DTYPE=self.constants["DTYPE"],
            OPERAND=launch.operand_dtype(operand),
            EVEN=self.split or self.d % table["inner"] == 0,
            BLOCK_N=table["rows"],
            BLOCK_M=table["columns"],
            BLOCK_D=table["inner"],
        )
        return {"TILING": tiling, "num_warps": table["warps"], "num_stages": table["stages"], **launch.OPTIONS}

    def flagged(self, terms: Sequence[TermView], flags: Tensor) -> tuple[Flagged, dict[str, int]]:
        """Of kernels that read flags: each term's, and constants with the block sizes of their tiles."""
        rows, columns = self.table["rows"], self.table["columns"]
        strides, axis = (flags.stride(1), 1), 2
        if terms[0].swapped:
            rows, columns, strides, axis = columns, rows, strides[::-1], 1
        if axis not in self._counts:  # whether a tile is flagged does not change any more
            self._counts[axis] = flags.sum(axis, dtype=torch.int32)
        counts = self._counts[axis]
        own = Flagged(tuple(flags[t.number] for t in terms), tuple(counts[t.number] for t in terms), *strides)
        return own, {"FLAG_N": rows, "FLAG_M": columns}

    def exact_grid(self, terms: Sequence[TermView], rows: int) -> tuple[int, int]:
        """Of kernels whose programs own ``exact_tile`` of so many rows."""
        return triton.cdiv(rows, self.exact_tile), len(terms)

    def exactly(self, size: dict[str, int]) -> dict:
        """Constants of a kernel that works feature by feature: with other numbers of warps its dozen numbers per pair spill."""
        warps = 4 if self.c.dtype == torch.float64 else 8
        exact = Exact(
            self.constants["GEOMETRY"], self.constants["EXCLUDE"], self.constants["DTYPE"], self.tangent, self.exact_tile,
            size["FLAG_N"], size["FLAG_M"],
        )  # fmt: skip
        return {"EXACT": exact, "num_warps": warps, **launch.OPTIONS}
