"""What one step of training computes, and the weights that are kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import lightning
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hyperst.checkpoint import IDENTITY, frozen_weights, trained_settings, weights_checksum
from hyperst.config import RunConfig
from hyperst.metrics import per_gene_pearson
from hyperst.model import Alignment, HyperST
from hyperst.train.augmentation import jitter_stain
from hyperst.train.checkpoints import not_finite

__all__ = ["TrainingStep", "averaged_model", "parameter_groups"]


class TrainingStep(lightning.LightningModule):
    """One step: prediction error plus the weighted alignment of images and genes in hyperbolic space.

    Of several processes each computes its own spots' part: the mean over processes, of losses and of gradients, is that of
    one process with the batch of all.

    Args:
        batch_size: spots of a step over all processes.
        n_validation: validation spots over all processes.
        size: number of processes.
    """

    def __init__(
        self,
        model: HyperST,
        alignment: Alignment,
        config: RunConfig,
        genes: Sequence[str],
        *,
        batch_size: int,
        n_validation: int,
        size: int = 1,
    ) -> None:
        super().__init__()
        self.model = model
        self.alignment = alignment
        self.settings = config.training
        self.batch_size, self.n_validation, self.size = batch_size, n_validation, size
        self.share = 1.0  # of the last batch, beside an equal one
        self.frozen = frozen_weights(model) if config.model.weights is not None else set()
        self.identity = {
            "genes": list(genes),
            "frozen": weights_checksum(model, self.frozen),
            "settings": trained_settings(config),
        }
        self.averaged = averaged_model(model, config.training.averaging) if config.training.averaging else None
        self._validation: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        if "spot_image" in batch:
            names = [f"{level}_image" for level in self.model.levels]
            crops = jitter_stain([batch[name] for name in names], self.settings.stain_jitter)
            batch = {**batch, **dict(zip(names, crops, strict=True))}
        self.share = len(batch["target"]) * self.size / self.batch_size
        outputs = self.model(batch)
        error, scores = self._error(outputs, batch)
        if error.device.type == "cpu" and not torch.isfinite(error):  # on a GPU the epoch's mean tells, without a stop
            raise not_finite(list(scores), self.current_epoch + 1)
        alignment = self.alignment(outputs, batch["block_id"])
        loss = error + alignment["loss"]
        scores = {"training_loss": loss, **scores, **{name: alignment[name] for name in ("contrastive", "entailment")}}
        self.log_dict(scores, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        return loss

    def _error(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """What is to be made small beside the alignment, and by name what is recorded of it."""
        squared = nn.functional.mse_loss(outputs["prediction"], batch["target"]) * self.share
        if self.model.likelihood is None:
            return squared, {"training_mse": squared}
        surprise = self.model.likelihood(outputs["output"], batch["counts"], batch["library_size"])
        error = surprise.mean().to(squared.dtype) * self.share
        return error, {"training_nll": error, "training_mse": squared.detach()}

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Tensor], index: int) -> None:
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        model = self.model if self.averaged is None else cast(HyperST, self.averaged.module)
        self._validation.append((model.predict(batch).float(), batch["target"]))

    def on_validation_epoch_end(self) -> None:
        """Errors over all validation spots at once: correlation has no mean over batches."""
        prediction, target = (self._of_all(torch.cat(parts)) for parts in zip(*self._validation, strict=True))
        self._validation.clear()
        correlation = per_gene_pearson(prediction, target)
        finite = correlation[torch.isfinite(correlation)]
        pcc = finite.mean() if len(finite) else prediction.new_zeros(())
        scores = {"validation_mse": nn.functional.mse_loss(prediction, target), "validation_pcc": pcc}
        scores |= {name: torch.tensor(value) for name, value in self.alignment.report().items()}
        scores["effective_radius"] *= self.share
        self.log_dict(scores, sync_dist=True)

    def _of_all(self, dealt: Tensor) -> Tensor:
        """Values (n, ...) of the validation spots that were dealt to this process, to those of all spots in their order."""
        if self.size == 1:
            return dealt
        everything = [torch.empty_like(dealt) for _ in range(self.size)]
        torch.distributed.all_gather(everything, dealt.contiguous())
        return rearrange(everything, "rank spot ... -> (spot rank) ...")[: self.n_validation]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Frozen weights stay where they came from: they are large, and not ours to pass on. A checksum is kept."""
        checkpoint[IDENTITY] = self.identity
        for copy in ("model.", "averaged.module."):
            for name in self.frozen:
                checkpoint["state_dict"].pop(copy + name, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fill in what :meth:`on_save_checkpoint` left out, from the file of weights; all else must be there."""
        own = self.state_dict()
        names = [copy + name for copy in ("model.", "averaged.module.") for name in self.frozen]
        checkpoint["state_dict"].update({name: own[name] for name in names if name in own})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = parameter_groups(self, self.settings.weight_decay)
        fused = self.settings.precision != "16-mixed"  # there it would clip gradients before they are unscaled
        return torch.optim.AdamW(groups, lr=self.settings.learning_rate, fused=fused)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Scale gradients whose norm is too large. A CPU, where asking costs nothing, does not multiply others by 1."""
        if gradient_clip_val is None:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        if norm.device.type != "cpu" or not norm <= gradient_clip_val:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)


def averaged_model(model: HyperST, decay: float) -> AveragedModel:
    """A copy of ``model`` whose weights and buffers are an exponential moving average of those of ``model``.

    The first steps count less: after n updates the average keeps min(decay, (1 + n) / (10 + n)) of itself.
    """

    def average(averaged: Any, current: Any, updates: Any) -> None:
        kept = min(decay, (1 + float(updates)) / (10 + float(updates)))
        if averaged[0].is_floating_point():  # they come grouped by dtype
            get_ema_multi_avg_fn(kept)(averaged, current, updates)
        else:
            for mean, value in zip(averaged, current, strict=True):
                mean.copy_(value)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True).requires_grad_(False)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters for AdamW: decay for weight matrices and kernels only.

    Biases, norms, log curvature, lift scales and the temperature (all with fewer than two axes) are not decayed: zero
    is no neutral value for them.

    >>> [len(group["params"]) for group in parameter_groups(nn.Linear(3, 2), 0.01)]
    [1, 1]
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [entry for entry in parameters if entry.ndim >= 2], "weight_decay": weight_decay},
        {"params": [entry for entry in parameters if entry.ndim < 2], "weight_decay": 0.0},
    ]
