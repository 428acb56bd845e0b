"""From the arguments of the contrastive losses to operators: checks, features that terms share, and what becomes of the rows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hyperst_kernels import _checks
from hyperst_kernels._constants import INPUTS, LOSS_GEOMETRIES, PRECISIONS, PRODUCTS
from hyperst_kernels.cpu.online_softmax import wide
from hyperst_kernels.entailment import REDUCTIONS
from hyperst_kernels.operators.contrastive import contrastive_terms
from hyperst_kernels.operators.pair_loss import pair_losses
from hyperst_kernels.reference.contrastive import Pairing

DIRECTIONS = ("both", "rows")
LOSSES = ("softmax", "sigmoid")
BLOCKWISE = ("angle", *PRODUCTS)  # geometries that have no fused kernel


class Term(NamedTuple):
    """One contrastive term of a hierarchy: queries (n, d), keys (m, d), its weight, directions, factors of both, and a logit
    scale of its own in place of that of all terms."""

    queries: Tensor
    keys: Tensor
    weight: float = 1.0
    directions: str = "both"
    query_scale: float | Tensor = 1.0
    key_scale: float | Tensor = 1.0
    logit_scale: float | Tensor | None = None


class Options(NamedTuple):
    """What all terms share, under the names and with the defaults of `contrastive_loss`."""

    loss: str = "softmax"
    logit_bias: float | Tensor | None = None
    positives: tuple[Tensor, Tensor] | None = None
    input: str = "tangent"
    geometry: str = "lorentz"
    exclude_ids: Tensor | None = None
    weights: Tensor | None = None
    reduction: str = "mean"
    precision: str | None = None
    deterministic: bool = True
    label_smoothing: float = 0.0
    debias: float | Tensor | None = None
    margin: float | None = None
    need_positive: bool = True  # of one rank's rows, none may have a positive where another rank's have

    @property
    def plain(self) -> bool:
        """Whether this is a softmax over distances with one positive for each query, which have kernels of their own."""
        targets = self.label_smoothing or self.debias is not None or self.margin is not None
        return self.loss == "softmax" and self.positives is None and self.geometry not in BLOCKWISE and not targets


class Prepared(NamedTuple):
    """Terms after all checks: features that terms share once, in their common dtype, with factors, c and logit scales."""

    vectors: list[Tensor]
    factors: Tensor | None
    c: Tensor
    scales: list[Tensor]
    pairings: list[Pairing]
    options: Options


def prepare(terms: Sequence[Term], c: float | Tensor, logit_scale: float | Tensor, options: Options) -> Prepared:
    """Check everything that the losses of the terms depend on. Raises what `contrastive_loss` does."""
    check_options(options)
    features: list[_Features] = []
    pairings = []
    for t, term in enumerate(terms):
        within = f"terms[{t}]." if len(terms) > 1 else ""
        _checks.choice(f"{within}directions", term.directions, DIRECTIONS)
        factors = [_checks.tensor_or_number(factor) for factor in (term.query_scale, term.key_scale)]
        queries = _Features(f"{within}queries", term.queries, f"{within}query_scale", factors[0])
        keys = _Features(f"{within}keys", term.keys, f"{within}key_scale", factors[1])
        pairings.append(Pairing(_number(features, queries), _number(features, keys), term.directions == "both"))
        _check_shapes(within, term, features[0].vectors.shape[1], options)
        if options.weights is not None:
            weights = _checks.sample_weights("weights", options.weights, term.queries.shape[0])
            _checks.reachable("weights", weights, term.queries.device)
            options = options._replace(weights=weights)
        if options.debias is not None:
            debias = _checks.fraction_each("debias", options.debias, term.queries.shape[0])
            if isinstance(debias, Tensor):
                _checks.reachable("debias", debias, term.queries.device)
            options = options._replace(debias=debias)
    if options.positives is not None:
        _check_positives(terms, options.positives, options)
    _checks.one_device({x.name: x.vectors for x in features})
    vectors, scaling, c = _on_one_footing(features, c, options.geometry in PRODUCTS)
    if options.geometry in ("lorentz", *PRODUCTS) and options.input == "tangent":
        for k, x in enumerate(features):
            curvatures = c if scaling is None else c * scaling[k] ** 2
            for part, curvature in zip(vectors[k].chunk(c.numel(), 1), curvatures.reshape(-1), strict=True):
                _checks.radius(x.name, part, curvature)
    if options.exclude_ids is not None:
        _checks.reachable("exclude_ids", options.exclude_ids, vectors[0].device)
        options = options._replace(exclude_ids=options.exclude_ids.to(vectors[0].device))
    if isinstance(options.logit_bias, Tensor):
        _checks.reachable("logit_bias", options.logit_bias, vectors[0].device)
    return Prepared(vectors, scaling, c, _logit_scales(terms, logit_scale, vectors[0], c.dtype), pairings, options)


def losses_of(terms: Sequence[Term], c: float | Tensor, logit_scale: float | Tensor, options: Options) -> list[Tensor]:
    """Return the loss of each term, unweighted."""
    vectors, scaling, c, scales, pairings, options = prepare(terms, c, logit_scale, options)
    alike = all(term.logit_scale is terms[0].logit_scale for term in terms)
    if options.plain and alike and scales[0].ndim == 0:
        return _fused(terms, vectors, scaling, c, scales[0], pairings, options)
    losses = []
    for term, pairing, scale in zip(terms, pairings, scales, strict=True):
        two = [pairing.queries, pairing.keys]
        if options.plain and scale.ndim == 0:
            own = None if scaling is None else scaling[two]
            alone = [Pairing(0, 1, pairing.symmetric)]
            losses += _fused([term], [vectors[k] for k in two], own, c, scale, alone, options)
        else:
            left, right = (vectors[k].to(c.dtype) * (1 if scaling is None else scaling[k]) for k in two)
            losses.append(_by_blocks(left, right, c, scale, pairing.symmetric, options))
    return losses


def check_options(options: Options) -> None:
    """Raise where options are wrong by themselves, whatever the features."""
    if not options.deterministic and torch.are_deterministic_algorithms_enabled():
        raise RuntimeError(
            "deterministic=False contradicts torch.use_deterministic_algorithms(True): leave one of them out"
        )
    _checks.choice("loss", options.loss, LOSSES)
    _checks.choice("input", options.input, INPUTS)
    _checks.choice("geometry", options.geometry, (*LOSS_GEOMETRIES, *PRODUCTS))
    _checks.choice("reduction", options.reduction, REDUCTIONS)
    if options.precision is not None:
        _checks.choice("precision", options.precision, PRECISIONS)
    if options.logit_bias is not None:
        _checks.finite_number("logit_bias", options.logit_bias)
    _checks.fraction("label_smoothing", options.label_smoothing)
    if options.margin is not None:
        _checks.plain_number("margin", options.margin)
    asked = {name: getattr(options, name) is not None for name in ("debias", "margin")}
    for name, is_asked in {"label_smoothing": options.label_smoothing != 0, **asked}.items():
        if is_asked and options.loss != "softmax":
            raise ValueError(f"{name} needs loss='softmax', got {options.loss!r}")


def _logit_scales(terms: Sequence[Term], logit_scale: float | Tensor, like: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Each term's logit scale: its own, or that of all; 0-d, or one for each of its queries."""
    scales = []
    for t, term in enumerate(terms):
        name, scale = ("logit_scale", logit_scale)
        if term.logit_scale is not None:
            name, scale = f"terms[{t}].logit_scale", term.logit_scale
        scales.append(_checks.positive_each(name, scale, term.queries.shape[0], like, dtype))
    return scales


