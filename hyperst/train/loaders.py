"""Batches of training and validation spots, in an order that a resumed run sees again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from hyperst.config import RunConfig
from hyperst.data import Section
from hyperst.run import Split, section_indices, spot_dataset

__all__ = ["EpochOrder", "Loaders", "make_loaders"]


@dataclass(frozen=True)
class Loaders:
    training: DataLoader
    validation: DataLoader
    order: EpochOrder


class EpochOrder(Sampler[int]):
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


def make_loaders(
    config: RunConfig,
    genes: list[str],
    split: Split,
    sections: Sequence[Section],
    validation_sections: Sequence[Section],
) -> Loaders:
    """Augmented training spots in random order, validation spots as they are."""
    if validation_sections:
        training = spot_dataset(config, sections, genes, augment=True, keep=True)
        validation = spot_dataset(config, validation_sections, genes, keep=True)
    else:
        inner, held_out = (section_indices(sections, split.validation_spots, inside=inside) for inside in (False, True))
        training = spot_dataset(config, sections, genes, augment=True, indices=inner, keep=True)
        validation = spot_dataset(config, sections, genes, indices=held_out, keep=True)
    settings = config.training
    size = min(settings.batch_size, len(training))
    order = EpochOrder(len(training), settings.seed)
    common: dict[str, Any] = {"num_workers": settings.workers, "pin_memory": torch.cuda.is_available()}
    return Loaders(
        DataLoader(training, size, sampler=order, drop_last=True, generator=order.generator, **common),
        DataLoader(validation, settings.batch_size, **common),
        order,
    )
