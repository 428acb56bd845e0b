"""Train a run: start or resume it, and go on until it is done."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy

from hyperst.calibration import calibrate
from hyperst.checkpoint import load_checkpoint, require_genes
from hyperst.config import RunConfig, read_run_config
from hyperst.data import Section
from hyperst.data.kept_crops import KeptCrops
from hyperst.feature_check import feature_width, require_same_encoder
from hyperst.files import write_json_atomic
from hyperst.freed_memory import keep_freed_memory
from hyperst.macenko import write_tissue_pixels
from hyperst.model import Alignment
from hyperst.nearest import TrainingSpots, image_space
from hyperst.processes import started_processes
from hyperst.run import Run, RunFolder, build_model, load_run
from hyperst.spot_values import over_spots
from hyperst.stain import tissue_pixels
from hyperst.train.batch_norm import synchronise_batch_norms
from hyperst.train.checkpoints import AtomicCheckpoints, Epoch, Recorder
from hyperst.train.head import add_closed_form
from hyperst.train.initialise import initialise_output
from hyperst.train.interruption import InterruptibleLoop
from hyperst.train.launch import check_devices, launch
from hyperst.train.loaders import Loaders, make_loaders
from hyperst.train.start import check_same_sections, enough_counts, remove_start, start_run, write_start
from hyperst.train.step import TrainingStep
from hyperst.train.together import Processes, joined

__all__ = ["Epoch", "TrainingSummary", "fit"]

_SEEDS_APART = 1_000_003


@dataclass(frozen=True)
class TrainingSummary:
    """How a training ended.

    Attributes:
        epochs: passes over the training spots.
        best_epoch: the one (counted from 1) whose weights are kept in ``checkpoints/best.ckpt``.
        validation_mse: mean squared error of that epoch on the validation spots, on the target scale.
        validation_pcc: mean over genes of the Pearson correlation on the validation spots; 0 if every gene is constant.
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
    on_crops: Callable[[int, int], None] | None = None,
    on_network: Callable[[int, int], None] | None = None,
    devices: int | None = None,
) -> TrainingSummary:
    """Train on ``sections`` and keep everything that prediction needs in ``folder``.

    The genes are selected on the training sections only. Without ``validation_sections`` spatial blocks of spots are
    held out of the training sections; either way the validation MSE chooses the checkpoint and ends the training.
    A run is deterministic given the configuration and the sections (bitwise on the CPU), also when interrupted and
    resumed: it then goes on after the last finished epoch. Further networks (`hyperst.model.ModelConfig.networks`) are trained
    one after another, each as a run of its own in ``folder/networks``, with a seed of its own.

    Args:
        sections: training sections, read with :func:`hyperst.data.read_section`.
        folder: new folder of the run; with ``resume`` the folder of the interrupted one, whose own configuration,
            genes and split are used.
        on_epoch: called after each epoch with its row of ``metrics.csv`` and the best epoch so far; in one of several processes
            that torchrun or srun has started only on rank 0.
        on_crops: called with (spots, spots in all) while their crops are read, in one process.
        on_network: called with (number, networks in all) before the training of each network.
        devices: processes to start on this machine, one for each GPU, or that many on a CPU; they end before this function
            does. A script must then call it under ``if __name__ == "__main__":``. None: as many as torchrun or srun has
            started, each of which calls this function alike, else one. The batch is divided among them, so that the run is that
            of one process but for rounding, dropout and augmentation.

    Returns:
        How the training of the first network ended; the seconds are those of all.

    Raises:
        FileExistsError: ``folder`` holds a run and ``resume`` is False.
        FileNotFoundError: ``resume`` is True and ``folder`` holds no run.
        ValueError: sections that do not go together, or that are not those of the run to resume; spots that do not lie on the
            tissue of their image; or more processes than GPUs, or than spots in a batch.
        FloatingPointError: the loss is no longer finite.
        MemoryError: a batch does not fit into the GPU.
        ChildProcessError, ConnectionError: another process of the training was killed; resume to go on.
        KeyboardInterrupt: interrupted by Ctrl-C or SIGTERM; resume to go on.
    """
    check_devices(config, devices)
    place = RunFolder(folder)
    if resume:
        place.require()
        config = read_run_config(place.config)
    networks = config.model.n_networks
    groups = list(sections), list(validation_sections)
    kept = KeptCrops()

    def train(network: RunConfig, where: RunFolder, going_on: bool, number: int) -> TrainingSummary:
        if on_network is not None:
            on_network(number, networks)
        one = partial(_fit, network, groups[0], where.path, groups[1], going_on, number == 1, kept)
        try:
            if devices is not None and devices > 1 and not started_processes():
                return _fit_in_processes(devices, one, on_epoch)
            with joined() as processes:
                return one(on_epoch, processes, on_crops if processes.size == 1 else None)
        except KeyboardInterrupt as error:
            if networks == 1:
                raise
            raise KeyboardInterrupt(f"{str(error) or 'interrupted'}, network {number} of {networks}") from error

    summaries = [train(config, place, resume, 1)]
    for number, network in enumerate(_further_networks(config), 2):
        where = place.network(number)
        begun = where.exists()  # alike in all processes: none writes before all have met
        if not begun:  # what a kill may have left of its start
            remove_start(where)
        summaries.append(train(network, where, begun, number))
    return replace(summaries[0], seconds=sum(summary.seconds for summary in summaries))


