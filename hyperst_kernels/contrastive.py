"""Hyperbolic InfoNCE, without the matrix of all pairs. See `docs/explanation/contrastive.md` for the derivation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hyperst_kernels import _checks
from hyperst_kernels._constants import GEOMETRIES, INPUTS, PRECISIONS
from hyperst_kernels.entailment import REDUCTIONS
from hyperst_kernels.operators import contrastive as operators
from hyperst_kernels.reference.contrastive import Pairing

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
    query_scale: float | Tensor = 1.0,
    key_scale: float | Tensor = 1.0,
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
        weights: (n,) weights of the samples, finite and >= 0; the mean divides by their sum, and is 0 (with zero gradients)
            where all are 0. Where they cannot be looked at, a negative one gives NaN.
        reduction: "mean", "sum" (0-d) or "none" (n,).
        precision: the matrix product a GPU kernel may use; has no effect elsewhere.
        deterministic: False lets a GPU add the gradient in whatever order its programs finish: less work, and another
            last digit from run to run; no difference where that is no faster. Refused under
            ``torch.use_deterministic_algorithms``.
        query_scale, key_scale: factors > 0 of the queries and of the keys, floats or 0-d tensors that may require grad:
            exp(alpha) of a learnable lift, so that encoder output goes straight in.

    Returns the loss, 0-d or (n,), in float32 or float64. A single pair with no other key has loss 0.
    Raises TypeError / ValueError for wrong dtypes and shapes, tensors on several devices, an empty batch, c or a scale that
    is not a positive normal number of the loss's dtype, and (on the CPU, outside torch.compile) NaN or inf; elsewhere those
    give a NaN loss. RuntimeError where determinism is asked for and refused. Forward-mode and double differentiation raise.

    Source: van den Oord et al. 2018; Desai et al. 2023, section 3.1.

    >>> torch.manual_seed(0).initial_seed()
    0
    >>> image, gene = torch.randn(8, 16), torch.randn(8, 16)
    >>> bool(contrastive_loss(image, image, logit_scale=10.0) < contrastive_loss(image, gene, logit_scale=10.0))
    True
    """
    (loss,) = _losses(
        [Term(queries, keys, 1.0, directions, query_scale, key_scale)],
        c,
        logit_scale,
        input=input,
        geometry=geometry,
        exclude_ids=exclude_ids,
        weights=weights,
        reduction=reduction,
        precision=precision,
        deterministic=deterministic,
    )
    return loss


class Term(NamedTuple):
    """One contrastive term of a hierarchy: queries (n, d), keys (m, d), its weight, directions, and factors of both."""

    queries: Tensor
    keys: Tensor
    weight: float = 1.0
    directions: str = "both"
    query_scale: float | Tensor = 1.0
    key_scale: float | Tensor = 1.0


