"""Losses of all pairs without the matrix, a block of distances at a time: several positives, sigmoid, scales of each query.

The mathematics is in `hyperst_kernels.reference.pair_loss`. A sum of powers is held relative to the nearest of its pairs, so that
a large logit scale costs no digits, and the loss is made of those sums in float64. The backward pass computes the distances of a
block again, and their weights from the sums. Everything is added in fixed order. Memory: O((n + m) d) and a few blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hyperst_kernels.blocked.blocks import Geometry, blocks
from hyperst_kernels.reference.contrastive import softplus
from hyperst_kernels.reference.pair_loss import pairs_of


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

    def blocks(self) -> Iterator[Block]:
        n, m = self.queries.shape[0], self.keys.shape[0]
        for rows, columns in blocks(n, m, self.queries.device):
            values = self.geometry.values(self.queries[rows], self.keys[columns], self.c)
            positive, negative = pairs_of(self.query_ids, self.key_ids, self.exclude_ids, rows, columns, values)
            yield Block(rows, columns, values, positive, negative, bool(positive.any()))

    def scale_of(self, rows: slice) -> Tensor:
        """That of some rows, () or (r 1)."""
        return self.logit_scale[rows, None] if self.logit_scale.ndim else self.logit_scale

    def signed_logits(self, block: Block) -> Tensor:
        """l of negatives, -l of positives, and -inf where there is no pair."""
        logits = block.values * -self.scale_of(block.rows)
        if self.logit_bias is not None:
            logits += self.logit_bias
        if block.has_positives:
            logits = torch.where(block.positive, -logits, logits)
        if self.exclude_ids is not None:
            logits.masked_fill_(~(block.positive | block.negative), -torch.inf)
        return logits


class Block(NamedTuple):
    """Distances (r w) of some rows and columns, and which of the pairs are positives and negatives."""

    rows: slice
    columns: slice
    values: Tensor
    positive: Tensor
    negative: Tensor
    has_positives: bool


class PowerSums(NamedTuple):
    """PowerSums of rows or of columns over their positives or their negatives, all (n) and float64.

    ``nearest`` is the least distance, infinite where there is none; ``total`` is sum e^(-s (d - nearest)), ``spread`` the sum of
    d - nearest, and ``number`` how many there are.
    """

    nearest: Tensor
    total: Tensor
    spread: Tensor
    number: Tensor

    @classmethod
    def nothing(cls, n: int, like: Tensor) -> PowerSums:
        zeros = like.new_zeros(3, n, dtype=torch.float64)
        return cls(torch.full_like(zeros[0], torch.inf), *zeros)

    def add(
        self, where: slice, values: Tensor, taking_part: Tensor, scale: Tensor, dim: int, spread: bool = False
    ) -> None:
        """Take the distances of a block that take part; ``number`` and ``spread``, where they are asked for."""
        old = self.nearest[where]
        apart = torch.where(taking_part, values, torch.inf)
        new = torch.minimum(old, apart.amin(dim).double())
        origin = torch.where(new == torch.inf, 0, new)
        apart -= origin.to(values.dtype).unsqueeze(dim)
        back = torch.where(old == torch.inf, 0, old - origin)
        if spread:
            more = torch.where(taking_part, apart, 0).sum(dim).double()
            self.spread[where] += self.number[where] * back + more
            self.number[where] += taking_part.sum(dim)
        powers = apart.mul_(-scale).exp_().sum(dim).double()
        s = scale.double() if scale.ndim == 0 else scale.double()[:, 0]
        self.total[where] = self.total[where] * torch.exp(-s * back) + powers
        self.nearest[where] = new

    def log_total(self, scale: Tensor, origin: Tensor) -> Tensor:
        """log sum e^(-s (d - origin))."""
        return torch.log(self.total) - scale * torch.where(self.nearest == torch.inf, 0, self.nearest - origin)


class Softmax(NamedTuple):
    """Of rows or of columns: sums over positives and over negatives, and the scale of each, () or (n)."""

    positives: PowerSums
    negatives: PowerSums
    scale: Tensor

    def add(self, where: slice, block: Block, values: Tensor, scale: Tensor, dim: int) -> None:
        """Take the distances of a block."""
        if block.has_positives:
            self.positives.add(where, values, block.positive, scale, dim, spread=True)
        self.negatives.add(where, values, block.negative, scale, dim)

    @property
    def gap(self) -> Tensor:
        """LSE over negatives less that over positives."""
        origin = torch.where(self.positives.nearest == torch.inf, 0, self.positives.nearest)
        return self.negatives.log_total(self.scale, origin) - self.positives.log_total(self.scale, origin)

    def losses(self) -> Tensor:
        some = self.positives.number > 0
        count = torch.where(some, self.positives.number, 1)
        excess = torch.log(torch.where(some, self.positives.total, 1)) + self.scale * self.positives.spread / count
        return torch.where(some, softplus(torch.where(some, self.gap, 0)) + excess, 0)

    def slopes(self, where: slice, block: Block, values: Tensor, scale: Tensor, grad: Tensor, dim: int) -> Tensor:
        """dL/dlogit of a block from the gradient of the losses (n): g (softmax - 1/count), without cancellation.

        Of a positive that is alone, minus g sigmoid(gap).
        """
        of_negatives, of_positives = (PowerSums(*(t[where] for t in some)) for some in (self.negatives, self.positives))
        some = of_positives.number > 0
        gap, count = torch.where(some, self.gap[where], 0), torch.where(some, of_positives.number, 1)
        grad = torch.where(some, grad[where], 0)
        # softmax over the negatives times sigmoid(gap), and over the positives times 1 - sigmoid(gap)
        doubt = torch.sigmoid(gap)
        slopes = self._weights(of_negatives, values, block.negative, scale, grad * doubt, dim)
        if block.has_positives:
            softmax = self._weights(of_positives, values, block.positive, scale, torch.ones_like(grad), dim)
            each, pull, shared = (x.to(values.dtype).unsqueeze(dim) for x in (1 / count, grad, grad * doubt))
            # of one that is alone exactly -g sigmoid(gap)
            slopes += pull * (softmax - torch.where(block.positive, each, 0)) - shared * softmax
        return slopes

    def _weights(
        self, sums: PowerSums, values: Tensor, taking_part: Tensor, scale: Tensor, factor: Tensor, dim: int
    ) -> Tensor:
        """Softmax over those that take part, times a factor of each row or column."""
        empty = sums.nearest == torch.inf
        origin = torch.where(empty, 0, sums.nearest).to(values.dtype).unsqueeze(dim)
        factor = (factor / torch.where(empty, 1, sums.total)).to(values.dtype).unsqueeze(dim)
        return torch.where(taking_part, values, torch.inf).sub_(origin).mul_(-scale).exp_().mul_(factor)


STATS = 2 * len(PowerSums._fields)  # numbers of each row and column that the backward pass is given


def _of_columns(inputs: Inputs, block: Block) -> tuple[Tensor, Tensor]:
    """Distances of a block and their scale: with a scale of each query, logits in float64 and a scale of 1."""
    if inputs.logit_scale.ndim == 0:
        return block.values, inputs.logit_scale
    values = inputs.scale_of(block.rows).double() * block.values.double()
    return values, values.new_ones(())


def forward(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of rows (n) and columns (m, or 0) in the geometry's dtype, and numbers for `backward` (8 n+m)."""
    c = inputs.c
    if inputs.loss == "sigmoid":
        losses = c.new_zeros(inputs.queries.shape[0], dtype=torch.float64)
        for block in inputs.blocks():
            losses[block.rows] += F.softplus(inputs.signed_logits(block), threshold=50).sum(1).double()
        return losses.to(c.dtype), c.new_zeros(0), c.new_zeros(0, dtype=torch.float64)
    rows, columns = _no_softmaxes(inputs)
    for block in inputs.blocks():
        rows.add(block.rows, block, block.values, inputs.scale_of(block.rows), 1)
        if inputs.symmetric:
            columns.add(block.columns, block, *_of_columns(inputs, block), 0)
    stats = torch.stack([torch.cat(two) for two in zip(_numbers(rows), _numbers(columns), strict=True)])
    return rows.losses().to(c.dtype), columns.losses().to(c.dtype), stats