def _fused(
    terms: Sequence[Term],
    vectors: Sequence[Tensor],
    factors: Tensor | None,
    c: Tensor,
    logit_scale: Tensor,
    pairings: Sequence[Pairing],
    options: Options,
) -> list[Tensor]:
    """Softmax losses of terms with one logit scale and one positive for each query, all in one operator."""
    given = (options.input, options.geometry, options.exclude_ids, options.precision or "bf16x3")
    rows, columns = contrastive_terms(vectors, factors, c, logit_scale, pairings, *given, not options.deterministic)
    simple = options.reduction == "mean" and options.weights is None and options.logit_bias is None and len(terms) > 1
    if simple and all(term.queries.shape[0] == rows.shape[1] for term in terms):
        of_rows, of_columns = rows.mean(1), columns.mean(1)
        return [
            (of_rows[t] + of_columns[t]) / 2 if term.directions == "both" else of_rows[t].clone()
            for t, term in enumerate(terms)
        ]
    losses = []
    for t, term in enumerate(terms):
        n = term.queries.shape[0]
        per_sample = (rows[t, :n] + columns[t, :n]) / 2 if term.directions == "both" else rows[t, :n]
        losses.append(shifted(_reduce(per_sample, options.weights, options.reduction), options.logit_bias))
    return losses


def _by_blocks(
    queries: Tensor, keys: Tensor, c: Tensor, logit_scale: Tensor, symmetric: bool, options: Options
) -> Tensor:
    """The loss of one term that has no kernel of its own."""
    ids = None if options.positives is None else [ids.to(queries.device, torch.int64) for ids in options.positives]
    of_queries, of_keys = (None, None) if ids is None else ids
    symmetric, bias = symmetric and options.loss == "softmax", None
    if options.loss == "sigmoid" and options.logit_bias is not None:
        bias = torch.as_tensor(options.logit_bias, dtype=c.dtype, device=c.device).reshape(())
    # 1 less it must not be rounded away
    debias = None if options.debias is None else torch.as_tensor(options.debias, dtype=wide(c), device=c.device)
    rows, columns = pair_losses(
        queries, keys, c, logit_scale, bias, of_queries, of_keys, options.exclude_ids, debias, options.loss, options.geometry,
        options.input == "tangent", symmetric, options.precision or "bf16x3", options.label_smoothing,
        options.margin,
    )  # fmt: skip
    if options.loss == "sigmoid":
        return _reduce(rows, options.weights, options.reduction)
    if of_queries is None or of_keys is None:
        per_sample = (rows + columns[: rows.shape[0]]) / 2 if symmetric else rows
        found = _reduce(per_sample, options.weights, options.reduction)
    else:
        found = _reduce(rows, _with_positive(of_queries, of_keys, options.weights), options.reduction)
        if symmetric:
            found = (found + _reduce(columns, _with_positive(of_keys, of_queries, None), options.reduction)) / 2
        if options.need_positive and not _checks.seen(of_queries):  # not refused: a loss of nothing is no number
            found = torch.where(torch.isin(of_queries, of_keys).any(), found, torch.nan)
    return shifted(found, options.logit_bias)


