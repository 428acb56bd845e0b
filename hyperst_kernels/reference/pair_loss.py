"""Losses of all pairs with the whole matrix in memory: the specification of `hyperst_kernels.blocked.pair_loss`.

Logits are l_ij = b - s_i d_ij, with d a distance or the exterior angle at the query. P(i) are the positives of query i, keys of
its id (or the key i), N(i) the other keys, less those that are excluded.

    softmax:    loss_i = log sum_{j in P(i), N(i)} e^{l_ij} - mean_{j in P(i)} l_ij
                       = softplus(LSE_N - LSE_P) + (LSE_P - mean_P)
    sigmoid:    loss_i = sum_{j in P(i)} softplus(-l_ij) + sum_{j in N(i)} softplus(l_ij)

The mean over positives stands outside the logarithm (Khosla et al. 2020, eq. 2). Without positives a softmax has no loss, and is
0 here. The loss of a key is that of its column, with the queries as candidates.

Label smoothing e moves the part e of each target from the positives to all K pairs that take part, in P(i) or N(i): to the loss it
adds e (mean_P l - mean_K l) = e |N| / K (mean_P l - mean_N l).

Debiasing with tau, the part of negatives that are positives in truth, takes for the sum over N(i) (Chuang et al. 2020, eq. 8)

    max( (sum_N e^l - tau |N| mean_P e^l) / (1 - tau),  |N| e^lowest ),    lowest = b - s_i * the largest distance there is:

2 of cosines, pi of angles, and infinite of others, so that a row where nothing is left has no loss. The lowest is a constant.

With a margin, keys that are nearer than the positive by more than that are left out of N(i): a constant limit for each row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from hyperst_kernels._constants import PRODUCTS
from hyperst_kernels.reference.contrastive import _logsumexp, dissimilarity, softplus
from hyperst_kernels.reference.distance import pairwise_distance
from hyperst_kernels.reference.entailment import pairwise_exterior_angle
from hyperst_kernels.reference.flat import length

BOUNDS = {"cosine": 2.0, "angle": math.pi}  # of distances that have one


def pair_losses(
    queries: Tensor,
    keys: Tensor,
    c: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    exclude_ids: Tensor | None,
    debias: Tensor | None,
    limits: Tensor | None,
    loss: str,
    geometry: str,
    input: str,
    symmetric: bool,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Losses of the rows (n), and of the columns (m), which are empty unless ``symmetric``: (n d), (m d) -> (n), (m).

    ``debias`` is () or (n), ``limits`` (n) are the distances below which keys are no negatives.
    """
    if geometry in PRODUCTS:
        parts = zip(queries.chunk(len(c), 1), keys.chunk(len(c), 1), c, strict=True)
        apart = combined([pairwise_distance(*part, input) for part in parts], geometry)
    elif geometry == "angle":
        apart = pairwise_exterior_angle(queries, keys, c, input)
    else:
        apart = dissimilarity(queries, keys, c, input, geometry, pairwise=True)
    logits = -(logit_scale[:, None] if logit_scale.ndim else logit_scale) * apart
    if logit_bias is not None:
        logits = logits + logit_bias
    excluded = None if exclude_ids is None else (exclude_ids[: len(queries)], exclude_ids)
    ids = None if query_ids is None or key_ids is None else (query_ids, key_ids)
    positive, negative = pairs_of(ids, excluded, logits)
    if loss == "sigmoid":
        each = softplus(torch.where(positive, -logits, logits))
        return torch.where(positive | negative, each, torch.zeros_like(each)).sum(1), logits[0, :0]
    shift = 0 if logit_bias is None else logit_bias
    lowest = (shift - BOUNDS.get(geometry, math.inf) * logit_scale).detach()
    own = negative if limits is None else negative & ~(apart < limits[:, None])
    of_rows = _softmax(logits, positive, own, 1, label_smoothing, debias, lowest)
    if not symmetric:
        return of_rows, of_rows[:0]
    if debias is not None and debias.ndim:
        debias = F.pad(debias, (0, len(keys) - len(queries)))  # a key is the positive of the query beside it
    own = negative if limits is None else negative & ~(apart < F.pad(limits, (0, len(keys) - len(queries))))
    return of_rows, _softmax(logits, positive, own, 0, label_smoothing, debias, lowest.amin())


def combined(distances: list[Tensor], geometry: str) -> Tensor:
    """The distance in a product, from those in its factors, all of one shape."""
    each = torch.stack(distances)
    return each.sum(0) if geometry == PRODUCTS[0] else length(each.movedim(0, -1)).squeeze(-1)


def pairs_of(
    positives: tuple[Tensor, Tensor] | None,
    exclude_ids: tuple[Tensor, Tensor] | None,
    like: Tensor,
    diagonal: int = 0,
) -> tuple[Tensor, Tensor]:
    """Which pairs are positives, and which negatives: (r w), (r w), as those of ``like``.

    Both ids are those of rows (r) and of columns (w). Without ``positives`` that of row i is in column i + ``diagonal``.
    """
    if positives is not None:
        positive = positives[0][:, None] == positives[1]
    else:
        i, j = (torch.arange(length, device=like.device) for length in like.shape)
        positive = i[:, None] + diagonal == j
    if exclude_ids is None:
        return positive, ~positive
    return positive, ~positive & (exclude_ids[0][:, None] != exclude_ids[1])


def _softmax(
    logits: Tensor,
    positive: Tensor,
    negative: Tensor,
    dim: int,
    label_smoothing: float,
    debias: Tensor | None,
    lowest: Tensor,
) -> Tensor:
    count = positive.sum(dim)
    some = count > 0
    of_positives = _logsumexp(logits.masked_fill(~positive, -torch.inf), dim)
    of_negatives = _logsumexp(logits.masked_fill(~negative, -torch.inf), dim)
    if debias is not None:
        of_negatives = _debiased(of_negatives, of_positives, negative.sum(dim), count, debias, lowest)
    gap = of_negatives - of_positives
    mean = _mean(logits, positive, dim)
    left = some & ~(of_negatives == -torch.inf)  # of nothing, second derivatives would be none
    beside = torch.where(left, softplus(torch.where(left, gap, torch.zeros_like(gap))), torch.zeros_like(gap))
    found = beside + torch.where(some, of_positives, mean) - mean
    if label_smoothing:
        others = negative.sum(dim).to(logits.dtype)
        apart = mean - _mean(logits, negative, dim)
        found = found + label_smoothing * others / (count + others).clamp(min=1) * apart
    return torch.where(some, found, torch.zeros_like(found))


def _debiased(
    of_negatives: Tensor, of_positives: Tensor, negatives: Tensor, positives: Tensor, debias: Tensor, lowest: Tensor
) -> Tensor:
    """Logarithm of the estimated sum over true negatives."""
    some = (negatives > 0) & (positives > 0)
    ratio = debias * negatives / torch.where(some, positives, 1)
    apart = torch.where(some, of_positives, 0) - torch.where(some, of_negatives, 0)
    explained = torch.where(some, torch.log(ratio) + apart, -torch.inf)
    left = -torch.expm1(torch.where(explained >= 0, -1, explained))
    found = of_negatives + torch.log(left) - torch.log1p(-debias)
    floor = torch.log(negatives.to(lowest)) + lowest
    return torch.where((explained >= 0) | (found < floor), floor, found).to(of_negatives)


def _mean(logits: Tensor, part: Tensor, dim: int) -> Tensor:
    """Mean of the logits that take part, 0 of none."""
    return torch.where(part, logits, torch.zeros_like(logits)).sum(dim) / part.sum(dim).clamp(min=1)
