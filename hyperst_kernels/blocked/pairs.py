"""Which pairs of a block are positives and negatives, and what their distances add to the losses: in PyTorch calls.

The cost of a pair is minus its logit but for the bias, s_i d_ij. Sums of powers e^-cost are held relative to a cost near the least
one. Triton has the same functions in `hyperst_kernels.gpu.pair_loss`, machine code in `hyperst_kernels.cpu.pair_loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hyperst_kernels.reference.contrastive import softplus
from hyperst_kernels.reference.pair_loss import pairs_of

Sides = tuple[Tensor, Tensor]  # numbers of rows (r), and of columns (w)


class Pairs(NamedTuple):
    """What is known of the pairs of a block: scales of its rows (r), and None for what does not matter.

    Positives are pairs whose ids in ``positives`` are equal; without ids, those of row i and column i + ``diagonal``. Pairs whose
    ids in ``exclude_ids`` are equal are no negatives. Distances below the limit of a row are no negatives in its loss, and likewise
    of a column.
    """

    scale: Tensor
    diagonal: int = 0
    positives: Sides | None = None
    exclude_ids: Sides | None = None
    limits: Sides | None = None

    def classes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Which pairs are positives, and which negatives: (r w), (r w)."""
        return pairs_of(self.positives, self.exclude_ids, values, self.diagonal)

    def beyond_limits(self, values: Tensor, negative: Tensor, dim: int) -> Tensor:
        """Which of the negatives are some of rows (dim 1), or of columns (dim 0): (r w)."""
        return negative if self.limits is None else negative & ~(values < self.limits[1 - dim].unsqueeze(dim))


class PowerSums(NamedTuple):
    """Sums over the positives and over the negatives of each row, or of each column, all (n) and float64.

    ``nearest`` is a cost about the least, infinite where there is none; ``total`` is sum e^-(cost - nearest), ``spread`` the sum
    of cost - nearest, and ``number`` how many there are. Of negatives the last two are left out where nothing asks for them.
    """

    nearest: Tensor
    total: Tensor
    spread: Tensor
    number: Tensor
    nearest_negative: Tensor
    total_negative: Tensor
    spread_negative: Tensor | None = None
    number_negative: Tensor | None = None

    def counted(self) -> tuple[Tensor, Tensor]:
        """``spread_negative`` and ``number_negative``, where they were asked for."""
        assert self.spread_negative is not None
        assert self.number_negative is not None
        return self.spread_negative, self.number_negative


class Weights(NamedTuple):
    """What slopes by logits are made of, for each row, or for each column (n).

    Of a positive ``positive`` e^-(cost - nearest) - ``constant``, of a negative ``negative`` e^-(cost - nearest_negative) -
    ``constant_negative``, None for 0. All are float64 at first.
    """

    nearest: Tensor
    nearest_negative: Tensor
    positive: Tensor
    constant: Tensor
    negative: Tensor
    constant_negative: Tensor | None = None

    def each(self, function: Callable[[Tensor], Tensor]) -> Weights:
        """What a function makes of each."""
        last = None if self.constant_negative is None else function(self.constant_negative)
        return Weights(*(function(x) for x in self[:5]))._replace(constant_negative=last)

    def of(self, some: slice) -> Weights:
        """Those of some rows."""
        return self.each(lambda x: x[some])

    def rounded(self, dtype: torch.dtype) -> Weights:
        """Those for a block of that dtype. Costs stay float64."""
        return self.each(lambda x: x.to(dtype))._replace(nearest=self.nearest, nearest_negative=self.nearest_negative)


def nothing(number: int, n: int, like: Tensor) -> Tensor:
    """`PowerSums` over no pair (6 or 8, n)."""
    sums = like.new_zeros(number, n, dtype=torch.float64)
    sums[0], sums[4] = torch.inf, torch.inf
    return sums


def merged(one: Tensor, other: Tensor) -> Tensor:
    """`PowerSums` over the pairs of both: (... 6 or 8, n)."""
    parts = []
    for some in (slice(0, 4), slice(4, None)):
        sides = one[..., some, :], other[..., some, :]
        nearest = torch.minimum(sides[0][..., 0, :], sides[1][..., 0, :])
        origin, found = torch.where(nearest == torch.inf, 0, nearest), torch.zeros_like(sides[0])
        found[..., 0, :] = nearest
        for side in sides:
            back = torch.where(side[..., 0, :] == torch.inf, 0, side[..., 0, :] - origin)
            found[..., 1, :] += side[..., 1, :] * torch.exp(-back)
            if side.shape[-2] > 2:
                found[..., 2, :] += side[..., 2, :] + side[..., 3, :] * back
                found[..., 3, :] += side[..., 3, :]
        parts.append(found)
    return torch.cat(parts, -2)


