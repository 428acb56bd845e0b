"""Losses of all pairs without the matrix, a block of distances at a time: several positives, sigmoid, scales of each query.

The mathematics is in `hyperst_kernels.reference.pair_loss`. A sum of powers is held relative to the nearest of its pairs, so that
a large logit scale costs no digits, and the loss is made of those sums in float64. The backward pass computes the distances of a
block again, and their weights from the sums. Everything is added in fixed order. Memory: O((n + m) d) and a few blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hyperst_kernels._constants import PRODUCTS
from hyperst_kernels.blocked import epilogue
from hyperst_kernels.blocked import pairs as portable
from hyperst_kernels.blocked.blocks import AllPairs, BlockedPairs, Geometry
from hyperst_kernels.blocked.epilogue import Targets
from hyperst_kernels.blocked.pairs import Pairs, PowerSums, Sides, Weights, nothing
from hyperst_kernels.cpu import angle_pairs
from hyperst_kernels.cpu import pair_loss as machine_code
from hyperst_kernels.cpu.all_pairs import TiledPairs
from hyperst_kernels.cpu.native import bindings
from hyperst_kernels.cpu.product_pairs import ProductPairs
from hyperst_kernels.cpu.tiles import NeedsFloat64
from hyperst_kernels.operators.register import on_triton
from hyperst_kernels.reference.pair_loss import BOUNDS


def stats_needed(label_smoothing: float, debias: Tensor | None) -> int:
    """How many of `PowerSums` each row and column has."""
    return len(PowerSums._fields) - (2 if debias is None and not label_smoothing else 0)


class Inputs(NamedTuple):
    """What a loss is computed of: queries (n d) and keys (m d), numbers, ids and limits of both sides, and what is asked for."""

    queries: Tensor
    keys: Tensor
    c: Tensor
    logit_scale: Tensor  # () or (n)
    logit_bias: Tensor | None
    positives: Sides | None
    exclude_ids: Sides | None
    limits: Sides | None  # of distances of negatives
    debias: Tensor | None  # () or (n)
    loss: str
    geometry: Geometry
    symmetric: bool
    label_smoothing: float = 0.0
    own: bool = True  # without ids, whether the first keys are the positives of the queries beside them
    widened: bool = False  # float64 numbers that were float32

    def matrix(self) -> AllPairs:
        """Distances of all pairs."""
        given, (geometry, tangent, precision) = (self.queries, self.keys, self.c), self.geometry
        if on_triton(self.c) and geometry == "lorentz":
            from hyperst_kernels.gpu.all_pairs import LorentzPairs

            return LorentzPairs(*given, tangent, precision)
        if on_triton(self.c) and geometry == "angle":
            from hyperst_kernels.gpu.angle_pairs import AnglePairs

            return AnglePairs(*given, tangent, precision)
        if geometry == "angle" and bindings.usable(self.queries):
            return angle_pairs.AnglePairs(*given, tangent)
        if self.c.device.type == "cpu" and not on_triton(self.c) and geometry != "angle":
            if geometry in PRODUCTS:
                return ProductPairs(*given, geometry, tangent, self.widened)
            return TiledPairs(*given, geometry, tangent, self.widened)
        return BlockedPairs(*given, self.geometry)

    def pairs(self) -> Callable[[slice, slice], Pairs]:
        """Return what makes the `Pairs` of rows and columns."""
        scales, first = self.logit_scale.expand(len(self.queries)).contiguous(), 0 if self.own else len(self.queries)
        # machine code reads 64 bits of each id
        positives, excluded = (
            _each(x, lambda ids: ids.to(torch.int64).contiguous()) for x in (self.positives, self.exclude_ids)
        )
        limits = _each(self.limits, Tensor.contiguous)

        def pairs_of(rows: slice, columns: slice) -> Pairs:
            def some(sides: Sides | None) -> Sides | None:
                return None if sides is None else (sides[0][rows], sides[1][columns])

            diagonal = rows.start - columns.start - first
            return Pairs(scales[rows], diagonal, some(positives), some(excluded), some(limits))

        return pairs_of

    def in_float64(self) -> Inputs:
        """The same in float64."""
        return self._replace(
            queries=self.queries.double(), keys=self.keys.double(), c=self.c.double(), logit_scale=self.logit_scale.double(),
            logit_bias=None if self.logit_bias is None else self.logit_bias.double(),
            limits=_each(self.limits, Tensor.double), widened=True,
        )  # fmt: skip

    def targets(self) -> Targets:
        """Those of rows and, if they have a loss, of columns."""
        n, m = len(self.queries), len(self.keys) if self.symmetric else 0
        largest = self.logit_scale.amax()
        return targets(self.label_smoothing, self.geometry.name, self.logit_scale, largest, self.debias, n, m)

    @property
    def bias(self) -> Tensor:
        return self.c.new_zeros(()) if self.logit_bias is None else self.logit_bias

    @property
    def backend(self) -> ModuleType:
        """The module with the functions of `hyperst_kernels.blocked.pairs` for this device and dtype."""
        if on_triton(self.c):
            from hyperst_kernels.gpu import pair_loss

            return pair_loss
        return machine_code if bindings.usable(self.queries) else portable


def targets(
    label_smoothing: float, geometry: str, scale: Tensor, largest: Tensor, debias: Tensor | None, n: int, m: int
) -> Targets:
    """Those of n rows, with logit scales () or (n), and of m columns, whose pairs have scales up to the ``largest``."""
    far = BOUNDS.get(geometry, math.inf) * torch.cat([scale.double().expand(n), largest.double().expand(m)])
    if debias is not None:
        # of keys, as their limits
        last = debias.double().expand(max(n, m)) if debias.ndim == 0 else F.pad(debias.double(), (0, max(m - n, 0)))
        debias = torch.cat([last[:n], last[:m]])
    return Targets(label_smoothing, debias, far)


def forward(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of rows (n) and columns (m, or 0) in the geometry's dtype, and `PowerSums` for `backward` (k n+m)."""
    n, stats = inputs.queries.shape[0], sums(inputs)
    losses = stats if inputs.loss == "sigmoid" else epilogue.losses(PowerSums(*stats), inputs.targets())
    losses = losses.to(inputs.c.dtype)
    return losses[:n].clone(), losses[n:].clone(), stats[:0] if inputs.loss == "sigmoid" else stats


