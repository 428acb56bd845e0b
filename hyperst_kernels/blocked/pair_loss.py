"""Losses of all pairs without the matrix, a block of distances at a time: several positives, sigmoid, scales of each query.

The mathematics is in `hyperst_kernels.reference.pair_loss`. A sum of powers is held relative to the nearest of its pairs, so that
a large logit scale costs no digits, and the loss is made of those sums in float64. The backward pass computes the distances of a
block again, and their weights from the sums. Everything is added in fixed order. Memory: O((n + m) d) and a few blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from hyperst_kernels.blocked import pairs as portable
from hyperst_kernels.blocked.blocks import Geometry, blocks
from hyperst_kernels.blocked.pairs import Pairs, PowerSums, Weights
from hyperst_kernels.cpu import pair_loss as machine_code
from hyperst_kernels.cpu.native import bindings
from hyperst_kernels.operators.register import on_triton
from hyperst_kernels.reference.contrastive import softplus

STATS = len(PowerSums._fields)  # numbers of each row and column that the backward pass is given


class Inputs(NamedTuple):
    """What a loss is computed of: queries (n d) and keys (m d), their ids, numbers, and what is asked for."""

    queries: Tensor
    keys: Tensor
    c: Tensor
    logit_scale: Tensor  # () or (n)
    logit_bias: Tensor | None
    query_ids: Tensor | None
    key_ids: Tensor | None
    exclude_ids: Tensor | None
    loss: str
    geometry: Geometry
    symmetric: bool

    def blocks(self) -> Iterator[tuple[Tensor, Pairs]]:
        """Distances (r w) of each block, and its pairs."""
        n, m = self.queries.shape[0], self.keys.shape[0]
        scales = self.logit_scale.expand(n).contiguous()
        ids = [None if x is None else x.contiguous() for x in (self.query_ids, self.key_ids, self.exclude_ids)]
        for rows, columns in blocks(n, m, self.queries.device):
            values = self.geometry.values(self.queries[rows], self.keys[columns], self.c).contiguous()
            yield values, Pairs(rows, columns, scales[rows], *ids)

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


def forward(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of rows (n) and columns (m, or 0) in the geometry's dtype, and numbers for `backward` (6 n+m)."""
    c, backend = inputs.c, inputs.backend
    n, m = inputs.queries.shape[0], inputs.keys.shape[0] if inputs.symmetric else 0
    if inputs.loss == "sigmoid":
        losses = c.new_zeros(n, dtype=torch.float64)
        for values, pairs in inputs.blocks():
            backend.add_sigmoid(values, pairs, inputs.bias, losses[pairs.rows])
        return losses.to(c.dtype), c.new_zeros(0), c.new_zeros(0, dtype=torch.float64)
    stats = c.new_zeros(STATS, n + m, dtype=torch.float64)
    for nearest in (PowerSums(*stats).nearest, PowerSums(*stats).nearest_negative):
        nearest.fill_(torch.inf)
    rows, columns = stats[:, :n], stats[:, n:]
    for values, pairs in inputs.blocks():
        backend.add_powers(values, pairs, rows[:, pairs.rows], columns[:, pairs.columns] if inputs.symmetric else None)
    losses = _losses(PowerSums(*stats)).to(c.dtype)
    return losses[:n].clone(), losses[n:].clone(), stats


def _gap(sums: PowerSums) -> Tensor:
    """LSE over negatives less that over positives; 0 without positives."""
    some = sums.number > 0
    apart = torch.where(sums.total_negative > 0, sums.nearest_negative - sums.nearest, 0)
    return torch.where(some, torch.log(sums.total_negative) - torch.log(sums.total) - apart, 0)


def _losses(sums: PowerSums) -> Tensor:
    """log(e^LSE of all) - mean of positives, and 0 without any."""
    some = sums.number > 0
    count = torch.where(some, sums.number, 1)
    excess = torch.log(torch.where(some, sums.total, 1)) + sums.spread / count
    return torch.where(some, softplus(_gap(sums)) + excess, 0)


def _weights(sums: PowerSums, grad: Tensor, dtype: torch.dtype) -> Weights:
    """Weights from the gradients of losses: of g (softmax - 1/count) for positives, without cancellation, g softmax for others.

    Of a positive that is alone, exactly -g sigmoid(gap).
    """
    some, gap = sums.number > 0, _gap(sums)
    grad = torch.where(some, grad.double(), 0)
    alone, doubt = sums.number == 1, torch.sigmoid(gap)
    positive = torch.where(alone | ~some, 0, grad * torch.sigmoid(-gap) / torch.where(some, sums.total, 1))
    constant = torch.where(alone, grad * doubt, grad / torch.where(some, sums.number, 1))
    negative = grad * doubt / torch.where(sums.total_negative == 0, 1, sums.total_negative)
    nearest, nearest_negative = (torch.where(x == torch.inf, 0, x) for x in (sums.nearest, sums.nearest_negative))
    return Weights(nearest, nearest_negative, *(x.to(dtype) for x in (positive, constant, negative)))


class Gradients(NamedTuple):
    """Of queries (n d), keys (m d), c (), logit_scale (() or n), and logit_bias ()."""

    queries: Tensor
    keys: Tensor
    c: Tensor
    logit_scale: Tensor
    logit_bias: Tensor


def backward(inputs: Inputs, grad_rows: Tensor, grad_columns: Tensor, stats: Tensor) -> Gradients:
    """Gradients from those of the losses of rows (n) and columns (m, or 0)."""
    c, backend, n = inputs.c, inputs.backend, inputs.queries.shape[0]
    d_queries, d_keys = torch.zeros_like(inputs.queries), torch.zeros_like(inputs.keys)
    dc = c.new_zeros((), dtype=torch.float64)
    sums = c.new_zeros(2, n, dtype=torch.float64)
    if inputs.loss == "softmax":
        weights = _weights(PowerSums(*stats), torch.cat([grad_rows, grad_columns]), c.dtype)
        of_rows, of_columns = weights.of(slice(0, n)), weights.of(slice(n, None))
    grad_rows = grad_rows.contiguous()
    for values, pairs in inputs.blocks():
        grad, some = torch.empty_like(values), sums[:, pairs.rows]
        if inputs.loss == "sigmoid":
            backend.sigmoid_gradients(values, pairs, inputs.bias, grad_rows[pairs.rows], grad, some)
        else:
            columns = of_columns.of(pairs.columns) if inputs.symmetric else None
            backend.softmax_gradients(values, pairs, of_rows.of(pairs.rows), columns, grad, some)
        given = (inputs.queries[pairs.rows], inputs.keys[pairs.columns], c)
        of_queries, of_keys, of_c = inputs.geometry.gradients(grad, *given, values)
        d_queries[pairs.rows] += of_queries
        d_keys[pairs.columns] += of_keys
        dc = dc + of_c.double()
    d_scale, db = -sums[0], sums[1].sum()
    d_scale = d_scale if inputs.logit_scale.ndim else d_scale.sum()
    return Gradients(d_queries, d_keys, *(x.to(c.dtype) for x in (dc, d_scale, db)))
