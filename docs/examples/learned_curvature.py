"""A curvature and a logit scale that are learnt, for one process or several: all that learns is in one module, beside its loss."""

from __future__ import annotations

import math

import torch
import toy
from torch import Tensor, nn

from hyperst_kernels import HyperbolicContrastiveLoss, LorentzLift

DIM = 16


class Model(nn.Module):
    """``forward(image, text)`` returns the loss, so that DistributedDataParallel sees every parameter that it depends on."""

    def __init__(self, rank: int = 0, world_size: int = 1):
        super().__init__()
        self.image, self.text = toy.image_encoder(DIM), toy.text_encoder(DIM)
        self.lift = LorentzLift(DIM, ("image", "text"), output="tangent")
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))
        self.loss = HyperbolicContrastiveLoss(
            rank=rank, world_size=world_size, local_loss=world_size > 1, gather_with_grad=True
        )

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        images, texts = self.lift(self.image(image), "image"), self.lift(self.text(text), "text")
        return self.loss(images, texts, self.log_scale.exp(), curvature=self.lift.curvature)


def train(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> list[float]:
    """The loss of every step. ``model`` is a `Model`, or ``DistributedDataParallel(Model(rank, world_size))``."""
    inner = getattr(model, "module", model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # has curvature and scale with the rest
    history = []
    for batch in batches:
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            inner.log_scale.clamp_(max=math.log(100))
        history.append(loss.item())
    return history


if __name__ == "__main__":
    model = Model()
    history = train(model, [toy.pairs(64) for _ in range(100)])
    torch.save(model.state_dict(), "model.pt")  # with lift.log_curvature and log_scale
    print(f"loss {history[0]:.3f} -> {history[-1]:.3f}, curvature -{model.lift.curvature.item():.3f}")
