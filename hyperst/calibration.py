"""What a run knows of its own doubt: intervals of expression, and how far tissue may be from that of the training.

Both come from spots that no training step has seen: see `docs/explanation/doubt.md`.
"""

from __future__ import annotations

import json
import math
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from hyperst.applicability import TissueModel, fit_tissue, left_out_distances
from hyperst.closed_form import with_closed_form
from hyperst.data import Section
from hyperst.data.dataset import block_ids, collate
from hyperst.files import atomic_path
from hyperst.run import Run, RunFolder, section_indices, spot_dataset
from hyperst.spot_values import encode, over_spots
from hyperst.validation import reason_of

__all__ = ["COVERAGE", "Calibration", "calibrate", "half_widths", "read_calibration"]

COVERAGE = 0.9
"""Share of measured values that an interval is to hold."""

_FEWEST_BLOCKS = 6  # as for intervals of scores, see hyperst.intervals
_MOST_SPOTS = 2000  # of the training, whose image features are compared


@dataclass(frozen=True)
class Calibration:
    """What :func:`calibrate` has found.

    Attributes:
        checkpoint: SHA-256 of the checkpoint it is about.
        half_widths: float64 (gene,), of the intervals; None where there are too few spots or blocks for any.
        n_spots, n_blocks: how many were held out.
        tissue: distribution of the image features of the training spots.
        left_out: float64 (spot,), distances of tissue that was left out, which are of ``groups``: "patients", "sections",
            "validation sections" or "blocks".
    """

    checkpoint: str
    half_widths: np.ndarray | None
    n_spots: int
    n_blocks: int
    tissue: TissueModel
    left_out: np.ndarray
    groups: str

    def write(self, path: Path) -> Path:
        """Write everything to an .npz atomically and return its path."""
        facts = {name: getattr(self, name) for name in ("checkpoint", "n_spots", "n_blocks", "groups")}
        arrays = {f"tissue_{name}": value for name, value in asdict(self.tissue).items()}
        if self.half_widths is not None:
            arrays["half_widths"] = self.half_widths
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, facts=np.array(json.dumps(facts)), left_out=self.left_out, **arrays)
        return path


def half_widths(residuals: np.ndarray, coverage: float = COVERAGE) -> np.ndarray | None:
    """Half-width of each gene's interval, float64 (gene,), by split conformal prediction; None for too few spots.

    The k-th smallest absolute residual, k = ceil((n + 1) coverage), holds at least ``coverage`` of new values that are
    exchangeable with these (Lei et al., J. Am. Stat. Assoc. 113:1094, 2018, algorithm 2).

    Args:
        residuals: (spot gene), prediction less measurement.

    >>> half_widths(np.arange(-4.5, 5)[:, None])
    array([4.5])
    """
    n = len(residuals)
    place = math.ceil((n + 1) * coverage)
    if place > n:
        return None
    return np.sort(np.abs(np.asarray(residuals, dtype=np.float64)), axis=0)[place - 1]


def calibrate(
    run: Run,
    sections: Sequence[Section],
    validation_sections: Sequence[Section] = (),
    encoded: Sequence[dict[str, np.ndarray]] | None = None,
) -> Calibration:
    """Measure intervals and distances on the sections of a run, without the spots that it leaves out.

    Intervals come from the spots that chose the epoch, on which no weight was fitted. Distances come from leaving out whole
    patients where there are two, else whole sections, else from the validation sections, else from the held-out blocks.

    Args:
        encoded: what :func:`hyperst.spot_values.encode` gives of all spots of each section and validation section, if known;
            only a closed-form head needs it.
    """
    own = section_indices(sections, run.split.validation_spots, inside=False)
    places = validation_sections or sections
    held_out = section_indices(places, run.split.validation_spots, inside=not validation_sections)
    spread = np.unique(np.linspace(0, len(own) - 1, min(_MOST_SPOTS, len(own))).round().astype(int))
    own = [own[spot] for spot in spread]
    _, features, _ = _see(run, sections, own, lambda values: values, measured=False)
    tissue = fit_tissue(features)
    prediction, held_out_distances, measured = _see(run, places, held_out, tissue.distances)
    if run.mixture is not None:
        known = None if encoded is None else encoded[len(sections) if validation_sections else 0 :]
        prediction = _mixed(run, places, held_out, known)
    if not np.isfinite(prediction).all():
        raise FloatingPointError(f"the predictions of the run in {run.folder} are not finite; train again")
    blocks = {number: block_ids(section, number, pitches=3) for number, section in enumerate(places)}
    n_blocks = len({int(blocks[number][spot]) for number, spot in held_out})
    groups, left_out = _groups(run, sections, np.asarray(own)[:, 0])
    if len(left_out) > 1:
        distances = left_out_distances([features[rows] for rows in left_out])
    else:
        groups = "validation sections" if validation_sections else "blocks"
        distances = held_out_distances
    return Calibration(
        checkpoint=run.checkpoint,
        half_widths=half_widths(prediction - measured) if n_blocks >= _FEWEST_BLOCKS else None,
        n_spots=len(held_out),
        n_blocks=n_blocks,
        tissue=tissue,
        left_out=np.sort(distances),
        groups=groups,
    )


