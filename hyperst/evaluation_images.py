"""What an evaluation reads from a section's images: predictions, and the features that ridge regression is fitted on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hyperst.data import Section
from hyperst.model import build_backbone
from hyperst.predict import over_spots
from hyperst.progress import Count
from hyperst.run import Run
from hyperst.stain import StainStatistics

__all__ = ["read_images"]


def read_images(
    run: Run,
    section: Section,
    progress: Count | None = None,
    stains: tuple[StainStatistics, StainStatistics] | None = None,
) -> dict[str, np.ndarray]:
    """One pass over a section's crops: "prediction" (spot gene), "own" and "stain" features (spot width).

    Features of the crops of all levels stand side by side. Stain features need crops, so they are missing with
    precomputed features. ``stains``: see :func:`hyperst.predict.over_spots`.
    """
    crops = run.config.data.feature_key is None
    kind = "image" if crops else "features"
    levels = [f"{level}_{kind}" for level in run.model.levels]
    encoders = {"own": run.model.backbone}
    if crops:
        encoders["stain"] = build_backbone("stain").to(run.device)

    def compute(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        features = {name: torch.cat([encode(batch[level]) for level in levels], 1) for name, encode in encoders.items()}
        return {"prediction": run.model.predict(batch), **features}

    return over_spots(run, section, compute, (progress or Count(None, 0)).add, stains=stains)
