"""A LightningModule with a hyperbolic loss, for one device or several: `Trainer(strategy="ddp", devices=...)` needs no change."""

from __future__ import annotations

import atexit
import math

import lightning
import torch
import torch.distributed as dist
import toy
from torch import Tensor, nn

from hyperst_kernels import HyperbolicContrastiveLoss, LorentzLift

DIM = 16


class Clip(lightning.LightningModule):
    """All that is learnt belongs to the module that Lightning wraps, and `training_step` returns the loss of it."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = toy.image_encoder(DIM), toy.text_encoder(DIM)
        self.lift = LorentzLift(DIM, ("image", "text"), output="tangent")
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))

    def setup(self, stage: str) -> None:
        """The loss learns nothing itself, and is made where ranks are known."""
        self.loss = HyperbolicContrastiveLoss(
            rank=self.global_rank,
            world_size=self.trainer.world_size,
            local_loss=self.trainer.world_size > 1,
            gather_with_grad=True,
        )

    def teardown(self, stage: str) -> None:
        """Processes that Lightning started leave their group before they end: its threads would abort some of them."""
        atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.lift(self.image(image), "image"), self.lift(self.text(text), "text")

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = self.loss(*self(*batch), self.log_scale.exp(), curvature=self.lift.curvature)
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, *_) -> None:
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(100))

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        images, texts = self(*batch)
        ranking = self.loss.similarity(images, texts, curvature=self.lift.curvature)
        right = ranking.argmax(1) == torch.arange(len(ranking), device=ranking.device)
        self.log("recall@1", right.float().mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def train(**options) -> tuple[Clip, dict[str, Tensor]]:
    """A trained module and its metrics; ``options`` are the Trainer's."""
    lightning.seed_everything(0)
    pairs = torch.utils.data.TensorDataset(*toy.pairs(1024))
    loader = torch.utils.data.DataLoader(pairs, batch_size=64, shuffle=True)
    module, trainer = Clip(), lightning.Trainer(**options)
    trainer.fit(module, loader, torch.utils.data.DataLoader(pairs, batch_size=64))
    return module, trainer.callback_metrics


if __name__ == "__main__":
    print(train(max_epochs=10)[1])
