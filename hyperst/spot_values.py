"""What a run's model makes of the images of a section's spots, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from hyperst.closed_form import of_network, with_closed_form
from hyperst.data import Section
from hyperst.data.kept_crops import KeptCrops
from hyperst.feature_check import feature_width, require_same_encoder
from hyperst.image_batches import BATCH_SIZE, read_batches, spot_batches
from hyperst.progress import Count
from hyperst.run import Run, as_trained
from hyperst.stain import Stain, Stains, match_stain, matching

__all__ = [
    "compute_batches",
    "encode",
    "over_spots",
    "predict_values",
    "predict_with_features",
    "require_finite",
    "summarising",
]

Compute: TypeAlias = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def predict_values(
    run: Run,
    section: Section,
    *,
    batch_size: int = BATCH_SIZE,
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
    batch_size: int = BATCH_SIZE,
    stain: Stain = "none",
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """What :func:`predict_values` returns, what ``summarise`` makes of image features, batch by batch, and "image_spot".

    ``summarise`` gets the backbone's features (spot width). The second is float32 (spot ...), or None without ``summarise``; the
    third (spot width), see :meth:`hyperst.model.HyperST.encode_images`. Errors: see :func:`predict_values`.
    """
    statistics = matching(run, section, stain)
    count = Count(on_progress, section.n_spots).add
    found = over_spots(run, section, summarising(run, summarise), count, batch_size, statistics)
    values = with_closed_form(run, section, found)
    require_finite(run, section, values)
    return values, found.get("summary"), found["image_spot"]


def require_finite(run: Run, section: Section, values: np.ndarray) -> None:
    """Raise FloatingPointError where a prediction is not finite."""
    if not np.isfinite(values).all():
        raise FloatingPointError(
            f"the prediction for {section.name} is not finite; the run in {run.folder} is damaged, train again"
        )


def encode(run: Run, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What :meth:`hyperst.model.HyperST.encode_images` gives; of further networks "prediction" and "features".

    They are called as :func:`hyperst.closed_form.of_network` says.
    """
    found = run.model.encode_images(batch)
    for number, other in enumerate(run.others, 1):
        theirs = other.model.encode_images(batch)
        found |= {of_network(name, number): theirs[name] for name in ("prediction", "features")}
    return found


def summarising(run: Run, summarise: Callable[[np.ndarray], np.ndarray] | None) -> Compute:
    """:func:`encode` with the "summary" of the image features, which themselves are left out where no closed form needs them."""

    def compute(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        found = encode(run, batch)
        if summarise is not None:
            found["summary"] = torch.from_numpy(summarise(found["features"].double().cpu().numpy()))
        for number, network in enumerate(run.networks):
            if network.mixture is None:
                del found[of_network("features", number)]
        return found

    return compute


def over_spots(
    run: Run,
    section: Section,
    compute: Compute,
    on_batch: Callable[[int], None],
    batch_size: int = BATCH_SIZE,
    stains: Stains | None = None,
    kept: KeptCrops | None = None,
) -> dict[str, np.ndarray]:
    """Collect what ``compute`` makes of each batch of a section's images, float32 (spot ...); counts are not looked at.

    ``on_batch`` is called with the number of spots of each batch. ``stains`` are those of the section and of the training tissue,
    which it is then matched to; see :func:`hyperst.stain.matching`. ``kept``: see :func:`hyperst.image_batches.read_batches`.
    """
    seen = as_trained(run, section)
    batches = spot_batches(run, seen, batch_size)
    collected: dict[str, np.ndarray] = {}
    for number, found in compute_batches(run, seen, compute, batches, range(len(batches)), stains, kept=kept):
        for name, values in found.items():
            if name not in collected:
                collected[name] = np.empty((section.n_spots, *values.shape[1:]), dtype=np.float32)
            collected[name][batches[number]] = values
        on_batch(len(batches[number]))
    return collected


def compute_batches(
    run: Run,
    section: Section,
    compute: Compute,
    batches: Sequence[np.ndarray],
    numbers: Sequence[int],
    stains: Stains | None = None,
    readers: int = 0,
    kept: KeptCrops | None = None,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Number, and what ``compute`` makes of it, float32 (b ...), of each of the batches with these ``numbers``.

    Args:
        section: as the run was trained, see :func:`hyperst.run.as_trained`.
        batches, readers, kept: see :func:`hyperst.image_batches.read_batches`.
    """
    trained_on = run.split.role("training")[0]
    width = feature_width(run.config, [section], trained_on.own_levels())
    if width is not None and width != run.model.backbone.width:
        raise ValueError(
            f"section {section.name} has {width} features per spot, the run in {run.folder} was trained on "
            f"{run.model.backbone.width}; take features of the same encoder"
        )
    require_same_encoder(run.config, section, trained_on.feature_sources, f"the run in {run.folder}")
    names = [f"{level}_image" for level in run.model.levels]
    for number, batch in read_batches(run, section, batches, numbers, readers, kept):
        with torch.inference_mode():
            batch = {name: value.to(run.device) for name, value in batch.items()}
            if stains is not None:
                batch |= {name: match_stain(batch[name], *stains) for name in names}
            found = {name: value.float().cpu().numpy() for name, value in compute(batch).items()}
        yield number, found
