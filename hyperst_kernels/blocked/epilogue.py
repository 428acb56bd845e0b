"""Softmax losses of rows and columns from their sums of powers, and what slopes by logits are made of; all in float64.

`hyperst_kernels.reference.pair_loss` has the mathematics.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hyperst_kernels.blocked.pairs import PowerSums, Weights
from hyperst_kernels.reference.contrastive import softplus


class Targets(NamedTuple):
    """What a softmax is compared with: smoothing, the part of negatives that are positives in truth, of each row or column (n),
    None for none, and the cost of the farthest that a negative may be, infinite where there is no bound."""

    label_smoothing: float
    debias: Tensor | None
    farthest: Tensor


class Negatives(NamedTuple):
    """The sum over negatives in the denominator, and what it is made of, for each row or column (n).

    ``gap`` is its logarithm less that of the sum over positives, -inf of nothing, and 0 where there are no positives. Its slope by
    the logarithm of the sum over the negatives of the batch is ``own``, and by that of the sum over positives ``shared``.
    """

    gap: Tensor
    own: Tensor
    shared: Tensor


def _negatives(sums: PowerSums, targets: Targets) -> Negatives:
    some = sums.number > 0
    positives = torch.log(torch.where(some, sums.total, 1))
    apart = torch.where(sums.total_negative > 0, sums.nearest_negative - sums.nearest, 0)
    gap = torch.where(some, torch.log(sums.total_negative) - positives - apart, 0)
    if targets.debias is None:
        return Negatives(gap, torch.ones_like(gap), torch.zeros_like(gap))
    _, number = sums.counted()
    # what false negatives explain of the sum over the negatives of the batch
    explained = torch.log(targets.debias * number / torch.where(some, sums.number, 1)) - gap
    explained = torch.where(some & (number > 0), explained, -torch.inf)
    left = torch.where(explained >= 0, 1, -torch.expm1(explained))
    found = gap + torch.log(left) - torch.log1p(-targets.debias)
    floor = torch.log(number) - positives - (targets.farthest - sums.nearest)
    at_floor = (explained >= 0) | (found < floor)
    own = torch.where(at_floor, 0, 1 / left)
    return Negatives(torch.where(at_floor, floor, found), own, torch.where(at_floor, 0, 1 - own))


def losses(sums: PowerSums, targets: Targets) -> Tensor:
    """log(e^LSE of all) - mean of positives, and 0 without any; and what smoothing adds."""
    some = sums.number > 0
    count = torch.where(some, sums.number, 1)
    excess = torch.log(torch.where(some, sums.total, 1)) + sums.spread / count
    found = softplus(_negatives(sums, targets).gap) + excess
    if targets.label_smoothing:
        spread, number = sums.counted()
        further = torch.where(number > 0, sums.nearest_negative - sums.nearest, 0)
        apart = (further + spread / number.clamp(min=1)) - sums.spread / count
        found = found + targets.label_smoothing * number / (count + number) * apart
    return torch.where(some, found, 0)


def weights(sums: PowerSums, targets: Targets, grad: Tensor) -> Weights:
    """Weights from the gradients g of losses: of g (softmax - target) for positives and for negatives.

    Of a positive that is alone, softmax - 1 is exactly -sigmoid(gap): what smoothing takes from the target is taken from that.
    """
    some, (gap, own, shared) = sums.number > 0, _negatives(sums, targets)
    grad = torch.where(some, grad.double(), 0)
    alone, doubt, count = sums.number == 1, torch.sigmoid(gap), torch.where(some, sums.number, 1)
    rest = torch.sigmoid(-gap) + doubt * shared
    positive = torch.where(alone | ~some, 0, grad * rest / torch.where(some, sums.total, 1))
    constant = torch.where(alone, grad * doubt * (1 - shared), grad / count)
    constant_negative = None
    if targets.label_smoothing:
        _, number = sums.counted()
        smooth = grad * targets.label_smoothing / (count + number)
        constant = constant - smooth * number / count
        constant_negative = smooth
    negative = grad * doubt * own / torch.where(sums.total_negative == 0, 1, sums.total_negative)
    nearest, nearest_negative = (torch.where(x == torch.inf, 0, x) for x in (sums.nearest, sums.nearest_negative))
    return Weights(nearest, nearest_negative, positive, constant, negative, constant_negative)
