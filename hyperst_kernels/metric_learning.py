"""The geodesic distance for the losses and miners of pytorch_metric_learning, an optional dependency."""

from __future__ import annotations

from torch import Tensor

from hyperst_kernels._checks import choice, geometry_dtype
from hyperst_kernels._constants import INPUTS
from hyperst_kernels.curvature import Curvature, current, describe, hold
from hyperst_kernels.distance import distance, pairwise_distance

try:
    from pytorch_metric_learning.distances import BaseDistance
except ImportError as error:
    raise ImportError(
        "hyperst_kernels.metric_learning needs pytorch_metric_learning: pip install 'hyperst-kernels[interop]'"
    ) from error


class HyperbolicDistance(BaseDistance):
    """A ``BaseDistance`` for pytorch_metric_learning: larger is farther, embeddings are not normalised.

    ``curvature`` is c > 0 in one of the forms that `hyperst_kernels.HyperbolicContrastiveLoss` takes;
    ``input`` says what the embeddings are, "tangent" vectors at the origin or "lorentz" points by space components.
    ``compute_mat`` gives (N, d), (M, d) -> (N, M) and ``pairwise_distance`` matching rows (N, d), (N, d) -> (N), in float32, or
    float64 for such embeddings: margins and temperatures act on distances, which half precision would round to 0.4 %. Errors are
    those of `hyperst_kernels.pairwise_distance`.

    >>> import torch
    >>> from pytorch_metric_learning.losses import TripletMarginLoss
    >>> loss = TripletMarginLoss(margin=0.2, distance=HyperbolicDistance(curvature=0.5))
    >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    tensor(0.2000)
    """

    curvature: Curvature

    def __init__(self, curvature: Curvature = 1.0, input: str = "tangent"):
        super().__init__(normalize_embeddings=False, power=1, is_inverted=False)
        choice("input", input, INPUTS)
        hold(self, curvature)
        self.input = input

    def extra_repr(self) -> str:
        return f"curvature={describe(self.curvature)}, input={self.input!r}"

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        x, y = _wide(query_emb, ref_emb)
        return pairwise_distance(x, y, current(self.curvature), input=self.input)

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        x, y = _wide(query_emb, ref_emb)
        return distance(x, y, current(self.curvature), input=self.input)


def _wide(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dtype = geometry_dtype(x, y)
    return x.to(dtype), y.to(dtype)
