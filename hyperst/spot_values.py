"""What a run's model makes of the images of a section's spots, batch by batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hyperst.closed_form import with_closed_form
from hyperst.data import Section
from hyperst.data.dataset import collate
from hyperst.feature_check import feature_width, require_same_encoder
from hyperst.progress import Count
from hyperst.run import Run, as_trained, spot_dataset
from hyperst.stain import Stain, Stains, match_stain, matching

__all__ = ["encode", "over_spots", "predict_values", "predict_with_features"]


def predict_values(
    run: Run,
    section: Section,
    *,
    batch_size: int = 64,
    stain: Stain = "none",
    on_progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Predicted expression of a section's spots, float32 (spot gene), on the run's target scale.

    Args:
        section: with its image (or the precomputed features the run uses); counts are not looked at.
        stain: "match" or "macenko" sees the image with the stain of the training tissue, see :mod:`hyperst.stain`.
        on_progress: called with (spots done, spots in all) before the first batch and after each.

    Raises:
        ValueError: the crops the run was trained with cannot be sized on this image (um/px unknown), or there is no stain to
            match.
        FloatingPointError: the prediction is not finite.
    """
    return predict_with_features(run, section, None, batch_size, stain, on_progress)[0]


def predict_with_features(
    run: Run,
    section: Section,
    summarise: Callable[[np.ndarray], np.ndarray] | None,
    batch_size: int = 64,
    stain: Stain = "none",
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """What :func:`predict_values` returns, what ``summarise`` makes of image features, batch by batch, and "image_spot".

    ``summarise`` gets the backbone's features (spot width). The second is float32 (spot ...), or None without ``summarise``; the
    third (spot width), see :meth:`hyperst.model.HyperST.encode_images`. Errors: see :func:`predict_values`.
    """
    statistics = matching(run, section, stain)

    def compute(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        found = encode(run, batch)
        if summarise is not None:
            found["summary"] = torch.from_numpy(summarise(found["features"].double().cpu().numpy()))
        return found

    count = Count(on_progress, section.n_spots).add
    found = over_spots(run, section, compute, count, batch_size, statistics)
    values = with_closed_form(run, section, found)
    if not np.isfinite(values).all():
        raise FloatingPointError(
            f"the prediction for {section.name} is not finite; the run in {run.folder} is damaged, train again"
        )
    return values, found.get("summary"), found["image_spot"]


def encode(run: Run, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What :meth:`hyperst.model.HyperST.encode_images` gives, the network's prediction and its features."""
    return run.model.encode_images(batch)


def over_spots(
    run: Run,
    section: Section,
    compute: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    on_batch: Callable[[int], None],
    batch_size: int = 64,
    stains: Stains | None = None,
) -> dict[str, np.ndarray]:
    """Collect what ``compute`` makes of each batch of a section's images, float32 (spot ...); counts are not looked at.

    ``on_batch`` is called with the number of spots of each batch. ``stains`` are those of the section and of the training tissue,
    which it is then matched to; see :func:`hyperst.stain.matching`.
    """
    parts: dict[str, list[np.ndarray]] = {}
    trained_on = run.split.role("training")[0]
    width = feature_width(run.config, [section], trained_on.own_levels())
    if width is not None and width != run.model.backbone.width:
        raise ValueError(
            f"section {section.name} has {width} features per spot, the run in {run.folder} was trained on "
            f"{run.model.backbone.width}; take features of the same encoder"
        )
    require_same_encoder(run.config, section, trained_on.feature_sources, f"the run in {run.folder}")
    names = [f"{level}_image" for level in run.model.levels]
    with torch.inference_mode():
        for batch in DataLoader(spot_dataset(run.config, [as_trained(run, section)]), batch_size, collate_fn=collate):
            batch = {name: value.to(run.device) for name, value in batch.items()}
            if stains is not None:
                batch |= {name: match_stain(batch[name], *stains) for name in names}
            found = compute(batch)
            for name, value in found.items():
                parts.setdefault(name, []).append(value.float().cpu().numpy())
            on_batch(len(batch["spot"]))
    return {name: np.concatenate(values) for name, values in parts.items()}
