"""InfoNCE over geodesic distances, with the whole matrix in memory: the specification of the fused loss.

    loss_i = softplus( LSE_{j != i} l_ij - l_ii ),    l_ij = -s d(q_i, k_j)

The positive never enters the sum, so a confident row has the loss e^-gap with full relative precision instead of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hyperst_kernels.reference.distance import distance, pairwise_distance
from hyperst_kernels.reference.flat import length, unit


class Pairing(NamedTuple):
    """One term of a hierarchy: which features are its queries (n d), which its keys (m d), and whether those have a loss."""

    queries: int
    keys: int
    symmetric: bool


class Slopes(NamedTuple):
    """What the gradients of the logits are made of.

    Log-sum-exps with the positive of rows (t n) and columns (t m), float64, and gradients of their losses, 0 where there is none;
    of the pairs (i, i), logits (t n), and ``shares`` (t n), minus their slopes.
    """

    row_lse: Tensor
    row_grad: Tensor
    column_lse: Tensor
    column_grad: Tensor
    diagonal: Tensor
    shares: Tensor


def hierarchy_terms(
    features: Sequence[Tensor],
    factors: Tensor | None,
    c: Tensor,
    logit_scale: Tensor,
    pairings: Sequence[Pairing],
    input: str = "tangent",
    geometry: str = "lorentz",
    exclude_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`contrastive_terms` of several pairings of features, each times its factor: (t n), (t n).

    n is that of the longest queries; shorter rows, and columns without a loss, are filled with 0.
    """
    if factors is not None:
        features = [x * factor for x, factor in zip(features, factors, strict=True)]
    longest = max(features[p.queries].shape[0] for p in pairings)
    found = []
    for p in pairings:
        directions = "both" if p.symmetric else "rows"
        pair = (features[p.queries], features[p.keys])
        terms = contrastive_terms(*pair, c, logit_scale, input, geometry, directions, exclude_ids)
        found.append([F.pad(term, (0, longest - term.shape[0])) for term in terms])
    rows, columns = zip(*found, strict=True)
    return torch.stack(rows), torch.stack(columns)


def contrastive_terms(
    queries: Tensor,
    keys: Tensor,
    c: Tensor,
    logit_scale: Tensor,
    input: str = "tangent",
    geometry: str = "lorentz",
    directions: str = "both",
    exclude_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss of each row, and of each of the first n columns: (n d), (m d) -> (n), (n) (empty for directions="rows").

    ``exclude_ids`` (m): keys with the row's id that are not its positive leave the sum, in both directions.
    """
    n, m = queries.shape[0], keys.shape[0]
    logits = -logit_scale * dissimilarity(queries, keys, c, input, geometry, pairwise=True)
    positive = -logit_scale * dissimilarity(queries, keys[:n], c, input, geometry, pairwise=False)
    left_out = torch.eye(n, m, dtype=torch.bool, device=queries.device)
    if exclude_ids is not None:
        left_out |= exclude_ids[:n, None] == exclude_ids[None]
    negatives = logits.masked_fill(left_out, -torch.inf)
    rows = softplus(_logsumexp(negatives, 1) - positive)
    columns = softplus(_logsumexp(negatives[:, :n], 0) - positive) if directions == "both" else rows[:0]
    return rows, columns


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) at full relative precision everywhere, unlike the thresholded one of torch.nn.functional."""
    return torch.logaddexp(x, torch.zeros_like(x))


def _logsumexp(x: Tensor, dim: int) -> Tensor:
    """log sum exp, whose gradient is 0 (not NaN) where every term was left out."""
    empty = (x == -torch.inf).all(dim)
    filled = torch.where(empty.unsqueeze(dim), torch.zeros_like(x), x)
    return torch.where(empty, torch.full_like(x.sum(dim), -torch.inf), torch.logsumexp(filled, dim))


def dissimilarity(x: Tensor, y: Tensor, c: Tensor, input: str, geometry: str, *, pairwise: bool) -> Tensor:
    """What the logits are made of: geodesic distance, Euclidean distance, or 1 - cosine; by rows or for all pairs."""
    if geometry == "lorentz":
        return (pairwise_distance if pairwise else distance)(x, y, c, input)
    if pairwise:
        shape = (x.shape[0], y.shape[0], x.shape[1])
        x, y = x[:, None].expand(shape), y[None].expand(shape)
    if geometry == "cosine":
        apart = ((unit(x) - unit(y)) ** 2).sum(-1)
        # a zero vector is orthogonal to everything
        return (apart + (x == 0).all(-1).to(x) + (y == 0).all(-1).to(x)) / 2
    return length(x - y).squeeze(-1)
