"""A call of every public callable of ``hyperst_kernels``, for the tests that run over all of them.

Each call is a function of tensors alone, so that it can be compiled, exported, differentiated and mapped. What is public
and has no entry here fails `uncalled`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

import hyperst_kernels as hk

D = 4
FEATURES = ("image_spot", "image_niche", "gene_spot", "gene_niche")
# named tuples and switches compute nothing that is differentiated
NOT_FUNCTIONS = {
    "ContrastiveTerm",
    "EntailmentTerm",
    "Term",
    "__version__",
    "show_config",
    "topk",  # has no gradient: see test_retrieval.py
    "limit_cpu_memory",
    "release_cpu_memory",
    "use_reference",
}


class Call(NamedTuple):
    """``function(*vectors, c)`` of ``count`` matrices (n, d) and a 0-d curvature; rows of the second may be more than n."""

    function: Callable[..., Tensor]
    count: int
    more: int = 0  # rows of the second matrix beyond n

    def inputs(self, n: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Vectors of radius about .5, and c."""
        generator = torch.Generator().manual_seed(n)
        rows = [n + self.more * (i == 1) for i in range(self.count)]
        vectors = [torch.randn(r, D, generator=generator, dtype=torch.float64) / 4 for r in rows]
        return [*(v.to(dtype).requires_grad_() for v in vectors), torch.tensor(0.8, dtype=dtype, requires_grad=True)]


class Called(nn.Module):
    """The call as a module, which export asks for."""

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


def _lift(output: str) -> Callable[..., Tensor]:
    module = hk.LorentzLift(D, output=output)
    return lambda v, c: c * module(v, "gene")


def _hierarchy(x: Tensor, y: Tensor, z: Tensor, c: Tensor) -> Tensor:
    terms = [hk.Term(x, y, 0.5), hk.Term(z, y, 0.25, "rows", 0.5)]
    return hk.hierarchical_contrastive_loss(terms, c, 9.0)[0]


def _each_of_hierarchy(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return hk.hierarchical_contrastive_loss([hk.Term(x, y), hk.Term(y, x, 2.0)], c, 9.0, reduction="none")[0]


def _alignment(*given: Tensor) -> Tensor:
    return hk.HierarchicalAlignmentLoss()(dict(zip(FEATURES, given, strict=False)), given[-1], 9.0)["loss"]


def _module_similarity(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return hk.HyperbolicContrastiveLoss(c).similarity(x, y)


def _weighted_centroid(x: Tensor, c: Tensor) -> Tensor:
    return hk.centroid(x, c, weights=x[:, 0].square())


def _weighted_loss(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return hk.contrastive_loss(x, y, c, 9.0, weights=x.new_ones(x.shape[0]).cumsum(0))


def _of_ids(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    ids = torch.arange(x.shape[0], device=x.device) % 3, torch.arange(y.shape[0], device=x.device) % 4
    return hk.contrastive_loss(x, y, c, 9.0, positives=ids)


def _scale_of_each(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return hk.contrastive_loss(x, y, c, 9 + x[:, 0])


def _in_a_product(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return hk.contrastive_loss(x, y, torch.stack([c, 2 * c]), 9.0, geometry="l1-product")


def _of_two_scales(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return hk.hierarchical_contrastive_loss([hk.Term(x, y), hk.Term(y, x, logit_scale=5.0)], c, 9.0)[0]


def _both_inputs(name: str, function: Callable, count: int, more: int = 0, **options) -> dict[str, Call]:
    return {
        f"{name}-{word}": Call(partial(function, input=word, **options), count, more) for word in ("tangent", "lorentz")
    }


CALLS = {
    "exp_map0": Call(hk.exp_map0, 1),
    "log_map0": Call(hk.log_map0, 1),
    "exp_map": Call(hk.exp_map, 2),
    "log_map": Call(hk.log_map, 2),
    "parallel_transport": Call(hk.parallel_transport, 3),
    "lift": Call(hk.lift, 1),
    "project": Call(hk.project, 1),
    "lorentz_to_poincare": Call(hk.lorentz_to_poincare, 1),
    "poincare_to_lorentz": Call(hk.poincare_to_lorentz, 1),
    "centroid": Call(hk.centroid, 1),
    "centroid-weighted": Call(_weighted_centroid, 1),
    "inner": Call(hk.inner, 2),
    **_both_inputs("distance", hk.distance, 2),
    **_both_inputs("distance0", hk.distance0, 1),
    **_both_inputs("pairwise_distance", hk.pairwise_distance, 2, 3),
    **_both_inputs("similarity", hk.similarity, 2, 3),
    "similarity-euclidean": Call(partial(hk.similarity, geometry="euclidean"), 2, 3),
    "similarity-cosine": Call(partial(hk.similarity, geometry="cosine"), 2, 3),
    **_both_inputs("half_aperture", hk.half_aperture, 1),
    **_both_inputs("exterior_angle", hk.exterior_angle, 2),
    **_both_inputs("entailment_loss", hk.entailment_loss, 2, eta=0.3),
    **_both_inputs("contrastive_loss", hk.contrastive_loss, 2, 3, logit_scale=9.0),
    "contrastive_loss-euclidean": Call(partial(hk.contrastive_loss, logit_scale=9.0, geometry="euclidean"), 2),
    "contrastive_loss-cosine": Call(partial(hk.contrastive_loss, logit_scale=9.0, geometry="cosine"), 2),
    "contrastive_loss-weighted": Call(_weighted_loss, 2),
    "contrastive_loss-angle": Call(partial(hk.contrastive_loss, logit_scale=9.0, geometry="angle"), 2, 3),
    "contrastive_loss-product": Call(_in_a_product, 2, 3),
    "contrastive_loss-sigmoid": Call(
        partial(hk.contrastive_loss, logit_scale=9.0, loss="sigmoid", logit_bias=-1.0), 2, 3
    ),
    "contrastive_loss-positives": Call(_of_ids, 2, 3),
    "contrastive_loss-scales": Call(_scale_of_each, 2, 3),
    "hierarchical_contrastive_loss": Call(_hierarchy, 3),
    "hierarchical_contrastive_loss-each": Call(_each_of_hierarchy, 2),
    "hierarchical_contrastive_loss-scales": Call(_of_two_scales, 2),
    **_both_inputs("pairwise_exterior_angle", hk.pairwise_exterior_angle, 2, 3),
    "similarity-angle": Call(partial(hk.similarity, geometry="angle"), 2, 3),
    "EntailmentLoss": Call(hk.EntailmentLoss(0.3), 2),
    "HierarchicalAlignmentLoss": Call(_alignment, 4),
    "HyperbolicContrastiveLoss": Call(lambda x, y, c: hk.HyperbolicContrastiveLoss(c)(x, y, 9.0), 2, 3),
    "HyperbolicContrastiveLoss-similarity": Call(_module_similarity, 2, 3),
    "LorentzLift-tangent": Call(_lift("tangent"), 1),
    "LorentzLift-lorentz": Call(_lift("lorentz"), 1),
}


def uncalled() -> set[str]:
    """Public names that no call covers."""
    return set(hk.__all__) - NOT_FUNCTIONS - {name.split("-")[0] for name in CALLS}