def hierarchical_contrastive_loss(
    terms: Sequence[Term],
    c: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    *,
    input: str = "tangent",
    geometry: str = "lorentz",
    exclude_ids: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
    precision: str | None = None,
    deterministic: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """Weighted sum of `contrastive_loss` over several pairs of views, and the unweighted loss of each.

    All terms are computed together. Features that occur in several, being the same tensor with the same scale, are
    prepared once; all have one d. The options are those of `contrastive_loss`, shared by all terms, except directions and
    scales, which each term has.

    Returns 0-d losses, or (n,) for ``reduction="none"`` and terms of one n. Raises what `contrastive_loss` does, naming the
    term, and ValueError for no terms and for features of different d.

    Source: Zhang et al. 2025, section 3; Pal et al. 2025.

    >>> x = torch.eye(4)
    >>> total, parts = hierarchical_contrastive_loss([Term(x, x, 0.5), Term(x, 2 * x, 0.25, "rows")])
    >>> bool(torch.isclose(total, 0.5 * parts[0] + 0.25 * parts[1]))
    True
    """
    if not terms:
        raise ValueError("terms must hold at least one Term, got none")
    terms = [Term(*term) for term in terms]
    for t, term in enumerate(terms):
        _checks.real_number(f"terms[{t}].weight", term.weight)
    losses = _losses(
        terms,
        c,
        logit_scale,
        input=input,
        geometry=geometry,
        exclude_ids=exclude_ids,
        weights=weights,
        reduction=reduction,
        precision=precision,
        deterministic=deterministic,
    )
    if any(loss.shape != losses[0].shape for loss in losses):
        sizes = ", ".join(str(loss.shape[0]) for loss in losses)
        raise ValueError(f"reduction must be 'mean' or 'sum' for terms of several n, got 'none' with n = {sizes}")
    return torch.stack([loss * t.weight for t, loss in zip(terms, losses, strict=True)]).sum(0), losses


def _losses(
    terms: Sequence[Term],
    c: float | Tensor,
    logit_scale: float | Tensor,
    *,
    input: str,
    geometry: str,
    exclude_ids: Tensor | None,
    weights: Tensor | None,
    reduction: str,
    precision: str | None,
    deterministic: bool,
) -> list[Tensor]:
    """The loss of each term, unweighted."""
    if not deterministic and torch.are_deterministic_algorithms_enabled():
        raise RuntimeError(
            "deterministic=False contradicts torch.use_deterministic_algorithms(True): leave one of them out"
        )
    _checks.choice("input", input, INPUTS)
    _checks.choice("geometry", geometry, GEOMETRIES)
    _checks.choice("reduction", reduction, REDUCTIONS)
    if precision is not None:
        _checks.choice("precision", precision, PRECISIONS)
    features: list[_Features] = []
    pairings = []
    for t, term in enumerate(terms):
        _checks.choice("directions", term.directions, DIRECTIONS)
        within = f"terms[{t}]." if len(terms) > 1 else ""
        scales = [_checks.tensor_or_number(scale) for scale in (term.query_scale, term.key_scale)]
        queries = _Features(f"{within}queries", term.queries, f"{within}query_scale", scales[0])
        keys = _Features(f"{within}keys", term.keys, f"{within}key_scale", scales[1])
        pairings.append(Pairing(_number(features, queries), _number(features, keys), term.directions == "both"))
        _check_shapes(within, term, features[0].vectors.shape[1], exclude_ids)
        if weights is not None:
            weights = _checks.sample_weights("weights", weights, term.queries.shape[0])
            _checks.reachable("weights", weights, term.queries.device)
    _checks.one_device({x.name: x.vectors for x in features})
    vectors, factors, c, logit_scale = _on_one_footing(features, c, logit_scale)
    if geometry == "lorentz" and input == "tangent":
        for k, x in enumerate(features):
            _checks.radius(x.name, vectors[k], c if factors is None else c * factors[k] ** 2)
    if exclude_ids is not None:
        _checks.reachable("exclude_ids", exclude_ids, vectors[0].device)
        exclude_ids = exclude_ids.to(vectors[0].device)
    options = (input, geometry, exclude_ids, precision or "bf16x3", not deterministic)
    rows, columns = operators.contrastive_terms(vectors, factors, c, logit_scale, pairings, *options)
    losses = []
    for t, term in enumerate(terms):
        n = term.queries.shape[0]
        per_sample = (rows[t, :n] + columns[t, :n]) / 2 if term.directions == "both" else rows[t, :n]
        losses.append(_reduce(per_sample, weights, reduction))
    return losses


class _Features(NamedTuple):
    """A matrix (n, d) and its factor, by the names under which they were given."""

    name: str
    vectors: Tensor
    scale_name: str
    scale: float | Tensor


def _number(known: list[_Features], new: _Features) -> int:
    """Which of the known features this is; checked and added to them if it is none."""
    for k, old in enumerate(known):
        if old.vectors is new.vectors and _same(old.scale, new.scale):
            return k
    _checks.features(new.name, new.vectors, matrix=True)
    _checks.finite(new.name, new.vectors)
    known.append(new)
    return len(known) - 1


def _same(one: float | Tensor, other: float | Tensor) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    return one == other


def _check_shapes(within: str, term: Term, d: int, exclude_ids: Tensor | None) -> None:
    n, m = term.queries.shape[0], term.keys.shape[0]
    if term.queries.shape[1] != d or term.keys.shape[1] != d or m < n or n == 0:
        raise ValueError(
            f"{within}queries (n, d) and {within}keys (m, d) need 1 <= n <= m and the same d{' in all terms' * bool(within)}, "
            f"got {tuple(term.queries.shape)} and {tuple(term.keys.shape)}"
        )
    if exclude_ids is None:
        return
    if not isinstance(exclude_ids, Tensor):
        raise TypeError(f"exclude_ids must be a torch.Tensor of integers, got {type(exclude_ids).__name__}")
    _checks.whole("exclude_ids", exclude_ids)
    if exclude_ids.shape != (m,) or not _checks.is_integer(exclude_ids):
        got = f"{exclude_ids.dtype} of shape {tuple(exclude_ids.shape)}"
        raise ValueError(f"exclude_ids must be integers of shape ({m},), one per key, got {got}")


def _on_one_footing(
    features: Sequence[_Features], c: float | Tensor, logit_scale: float | Tensor
) -> tuple[list[Tensor], Tensor | None, Tensor, Tensor]:
    """Features in their common dtype, and in the geometry's their factors (None where all are 1), c and the logit scale."""
    first, dtype = features[0].vectors, _checks.geometry_dtype(*(x.vectors for x in features))
    common = functools.reduce(torch.promote_types, (x.vectors.dtype for x in features))
    c, logit_scale = (_checks.positive(*named, first, dtype) for named in (("c", c), ("logit_scale", logit_scale)))
    factors = None
    if any(isinstance(x.scale, Tensor) or x.scale != 1 for x in features):
        factors = torch.stack([_checks.positive(x.scale_name, x.scale, first, dtype) for x in features])
    return [x.vectors.to(common) for x in features], factors, c, logit_scale


def _reduce(per_sample: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    if weights is None:
        if reduction == "none":
            return per_sample
        return per_sample.mean() if reduction == "mean" else per_sample.sum()
    wide = torch.promote_types(weights.dtype, per_sample.dtype)
    weights = weights.to(device=per_sample.device, dtype=wide)
    if reduction != "mean":
        weighted = (per_sample * weights).to(per_sample.dtype)
        return weighted if reduction == "none" else weighted.sum()
    # only their ratios count: by the largest, none overflows, and neither does their sum
    largest = weights.detach().amax()
    weights = (weights / torch.where(largest == 0, 1, largest)).to(per_sample.dtype)
    total = weights.sum()
    # all of weight 0: the mean is 0, and not 0 / 0
    return (per_sample * weights).sum() / torch.where(total == 0, 1, total)
