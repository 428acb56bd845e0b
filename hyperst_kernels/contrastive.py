"""Hyperbolic InfoNCE, without the matrix of all pairs. See `docs/contrastive.md` for the derivation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hyperst_kernels import _checks, operators
from hyperst_kernels.distance import INPUTS, PRECISIONS
from hyperst_kernels.entailment import REDUCTIONS

GEOMETRIES = ("lorentz", "cosine", "euclidean")
DIRECTIONS = ("both", "rows")


def contrastive_loss(
    queries: Tensor,
    keys: Tensor,
    c: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    *,
    input: str = "tangent",
    geometry: str = "lorentz",
    directions: str = "both",
    exclude_ids: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
    precision: str | None = None,
    deterministic: bool = True,
) -> Tensor:
    """InfoNCE with logits -logit_scale * geodesic distance; ``keys[i]`` is the positive of ``queries[i]``.

    Args:
        queries: (n, d), any floating dtype; computed in float32, or float64 if given.
        keys: (m, d), m >= n; the keys beyond n are negatives only (a memory bank).
        c: curvature is -c, c > 0; a float or a 0-d tensor that may require grad.
        logit_scale: inverse temperature > 0, likewise.
        input: "tangent" (encoder output, taken as tangent vectors at the origin) or "lorentz" (space components).
        geometry: "lorentz", or the same loss with "euclidean" distance or "cosine" similarity (then c is unused).
        directions: "both" averages query-to-key and key-to-query; "rows" is query-to-key alone.
        exclude_ids: (m,) integers; a key with the same id as the query's own is no negative of it.
        weights: (n,) weights of the samples, >= 0; the mean divides by their sum.
        reduction: "mean", "sum" (0-d) or "none" (n,).
        precision: the matrix product a GPU kernel may use; has no effect elsewhere.
        deterministic: False lets a GPU add the gradient in whatever order its programs finish: less work, and another
            last digit from run to run. Refused under ``torch.use_deterministic_algorithms``.

    Returns the loss, 0-d or (n,), in float32 or float64. A single pair with no other key has loss 0.
    Raises TypeError / ValueError for wrong dtypes and shapes, an empty batch, c or logit_scale <= 0, and (on the CPU,
    outside torch.compile) NaN or inf; elsewhere those give a NaN loss. RuntimeError where determinism is asked for and
    refused. Forward-mode and double differentiation raise.

    Source: van den Oord et al. 2018; Desai et al. 2023, section 3.1.

    >>> torch.manual_seed(0).initial_seed()
    0
    >>> image, gene = torch.randn(8, 16), torch.randn(8, 16)
    >>> bool(contrastive_loss(image, image, logit_scale=10.0) < contrastive_loss(image, gene, logit_scale=10.0))
    True
    """
    if not deterministic and torch.are_deterministic_algorithms_enabled():
        raise RuntimeError(
            "deterministic=False contradicts torch.use_deterministic_algorithms(True): leave one of them out"
        )
    options = (input, geometry, directions, exclude_ids, precision, not deterministic)
    rows, columns = _terms(queries, keys, c, logit_scale, *options)
    per_sample = (rows + columns) / 2 if directions == "both" else rows
    return _reduce(per_sample, weights, reduction)


class Term(NamedTuple):
    """One contrastive term of a hierarchy: queries (n, d), keys (m, d), its weight, and its directions."""

    queries: Tensor
    keys: Tensor
    weight: float = 1.0
    directions: str = "both"


def hierarchical_contrastive_loss(
    terms: Sequence[Term], c: float | Tensor = 1.0, logit_scale: float | Tensor = 1.0, **options
) -> tuple[Tensor, list[Tensor]]:
    """Weighted sum of `contrastive_loss` over several pairs of views, and the unweighted loss of each.

    ``options`` are those of `contrastive_loss`, shared by all terms, except directions, which each term has.

    >>> x = torch.eye(4)
    >>> total, parts = hierarchical_contrastive_loss([Term(x, x, 0.5), Term(x, 2 * x, 0.25, "rows")])
    >>> bool(torch.isclose(total, 0.5 * parts[0] + 0.25 * parts[1]))
    True
    """
    if not terms:
        raise ValueError("terms must hold at least one Term, got none")
    terms = [Term(*term) for term in terms]
    losses = [contrastive_loss(t.queries, t.keys, c, logit_scale, directions=t.directions, **options) for t in terms]
    return torch.stack([t.weight * loss for t, loss in zip(terms, losses, strict=True)]).sum(0), losses


def _terms(queries, keys, c, logit_scale, input, geometry, directions, exclude_ids, precision, atomic):
    for name, value, allowed in (
        ("input", input, INPUTS),
        ("geometry", geometry, GEOMETRIES),
        ("directions", directions, DIRECTIONS),
    ):
        _checks.choice(name, value, allowed)
    if precision is not None:
        _checks.choice("precision", precision, PRECISIONS)
    for name, x in (("queries", queries), ("keys", keys)):
        _checks.features(name, x, matrix=True)
        _checks.finite(name, x)
    n, m = queries.shape[0], keys.shape[0]
    if queries.shape[1] != keys.shape[1] or m < n or n == 0:
        raise ValueError(
            "queries (n, d) and keys (m, d) need 1 <= n <= m and the same d, "
            f"got {tuple(queries.shape)} and {tuple(keys.shape)}"
        )
    dtype, common = _checks.geometry_dtype(queries, keys), torch.promote_types(queries.dtype, keys.dtype)
    queries, keys = queries.to(common), keys.to(common)
    c, logit_scale = (
        _checks.positive(name, value, queries, dtype) for name, value in (("c", c), ("logit_scale", logit_scale))
    )
    if geometry == "lorentz" and input == "tangent":
        _checks.radius("queries", queries, c)
        _checks.radius("keys", keys, c)
    if exclude_ids is not None:
        if exclude_ids.shape != (m,) or exclude_ids.is_floating_point():
            got = f"{exclude_ids.dtype} of shape {tuple(exclude_ids.shape)}"
            raise ValueError(f"exclude_ids must be integers of shape ({m},), one per key, got {got}")
        exclude_ids = exclude_ids.to(queries.device)
    options = (input, geometry, directions, exclude_ids, precision or "bf16x3", atomic)
    return operators.contrastive_terms(queries, keys, c, logit_scale, *options)


def _reduce(per_sample: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    _checks.choice("reduction", reduction, REDUCTIONS)
    if weights is None:
        if reduction == "none":
            return per_sample
        return per_sample.mean() if reduction == "mean" else per_sample.sum()
    if weights.shape != per_sample.shape:
        raise ValueError(f"weights must have shape {tuple(per_sample.shape)}, got {tuple(weights.shape)}")
    weights = weights.to(per_sample)
    weighted = per_sample * weights
    if reduction == "none":
        return weighted
    return weighted.sum() / weights.sum() if reduction == "mean" else weighted.sum()