def _further_networks(config: RunConfig) -> list[RunConfig]:
    """Configurations of the networks from the second on. Their seeds are far from those that somebody counts up."""
    model = replace(config.model, networks=1)
    seeds = [(config.training.seed + _SEEDS_APART * number) % 2**32 for number in range(1, config.model.n_networks)]
    return [replace(config, model=model, training=replace(config.training, seed=seed)) for seed in seeds]


def _fit_in_processes(
    devices: int, train: Callable[..., TrainingSummary], on_epoch: Callable[[Epoch, int], None] | None
) -> TrainingSummary:
    """Train in ``devices`` new processes."""
    told: dict[str, TrainingSummary] = {}

    def on_message(message: TrainingSummary | tuple[Epoch, int]) -> None:
        if isinstance(message, TrainingSummary):
            told["summary"] = message
        elif on_epoch is not None:
            on_epoch(*message)

    launch(devices, partial(_fit_launched, train), on_message)
    return told["summary"]


def _fit_launched(train: Callable[..., TrainingSummary], send: Callable[[Any], None]) -> None:
    """Train as one of the processes of :func:`_fit_in_processes`."""
    with joined() as processes:
        send(train(lambda row, best: send((row, best)), processes))


def _fit(
    config: RunConfig,
    sections: Sequence[Section],
    folder: str | Path,
    validation_sections: Sequence[Section],
    resume: bool,
    first_network: bool,
    kept: KeptCrops,
    on_epoch: Callable[[Epoch, int], None] | None,
    processes: Processes,
    on_crops: Callable[[int, int], None] | None = None,
) -> TrainingSummary:
    """Train as one of ``processes``; the first of them alone writes."""
    place = RunFolder(folder)
    first = processes.rank == 0

    start = partial(start_run, config, sections, place, validation_sections, resume, first_network)
    config, split, genes, finished = processes.from_first(start)
    if finished is not None:
        return _stored_summary(finished, place)
    sections, validation_sections = enough_counts(config, sections), enough_counts(config, validation_sections)

    trained_on = split.role("training")[0]

    def load() -> Loaders:
        if not first:
            check_same_sections(config, split, sections, validation_sections, f"rank {processes.rank} cannot join")
        for section in (*sections, *validation_sections):  # of a resumed run, files of features may be others by now
            require_same_encoder(config, section, trained_on.feature_sources, f"the run in {place.path}")
        return make_loaders(config, genes, split, sections, validation_sections, processes, kept, on_crops)

    loaders = processes.each(load)
    width = feature_width(config, [*sections, *validation_sections], trained_on.own_levels())
    lightning.seed_everything(config.training.seed, verbose=False)
    model = build_model(config, len(genes), width, stored=resume)
    initialise_output(model, config, genes, sections, split)
    recorder = Recorder(place, config.training, on_epoch)
    trainer = _trainer(config, recorder, processes)
    if processes.size > 1:
        synchronise_batch_norms(model, trainer.strategy.root_device.type)
    alignment = Alignment(config.alignment, config.model.width, torch.distributed.group.WORLD, config.crop.levels)
    sizes = {"batch_size": loaders.batch_size, "n_validation": loaders.n_validation, "size": processes.size}
    module = TrainingStep(model, alignment, config, genes, **sizes)
    if first and not resume:  # nothing is written of a run that cannot start
        write_start(place, config, split, genes)
    keep_freed_memory()
    started = time.perf_counter()
    try:
        _run_trainer(trainer, module, loaders, recorder, processes)
    except Exception as error:
        if first and not resume and not recorder.history:
            remove_start(place)
        if isinstance(error, torch.OutOfMemoryError):
            raise MemoryError(
                f"a step with {config.training.batch_size} spots does not fit into the memory of the GPU; lower "
                "training.batch_size (--batch-size), or train in precision bf16-mixed (--precision)"
            ) from error
        raise
    best = recorder.best
    summary = TrainingSummary(
        epochs=len(recorder.history),
        best_epoch=int(best["epoch"]),
        validation_mse=best["validation_mse"],
        validation_pcc=best["validation_pcc"],
        seconds=time.perf_counter() - started,
        stopped_early=recorder.exhausted and len(recorder.history) < config.training.epochs,
    )
    processes.from_first(partial(_finish, config, place, sections, validation_sections, summary, first_network, kept))
    return summary