def _no_softmaxes(inputs: Inputs) -> tuple[Softmax, Softmax]:
    n, m = inputs.queries.shape[0], inputs.keys.shape[0] if inputs.symmetric else 0
    return tuple(
        Softmax(PowerSums.nothing(k, inputs.c), PowerSums.nothing(k, inputs.c), scale)
        for k, scale in ((n, inputs.logit_scale.double()), (m, _scale_of_columns(inputs)))
    )  # type: ignore[return-value]


def _scale_of_columns(inputs: Inputs) -> Tensor:
    return inputs.logit_scale.double() if inputs.logit_scale.ndim == 0 else inputs.c.new_ones((), dtype=torch.float64)


def _numbers(softmax: Softmax) -> list[Tensor]:
    return [*softmax.positives, *softmax.negatives]


def _softmaxes(inputs: Inputs, stats: Tensor) -> tuple[Softmax, Softmax]:
    """Those whose numbers `forward` returned."""
    n, half = inputs.queries.shape[0], STATS // 2
    rows, columns = stats[:, :n], stats[:, n:]
    return (
        Softmax(PowerSums(*rows[:half]), PowerSums(*rows[half:]), inputs.logit_scale.double()),
        Softmax(PowerSums(*columns[:half]), PowerSums(*columns[half:]), _scale_of_columns(inputs)),
    )


