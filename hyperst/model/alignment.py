"""Alignment of images and genes across levels: HCA + HEA on the losses of ``hyperst_kernels``.

Every row of the paper's ablation (Zhang et al. 2025, table 4) is a configuration, listed in :data:`ABLATIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from hyperst.data.crops import LEVELS
from hyperst.validation import STRICT, NonNegative
from hyperst_kernels import HierarchicalAlignmentLoss, LorentzLift
from hyperst_kernels.hierarchy import ContrastiveTerm, EntailmentTerm
from hyperst_kernels.modules import bounded, load_scalars, scalar

__all__ = ["ABLATIONS", "ABLATION_FIELDS", "Alignment", "AlignmentConfig", "contrastive_terms", "entailment_terms"]

_IN_LEVEL, _ACROSS_LEVELS = 0.7, 1.2  # eta: widening of a cone over genes of its level, and over the next wider level
_LARGEST_LOGIT_SCALE = 100.0


@dataclass(frozen=True, config=STRICT)
class AlignmentConfig:
    """Which alignment terms are used, and their weights.

    Attributes:
        weight: weight of the whole alignment beside the prediction error.
        entailment_weight: weight of HEA beside HCA.
        contrastive: "hierarchical" (HCA), "spot" (one level) or "none".
        entailment: "all" (HEA), "levels" (spot over niche only), "spot" (image over gene only) or "none".
        geometry: "lorentz", "euclidean" or "cosine"; cones need "lorentz".
        mask_neighbours: whether spots of one 2 x 2-pitch block are kept from being negatives of each other.
    """

    weight: NonNegative = 0.2
    entailment_weight: NonNegative = 0.4
    contrastive: Literal["hierarchical", "spot", "none"] = "hierarchical"
    entailment: Literal["all", "levels", "spot", "none"] = "all"
    geometry: Literal["lorentz", "euclidean", "cosine"] = "lorentz"
    mask_neighbours: bool = False

    def __post_init__(self) -> None:
        if self.geometry != "lorentz" and self.entailment != "none":
            raise ValueError(
                f"alignment.entailment is {self.entailment!r} with geometry {self.geometry!r}: cones need 'lorentz'"
            )


#: name -> the fields that a row of the paper's ablation is about: of the alignment, and the inputs of the prediction head.
ABLATION_FIELDS: dict[str, dict[str, Any]] = {
    "full": {"contrastive": "hierarchical", "entailment": "all", "geometry": "lorentz", "head_inputs": None},
    "no_gene_image_hea": {"entailment": "levels"},
    "no_hea": {"entailment": "none"},
    "no_hca_hea": {"contrastive": "none", "entailment": "none"},
    "euclidean": {"entailment": "none", "geometry": "euclidean"},
    "meru": {"contrastive": "spot", "entailment": "spot", "geometry": "lorentz"},
    "clip": {"contrastive": "spot", "entailment": "none", "geometry": "cosine"},
    "spot_head": {"head_inputs": ("spot",)},
    "niche_head": {"head_inputs": ("niche",)},
}


def _row(fields: dict[str, Any]) -> tuple[AlignmentConfig, tuple[str, ...] | None]:
    alignment = {name: value for name, value in fields.items() if name != "head_inputs"}
    return AlignmentConfig(**alignment), fields.get("head_inputs")


#: name -> (alignment, inputs of the prediction head, None for all levels): the rows of the paper's ablation, with everything
#: else as published.
ABLATIONS: dict[str, tuple[AlignmentConfig, tuple[str, ...] | None]] = {
    name: _row(fields) for name, fields in ABLATION_FIELDS.items()
}


def contrastive_terms(kind: str, levels: Sequence[str] = LEVELS) -> tuple[ContrastiveTerm, ...]:
    """HCA over ``levels``, from narrow to wide; ``kind`` as in :class:`AlignmentConfig`.

    Image and genes of the first level query each other; those of each further level query the other modality of the next narrower
    one. Every direction of every pair weighs the same, and all together 1: of two levels these are the paper's.

    >>> from hyperst_kernels.hierarchy import HYPERST_CONTRASTIVE
    >>> contrastive_terms("hierarchical") == HYPERST_CONTRASTIVE
    True
    """
    spot = levels[0]
    if kind == "none":
        return ()
    if kind == "spot":
        return (ContrastiveTerm(f"image_{spot}", f"gene_{spot}", 1.0, "both"),)
    weight = 1 / (2 * len(levels))
    across = [
        ContrastiveTerm(f"{query}_{wide}", f"{key}_{narrow}", weight)
        for narrow, wide in pairwise(levels)
        for query, key in (("image", "gene"), ("gene", "image"))
    ]
    return (ContrastiveTerm(f"image_{spot}", f"gene_{spot}", 2 * weight, "both"), *across)


def entailment_terms(kind: str, levels: Sequence[str] = LEVELS) -> tuple[EntailmentTerm, ...]:
    """HEA over ``levels``, from narrow to wide; ``kind`` as in :class:`AlignmentConfig`.

    At each level the image's cone holds the genes, and in each modality that of a level holds the next wider level. All cones
    weigh the same, and all together 2: of two levels these are the paper's, in its released form.

    >>> from hyperst_kernels.hierarchy import HYPERST_ENTAILMENT
    >>> entailment_terms("all") == HYPERST_ENTAILMENT
    True
    """
    weight = 2 / (3 * len(levels) - 2)
    within = [EntailmentTerm(f"image_{level}", f"gene_{level}", _IN_LEVEL, weight) for level in levels]
    across = [
        EntailmentTerm(f"{modality}_{narrow}", f"{modality}_{wide}", _ACROSS_LEVELS, weight)
        for narrow, wide in pairwise(levels)
        for modality in ("image", "gene")
    ]
    return {"all": (*within, *across), "levels": tuple(across), "spot": (within[0],), "none": ()}[kind]


class Alignment(nn.Module):
    """Lift of the Euclidean features of all ``levels``, and their alignment loss.

    ``forward(outputs, block_id)``: ``outputs`` of :class:`hyperst.model.HyperST`, features (b, width); ``block_id`` (b)
    integers. Returns "loss" (weighted), "contrastive" (HCA), "entailment" (HEA) and every term, 0-d float32.
    ``group``: processes among which spots are divided, see :class:`hyperst_kernels.HierarchicalAlignmentLoss`; each gets the
    part of its own.

    >>> features = {k: torch.randn(8, 16) for k in ("image_spot", "image_niche", "gene_spot", "gene_niche")}
    >>> sorted(Alignment(AlignmentConfig(), 16)(features))[:3]
    ['contrastive', 'entailment', 'gene_niche->image_spot']
    """

    def __init__(
        self,
        config: AlignmentConfig,
        width: int,
        group: torch.distributed.ProcessGroup | None = None,
        levels: Sequence[str] = LEVELS,
    ) -> None:
        super().__init__()
        self.config, self.levels = config, tuple(levels)
        # losses take tangent vectors: no radius can overflow
        self.lift = LorentzLift(width, ("image", "gene"), output="tangent")
        self.log_logit_scale = scalar(math.log(1 / 0.07))
        self.register_load_state_dict_pre_hook(load_scalars)
        self.loss = HierarchicalAlignmentLoss(
            contrastive_terms(config.contrastive, self.levels),
            entailment_terms(config.entailment, self.levels),
            entailment_weight=config.entailment_weight,
            geometry=config.geometry,
            group=group,
        )
        self.register_buffer("image_radius", torch.tensor(0.0), persistent=False)

    @property
    def logit_scale(self) -> Tensor:
        """1/tau, 0-d, at most 100."""
        return bounded(self.log_logit_scale, -math.inf, math.log(_LARGEST_LOGIT_SCALE)).exp().reshape(())

    def forward(self, outputs: dict[str, Tensor], block_id: Tensor | None = None) -> dict[str, Tensor]:
        tangent = {
            f"{modality}_{level}": self.lift(outputs[f"{modality}_{level}"].float(), modality)
            for modality in ("image", "gene")
            for level in self.levels
        }
        curvature = self.lift.curvature
        with torch.no_grad():
            self.image_radius = curvature.sqrt() * tangent[f"image_{self.levels[0]}"].norm(dim=-1).mean()
        exclude = block_id if self.config.mask_neighbours else None
        parts = self.loss(tangent, curvature, self.logit_scale, exclude_ids=exclude)
        parts["loss"] = self.config.weight * parts["loss"]
        return parts

    def report(self) -> dict[str, float]:
        """c and 1/tau, and what they mean together: (c, alpha, 1/tau) have two degrees of freedom.

        "effective_radius" is ``sqrt(c) exp(alpha) |image_spot|``, mean over the last batch; "effective_temperature"
        is tau sqrt(c).
        """
        curvature, scale = float(self.lift.curvature.detach()), float(self.logit_scale.detach())
        return {
            "curvature": curvature,
            "logit_scale": scale,
            "effective_radius": float(self.image_radius),
            "effective_temperature": math.sqrt(curvature) / scale,
        }
