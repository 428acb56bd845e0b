"""A MERU-style model (Desai et al. 2023): learnable curvature and scales, contrastive loss + 0.2 entailment loss."""

from __future__ import annotations

import math

import torch
import toy
from torch import Tensor, nn

from hyperst_kernels import LorentzLift, contrastive_loss, entailment_loss

DIM = 16


class Meru(nn.Module):
    """``forward(image, text)`` returns the loss and what to log, as MERU's does.

    The lift leaves out the exponential map: the losses take tangent vectors, so that no radius is clamped.
    """

    def __init__(self, entail_weight: float = 0.2):
        super().__init__()
        self.visual, self.textual = toy.image_encoder(DIM), toy.text_encoder(DIM)
        self.lift = LorentzLift(DIM, ("image", "text"), output="tangent")
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.entail_weight = entail_weight

    def forward(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        images = self.lift(self.visual(image), "image")
        texts = self.lift(self.textual(text), "text")
        c, scale = self.lift.curvature, self.logit_scale.exp()
        contrastive = contrastive_loss(images, texts, c, scale)
        entailment = entailment_loss(texts, images, c, input="tangent")  # a text is more general than its image
        loss = contrastive + self.entail_weight * entailment
        return {"loss": loss, "contrastive": contrastive, "entailment": entailment, "curvature": c}


def train(steps: int) -> tuple[nn.Module, list[float]]:
    """The trained model and the loss of every step."""
    model = Meru()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(steps):
        out = model(*toy.pairs(64))
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        history.append(out["loss"].item())
    return model, history


if __name__ == "__main__":
    model, history = train(100)
    print(f"loss {history[0]:.3f} -> {history[-1]:.3f}, curvature -{model.lift.curvature.item():.3f}")
