"""Batches of the images of a section's spots, read by several processes in an order in which each tile is decoded about once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hyperst.data import Section, crop_widths_px
from hyperst.data.dataset import collate
from hyperst.data.images import DamagedTiles
from hyperst.data.kept_crops import KeptCrops
from hyperst.data.reading_order import reading_order
from hyperst.pool import end_with_parent
from hyperst.run import Run, spot_dataset

__all__ = ["read_batches", "spot_batches"]

BATCH_SIZE = 64


def spot_batches(run: Run, section: Section, batch_size: int = BATCH_SIZE) -> list[np.ndarray]:
    """Spots int64 (b,) of each batch, in the order in which their images are best read; neither depends on who reads them."""
    order = np.arange(section.n_spots)
    if run.config.data.feature_key is None:
        widths = crop_widths_px(section.grid, section.spot_diameter_px, run.config.crop)
        with section.open_image() as image:
            order = reading_order(image, section.spot_px, widths, run.config.crop.image_size)
    return np.split(order, range(batch_size, section.n_spots, batch_size))


def read_batches(
    run: Run,
    section: Section,
    batches: Sequence[np.ndarray],
    numbers: Sequence[int],
    readers: int = 0,
    kept: KeptCrops | None = None,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Number and images, as of :class:`hyperst.data.dataset.SpotDataset`, of those ``batches`` whose ``numbers`` are given.

    Each of several ``readers``, processes beside this one, has batches that follow each other, so that it alone reads their tiles.
    Crops that are ``kept`` of all spots of the section are not read again.
    """
    dealt = _dealt(numbers, readers)
    loader = DataLoader(
        spot_dataset(run.config, [section], kept=kept),
        batch_sampler=(batches[number].tolist() for number in dealt),
        num_workers=readers,
        collate_fn=_Collate(section.damaged),
        worker_init_fn=_begin_reader,
    )
    for number, batch in zip(dealt, loader, strict=True):
        if section.damaged is not None:
            section.damaged.add_table(batch.pop("damaged").numpy())
        yield number, batch


def _dealt(numbers: Sequence[int], readers: int) -> list[int]:
    """Batches in the order in which a DataLoader takes them from its processes in turn, each with a part in one piece.

    >>> _dealt(range(5), 2)
    [0, 3, 1, 4, 2]
    """
    parts = [part.tolist() for part in np.array_split(np.asarray(numbers, dtype=np.int64), max(1, readers))]
    return [part[turn] for turn in range(len(parts[0])) for part in parts if turn < len(part)]


def _begin_reader(number: int) -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()


class _Collate:
    """:func:`collate`, with the damaged tiles that a process has met so far: it may be another one than that which asks."""

    def __init__(self, damaged: DamagedTiles | None) -> None:
        self.damaged = damaged

    def __call__(self, items: Any) -> dict[str, Tensor]:
        batch = collate(items)
        if self.damaged is not None:
            batch["damaged"] = torch.from_numpy(self.damaged.table())
        return batch
