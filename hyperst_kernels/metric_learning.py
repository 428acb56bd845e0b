"""The geodesic distance for the losses and miners of pytorch_metric_learning, an optional dependency."""

from __future__ import annotations

from torch import Tensor

from hyperst_kernels._checks import choice
from hyperst_kernels.distance import INPUTS, distance, pairwise_distance

try:
    from pytorch_metric_learning.distances import BaseDistance
except ImportError as error:
    raise ImportError(
        "hyperst_kernels.metric_learning needs pytorch_metric_learning: pip install 'hyperst-kernels[interop]'"
    ) from error


class HyperbolicDistance(BaseDistance):
    """A ``BaseDistance`` for pytorch_metric_learning: larger is farther, embeddings are not normalised.

    ``curvature`` is c > 0, a float, or a tensor / parameter (registered, hence trained if it is an ``nn.Parameter``);
    ``input`` says what the embeddings are, "tangent" vectors at the origin or "lorentz" points by space components.
    ``compute_mat`` gives (N, d), (M, d) -> (N, M) and ``pairwise_distance`` matching rows (N, d), (N, d) -> (N), in the
    embeddings' dtype; errors are those of `hyperst_kernels.pairwise_distance`.

    >>> import torch
    >>> from pytorch_metric_learning.losses import TripletMarginLoss
    >>> loss = TripletMarginLoss(margin=0.2, distance=HyperbolicDistance(curvature=0.5))
    >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    tensor(0.2000)
    """

    def __init__(self, curvature: float | Tensor = 1.0, input: str = "tangent"):
        super().__init__(normalize_embeddings=False, power=1, is_inverted=False)
        choice("input", input, INPUTS)
        self.curvature, self.input = curvature, input

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return pairwise_distance(query_emb, ref_emb, self.curvature, input=self.input)

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return distance(query_emb, ref_emb, self.curvature, input=self.input)
