"""What an evaluation reads from a section's images: predictions, and the features that ridge regression is fitted on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hyperst.closed_form import of_network, with_closed_form
from hyperst.data import Section
from hyperst.model import build_backbone
from hyperst.progress import Count
from hyperst.run import Run
from hyperst.spot_values import encode, over_spots
from hyperst.stain import Stains

__all__ = ["read_images"]


def read_images(
    run: Run,
    section: Section,
    progress: Count | None = None,
    stains: Stains | None = None,
) -> dict[str, np.ndarray]:
    """One pass over a section's crops: "prediction" and "network" (spot gene), "own", "stain" and "image_spot" (spot width).

    "network" is the prediction without the closed-form head, the mean over networks. "image_spot" is what the first network makes
    of the spot's image, "own" are the features of its backbone. Features of the crops of all levels stand side by side. Stain
    features need crops, so they are missing with precomputed features. ``stains``: see :func:`hyperst.spot_values.over_spots`.
    """
    stain = build_backbone("stain").to(run.device) if run.config.data.feature_key is None else None

    def compute(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        found = encode(run, batch)
        if stain is not None:
            found["stain"] = torch.cat([stain(batch[f"{level}_image"]) for level in run.model.levels], 1)
        return found

    found = over_spots(run, section, compute, (progress or Count(None, 0)).add, stains=stains)
    prediction = with_closed_form(run, section, found)
    of_networks = [found.pop(of_network("prediction", number)) for number in range(len(run.networks))]
    own, *_ = [found.pop(of_network("features", number)) for number in range(len(run.networks))]
    return {**found, "network": np.mean(of_networks, axis=0), "own": own, "prediction": prediction}