def sums(inputs: Inputs) -> Tensor:
    """`PowerSums` of rows and columns (k n+m) in float64; of a sigmoid the losses of rows (n)."""
    try:
        return _sums(inputs)
    except NeedsFloat64:
        return _sums(inputs.in_float64())


def _sums(inputs: Inputs) -> Tensor:
    c, backend, pairs_of = inputs.c, inputs.backend, inputs.pairs()
    n, m = inputs.queries.shape[0], inputs.keys.shape[0] if inputs.symmetric else 0
    if inputs.loss == "sigmoid":
        losses = c.new_zeros(n, dtype=torch.float64)
        for rows, columns, values in inputs.matrix().blocks():
            backend.add_sigmoid(values, pairs_of(rows, columns), inputs.bias, losses[rows])
        return losses
    stats = nothing(stats_needed(inputs.label_smoothing, inputs.debias), n + m, c)
    of_rows, of_columns = stats[:, :n], stats[:, n:]
    for rows, columns, values in inputs.matrix().blocks():
        own = of_columns[:, columns] if inputs.symmetric else None
        backend.add_powers(values, pairs_of(rows, columns), of_rows[:, rows], own)
    return stats


def _each(sides: Sides | None, function: Callable[[Tensor], Tensor]) -> Sides | None:
    return None if sides is None else (function(sides[0]), function(sides[1]))


class Gradients(NamedTuple):
    """Of queries (n d), keys (m d), c (), logit_scale (() or n), and logit_bias ()."""

    queries: Tensor
    keys: Tensor
    c: Tensor
    logit_scale: Tensor
    logit_bias: Tensor


def backward(inputs: Inputs, grad_rows: Tensor, grad_columns: Tensor, stats: Tensor) -> Gradients:
    """Gradients from those of the losses of rows (n) and columns (m, or 0)."""
    n, weights = inputs.queries.shape[0], None
    if inputs.loss == "softmax":
        grads = torch.cat([grad_rows, grad_columns])
        both = epilogue.weights(PowerSums(*stats), inputs.targets(), grads)
        weights = both.of(slice(0, n)), both.of(slice(n, None)) if inputs.symmetric else None
    found = gradients(inputs, grad_rows, weights)
    like = (inputs.queries, inputs.keys, inputs.c, inputs.logit_scale, inputs.c)
    return Gradients(*(x.to(y.dtype) for x, y in zip(found, like, strict=True)))


def gradients(inputs: Inputs, grad_rows: Tensor, weights: tuple[Weights, Weights | None] | None) -> Gradients:
    """Gradients in float32 or float64, from those of the losses of rows for a sigmoid, and the `Weights` of rows and columns."""
    try:
        return _gradients(inputs, grad_rows, weights)
    except NeedsFloat64:
        return _gradients(inputs.in_float64(), grad_rows.double(), weights)


def _gradients(inputs: Inputs, grad_rows: Tensor, weights: tuple[Weights, Weights | None] | None) -> Gradients:
    c, backend, n, pairs_of = inputs.c, inputs.backend, inputs.queries.shape[0], inputs.pairs()
    sums = c.new_zeros(2, n, dtype=torch.float64)
    of_rows, of_columns = (None if x is None else x.rounded(c.dtype) for x in weights or (None, None))
    grad_rows = grad_rows.contiguous()

    def fill(rows: slice, columns: slice, values: Tensor, out: Tensor) -> None:
        pairs, some = pairs_of(rows, columns), sums[:, rows]
        if of_rows is None:
            backend.sigmoid_gradients(values, pairs, inputs.bias, grad_rows[rows], out, some)
        else:
            own = None if of_columns is None else of_columns.of(columns)
            backend.softmax_gradients(values, pairs, of_rows.of(rows), own, out, some)

    d_queries, d_keys, dc = inputs.matrix().gradients(fill)
    d_scale = -sums[0] if inputs.logit_scale.ndim else -sums[0].sum()
    return Gradients(d_queries, d_keys, dc, d_scale, sums[1].sum())
