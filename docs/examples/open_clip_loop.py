"""An open_clip training loop with `HyperbolicContrastiveLoss` in place of `ClipLoss`: what changes is numbered."""

from __future__ import annotations

import math

import torch
import toy
from torch import Tensor, nn
from torch.nn import functional as F

from hyperst_kernels import HyperbolicContrastiveLoss, LorentzLift

DIM = 16


class Clip(nn.Module):
    """Stands for open_clip's model: the same methods, which normalise when asked."""

    def __init__(self):
        super().__init__()
        self.visual, self.text = toy.image_encoder(DIM), toy.text_encoder(DIM)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        features = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        features = self.text(text)
        return F.normalize(features, dim=-1) if normalize else features


class Unnormalized(nn.Module):
    """(1) The model's ``forward`` without its normalisation. Learnable scales start features at radius about 1.

    The curvature stays 1: it is redundant with those scales and the logit scale.
    """

    def __init__(self, clip: Clip):
        super().__init__()
        self.clip = clip
        self.lift = LorentzLift(DIM, ("image", "text"), learn_curvature=False, output="tangent")

    def forward(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        return {
            "image_features": self.lift(self.clip.encode_image(image), "image"),
            "text_features": self.lift(self.clip.encode_text(text), "text"),
            "logit_scale": self.clip.logit_scale.exp(),
        }


def train(steps: int) -> tuple[nn.Module, list[float]]:
    """The trained model and the loss of every step."""
    model = Unnormalized(Clip())
    loss = HyperbolicContrastiveLoss(curvature=1.0)  # (2) was: ClipLoss(...)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(steps):
        images, texts = toy.pairs(64)
        model_out = model(images, texts)
        losses = loss(**model_out, output_dict=True)
        total_loss = sum(losses.values())
        optimizer.zero_grad()
        total_loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.clip.logit_scale.clamp_(0, math.log(100))
        history.append(total_loss.item())
    return model, history


@torch.no_grad()
def recall_at_1(model: nn.Module, rows: int = 64) -> float:
    """The share of images whose own text is the nearest."""
    out = model(*toy.pairs(rows))
    loss = HyperbolicContrastiveLoss(curvature=1.0)
    ranking = loss.similarity(out["image_features"], out["text_features"])  # (3) was: image_features @ text_features.T
    return (ranking.argmax(dim=1) == torch.arange(rows)).double().mean().item()


if __name__ == "__main__":
    model, history = train(100)
    print(f"loss {history[0]:.3f} -> {history[-1]:.3f}, recall@1 {recall_at_1(model):.2f}")