def _finish(
    config: RunConfig,
    place: RunFolder,
    sections: Sequence[Section],
    validation_sections: Sequence[Section],
    summary: TrainingSummary,
    first_network: bool,
    kept: KeptCrops,
) -> None:
    """Write what is measured on the finished weights, of the first network, then the summary: a run that has one is complete."""
    device = "cpu" if config.training.accelerator == "cpu" else None
    # before it is fitted to the held-out spots too: of what it has seen its errors are too small
    before, encoded = None, None
    if config.model.head != "network":
        before, encoded = add_closed_form(place, sections, validation_sections, device, kept)
    if first_network:
        run = replace(load_run(place.path, device=device, first_alone=True), mixture=before)
        calibrate(run, sections, validation_sections, encoded).write(place.calibration)
        _write_training_spots(run, sections, encoded)
        if run.config.data.stain_mean is not None:
            write_tissue_pixels(place.tissue_pixels, [tissue_pixels(run.config, section) for section in sections])
    write_json_atomic(place.summary, asdict(summary))


def _write_training_spots(
    run: Run, sections: Sequence[Section], encoded: Sequence[dict[str, np.ndarray]] | None
) -> None:
    """Write where the images of the training spots lie, if the run has a space for them."""
    if (space := image_space(run)) is None:
        return
    if encoded is None:
        encoded = [over_spots(run, section, run.model.encode_images, lambda _: None) for section in sections]
    placed = [found["image_spot"] for found, _ in zip(encoded, sections, strict=False)]
    TrainingSpots.of(run.checkpoint, space, sections, placed).write(RunFolder(run.folder).training_spots)


def _stored_summary(stored: dict[str, Any], place: RunFolder) -> TrainingSummary:
    try:
        return TrainingSummary(**stored)
    except TypeError as error:
        raise ValueError(f"{place.summary} is damaged ({error}); remove it and resume again") from error


def _trainer(config: RunConfig, recorder: Recorder, processes: Processes) -> lightning.Trainer:
    """Lightning's loop.

    Raises:
        ValueError: an accelerator or a precision that this machine does not have.
    """
    settings = config.training
    together: dict[str, Any] = {}
    plugins: list[Any] = [AtomicCheckpoints()]
    callbacks: list[lightning.Callback] = [recorder]
    if processes.size > 1:
        # without all terms of the alignment, features, curvature or temperature get no gradient
        unused = config.alignment.contrastive != "hierarchical" or config.alignment.geometry != "lorentz"
        # batch norms are alike without broadcasts
        strategy = DDPStrategy(find_unused_parameters=unused, broadcast_buffers=False)
        together = {"strategy": strategy, "num_nodes": processes.size // processes.local_size}
        plugins.append(TorchElasticEnvironment())  # reads what `joined` has set
        callbacks.append(InterruptibleLoop())
    try:
        with _quiet_lightning():
            return lightning.Trainer(
                default_root_dir=recorder.place.path,
                max_epochs=settings.epochs,
                accelerator=settings.accelerator,
                devices=processes.local_size,
                use_distributed_sampler=False,
                **together,
                precision=settings.precision,
                gradient_clip_val=settings.gradient_clip or None,
                callbacks=callbacks,
                plugins=plugins,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
            )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise ValueError(
            f"training.accelerator {settings.accelerator!r} with training.precision {settings.precision!r} (--precision) "
            f"cannot be used here: {error}"
        ) from error


def _run_trainer(
    trainer: lightning.Trainer, module: TrainingStep, loaders: Loaders, recorder: Recorder, processes: Processes
) -> None:
    """Train until done; go on from the last checkpoint where there is one."""
    last = recorder.place.last
    going_on = processes.from_first(last.is_file)
    if going_on:
        checkpoint = load_checkpoint(last)
        require_genes(checkpoint, recorder.place.read_genes(), last, recorder.place.genes)
        try:
            recorder.load_state_dict(checkpoint["callbacks"][recorder.state_key])
        except (KeyError, TypeError) as error:
            raise ValueError(f"checkpoint {last} holds no history to go on from ({error!r}); train again") from error
        loaders.order.set_epoch(len(recorder.history))
        if recorder.finished:
            return
    with _quiet_lightning():
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, loaders.training, loaders.validation, ckpt_path=str(last) if going_on else None)
        except SystemExit:  # how Lightning ends on Ctrl-C
            if not trainer.interrupted:
                raise
        finally:
            if signal.getsignal(signal.SIGINT) is not handler:
                signal.signal(signal.SIGINT, handler)
    if trainer.interrupted:
        raise KeyboardInterrupt(
            f"interrupted after epoch {len(recorder.history)} of at most {recorder.settings.epochs}"
        )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advice about hardware, worker counts and logging intervals; errors still come through."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(does not have many workers|number of training batches).*")
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")  # the name that older PyTorch knows too
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # frozen encoders
        warnings.filterwarnings("ignore", message=".*(LeafSpec|isinstance\\(treespec).*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