class Gradients(NamedTuple):
    """Of queries (n d), keys (m d), c (), logit_scale (() or n), and logit_bias ()."""

    queries: Tensor
    keys: Tensor
    c: Tensor
    logit_scale: Tensor
    logit_bias: Tensor


def backward(inputs: Inputs, grad_rows: Tensor, grad_columns: Tensor, stats: Tensor) -> Gradients:
    """Gradients from those of the losses of rows (n) and columns (m, or 0)."""
    c = inputs.c
    d_queries, d_keys = torch.zeros_like(inputs.queries), torch.zeros_like(inputs.keys)
    dc, db = c.new_zeros(2, dtype=torch.float64)
    d_scale = c.new_zeros(inputs.queries.shape[0], dtype=torch.float64)
    softmaxes = None if inputs.loss == "sigmoid" else _softmaxes(inputs, stats)
    for block in inputs.blocks():
        scale = inputs.scale_of(block.rows)
        if softmaxes is None:
            slopes = _sigmoid_slopes(inputs, block) * grad_rows[block.rows, None]
        else:
            slopes = softmaxes[0].slopes(block.rows, block, block.values, scale, grad_rows, 1)
            if inputs.symmetric:
                given = (block.columns, block, *_of_columns(inputs, block), grad_columns, 0)
                slopes = slopes + softmaxes[1].slopes(*given).to(slopes.dtype)
        d_scale[block.rows] -= (slopes * block.values).sum(1).double()
        db = db + slopes.sum(1).double().sum()
        some = (inputs.queries[block.rows], inputs.keys[block.columns], c)
        of_queries, of_keys, of_c = inputs.geometry.gradients(-scale * slopes, *some, block.values)
        d_queries[block.rows] += of_queries
        d_keys[block.columns] += of_keys
        dc = dc + of_c.double()
    d_scale = d_scale if inputs.logit_scale.ndim else d_scale.sum()
    return Gradients(d_queries, d_keys, *(x.to(c.dtype) for x in (dc, d_scale, db)))


def _sigmoid_slopes(inputs: Inputs, block: Block) -> Tensor:
    """dL/dlogit: sigmoid(l) of negatives, -sigmoid(-l) of positives, 0 of the others."""
    slopes = inputs.signed_logits(block).sigmoid_()
    return torch.where(block.positive, -slopes, slopes) if block.has_positives else slopes
