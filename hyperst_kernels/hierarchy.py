"""Losses of several views or levels: terms, cones between them, and HyperST's, as a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hyperst_kernels import _checks, contrastive
from hyperst_kernels._checks import choice, geometry_dtype, positive_number, real_number
from hyperst_kernels._constants import INPUTS, LOSS_GEOMETRIES
from hyperst_kernels.entailment import entailment_hinges
from hyperst_kernels.first_logit_scale import FirstLogitScale
from hyperst_kernels.loss_terms import DIRECTIONS


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

    ``forward(features, curvature, logit_scale, exclude_ids=None)``: features maps names to (b, d) tensors; returns
    "loss", "contrastive", "entailment" and each unweighted term ("image_spot->gene_spot", "image_spot>=gene_spot").
    Cones exist in hyperbolic space only: other geometries need ``entailment=()``.

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
        self.logit_scales = FirstLogitScale()

    def extra_repr(self) -> str:
        lines = [f"{t.queries}->{t.keys}: weight={t.weight:g}, directions={t.directions!r}" for t in self.contrastive]
        lines += [f"{e.parent}>={e.child}: eta={e.eta:g}, weight={e.weight:g}" for e in self.entailment]
        weights = "contrastive_weight={:g}, entailment_weight={:g}".format(*self.weights)
        options = f"min_radius={self.min_radius:g}, input={self.input!r}, geometry={self.geometry!r}"
        return "\n".join([*lines, f"{weights}, {options}"])

    def forward(
        self,
        features: Mapping[str, Tensor],
        curvature: float | Tensor,
        logit_scale: float | Tensor,
        *,
        exclude_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        self.logit_scales(logit_scale)
        needed = {name for term in (*self.contrastive, *self.entailment) for name in term[:2]}
        if missing := sorted(needed - set(features)):
            raise ValueError(f"features must hold {', '.join(sorted(needed))}; missing: {', '.join(missing)}")
        if not features:
            raise ValueError("features must hold at least one tensor, got none")
        for name in sorted(needed):
            _checks.features(f"features[{name!r}]", features[name])
            if features[name].shape[0] == 0:
                raise ValueError(
                    f"features[{name!r}] must hold at least one row, got shape {tuple(features[name].shape)}"
                )
        parts: dict[str, Tensor] = {}
        zero = torch.zeros((), device=next(iter(features.values())).device)
        total_contrastive, total_entailment = zero, zero
        if self.contrastive:
            terms = [
                contrastive.Term(features[t.queries], features[t.keys], t.weight, t.directions)
                for t in self.contrastive
            ]
            total_contrastive, losses = contrastive.hierarchical_contrastive_loss(
                terms, curvature, logit_scale, input=self.input, geometry=self.geometry, exclude_ids=exclude_ids
            )
            for t, loss in zip(self.contrastive, losses, strict=True):
                parts[f"{t.queries}->{t.keys}"] = loss
        if self.entailment:
            relations = [(features[e.parent], features[e.child], e.eta) for e in self.entailment]
            hinges = entailment_hinges(relations, curvature, self.min_radius, self.input)
            hinges = hinges.to(geometry_dtype(hinges)).flatten(1).mean(1)
            for e, hinge in zip(self.entailment, hinges, strict=True):
                parts[f"{e.parent}>={e.child}"] = hinge
                total_entailment = total_entailment + hinge * e.weight
        loss = total_contrastive * self.weights[0] + total_entailment * self.weights[1]
        return {"loss": loss, "contrastive": total_contrastive, "entailment": total_entailment, **parts}
