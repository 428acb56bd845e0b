"""Where a network's prediction starts: at what the training spots have on average."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hyperst.config import RunConfig
from hyperst.data import Section, align_genes, transform
from hyperst.model import HyperST
from hyperst.run import Split, section_indices

__all__ = ["initialise_output"]


def initialise_output(
    model: HyperST, config: RunConfig, genes: Sequence[str], sections: Sequence[Section], split: Split
) -> None:
    """Start ``model`` at the mean target of the training spots, or at each gene's share in their counts."""
    pairs = np.asarray(section_indices(sections, split.validation_spots, inside=False))
    rows = [pairs[pairs[:, 0] == number, 1] for number in range(len(sections))]
    counts = [align_genes(section, genes)[spots] for section, spots in zip(sections, rows, strict=True)]
    library = [section.library_size[spots] for section, spots in zip(sections, rows, strict=True)]
    if model.likelihood is None:
        values = [transform(each, total, config.data.target) for each, total in zip(counts, library, strict=True)]
        mean = np.concatenate(values).mean(axis=0, dtype=np.float64).astype(np.float32)
        model.initialise_output(torch.from_numpy(mean))
    else:
        known = (torch.from_numpy(np.concatenate(each)) for each in (counts, library))
        model.initialise_output(model.likelihood.initialise(*known))
