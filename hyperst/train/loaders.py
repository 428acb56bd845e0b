"""Batches of training and validation spots, in an order that a resumed run sees again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from hyperst.config import RunConfig
from hyperst.data import Section
from hyperst.data.dataset import collate
from hyperst.data.kept_crops import KeptCrops
from hyperst.progress import Count
from hyperst.run import Split, section_indices, spot_dataset
from hyperst.train.together import ALONE, Processes

__all__ = ["EpochOrder", "Loaders", "epoch_seed", "make_loaders"]


@dataclass(frozen=True)
class Loaders:
    """What one process reads.

    Attributes:
        training, validation: its share of the spots, in batches.
        order: that of the training spots.
        batch_size: spots of a step over all processes.
        n_validation: validation spots over all processes.
    """

    training: DataLoader
    validation: DataLoader
    order: EpochOrder
    batch_size: int
    n_validation: int


class EpochOrder(Sampler[int]):
    """Spots in random order, a function of the seed and the epoch alone, so that a resumed run sees the same order.

    Each batch is divided among the processes as evenly as it goes: together they see the batches of one process, each spot
    once, and the spots left over at the end of an epoch are no batch. ``generator`` seeds the loader's worker processes and
    starts afresh with every epoch.

    Args:
        n: number of spots.
        batch_size: spots of a step over all processes, at most ``n``.
        processes: among which the spots are divided.

    >>> [len(list(EpochOrder(7, 3, 0, Processes(rank, 2, 2)))) for rank in (0, 1)]
    [4, 2]
    """

    def __init__(self, n: int, batch_size: int, seed: int, processes: Processes = ALONE) -> None:
        self.n, self.batch_size, self.seed, self.epoch = n, batch_size, seed, 0
        self.rank = processes.rank
        more = batch_size % processes.size  # ranks that have one spot more
        self.own = batch_size // processes.size + (self.rank < more)
        self.start = self.rank * (batch_size // processes.size) + min(self.rank, more)
        self.generator = torch.Generator()
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of every epoch."""
        self.epoch = epoch
        self.generator.manual_seed(epoch_seed(self.seed, epoch, self.rank))

    def __len__(self) -> int:
        return self.n // self.batch_size * self.own

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch)))
        for batch in order.split(self.batch_size)[: self.n // self.batch_size]:
            yield from batch[self.start : self.start + self.own].tolist()


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """The seed of an epoch, another on each rank: ``seed`` is below 2**32, there are fewer than 2**12 ranks.

    >>> epoch_seed(1, 2), epoch_seed(0, 0, 1) == 2**52
    (1000005, True)
    """
    return seed * 1_000_003 + epoch + (rank << 52)


def make_loaders(
    config: RunConfig,
    genes: list[str],
    split: Split,
    sections: Sequence[Section],
    validation_sections: Sequence[Section],
    processes: Processes = ALONE,
    kept: KeptCrops | None = None,
    on_crops: Callable[[int, int], None] | None = None,
) -> Loaders:
    """Augmented training spots in random order, validation spots as they are.

    Args:
        kept: crops that have been read before, and to which others are added.
        on_crops: called with (spots read, spots in all) while crops are read.

    Raises:
        ValueError: fewer spots in a step than processes, or crops that cannot be read.
    """
    inner = section_indices(sections, split.validation_spots, inside=False)
    held_out = section_indices(validation_sections or sections, split.validation_spots, inside=not validation_sections)
    settings = config.training
    size = min(settings.batch_size, len(inner))
    if size < processes.size:
        raise ValueError(
            f"{size} spots a step (training.batch_size, --batch-size, is {settings.batch_size}; there are {len(inner)} training "
            f"spots) cannot be divided among {processes.size} processes: each needs at least one"
        )
    order = EpochOrder(len(inner), size, settings.seed, processes)
    own = _deal(held_out, processes)
    progress = Count(on_crops, len(inner) + len(own))
    reading: dict[str, Any] = {"keep": True, "kept": kept, "on_crops": progress.add}
    counts = config.model.likelihood != "gaussian"
    training = spot_dataset(config, sections, genes, augment=True, raw_counts=counts, indices=inner, **reading)
    validation = spot_dataset(config, validation_sections or sections, genes, indices=own, **reading)
    progress.finish()
    common: dict[str, Any] = {
        "collate_fn": collate,
        "num_workers": settings.workers,
        "pin_memory": torch.cuda.is_available(),
    }
    return Loaders(
        DataLoader(training, order.own, sampler=order, generator=order.generator, **common),
        DataLoader(validation, -(-settings.batch_size // processes.size), **common),
        order,
        size,
        len(held_out),
    )


def _deal(spots: list[tuple[int, int]], processes: Processes) -> list[tuple[int, int]]:
    """Every ``size``-th spot from the rank on. As many on every rank: where they do not go round, the first are dealt again.

    >>> [_deal([(0, 5), (0, 6), (0, 7)], Processes(rank, 2, 2)) for rank in (0, 1)]
    [[(0, 5), (0, 7)], [(0, 6), (0, 5)]]
    """
    rounds = range(processes.rank, -(-len(spots) // processes.size) * processes.size, processes.size)
    return [spots[number % len(spots)] for number in rounds]
