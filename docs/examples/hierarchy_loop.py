"""HyperST's contrastive alignment (Zhang et al. 2025), from encoder outputs: four features, three terms, one call."""

from __future__ import annotations

import math

import torch
import toy
from torch import Tensor, nn

from hyperst_kernels import LorentzLift, Term, hierarchical_contrastive_loss

DIM = 16


def loss(features: dict[str, Tensor], lift: LorentzLift, logit_scale: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The weighted sum, and the loss of each term to log."""
    image, gene = lift.scale("image"), lift.scale("gene")
    terms = [
        Term(features["image_spot"], features["gene_spot"], 0.5, "both", image, gene),
        Term(features["image_niche"], features["gene_spot"], 0.25, "rows", image, gene),
        Term(features["gene_niche"], features["image_spot"], 0.25, "rows", gene, image),
    ]
    return hierarchical_contrastive_loss(terms, lift.curvature, logit_scale)


class Alignment(nn.Module):
    """``forward`` of the pixels and genes of spots and of their niches: the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.gene = toy.image_encoder(DIM), toy.text_encoder(DIM)
        self.lift = LorentzLift(DIM, ("image", "gene"))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, image_niche: Tensor, gene_niche: Tensor, image_spot: Tensor, gene_spot: Tensor) -> Tensor:
        features = {
            "image_spot": self.image(image_spot),
            "image_niche": self.image(image_niche),
            "gene_spot": self.gene(gene_spot),
            "gene_niche": self.gene(gene_niche),
        }
        total, _ = loss(features, self.lift, self.logit_scale.exp())
        return total


def train(steps: int) -> tuple[nn.Module, list[float]]:
    """The trained model and the loss of every step."""
    model = Alignment()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(steps):
        niche = toy.pairs(64)
        out = model(*niche, *toy.boxes(*niche))
        optimizer.zero_grad()
        out.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        history.append(out.item())
    return model, history


if __name__ == "__main__":
    _, history = train(100)
    print(f"loss {history[0]:.3f} -> {history[-1]:.3f}")
