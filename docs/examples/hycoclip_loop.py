"""A HyCoCLIP-style model (Pal et al. 2025): boxes and wholes, contrasted and ordered by `HierarchicalAlignmentLoss`."""

from __future__ import annotations

import math

import torch
import toy
from torch import Tensor, nn

from hyperst_kernels import ContrastiveTerm, EntailmentTerm, HierarchicalAlignmentLoss, LorentzLift

DIM = 16

# A box is more general than the whole it was cut from, and a text more general than its image.
LOSS = HierarchicalAlignmentLoss(
    contrastive=[
        ContrastiveTerm("image", "text", 0.5, "both"),
        ContrastiveTerm("image_box", "text", 0.25),
        ContrastiveTerm("text_box", "image", 0.25),
    ],
    entailment=[
        EntailmentTerm("text", "image", 0.7, 0.5),
        EntailmentTerm("text_box", "image_box", 0.7, 0.5),
        EntailmentTerm("image_box", "image", 1.2, 0.5),
        EntailmentTerm("text_box", "text", 1.2, 0.5),
    ],
    entailment_weight=0.2,
)


class HyCoClip(nn.Module):
    """``forward(image, text, image_box, text_box)`` returns the loss and each of its terms."""

    def __init__(self):
        super().__init__()
        self.visual, self.textual = toy.image_encoder(DIM), toy.text_encoder(DIM)
        self.lift = LorentzLift(DIM, ("image", "text"), output="tangent")
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, image: Tensor, text: Tensor, image_box: Tensor, text_box: Tensor) -> dict[str, Tensor]:
        features = {
            "image": self.lift(self.visual(image), "image"),
            "text": self.lift(self.textual(text), "text"),
            "image_box": self.lift(self.visual(image_box), "image"),
            "text_box": self.lift(self.textual(text_box), "text"),
        }
        return LOSS(features, self.lift.curvature, self.logit_scale.exp())


def train(steps: int) -> tuple[nn.Module, list[float]]:
    """The trained model and the loss of every step."""
    model = HyCoClip()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(steps):
        image, text = toy.pairs(64)
        out = model(image, text, *toy.boxes(image, text))
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        history.append(out["loss"].item())
    return model, history


if __name__ == "__main__":
    _, history = train(100)
    print(f"loss {history[0]:.3f} -> {history[-1]:.3f}")
