"""Checkpoints: when one is kept, and what is recorded beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from hyperst.config import TrainingConfig
from hyperst.files import atomic_path, write_text_atomic
from hyperst.run import RunFolder, load_checkpoint
from hyperst.train.loaders import epoch_seed

__all__ = ["AtomicCheckpoints", "Epoch", "Recorder", "not_finite"]

Epoch = dict[str, float]
"""One row of ``metrics.csv``: epoch (from 1), losses of the training spots, errors on the validation spots, scales."""


class Recorder(Checkpoint):
    """After each epoch: a row of metrics, the best checkpoint, the one to resume from, and whether to stop.

    Of several processes the first writes, and its row decides for all.

    The history of the run lies inside the checkpoints, so that ``metrics.csv``, the best epoch and the patience left
    are those of the checkpoint that a run is resumed from.
    """

    def __init__(
        self, place: RunFolder, settings: TrainingConfig, on_epoch: Callable[[Epoch, int], None] | None
    ) -> None:
        self.place = place
        self.settings = settings
        self.on_epoch = on_epoch
        self.history: list[Epoch] = []

    @property
    def best(self) -> Epoch:
        """The epoch with the smallest validation error, the first of equals."""
        return min(self.history, key=lambda row: row["validation_mse"])

    @property
    def exhausted(self) -> bool:
        """Whether ``patience`` epochs have passed without a better validation error."""
        return bool(self.history) and len(self.history) - int(self.best["epoch"]) >= self.settings.patience

    @property
    def finished(self) -> bool:
        """Whether no epoch is left to do."""
        return self.exhausted or len(self.history) >= self.settings.epochs

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Dropout and augmentation are a function of the seed, the epoch and the rank, as the order of the spots is."""
        torch.manual_seed(epoch_seed(self.settings.seed, len(self.history), trainer.global_rank))

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        row: Epoch = {"epoch": len(self.history) + 1}
        row |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = trainer.strategy.broadcast(row)
        broken = [name for name, value in row.items() if not np.isfinite(value)]
        if broken:
            raise not_finite(broken, int(row["epoch"]))
        self.history.append(row)
        if self.best is row:
            trainer.save_checkpoint(self.place.best, weights_only=True)
        trainer.save_checkpoint(self.place.last)
        trainer.should_stop = trainer.should_stop or self.finished
        if not trainer.is_global_zero:
            return
        self._write_metrics()
        if self.on_epoch is not None:
            self.on_epoch(row, int(self.best["epoch"]))

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]

    def _write_metrics(self) -> None:
        columns = list(self.history[0])
        lines = [",".join(columns)]
        lines += [",".join(f"{row[name]:.6g}" for name in columns) for row in self.history]
        write_text_atomic(self.place.metrics, "\n".join(lines) + "\n")


def not_finite(names: list[str], epoch: int) -> FloatingPointError:
    """The error of a training whose loss is NaN or infinite."""
    return FloatingPointError(
        f"{', '.join(names)} is no longer finite in epoch {epoch}; lower training.learning_rate (--learning-rate) "
        "or train in precision 32-true. The checkpoints of the epochs before are kept"
    )


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints are complete or absent, and hold tensors and plain values only: loading one can run no code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        return load_checkpoint(path)
