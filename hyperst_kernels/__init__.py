"""Hyperbolic geometry and contrastive losses that stay correct where float32 is hardest. See the README for a start."""

from hyperst_kernels._version import __version__
from hyperst_kernels.configuration import show_config
from hyperst_kernels.contrastive import Term, contrastive_loss, hierarchical_contrastive_loss
from hyperst_kernels.cpu.memory import limit_cpu_memory, release_cpu_memory
from hyperst_kernels.distance import distance, distance0, inner, pairwise_distance, similarity
from hyperst_kernels.entailment import entailment_loss, exterior_angle, half_aperture, pairwise_exterior_angle
from hyperst_kernels.hierarchy import ContrastiveTerm, EntailmentTerm, HierarchicalAlignmentLoss
from hyperst_kernels.maps import (
    centroid,
    exp_map,
    exp_map0,
    lift,
    log_map,
    log_map0,
    lorentz_to_poincare,
    parallel_transport,
    poincare_to_lorentz,
    project,
)
from hyperst_kernels.modules import EntailmentLoss, HyperbolicContrastiveLoss, LorentzLift
from hyperst_kernels.operators.register import use_reference
from hyperst_kernels.retrieval import topk

__all__ = [
    "ContrastiveTerm",
    "EntailmentLoss",
    "EntailmentTerm",
    "HierarchicalAlignmentLoss",
    "HyperbolicContrastiveLoss",
    "LorentzLift",
    "Term",
    "__version__",
    "centroid",
    "contrastive_loss",
    "distance",
    "distance0",
    "entailment_loss",
    "exp_map",
    "exp_map0",
    "exterior_angle",
    "half_aperture",
    "hierarchical_contrastive_loss",
    "inner",
    "lift",
    "limit_cpu_memory",
    "log_map",
    "log_map0",
    "lorentz_to_poincare",
    "pairwise_distance",
    "pairwise_exterior_angle",
    "parallel_transport",
    "poincare_to_lorentz",
    "project",
    "release_cpu_memory",
    "show_config",
    "similarity",
    "topk",
    "use_reference",
]
