"""The image tower of CONCH: a vision transformer whose tokens an attentional pooler reads with one learnt query.

Lu et al., A visual-language foundation model for computational pathology, Nature Medicine 2024. The feature is the pooled
token before the projection to the space shared with text, which the authors advise for what is not retrieval.
"""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor, nn

__all__ = ["ConchImageTower"]

_WIDTH = 512
_HEADS = 8


class AttentionalPooler(nn.Module):
    """Cross-attention of one learnt query to the tokens: (b n d_tokens) -> (b width)."""

    def __init__(self, d_tokens: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, _WIDTH))
        self.attn = nn.MultiheadAttention(_WIDTH, _HEADS, kdim=d_tokens, vdim=d_tokens, batch_first=True)
        self.ln_q, self.ln_k = nn.LayerNorm(_WIDTH), nn.LayerNorm(d_tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.ln_k(tokens)
        query = repeat(self.ln_q(self.query), "query width -> b query width", b=len(tokens))
        return self.attn(query, tokens, tokens, need_weights=False)[0][:, 0]


class ConchImageTower(nn.Module):
    """Images (b 3 448 448) to features (b 512); ``trunk`` is timm's ViT-B/16."""

    num_features = _WIDTH

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = AttentionalPooler(int(trunk.num_features))  # type: ignore[arg-type]
        self.ln_contrast = nn.LayerNorm(_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.trunk.forward_features(x)  # type: ignore[operator]
        return self.ln_contrast(self.attn_pool_contrast(tokens))
