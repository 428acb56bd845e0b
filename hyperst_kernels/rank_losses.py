"""The losses of one rank among several. Their mean over ranks is the loss of one process that holds all rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hyperst_kernels.blocked.blocks import Geometry
from hyperst_kernels.cpu import memory
from hyperst_kernels.cpu.online_softmax import wide
from hyperst_kernels.distributed import Gather, Sizes
from hyperst_kernels.loss_terms import Options, Prepared, Term, losses_of, prepare, refuse_no_positive, shifted
from hyperst_kernels.operators.contrastive_sums import Flags
from hyperst_kernels.operators.pair_loss import limits_of, of_moderate_size
from hyperst_kernels.operators.register import reference_in_use
from hyperst_kernels.schemes import Gathered, scheme_of


class Call(NamedTuple):
    """The arguments of `losses_of` on one rank, whose terms have one n and one m, and what `prepare` makes of them."""

    terms: Sequence[Term]
    c: float | Tensor
    logit_scale: float | Tensor
    options: Options
    prepared: Prepared
    once: bool  # whether each pair of all ranks is visited once, `hyperst_kernels.rectangle`

    @classmethod
    def checked(
        cls,
        terms: Sequence[Term],
        c: float | Tensor,
        logit_scale: float | Tensor,
        options: Options,
        local: bool,
        with_grad: bool = True,
        scheme: str = "auto",
    ):
        """What one rank can know of its arguments by itself."""
        prepared = prepare(terms, c, logit_scale, options._replace(need_positive=False))
        once = with_grad and not reference_in_use()
        for term, scale in zip(terms, prepared.scales, strict=True):
            if once or not local or options.loss != "softmax" or term.directions != "both":
                continue
            where = (
                "where each rank has the losses of its own rows, without gathered gradients or inside use_reference()"
            )
            if options.geometry == "angle":
                raise ValueError(
                    f"geometry must not be 'angle' for directions='both' {where}: from keys to queries, angles are those at other "
                    "ranks' queries; take directions='rows', or local_loss=False"
                )
            if scale.ndim > 0:
                raise ValueError(
                    f"logit_scale must be one number for directions='both' {where}: from keys to queries, those of the queries are "
                    "other ranks'; take directions='rows', or local_loss=False"
                )
        if scheme == "ring" and not once:
            raise ValueError("scheme must be 'auto' or 'gather' inside use_reference(), got 'ring'")
        return cls(terms, c, logit_scale, options, prepared, once)

    def facts(self) -> dict[str, object]:
        """What has to be alike on every rank, by the name that an error gives it."""
        vectors, options = self.prepared.vectors, self.options
        learnt: list[tuple[str, Sequence[object]]] = [
            *((f"queries of term {t}", [vectors[p.queries]]) for t, p in enumerate(self.prepared.pairings)),
            *((f"keys of term {t}", [vectors[p.keys]]) for t, p in enumerate(self.prepared.pairings)),
            ("weights", [options.weights]),
            ("c", [self.c]),
            ("logit_scale", [self.logit_scale]),
            ("logit_bias", [options.logit_bias]),
        ]
        given = {
            name: None if getattr(options, name) is None else "a value"
            for name in ("exclude_ids", "weights", "positives", "logit_bias")
        }
        alike = ("loss", "input", "geometry", "precision", "deterministic")
        directions = sorted({term.directions for term in self.terms})
        return {
            "being inside use_reference()": reference_in_use(),
            "the features' d": vectors[0].shape[1],
            "the features' dtype": vectors[0].dtype,
            **{f"requires_grad of {name}": _differentiable(*tensors) for name, tensors in learnt},
            **given,
            "debias": _kind(options.debias),
            "weights' dtype": None if options.weights is None else self.weights_dtype(options.weights),
            **{name: getattr(options, name) for name in alike},
            "label_smoothing": float(options.label_smoothing),
            "margin": None if options.margin is None else float(options.margin),
            "directions": directions[0] if len(directions) == 1 else directions,
        }

    def weights_dtype(self, weights: Tensor) -> torch.dtype:
        """In which they travel."""
        return torch.promote_types(weights.dtype, self.prepared.c.dtype)

    def sizes(self) -> Sizes:
        """What `Shard` has to know of every rank."""
        (queries, keys, *_), *_ = self.terms
        return queries.shape[0], keys.shape[0], int(any(scale.ndim for scale in self.prepared.scales))


def _differentiable(*tensors: object) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in tensors)


def _kind(debias: float | Tensor | None) -> object:
    """What ranks have to agree on."""
    if isinstance(debias, Tensor):
        return "one for each query" if debias.ndim else "a 0-d tensor"
    return debias


class Means(NamedTuple):
    """How rows count in a mean over the rows of all ranks: the own ones' weights (None is 1), and the sum of all weights."""

    weights: Tensor | None
    total: Tensor | float
    ranks: int

    def __call__(self, per_row: Tensor) -> Tensor:
        """(..., n) to (...): results whose mean over ranks is the mean over the rows of all."""
        if self.weights is not None:
            per_row = per_row * self.weights
        return per_row.sum(-1) * (self.ranks / self.total)


