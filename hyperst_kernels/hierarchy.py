"""Losses of several views or levels: terms, cones between them, and HyperST's, as a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hyperst_kernels import _checks
from hyperst_kernels._checks import choice, geometry_dtype, positive_number, real_number
from hyperst_kernels._constants import INPUTS, LOSS_GEOMETRIES
from hyperst_kernels.contrastive import weighted_sum
from hyperst_kernels.distributed import Gather, Group, Ranks, place
from hyperst_kernels.entailment import entailment_hinges
from hyperst_kernels.first_logit_scale import FirstLogitScale
from hyperst_kernels.loss_terms import DIRECTIONS, Options, Term, losses_of
from hyperst_kernels.rank_losses import Call, Means, Shard, means, ratios


class ContrastiveTerm(NamedTuple):
    """Names of the query and key features, and the weight of the term."""

    queries: str
    keys: str
    weight: float
    directions: str = "rows"


class EntailmentTerm(NamedTuple):
    """Names of the parent (general) and child (specific) features, the cone's widening eta, and the weight."""

    parent: str
    child: str
    eta: float
    weight: float


HYPERST_CONTRASTIVE = (
    ContrastiveTerm("image_spot", "gene_spot", 0.5, "both"),
    ContrastiveTerm("image_niche", "gene_spot", 0.25),
    ContrastiveTerm("gene_niche", "image_spot", 0.25),
)
HYPERST_ENTAILMENT = (
    EntailmentTerm("image_spot", "gene_spot", 0.7, 0.5),
    EntailmentTerm("image_niche", "gene_niche", 0.7, 0.5),
    EntailmentTerm("image_spot", "image_niche", 1.2, 0.5),
    EntailmentTerm("gene_spot", "gene_niche", 1.2, 0.5),
)