def read_calibration(run: Run) -> Calibration | None:
    """Read what a run has stored; None, with a warning where it is of another checkpoint, if there is none for its weights.

    Raises:
        ValueError: the file is damaged.
    """
    path = RunFolder(run.folder).calibration
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            facts: dict[str, Any] = json.loads(str(stored["facts"]))
            tissue = {name.removeprefix("tissue_"): stored[name] for name in stored if name.startswith("tissue_")}
            tissue["rest"] = float(tissue["rest"])
            widths = stored.get("half_widths")
            found = Calibration(half_widths=widths, tissue=TissueModel(**tissue), left_out=stored["left_out"], **facts)
        if widths is not None and widths.shape != (len(run.genes),):
            raise ValueError(f"it has {len(widths)} half-widths for {len(run.genes)} genes")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged ({reason_of(error)}); restore it, or remove it to predict without intervals"
        ) from error
    if found.checkpoint != run.checkpoint:
        warnings.warn(
            f"{path} was measured with other weights than the checkpoint of the run has now: predictions have no intervals and "
            "no applicability",
            stacklevel=2,
        )
        return None
    return found


def _see(
    run: Run,
    sections: Sequence[Section],
    indices: Sequence[tuple[int, int]],
    summarise: Callable[[np.ndarray], np.ndarray],
    *,
    measured: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prediction (spot gene), what ``summarise`` makes of image features (spot width), and measured expression (spot gene or 0)."""
    genes = run.genes if measured else ()
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    with torch.inference_mode():
        for batch in DataLoader(spot_dataset(run.config, sections, genes, indices=indices), 64, collate_fn=collate):
            moved = {name: value.to(run.device) for name, value in batch.items()}
            target = batch["target"] if measured else torch.zeros(len(batch["spot"]), 0)
            seen = (*run.model.predict_with_features(moved), target)
            prediction, features, target = (values.double().cpu().numpy() for values in seen)
            for part, values in zip(parts, (prediction, summarise(features), target), strict=True):
                part.append(values)
    prediction, summary, target = (np.concatenate(part) for part in parts)
    return prediction, summary, target


def _mixed(
    run: Run,
    sections: Sequence[Section],
    indices: Sequence[tuple[int, int]],
    encoded: Sequence[dict[str, np.ndarray]] | None,
) -> np.ndarray:
    """Prediction (spot gene) with the closed-form head, which sees a spot's neighbours too."""
    if encoded is None:
        encoded = [over_spots(run, section, partial(encode, run), lambda _: None) for section in sections]
    values = [with_closed_form(run, section, found) for section, found in zip(sections, encoded, strict=True)]
    return np.stack([values[number][spot] for number, spot in indices]).astype(np.float64)


def _groups(run: Run, sections: Sequence[Section], owners: np.ndarray) -> tuple[str, list[np.ndarray]]:
    """What is left out at a time, and the rows of each: patients where all are known and there are two, else sections."""
    patients = [section.patient for section in sections]
    known = None not in patients and len(set(patients)) > 1
    labels = np.asarray(patients if known else [section.name for section in sections], dtype=str)[owners]
    rows = [np.flatnonzero(labels == label) for label in dict.fromkeys(labels)]
    rows = [each for each in rows if len(each) > 1]  # a single spot has no spread
    return "patients" if known else "sections", rows
