"""sentence-transformers trained by geodesic distance. Nothing of that library is imported: a model is what gives embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hyperst_kernels._checks import positive_number
from hyperst_kernels.curvature import check
from hyperst_kernels.distance import similarity
from hyperst_kernels.modules import HyperbolicContrastiveLoss


class HyperbolicRankingLoss(nn.Module):
    """sentence-transformers' ``MultipleNegativesRankingLoss`` with minus the geodesic distance in place of the cosine.

    ``forward(sentence_features, labels=None)`` takes the columns (anchor, positive) or (anchor, positive, negative, ...) and
    returns the 0-d loss of anchors against the positives and negatives of the whole batch; the matrix of pairs is never in memory.
    It learns nothing itself, so that processes cannot drift apart. The model must not end in ``Normalize()``.

    Args:
        model: a ``SentenceTransformer``, or what returns a dictionary with "sentence_embedding" (n, d) of each column.
        scale: inverse temperature > 0.
        gather_across_devices: take the documents of all processes; ``torch.distributed`` must be initialised by the first call.
        embedding_scale: the number > 0 that embeddings are multiplied with to be tangent vectors; None is 1 / sqrt(d), which takes
            embeddings of ordinary size to radius about 1.
        curvature: c > 0, the curvature being -c.

    Rank by `similarity`, which evaluators take in ``score_functions`` and ``semantic_search`` as its ``score_function``.
    ``MultipleNegativesRankingLoss(model, scale, similarity_fct=loss.similarity)`` is the same loss, with the matrix in memory and
    that class's other options.

    >>> embed = lambda column: {"sentence_embedding": column["x"]}
    >>> loss = HyperbolicRankingLoss(embed)
    >>> loss([{"x": torch.eye(4)}, {"x": torch.eye(4)}]) < loss([{"x": torch.eye(4)}, {"x": torch.eye(4).flip(0)}])
    tensor(True)
    """

    def __init__(
        self,
        model: Any,
        scale: float = 20.0,
        gather_across_devices: bool = False,
        *,
        embedding_scale: float | None = None,
        curvature: float = 1.0,
    ):
        super().__init__()
        positive_number("scale", scale)
        check(curvature)
        if embedding_scale is not None:
            positive_number("embedding_scale", embedding_scale)
        self.model, self.scale, self.gather_across_devices = model, scale, gather_across_devices
        self.embedding_scale, self.curvature = embedding_scale, curvature

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        columns = [self._tangent(self.model(column)["sentence_embedding"]) for column in sentence_features]
        if len(columns) < 2:
            raise ValueError(f"sentence_features must hold anchors and positives, got {len(columns)} columns")
        several = self.gather_across_devices and torch.distributed.is_initialized()
        loss = HyperbolicContrastiveLoss(
            self.curvature,
            directions="rows",
            local_loss=several,
            gather_with_grad=True,
            rank=torch.distributed.get_rank() if several else 0,
            world_size=torch.distributed.get_world_size() if several else 1,
        )
        return loss(columns[0], torch.cat(columns[1:]), self.scale)

    def similarity(self, queries: Tensor, documents: Tensor) -> Tensor:
        """Minus the distances of embeddings as the model gives them, (n, d), (m, d) -> (n, m)."""
        queries, documents = torch.as_tensor(queries), torch.as_tensor(documents)
        return similarity(self._tangent(queries), self._tangent(documents), self.curvature)

    def get_config_dict(self) -> dict[str, Any]:
        """What sentence-transformers writes into a model card."""
        names = ("scale", "gather_across_devices", "embedding_scale", "curvature")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.get_config_dict().items())

    def _tangent(self, embeddings: Tensor) -> Tensor:
        factor = embeddings.shape[-1] ** -0.5 if self.embedding_scale is None else self.embedding_scale
        return embeddings * factor
