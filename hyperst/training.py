"""Training: what one step computes, when a checkpoint is kept, when to stop, and how to go on after an interruption."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Sampler

from hyperst.alignment import Alignment
from hyperst.augmentation import jitter_stain
from hyperst.checkpoints import AtomicCheckpoints, Epoch, Recorder, load_checkpoint, not_finite
from hyperst.configuration import RunConfig, TrainingConfig, read_config, write_config
from hyperst.data import (
    Section,
    SpotDataset,
    align_genes,
    resolve_crops,
    select_genes,
    spot_validation_split,
    transform,
)
from hyperst.files import write_json_atomic, write_text_atomic
from hyperst.imports import prepare_torchvision
from hyperst.metrics import per_gene_pearson
from hyperst.model import HyperST
from hyperst.run_folder import RunFolder, SectionRecord, Split, code_versions, section_indices

prepare_torchvision()

import lightning  # noqa: E402

__all__ = ["Epoch", "TrainingSummary", "build_model", "fit", "parameter_groups"]


@dataclass(frozen=True)
class TrainingSummary:
    """How a training ended.

    Attributes:
        epochs: passes over the training spots.
        best_epoch: the one (counted from 1) whose weights are kept in ``checkpoints/best.ckpt``.
        validation_mse: mean squared error of that epoch on the validation spots, on the target scale.
        validation_pcc: mean over genes of the Pearson correlation on the validation spots in that epoch.
        seconds: wall time of the training loop of the last session (a resumed run counts from its resumption).
        stopped_early: whether the validation error had stopped to improve.
    """

    epochs: int
    best_epoch: int
    validation_mse: float
    validation_pcc: float
    seconds: float
    stopped_early: bool


def fit(
    config: RunConfig,
    sections: Sequence[Section],
    folder: str | Path,
    *,
    validation_sections: Sequence[Section] = (),
    resume: bool = False,
    on_epoch: Callable[[Epoch, int], None] | None = None,
) -> TrainingSummary:
    """Train on ``sections`` and keep everything that prediction needs in ``folder``.

    The genes are selected on the training sections only. Without ``validation_sections`` spatial blocks of spots are
    held out of the training sections; either way the validation MSE chooses the checkpoint and ends the training.
    A run is deterministic given the configuration and the sections (bitwise on the CPU), also when interrupted and
    resumed: it then goes on after the last finished epoch.

    Args:
        sections: training sections, read with :func:`hyperst.data.read_section`.
        folder: new folder of the run; with ``resume`` the folder of the interrupted one, whose own configuration,
            genes and split are used.
        on_epoch: called after each epoch with its row of ``metrics.csv`` and the best epoch so far.

    Raises:
        FileExistsError: ``folder`` holds a run and ``resume`` is False.
        FileNotFoundError: ``resume`` is True and ``folder`` holds no run.
        ValueError: sections that do not go together, or that are not those of the run to resume.
        FloatingPointError: the loss is no longer finite.
        KeyboardInterrupt: interrupted; resume to go on.
    """
    place = RunFolder(folder)
    if resume:
        place.require()
        config = read_config(place.config)
        split = place.read_split()
        _check_same_sections(split, sections, validation_sections)
    elif place.exists():
        raise FileExistsError(
            f"{place.path} already holds a run: continue it with --resume, or choose another --output"
        )
    else:
        config, split = _start(config, sections, validation_sections, place)
    genes = place.read_genes()
    if resume and (finished := place.read_summary()) is not None:
        return TrainingSummary(**finished)

    loaders = _loaders(config, genes, split, sections, validation_sections)
    lightning.seed_everything(config.training.seed, verbose=False)
    model = build_model(config, len(genes), _feature_width(config, sections[0]))
    model.initialise_output(_mean_target(config, genes, sections, split))
    module = _Module(model, Alignment(config.alignment, config.model.width), config)
    recorder = Recorder(place, config.training, on_epoch)
    started = time.perf_counter()
    _run_trainer(config.training, module, loaders, recorder)
    best = recorder.best
    summary = TrainingSummary(
        epochs=len(recorder.history),
        best_epoch=int(best["epoch"]),
        validation_mse=best["validation_mse"],
        validation_pcc=best["validation_pcc"],
        seconds=time.perf_counter() - started,
        stopped_early=recorder.exhausted and len(recorder.history) < config.training.epochs,
    )
    write_json_atomic(place.summary, asdict(summary))
    return summary


def build_model(config: RunConfig, n_genes: int, backbone_width: int | None = None) -> HyperST:
    """The untrained model of a run; ``backbone_width`` is the width of precomputed features."""
    return HyperST(n_genes, config.model, backbone_width=backbone_width, image_size=config.crop.image_size)


def _feature_width(config: RunConfig, section: Section) -> int | None:
    """Width of the precomputed features, None where crops are used."""
    if config.data.feature_key is None:
        return None
    spot = SpotDataset([section], [], config.crop, feature_key=config.data.feature_key, counts=False, indices=[(0, 0)])
    return len(spot[0]["spot_features"])


def averaged_model(model: HyperST, decay: float) -> AveragedModel:
    """A copy of ``model`` whose weights and buffers are an exponential moving average of those of ``model``.

    The first steps count less: after n updates the average keeps min(decay, (1 + n) / (10 + n)) of itself.
    """

    def average(averaged: Any, current: Any, updates: Any) -> None:
        kept = min(decay, (1 + float(updates)) / (10 + float(updates)))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - kept)
            else:
                mean.copy_(value)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True).requires_grad_(False)


def frozen_weights(model: HyperST) -> set[str]:
    """Names of the parameters that training does not change."""
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


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


def _start(
    config: RunConfig, sections: Sequence[Section], validation_sections: Sequence[Section], place: RunFolder
) -> tuple[RunConfig, Split]:
    """Fix genes, split and crop widths of a new run and write them; the configuration last."""
    names = [section.name for section in (*sections, *validation_sections)]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"section {', '.join(doubled)} is given more than once; each section has one role, training or validation"
        )
    genes = select_genes(sections, config.data.n_genes, config.data.gene_selection)
    if config.data.feature_key is None:
        config = replace(config, crop=_common_crop(config, sections))
    held_out: dict[str, list[str]] = {}
    if not validation_sections:
        for number, section in enumerate(sections):
            chosen = spot_validation_split(section, config.training.validation_fraction, config.training.seed + number)
            held_out[section.name] = [str(name) for name in section.spot_ids[chosen]]
    records = [SectionRecord.of(section, "training") for section in sections]
    records += [SectionRecord.of(section, "validation") for section in validation_sections]
    split = Split(tuple(records), held_out)
    write_text_atomic(place.genes, "\n".join(genes) + "\n")
    place.write_split(split)
    write_json_atomic(place.versions, code_versions())
    write_config(config, place.config)
    return config, split


def _common_crop(config: RunConfig, sections: Sequence[Section]) -> Any:
    """One pair of crop widths in um for all sections (their median), where all have a known scale."""
    crops = [resolve_crops(section, config.crop) for section in sections]
    widths = [(crop.spot_um, crop.niche_um) for crop in crops]
    if any(value is None for pair in widths for value in pair):
        if any(section.grid.um_per_px is not None for section in sections):
            unknown = ", ".join(section.name for section in sections if section.grid.um_per_px is None)
            raise ValueError(
                f"the um/px of section {unknown} are unknown, those of the others are known; give all of them (--mpp)"
            )
        return config.crop
    spot_um, niche_um = np.median(np.asarray(widths, dtype=np.float64), axis=0)
    return replace(config.crop, spot_um=round(float(spot_um), 3), niche_um=round(float(niche_um), 3))


def _check_same_sections(split: Split, sections: Sequence[Section], validation: Sequence[Section]) -> None:
    given = [(section.name, "training", section.n_spots) for section in sections]
    given += [(section.name, "validation", section.n_spots) for section in validation]
    stored = [(record.name, record.role, record.n_spots) for record in split.sections]
    if given != stored:
        raise ValueError(f"cannot resume: the run was started with (section, role, spots) {stored}, now given {given}")


@dataclass(frozen=True)
class _Loaders:
    training: DataLoader
    validation: DataLoader
    order: _EpochOrder


class _EpochOrder(Sampler[int]):
    """Spots in random order, a function of the seed and the epoch alone, so that a resumed run sees the same order.

    ``generator`` also seeds the loader's worker processes and starts afresh with every epoch.
    """

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed, self.epoch = n, seed, 0
        self.generator = torch.Generator()
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of every epoch."""
        self.epoch = epoch
        self.generator.manual_seed(self.seed * 1_000_003 + epoch)

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        order = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.n, generator=order).tolist())