def ratios(weights: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights (n,) and their sum, both by the largest, as only ratios count and so none overflows; a sum of 0 is 1."""
    largest = weights.detach().amax()
    weights = (weights / torch.where(largest == 0, 1, largest)).to(dtype)
    total = weights.sum()
    return weights, torch.where(total == 0, 1, total)


def means(
    gather: Gather,
    rows: Sequence[int],
    dtype: torch.dtype,
    weights: Tensor | None = None,
    counted: Tensor | None = None,
) -> Means:
    """``weights`` (n,) are those of the own rows, ``counted`` (N,) says of the rows of all which have a loss."""
    if weights is None and counted is None:
        return Means(None, float(sum(rows)), gather.ranks.size)
    everything = torch.ones((), dtype=dtype) if weights is None else gather(weights, rows)
    if counted is not None:
        everything = everything.to(counted.device) * counted
    everything, total = ratios(everything, dtype)
    return Means(everything[: rows[gather.ranks.rank]], total, gather.ranks.size)


class Shard:
    """One rank's rows in several terms, among the rows of all."""

    def __init__(self, call: Call, gather: Gather, sizes: Sequence[Sizes], scheme: str = "auto"):
        self.call, self.gather, self.scheme = call, gather, scheme
        self.prepared, self.options = call.prepared, call.options
        self.c, self.logit_scale = call.c, call.logit_scale
        self.query_rows, self.key_rows = [n for n, *_ in sizes], [m for _, m, _ in sizes]
        self.scale_per_query = _scale_per_query(sizes)
        self.more_keys = self.query_rows != self.key_rows
        if not call.once:
            numbers = (self.c, None if self.scale_per_query else self.logit_scale, self.options.logit_bias)
            c, scale, bias = gather.ranks.shared(*numbers)
            self.c, self.logit_scale = c, self.logit_scale if scale is None else scale
            self.options = self.options._replace(logit_bias=bias)
        device = self.prepared.c.device
        self.exclude_ids = self.positives = self.own_positives = None
        if self.options.exclude_ids is not None and not call.once:
            self.exclude_ids = self._of_keys(self.options.exclude_ids.to(device, torch.int64), gather.plain)
        if self.options.positives is not None:
            of_queries, of_keys = (ids.to(device, torch.int64) for ids in self.options.positives)
            self.own_positives = (of_queries, of_keys)
            self.positives = gather.plain(of_queries, self.query_rows), gather.plain(of_keys, self.key_rows)
            if self.options.loss == "softmax":
                refuse_no_positive(*self.positives)

    def all_losses(self) -> list[Tensor]:
        """The loss of each term over the rows of all ranks."""
        if self.call.once:
            return list(self.gather.ranks.mean_with_grad(torch.stack(self.own_losses())).unbind())
        pairings = self.prepared.pairings
        queries, keys = self._gathered({p.queries for p in pairings})
        terms = [
            term._replace(queries=queries[p.queries], keys=keys[p.keys])
            for term, p in zip(self.call.terms, pairings, strict=True)
        ]
        weights = self._weights()
        weights = None if weights is None else self.gather(weights, self.query_rows)
        debias = self.prepared.options.debias
        if isinstance(debias, Tensor) and debias.ndim:
            debias = self.gather.plain(debias.to(self.prepared.c.device, wide(self.prepared.c)), self.query_rows)
        options = self.options._replace(
            exclude_ids=self.exclude_ids, positives=self.positives, weights=weights, debias=debias
        )
        scale = self.logit_scale
        if self.scale_per_query and isinstance(scale, Tensor):
            scale = self.gather(scale.reshape(-1).to(self.prepared.c.device), self.query_rows)
        return losses_of(terms, self.c, scale, options)

    def own_losses(self) -> list[Tensor]:
        """The part of the own rows in the loss of each term."""
        return self._visiting_once() if self.call.once else self._visiting_both_ways()

    def _visiting_once(self) -> list[Tensor]:
        """Each rank the pairs of its queries."""
        options = self.options
        plain = options.plain and all(scale.ndim == 0 for scale in self.prepared.scales) and not self.scale_per_query
        rows, columns = self._rectangle() if plain else self._pair_rectangle()
        of_rows, of_columns = self._means()
        found = []
        for row, column, pairing in zip(rows, columns, self.prepared.pairings, strict=True):
            loss = of_rows(row)
            if pairing.symmetric and options.loss == "softmax":
                loss = (loss + of_columns(column if options.positives is not None else column[: len(row)])) / 2
            found.append(loss if options.loss == "sigmoid" else shifted(loss, options.logit_bias))
        return found

    def _visiting_both_ways(self) -> list[Tensor]:
        """Each rank the rows of its queries, and the columns of its keys."""
        pairings = self.prepared.pairings
        two_ways = [p.symmetric and self.options.loss == "softmax" for p in pairings]
        queries, keys = self._gathered({p.queries for p, both in zip(pairings, two_ways, strict=True) if both})
        vectors, n = self.prepared.vectors, self.query_rows[self.gather.ranks.rank]
        forth, back = [], []
        for term, p, both in zip(self.call.terms, pairings, two_ways, strict=True):
            rows = term._replace(queries=vectors[p.queries], keys=keys[p.keys], directions="rows")
            forth.append(rows)
            if both:
                own = vectors[p.keys] if self.positives is not None or not self.more_keys else vectors[p.keys][:n]
                factors = term.key_scale, term.query_scale
                back.append(Term(own, queries[p.queries], 1.0, "rows", *factors, term.logit_scale))
        ways = self._both_ways(forth, back)
        mean_forth, mean_back = self._means()
        found, returning = [mean_forth(per_row) for per_row in ways[: len(forth)]], iter(ways[len(forth) :])
        return [
            (loss + mean_back(next(returning))) / 2 if both else loss
            for loss, both in zip(found, two_ways, strict=True)
        ]

    def _rectangle(self) -> tuple[Tensor, Tensor]:
        """Of plain losses: those of the own queries and of their positives' columns (t n)."""
        from hyperst_kernels.rectangle import Terms, losses  # what it needs of torch.compile takes a second to import

        vectors, factors, c, scales, pairings, options = self.prepared
        n, ids = self.query_rows[self.gather.ranks.rank], options.exclude_ids
        if all(term.logit_scale is self.call.terms[0].logit_scale for term in self.call.terms):
            groups = [list(range(len(pairings)))]
        else:
            groups = [[t] for t in range(len(pairings))]
        precision, atomic = options.precision or "bf16x3", not options.deterministic
        flags = Flags(options.geometry, options.input == "tangent", precision, atomic)
        ids = None if ids is None else ids.to(torch.int64)
        keys = [vectors[k] for k in sorted({p.keys for p in pairings})]
        scheme = scheme_of(self.scheme, self.gather, self.key_rows, [] if ids is None else [ids], keys)
        keep = memory.kept_bytes if _differentiable(*vectors, c, *scales) and isinstance(scheme, Gathered) else 0
        terms = Terms(pairings, groups, None if ids is None else ids[:n], flags, keep)
        return losses(vectors, factors, c, [scales[t] for t, *_ in groups], terms, scheme)

    def _pair_rectangle(self) -> tuple[Tensor, Tensor]:
        """Of any losses: those of the own queries (t n), and of the own keys (t m)."""
        from hyperst_kernels import pair_rectangle  # likewise

        vectors, factors, c, scales, pairings, options = self.prepared
        ranks, geometry, tangent = self.gather.ranks, options.geometry, options.input == "tangent"
        bias = None
        if options.loss == "sigmoid" and options.logit_bias is not None:
            bias = torch.as_tensor(options.logit_bias, dtype=c.dtype, device=c.device).reshape(())
        n, m = self.query_rows[ranks.rank], self.key_rows[ranks.rank]
        if self.scale_per_query and n == 1:  # its shape does not tell
            scales = [scale.reshape(1) for scale in scales]
        c, bias, factors, *of_all = ranks.shared(c, bias, factors, *(None if s.ndim else s for s in scales))
        scales = [own if shared is None else shared for own, shared in zip(scales, of_all, strict=True)]
        if factors is not None:
            vectors = [x.to(c.dtype) * factor for x, factor in zip(vectors, factors, strict=True)]
        elif geometry == "cosine":
            vectors = [x.to(c.dtype) for x in vectors]
        limits = None
        if options.margin is not None:
            sides = [(vectors[p.queries].to(c.dtype), vectors[p.keys].to(c.dtype)) for p in pairings]
            limits = torch.stack([limits_of(x, y, c, options.margin, geometry, tangent) for x, y in sides])
            limits = F.pad(limits, (0, m - n))
        features, scales_of_size, limits = of_moderate_size(vectors, scales, limits, geometry, ranks.least)
        debias = options.debias  # 1 less it must not be rounded away
        debias = None if debias is None else torch.as_tensor(debias, dtype=wide(c), device=c.device)
        ids = None if options.exclude_ids is None else options.exclude_ids.to(torch.int64)
        kind = Geometry(geometry, tangent, options.precision or "bf16x3")
        terms = pair_rectangle.Terms(
            pairings, options.loss, kind, options.label_smoothing, self.own_positives, ids, debias, limits
        )
        keys = [features[k] for k in sorted({p.keys for p in pairings})]
        scheme = scheme_of(self.scheme, self.gather, self.key_rows, terms.travelling, keys)
        return pair_rectangle.losses(features, c, scales_of_size, bias, terms, scheme)

    def _both_ways(self, forth: list[Term], back: list[Term]) -> list[Tensor]:
        """Losses (n,) of the own queries, and of the own keys."""
        options = self.options._replace(
            exclude_ids=self.exclude_ids, weights=None, reduction="none", need_positive=False
        )
        compute = [(forth, options), (back, options)]
        if self.positives is not None and self.own_positives is not None:
            (own_queries, own_keys), (all_queries, all_keys) = self.own_positives, self.positives
            compute = [
                (forth, options._replace(positives=(own_queries, all_keys))),
                (back, options._replace(positives=(own_keys, all_queries))),
            ]
        elif self.exclude_ids is not None and self.more_keys:
            first = self.exclude_ids[: sum(self.query_rows)]
            compute = [(forth, options), (back, options._replace(exclude_ids=first))]
        else:
            compute = [([*forth, *back], options)]  # at once, features that both ways share being prepared once
        given = (self.c, self.logit_scale)
        return [loss for terms, its in compute if terms for loss in losses_of(terms, *given, its)]

    def _means(self) -> tuple[Means, Means]:
        """Those over queries and over keys."""
        weights, dtype = self._weights(), self.prepared.c.dtype
        if self.positives is None or self.options.loss == "sigmoid":
            both = means(self.gather, self.query_rows, dtype, weights)
            return both, both
        of_queries, of_keys = self.positives
        over_queries = means(self.gather, self.query_rows, dtype, weights, torch.isin(of_queries, of_keys))
        return over_queries, means(self.gather, self.key_rows, dtype, None, torch.isin(of_keys, of_queries))

    def _gathered(self, queries: set[int]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """By their number, features of all ranks: those of ``queries``, and those of the keys of every term."""
        vectors, keys = self.prepared.vectors, {p.keys for p in self.prepared.pairings}
        if self.more_keys:
            of_queries = {k: self.gather(vectors[k], self.query_rows) for k in sorted(queries)}
            return of_queries, {k: self._of_keys(vectors[k], self.gather) for k in sorted(keys)}
        numbers = sorted(queries | keys)
        everything = self.gather.side_by_side([vectors[k] for k in numbers], self.key_rows)
        found = dict(zip(numbers, everything, strict=True))
        return found, found

    def _of_keys(self, x: Tensor, gather: Callable[[Tensor, Sequence[int]], Tensor]) -> Tensor:
        """Rows of keys; where they are more than queries, the positives of all ranks first."""
        if not self.more_keys or self.options.positives is not None:
            return gather(x, self.key_rows)
        n, more = self.query_rows, [m - n for n, m in zip(self.query_rows, self.key_rows, strict=True)]
        own = n[self.gather.ranks.rank]
        return torch.cat([gather(x[:own], n), gather(x[own:], more)])

    def _weights(self) -> Tensor | None:
        weights, like = self.prepared.options.weights, self.prepared.c
        return None if weights is None else weights.to(like.device, self.call.weights_dtype(weights))


def _scale_per_query(sizes: Sequence[Sizes]) -> bool:
    """Whether ranks have a logit scale for each query. Of one with a single query, its shape does not tell."""
    unlike = [rank for rank, (n, _, several) in enumerate(sizes) if n > 1 and not several]
    if not any(several for *_, several in sizes):
        return False
    if unlike:
        raise ValueError(
            f"logit_scale must be one for each query on every rank or one number on every rank, got one number on rank {unlike[0]}"
        )
    return True
