"""Alignment of images and genes across spot and niche: HCA + HEA on the losses of ``hyperst_kernels``.

Every row of the paper's ablation (Zhang et al. 2025, table 4) is a configuration, listed in :data:`ABLATIONS`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from hyperst.model.hyperst import LEVELS, Level
from hyperst.validation import STRICT, NonNegative
from hyperst_kernels import HierarchicalAlignmentLoss, LorentzLift
from hyperst_kernels.hierarchy import HYPERST_CONTRASTIVE, HYPERST_ENTAILMENT, ContrastiveTerm
from hyperst_kernels.modules import bounded, load_scalars, scalar

__all__ = ["ABLATIONS", "ABLATION_FIELDS", "Alignment", "AlignmentConfig"]

_CONTRASTIVE: dict[str, tuple[ContrastiveTerm, ...]] = {
    "hierarchical": HYPERST_CONTRASTIVE,
    "spot": (ContrastiveTerm("image_spot", "gene_spot", 1.0, "both"),),
    "none": (),
}
_ENTAILMENT = {
    "all": HYPERST_ENTAILMENT,
    "levels": tuple(term for term in HYPERST_ENTAILMENT if term.eta > 1),
    "spot": HYPERST_ENTAILMENT[:1],
    "none": (),
}
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
    "full": {"contrastive": "hierarchical", "entailment": "all", "geometry": "lorentz", "head_inputs": LEVELS},
    "no_gene_image_hea": {"entailment": "levels"},
    "no_hea": {"entailment": "none"},
    "no_hca_hea": {"contrastive": "none", "entailment": "none"},
    "euclidean": {"entailment": "none", "geometry": "euclidean"},
    "meru": {"contrastive": "spot", "entailment": "spot", "geometry": "lorentz"},
    "clip": {"contrastive": "spot", "entailment": "none", "geometry": "cosine"},
    "spot_head": {"head_inputs": ("spot",)},
    "niche_head": {"head_inputs": ("niche",)},
}


def _row(fields: dict[str, Any]) -> tuple[AlignmentConfig, tuple[Level, ...]]:
    return AlignmentConfig(**{name: value for name, value in fields.items() if name != "head_inputs"}), fields.get(
        "head_inputs", LEVELS
    )


#: name -> (alignment, inputs of the prediction head): the rows of the paper's ablation, with everything else as published.
ABLATIONS: dict[str, tuple[AlignmentConfig, tuple[Level, ...]]] = {
    name: _row(fields) for name, fields in ABLATION_FIELDS.items()
}


class Alignment(nn.Module):
    """Lift of the four Euclidean features, and their alignment loss.

    ``forward(outputs, block_id)``: ``outputs`` of :class:`hyperst.model.HyperST`, features (b, width); ``block_id`` (b)
    integers. Returns "loss" (weighted), "contrastive" (HCA), "entailment" (HEA) and every term, 0-d float32.
    ``group``: processes among which spots are divided, see :class:`hyperst_kernels.HierarchicalAlignmentLoss`; each gets the
    part of its own.

    >>> features = {k: torch.randn(8, 16) for k in ("image_spot", "image_niche", "gene_spot", "gene_niche")}
    >>> sorted(Alignment(AlignmentConfig(), 16)(features))[:3]
    ['contrastive', 'entailment', 'gene_niche->image_spot']
    """

    def __init__(
        self, config: AlignmentConfig, width: int, group: torch.distributed.ProcessGroup | None = None
    ) -> None:
        super().__init__()
        self.config = config
        # losses take tangent vectors: no radius can overflow
        self.lift = LorentzLift(width, ("image", "gene"), output="tangent")
        self.log_logit_scale = scalar(math.log(1 / 0.07))
        self.register_load_state_dict_pre_hook(load_scalars)
        self.loss = HierarchicalAlignmentLoss(
            _CONTRASTIVE[config.contrastive],
            _ENTAILMENT[config.entailment],
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
            name: self.lift(outputs[name].float(), name.split("_")[0])
            for name in ("image_spot", "image_niche", "gene_spot", "gene_niche")
        }
        curvature = self.lift.curvature
        with torch.no_grad():
            self.image_radius = curvature.sqrt() * tangent["image_spot"].norm(dim=-1).mean()
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