def _loaders(
    config: RunConfig,
    genes: list[str],
    split: Split,
    sections: Sequence[Section],
    validation_sections: Sequence[Section],
) -> _Loaders:
    """Augmented training spots in random order, validation spots as they are."""
    cache = int(config.data.cache_gib * 2**30)

    def dataset(of: Sequence[Section], augment: bool, indices: list[tuple[int, int]] | None) -> SpotDataset:
        return SpotDataset(
            of,
            genes,
            config.crop,
            config.data.target,
            augment=augment,
            feature_key=config.data.feature_key,
            indices=indices,
            cache_bytes=cache,
        )

    if validation_sections:
        training, validation = dataset(sections, True, None), dataset(validation_sections, False, None)
    else:
        training = dataset(sections, True, section_indices(sections, split.validation_spots, inside=False))
        validation = dataset(sections, False, section_indices(sections, split.validation_spots, inside=True))
    settings = config.training
    if len(training) < 2:
        raise ValueError(f"{len(training)} training spots are left; contrastive training needs at least 2")
    size = min(settings.batch_size, len(training))
    order = _EpochOrder(len(training), settings.seed)
    common: dict[str, Any] = {"num_workers": settings.workers, "pin_memory": torch.cuda.is_available()}
    return _Loaders(
        DataLoader(training, size, sampler=order, drop_last=True, generator=order.generator, **common),
        DataLoader(validation, settings.batch_size, **common),
        order,
    )


