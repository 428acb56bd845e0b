"""Epochs of training that take turns in one process: ours, what one would write without this library, and the bare products.

``fit`` runs once; after every second of its epochs, in its ``on_epoch``, each other way does an epoch on the same spots.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import lightning
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks import textbook
from benchmarks.measure import AGAIN
from benchmarks.problem import OURS
from benchmarks.results import Row
from benchmarks.training_products import Multiplications, products
from benchmarks.training_spans import before_training
from hyperst.config import RunConfig
from hyperst.data import Section, attach_features
from hyperst.data.dataset import collate
from hyperst.data.features import FILE_KEY
from hyperst.train import Epoch, fit
from hyperst.train.augmentation import jitter_stain
from hyperst.train.step import TrainingStep, averaged_model

EPOCH = "HyperST epoch"
PLAIN, ALIKE, PRODUCTS = "plain loop", "plain loop, the same work", "matrix products alone"
FEATURE_WIDTH = 1024  # as UNI's


class PlainLoop:
    """A loop over crops as one would write it: the model, the textbook's losses with their B x B matrices, and AdamW.

    Args:
        module: whose model, losses and settings are copied.
        alike: whether crops are stained at random, gradients clipped and weights averaged, as in ours.
    """

    def __init__(self, module: TrainingStep, spots: Dataset, batch: int, *, alike: bool = False) -> None:
        self.model, self.alignment = copy.deepcopy(module.model), copy.deepcopy(module.alignment)
        self.alignment.loss = textbook.Alignment()  # type: ignore[assignment]
        self.settings = module.settings
        self.learnt = nn.ModuleList([self.model, self.alignment])
        self.optimizer = torch.optim.AdamW(self.learnt.parameters(), lr=self.settings.learning_rate)
        self.loader = DataLoader(spots, batch, shuffle=True, drop_last=True, collate_fn=collate)
        self.alike = alike
        self.averaged = (
            averaged_model(self.model, self.settings.averaging) if alike and self.settings.averaging else None
        )

    def epoch(self) -> float:
        """Mean loss of an epoch."""
        self.learnt.train()
        total = 0.0
        for batch in self.loader:
            if self.alike and "spot_image" in batch:
                names = [f"{level}_image" for level in self.model.levels]
                crops = jitter_stain([batch[name] for name in names], self.settings.stain_jitter)
                batch.update(zip(names, crops, strict=True))
            self.optimizer.zero_grad()
            outputs = self.model(batch)
            loss = nn.functional.mse_loss(outputs["prediction"], batch["target"]) + self.alignment(outputs)["loss"]
            loss.backward()
            if self.alike and self.settings.gradient_clip:
                nn.utils.clip_grad_norm_(self.learnt.parameters(), self.settings.gradient_clip)
            self.optimizer.step()
            if self.averaged is not None:
                self.averaged.update_parameters(self.model)
            total += float(loss.detach())
        return total / len(self.loader)


class _Stopwatch(lightning.Callback):
    """Seconds of each epoch of ours, without its validation and its checkpoints."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.seconds.append(-time.perf_counter())

    def on_validation_start(self, *_: Any) -> None:
        self.seconds[-1] += time.perf_counter()


def with_features(sections: Sequence[Section], folder: Path, width: int = FEATURE_WIDTH) -> list[Section]:
    """The sections with random features of spot and niche: how long a step takes does not depend on what they are."""
    random, found = np.random.default_rng(0), []
    for section in sections:
        for level in ("spot", "niche"):
            (folder / level).mkdir(exist_ok=True, parents=True)
            with h5py.File(folder / level / f"{section.name}.h5", "w") as file:
                file["features"] = random.standard_normal((section.n_spots, width), dtype=np.float32)
                file["barcode"] = [str(name) for name in section.spot_ids]
        found.append(attach_features(section, folder / "spot", folder / "niche"))
    return found


def on_features(config: RunConfig) -> RunConfig:
    """``config`` for precomputed features."""
    model = replace(config.model, backbone="precomputed")
    return replace(config, model=model, data=replace(config.data, feature_key=FILE_KEY))


def rows(config: RunConfig, sections: Sequence[Section], rounds: int) -> list[Row]:
    """Spots per second of each way, and its time over that of ours, round by round, after a round to warm up."""
    watch, others = _Stopwatch(), dict[str, Callable[[], object]]()
    seconds: dict[str, list[float]] = defaultdict(list)
    sizes = {"batch": 0, "steps": 0}

    def prepare(trainer: lightning.Trainer, module: TrainingStep, loader: DataLoader) -> None:
        trainer.callbacks.append(watch)  # type: ignore[attr-defined]
        batch = int(loader.batch_size or 0)
        sizes.update(batch=batch, steps=len(loader))
        others[PLAIN] = PlainLoop(module, loader.dataset, batch).epoch
        if config.data.feature_key is None:
            others[ALIKE] = PlainLoop(module, loader.dataset, batch, alike=True).epoch
        else:
            multiplications = Multiplications(products(module.model, next(iter(loader))))
            others[PRODUCTS] = partial(multiplications.steps, len(loader))

    def on_epoch(row: Epoch, best: int) -> None:
        number = int(row["epoch"]) - 1
        if number % 2:
            seconds[AGAIN].append(watch.seconds[-1])
            return
        seconds[OURS].append(watch.seconds[-1])
        for name, epoch in others.items():
            start = time.perf_counter()
            epoch()
            seconds[name].append(time.perf_counter() - start)

    epochs = 2 * (rounds + 1)
    chosen = replace(config, training=replace(config.training, epochs=epochs, patience=epochs))
    with tempfile.TemporaryDirectory() as folder, before_training(prepare):
        fit(chosen, sections, Path(folder) / "run", on_epoch=on_epoch)
    kind = "crops" if config.data.feature_key is None else "features"
    about: dict[str, Any] = {"n": sizes["batch"], "d": config.model.width, "dtype": "float32", "setting": kind}
    spots, found = sizes["batch"] * sizes["steps"], []
    for name in (OURS, *others, AGAIN):
        taken = seconds[name][1:]
        about |= {"operation": EPOCH, "provider": name}
        found.append(Row.of([spots / each for each in taken], metric="spots/s", **about))
        ratios = [each / ours for each, ours in zip(taken, seconds[OURS][1:], strict=True)]
        found.append(Row.of(ratios, metric="ratio both", **about))
    return found