def add_powers(values: Tensor, pairs: Pairs, rows: Tensor, columns: Tensor | None) -> None:
    """Take the distances (r w) of a block into the `PowerSums` of its rows (6 or 8, r) and, unless None, of its columns (w)."""
    costs = pairs.scale.double()[:, None] * values.double()
    positive, negative = pairs.classes(values)
    for sums, dim in ((rows, 1), (columns, 0)):
        if sums is not None:
            found = PowerSums(*sums)
            own = pairs.beyond_limits(values, negative, dim)
            for (nearest, total, spread, number), part in ((found[:4], positive), (found[4:], own)):
                apart, back = _nearer(nearest, costs, part, dim, values.dtype)
                if spread is not None and number is not None:
                    spread.add_(number * back).add_(torch.where(part, apart, 0).sum(dim))
                    number.add_(part.sum(dim))
                total.mul_(torch.exp(-back)).add_(torch.exp(-apart).sum(dim))


def _nearer(nearest: Tensor, costs: Tensor, part: Tensor, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Put the nearest of some pairs into ``nearest``; costs beyond it, infinite of the other pairs, and how far it moved."""
    apart = torch.where(part, costs, torch.inf)
    before = nearest.clone()
    torch.minimum(before, apart.amin(dim), out=nearest)
    origin = torch.where(nearest == torch.inf, 0, nearest)
    back = torch.where(before == torch.inf, 0, before - origin)
    return apart.sub_(origin.unsqueeze(dim)).to(dtype), back


def add_sigmoid(values: Tensor, pairs: Pairs, bias: Tensor, losses: Tensor) -> None:
    """Add the losses of the pairs of a block to those of its rows (r), float64."""
    losses += softplus(_signed_logits(values, pairs, bias)).sum(1)


def _signed_logits(values: Tensor, pairs: Pairs, bias: Tensor) -> Tensor:
    """Logits of negatives, minus those of positives, and -inf where there is no pair."""
    logits = (bias.double() - pairs.scale.double()[:, None] * values.double()).to(values.dtype)
    positive, negative = pairs.classes(values)
    return torch.where(positive, -logits, torch.where(negative, logits, -torch.inf))


def softmax_gradients(
    values: Tensor, pairs: Pairs, rows: Weights, columns: Weights | None, out: Tensor, sums: Tensor
) -> None:
    """Put dL / d distance into ``out`` (r w); add to ``sums`` (2 r) those of dL/dlogit times distance, and of dL/dlogit."""
    costs = pairs.scale.double()[:, None] * values.double()
    positive, negative = pairs.classes(values)
    slopes = torch.zeros_like(values)
    for weights, dim in ((rows, 1), (columns, 0)):
        if weights is not None:
            of = weights.each(lambda x: x.unsqueeze(dim))  # noqa: B023
            powers = torch.exp(torch.where(positive, of.nearest, of.nearest_negative).sub_(costs).to(values.dtype))
            slope = of.negative * powers
            if of.constant_negative is not None:
                slope = slope - of.constant_negative
            own = pairs.beyond_limits(values, negative, dim)
            slopes += torch.where(positive, of.positive * powers - of.constant, torch.where(own, slope, 0))
    _put(slopes, values, pairs, out, sums)


def sigmoid_gradients(values: Tensor, pairs: Pairs, bias: Tensor, grad: Tensor, out: Tensor, sums: Tensor) -> None:
    """The same of the sigmoid loss, from the gradients of the losses of rows (r)."""
    slopes = torch.sigmoid(_signed_logits(values, pairs, bias)) * grad[:, None]
    _put(torch.where(pairs.classes(values)[0], -slopes, slopes), values, pairs, out, sums)


def _put(slopes: Tensor, values: Tensor, pairs: Pairs, out: Tensor, sums: Tensor) -> None:
    sums[0] += (slopes * values).sum(1)
    sums[1] += slopes.sum(1)
    torch.mul(slopes, -pairs.scale[:, None], out=out)