def _mean_target(config: RunConfig, genes: list[str], sections: Sequence[Section], split: Split) -> Tensor:
    """Mean over the training spots, float32 (gene,), on the target scale: where the prediction starts."""
    pairs = np.asarray(section_indices(sections, split.validation_spots, inside=False))
    values = [
        transform(align_genes(section, genes), section.library_size, config.data.target)[
            pairs[pairs[:, 0] == number, 1]
        ]
        for number, section in enumerate(sections)
    ]
    return torch.from_numpy(np.concatenate(values).mean(axis=0, dtype=np.float64).astype(np.float32))


class _Module(lightning.LightningModule):
    """One step: prediction error plus the weighted alignment of images and genes in hyperbolic space."""

    def __init__(self, model: HyperST, alignment: Alignment, config: RunConfig) -> None:
        super().__init__()
        self.model = model
        self.alignment = alignment
        self.settings = config.training
        self.left_out = frozen_weights(model) if config.model.weights is not None else set()
        self.strict_loading = not self.left_out
        self.averaged = averaged_model(model, config.training.averaging) if config.training.averaging else None
        self._validation: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        if "spot_image" in batch:
            crops = jitter_stain([batch["spot_image"], batch["niche_image"]], self.settings.stain_jitter)
            batch = {**batch, "spot_image": crops[0], "niche_image": crops[1]}
        outputs = self.model(batch)
        error = nn.functional.mse_loss(outputs["prediction"], batch["target"])
        if error.device.type == "cpu" and not torch.isfinite(error):  # on a GPU the epoch's mean tells, without a stop
            raise not_finite(["training_mse"], self.current_epoch + 1)
        alignment = self.alignment(outputs, batch["block_id"])
        loss = error + alignment["loss"]
        scores = {"training_loss": loss, "training_mse": error}
        scores |= {name: alignment[name] for name in ("contrastive", "entailment")}
        self.log_dict(scores, on_step=False, on_epoch=True, batch_size=len(batch["target"]))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Tensor], index: int) -> None:
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        model = self.model if self.averaged is None else cast(HyperST, self.averaged.module)
        self._validation.append((model.predict(batch).float(), batch["target"]))

    def on_validation_epoch_end(self) -> None:
        """Errors over all validation spots at once: correlation has no mean over batches."""
        prediction, target = (torch.cat(parts) for parts in zip(*self._validation, strict=True))
        self._validation.clear()
        correlation = per_gene_pearson(prediction, target)
        finite = correlation[torch.isfinite(correlation)]
        self.log("validation_mse", nn.functional.mse_loss(prediction, target))
        self.log("validation_pcc", finite.mean() if len(finite) else torch.zeros(()))
        self.log_dict({name: float(value) for name, value in self.alignment.report().items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Frozen weights stay where they came from: they are large, and not ours to pass on."""
        for copy in ("model.", "averaged.module."):
            for name in self.left_out:
                checkpoint["state_dict"].pop(copy + name, None)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameter_groups(self, self.settings.weight_decay), lr=self.settings.learning_rate)


def _run_trainer(settings: TrainingConfig, module: _Module, loaders: _Loaders, recorder: Recorder) -> None:
    """Train until done; go on from the last checkpoint where there is one."""
    last = recorder.place.last
    if last.is_file():
        checkpoint = load_checkpoint(last)
        recorder.load_state_dict(checkpoint["callbacks"][recorder.state_key])
        loaders.order.set_epoch(len(recorder.history))
        if recorder.finished:
            return
    with _quiet_lightning():
        trainer = lightning.Trainer(
            default_root_dir=recorder.place.path,
            max_epochs=settings.epochs,
            accelerator=settings.accelerator,
            devices=1,
            precision=settings.precision,
            gradient_clip_val=settings.gradient_clip or None,
            callbacks=[recorder],
            plugins=[AtomicCheckpoints()],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, loaders.training, loaders.validation, ckpt_path=str(last) if last.is_file() else None)
        except SystemExit:  # how Lightning ends on Ctrl-C
            if not trainer.interrupted:
                raise
        finally:
            if signal.getsignal(signal.SIGINT) is not handler:
                signal.signal(signal.SIGINT, handler)
    if trainer.interrupted:
        raise KeyboardInterrupt(f"interrupted after epoch {len(recorder.history)} of at most {settings.epochs}")


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advice about hardware, worker counts and logging intervals; errors still come through."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(does not have many workers|number of training batches).*")
        warnings.filterwarnings("ignore", message=".*(LeafSpec|isinstance\\(treespec).*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