class HierarchicalAlignmentLoss(nn.Module):
    """HCA + 0.4 HEA of HyperST (Zhang et al. 2025, section 3), every relation and weight configurable.

    ``forward(features, curvature, logit_scale, exclude_ids=None, weights=None)``: features maps names to (b, d) tensors; returns
    "loss", "contrastive", "entailment" and each unweighted term ("image_spot->gene_spot", "image_spot>=gene_spot").
    ``weights`` (b,) are finite and >= 0, and count in the mean of every term.
    Cones exist in hyperbolic space only: other geometries need ``entailment=()``.

    ``group`` is of the processes of ``torch.distributed`` among which rows are divided, in shards of any size; None is one
    process. All features travel in one exchange, always with gradients. What each rank gets is its own rows' part: the mean over
    ranks, of every returned number and, as DDP and FSDP2 take it, of parameters' gradients, is that of one process with all rows.
    A wrong argument on one rank is the same error on every rank.

    >>> features = {k: torch.randn(8, 4) for k in ("image_spot", "image_niche", "gene_spot", "gene_niche")}
    >>> len(HierarchicalAlignmentLoss()(features, 1.0, 1 / 0.07))
    10
    """

    def __init__(
        self,
        contrastive: Sequence[ContrastiveTerm] = HYPERST_CONTRASTIVE,
        entailment: Sequence[EntailmentTerm] = HYPERST_ENTAILMENT,
        *,
        contrastive_weight: float = 1.0,
        entailment_weight: float = 0.4,
        min_radius: float = 0.1,
        input: str = "tangent",
        geometry: str = "lorentz",
        group: torch.distributed.ProcessGroup | None = None,
    ):
        super().__init__()
        choice("geometry", geometry, LOSS_GEOMETRIES)
        choice("input", input, INPUTS)
        if geometry != "lorentz" and entailment:
            raise ValueError(f"entailment must be empty for geometry={geometry!r}: cones need the Lorentz geometry")
        real_number("contrastive_weight", contrastive_weight)
        real_number("entailment_weight", entailment_weight)
        positive_number("min_radius", min_radius)
        self.contrastive = [ContrastiveTerm(*term) for term in contrastive]
        self.entailment = [EntailmentTerm(*term) for term in entailment]
        for t, term in enumerate(self.contrastive):
            real_number(f"contrastive[{t}].weight", term.weight)
            choice(f"contrastive[{t}].directions", term.directions, DIRECTIONS)
        for t, relation in enumerate(self.entailment):
            positive_number(f"entailment[{t}].eta", relation.eta)
            real_number(f"entailment[{t}].weight", relation.weight)
        self.weights = (contrastive_weight, entailment_weight)
        self.min_radius, self.input, self.geometry = min_radius, input, geometry
        self.world_size = 1 if group is None or not self._needed() else place(group)[1]
        self.group = Group(group)
        self.logit_scales = FirstLogitScale()

    def extra_repr(self) -> str:
        lines = [f"{t.queries}->{t.keys}: weight={t.weight:g}, directions={t.directions!r}" for t in self.contrastive]
        lines += [f"{e.parent}>={e.child}: eta={e.eta:g}, weight={e.weight:g}" for e in self.entailment]
        weights = "contrastive_weight={:g}, entailment_weight={:g}".format(*self.weights)
        options = f"min_radius={self.min_radius:g}, input={self.input!r}, geometry={self.geometry!r}"
        if self.world_size > 1:
            options += f", world_size={self.world_size}"
        return "\n".join([*lines, f"{weights}, {options}"])

    def forward(
        self,
        features: Mapping[str, Tensor],
        curvature: float | Tensor,
        logit_scale: float | Tensor,
        *,
        exclude_ids: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        self.logit_scales(logit_scale)
        options = Options(
            input=self.input, geometry=self.geometry, exclude_ids=exclude_ids, weights=weights, reduction="mean"
        )
        if self.world_size == 1:
            self._check(features, weights)
            losses = losses_of(self._terms(features), curvature, logit_scale, options) if self.contrastive else []
            mean = None
        else:
            losses, mean = self._losses_of_rank(features, curvature, logit_scale, options)
        zero = torch.zeros((), device=next(iter(features.values())).device)
        contrastive, entailment = zero, zero
        parts = {f"{t.queries}->{t.keys}": loss for t, loss in zip(self.contrastive, losses, strict=True)}
        if losses:
            contrastive = weighted_sum(losses, [term.weight for term in self.contrastive])
        if mean is not None:
            (curvature,) = Ranks(self.group.held).shared(curvature)
        if self.entailment:
            hinges = [x.clone() for x in self._hinges(features, curvature, weights, mean)]  # not views
            parts |= {f"{e.parent}>={e.child}": hinge for e, hinge in zip(self.entailment, hinges, strict=True)}
            entailment = weighted_sum(hinges, [e.weight for e in self.entailment])
        loss = contrastive * self.weights[0] + entailment * self.weights[1]
        return {"loss": loss, "contrastive": contrastive, "entailment": entailment, **parts}

    def _needed(self) -> list[str]:
        return sorted({name for term in (*self.contrastive, *self.entailment) for name in term[:2]})

    def _check(self, features: Mapping[str, Tensor], weights: Tensor | None) -> None:
        needed = self._needed()
        if missing := sorted(set(needed) - set(features)):
            raise ValueError(f"features must hold {', '.join(needed)}; missing: {', '.join(missing)}")
        if not features:
            raise ValueError("features must hold at least one tensor, got none")
        for name in needed:
            _checks.features(f"features[{name!r}]", features[name])
            shape = tuple(features[name].shape)
            if shape[0] == 0:
                raise ValueError(f"features[{name!r}] must hold at least one row, got shape {shape}")
            if weights is not None or self.world_size > 1:
                _checks.features(f"features[{name!r}]", features[name], matrix=True)
                rows = features[needed[0]].shape[0]
                if shape[0] != rows:
                    raise ValueError(
                        f"features[{name!r}] must have as many rows as features[{needed[0]!r}], {rows}, got shape {shape}"
                    )
        if weights is not None and needed:
            _checks.sample_weights("weights", weights, features[needed[0]].shape[0])

    def _terms(self, features: Mapping[str, Tensor]) -> list[Term]:
        return [Term(features[t.queries], features[t.keys], t.weight, t.directions) for t in self.contrastive]

    def _hinges(
        self, features: Mapping[str, Tensor], curvature: float | Tensor, weights: Tensor | None, mean: Means | None
    ) -> Tensor:
        """The mean of each relation's hinges."""
        relations = [(features[e.parent], features[e.child], e.eta) for e in self.entailment]
        hinges = entailment_hinges(relations, curvature, self.min_radius, self.input)
        hinges = hinges.to(geometry_dtype(hinges))
        if mean is not None:
            return mean(hinges)
        if weights is not None:
            return Means(*ratios(weights.to(hinges.device), hinges.dtype), 1)(hinges)
        return hinges.flatten(1).mean(1)

    def _losses_of_rank(
        self, features: Mapping[str, Tensor], curvature: float | Tensor, logit_scale: float | Tensor, options: Options
    ) -> tuple[list[Tensor], Means]:
        """This rank's part of the contrastive losses, and how its rows count in a mean."""

        def check():
            self._check(features, options.weights)
            named = {f"features[{name!r}]": features[name] for name in self._needed()}
            c, _ = _checks.prepare(curvature, **named)
            facts: dict[str, object] = {f"the d of {name}": x.shape[1] for name, x in named.items()}
            facts |= {f"the dtype of {name}": x.dtype for name, x in named.items()}
            facts["entailment"] = [(e.parent, e.child) for e in self.entailment]
            facts["contrastive"] = [(t.queries, t.keys, t.directions) for t in self.contrastive]
            facts["requires_grad of curvature"] = isinstance(curvature, Tensor) and curvature.requires_grad
            rows = next(iter(named.values())).shape[0]
            if not self.contrastive:
                return (
                    (None, c.dtype),
                    {**facts, "weights": None if options.weights is None else "a value"},
                    (rows, rows, 0),
                )
            call = Call.checked(self._terms(features), curvature, logit_scale, options, local=True)
            return (call, c.dtype), {**facts, **call.facts()}, call.sizes()

        ranks = Ranks(self.group.held)
        (call, dtype), sizes = ranks.agree(check)
        gather = Gather(ranks, with_grad=True)
        losses = [] if call is None else Shard(call, gather, sizes).own_losses()
        return losses, means(gather, [n for n, *_ in sizes], dtype, options.weights)