def _with_positive(ids: Tensor, others: Tensor, weights: Tensor | None) -> Tensor:
    """Weights of rows, 0 for those whose id no other has: they have no loss and are not counted."""
    counted = torch.isin(ids, others)
    return counted if weights is None else weights * counted.to(weights.device)


def shifted(loss: Tensor, logit_bias: float | Tensor | None) -> Tensor:
    """The loss, with the gradient 0 of a bias that shifts all logits alike."""
    return loss + 0 * logit_bias.reshape(()).to(loss) if isinstance(logit_bias, Tensor) else loss


def _check_positives(terms: Sequence[Term], positives: tuple[Tensor, Tensor], options: Options) -> None:
    if not isinstance(positives, (tuple, list)) or len(positives) != 2:
        size = f" of {len(positives)}" if isinstance(positives, (tuple, list)) else ""
        raise TypeError(f"positives must be (query_ids, key_ids) or None, got {type(positives).__name__}{size}")
    if options.margin is not None:
        raise ValueError("margin must be None where positives are given by ids: it is from the one positive of a query")
    if options.exclude_ids is not None:
        raise ValueError("exclude_ids must be None where positives are given by ids: equal ids are positives there")
    for term in terms:
        for name, ids, rows in zip(("query_ids", "key_ids"), positives, (term.queries, term.keys), strict=True):
            if not isinstance(ids, Tensor):
                raise TypeError(f"positives: {name} must be a torch.Tensor of integers, got {type(ids).__name__}")
            _checks.whole(f"positives: {name}", ids)
            if ids.shape != rows.shape[:1] or not _checks.is_integer(ids):
                got = f"{ids.dtype} of shape {tuple(ids.shape)}"
                raise ValueError(f"positives: {name} must be integers of shape ({rows.shape[0]},), got {got}")
            _checks.reachable(f"positives: {name}", ids, rows.device)
        debias_of_rows = isinstance(options.debias, Tensor) and options.debias.ndim > 0
        rows_only = options.reduction == "none" or options.weights is not None or debias_of_rows
        if options.loss == "softmax" and term.directions == "both" and rows_only:
            raise ValueError(
                "weights, a debias of each and reduction='none' are of queries: with positives by ids they need "
                "directions='rows', got 'both'"
            )
    if options.loss == "softmax" and options.need_positive:
        of_queries, of_keys = (ids.to(torch.int64) for ids in positives)
        refuse_no_positive(of_queries, of_keys)


def refuse_no_positive(of_queries: Tensor, of_keys: Tensor) -> None:
    """Raise ValueError where the ids can be seen and none is both a query's and a key's."""
    if _checks.seen(of_queries) and not torch.isin(of_queries, of_keys).any():
        raise ValueError("positives: no key has the id of a query, so that no query has a loss")


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


def _check_shapes(within: str, term: Term, d: int, options: Options) -> None:
    exclude_ids, diagonal = options.exclude_ids, options.positives is None
    n, m = term.queries.shape[0], term.keys.shape[0]
    if term.queries.shape[1] != d or term.keys.shape[1] != d or (diagonal and m < n) or n == 0 or m == 0:
        sizes = "1 <= n <= m" if diagonal else "at least one row each"
        raise ValueError(
            f"{within}queries (n, d) and {within}keys (m, d) need {sizes} and the same d{' in all terms' * bool(within)}, "
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
    features: Sequence[_Features], c: float | Tensor, product: bool
) -> tuple[list[Tensor], Tensor | None, Tensor]:
    """Features in their common dtype, and in the geometry's their factors (None where all are 1) and c."""
    first, dtype = features[0].vectors, _checks.geometry_dtype(*(x.vectors for x in features))
    common = functools.reduce(torch.promote_types, (x.vectors.dtype for x in features))
    c = _checks.positive_factors("c", c, first, dtype) if product else _checks.positive("c", c, first, dtype)
    factors = None
    if any(isinstance(x.scale, Tensor) or x.scale != 1 for x in features):
        factors = torch.stack([_checks.positive(x.scale_name, x.scale, first, dtype) for x in features])
    return [x.vectors.to(common) for x in features], factors, c


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
