"""The training spots whose images lie nearest to a spot's in a run's hyperbolic space: what the run has seen that is like it."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hyperst.closed_form import Rows
from hyperst.data import Section
from hyperst.evaluation_space import run_alignment
from hyperst.files import atomic_path
from hyperst.run import Run, RunFolder
from hyperst.validation import reason_of
from hyperst_kernels import topk

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "DISTANCES",
    "NEAREST",
    "ROWS",
    "ImageSpace",
    "TrainingSpots",
    "add_nearest",
    "image_space",
    "read_training_spots",
    "retrieve",
]

NEAREST = 3
"""Training spots that are told of each predicted one."""
ROWS, DISTANCES = "nearest_training_rows", "nearest_training_distances"
"""Entries of ``obsm``, see :func:`add_nearest`."""

_MOST = 5000  # of the training: 5 MB at the default width
_SPOTS_AT_A_TIME = 1 << 14
_QUERIES_AT_A_TIME = 256  # each with the genes of as many keys as the square root of their number
_FACTS = ("checkpoint", "spacing")


@dataclass(frozen=True)
class ImageSpace:
    """A run's hyperbolic space of images of spots.

    Attributes:
        scale: what the network's image features are multiplied with to be tangent vectors at the origin.
        curvature: c of the curvature -c.
    """

    scale: float
    curvature: float

    def nearest(self, queries: np.ndarray, keys: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances float32 (query k) and rows int64 (query k) of the nearest of ``keys``, nearest first.

        Args:
            queries, keys: image features (spot width). k: at most the number of keys; more are as many as there are.

        >>> ImageSpace(1.0, 1.0).nearest(np.array([[0.3, 0.4]]), np.array([[0.6, 0.8], [3.0, 4.0]]), 5)[1]
        array([[0, 1]])
        """
        x, y = (torch.from_numpy(np.asarray(each, dtype=np.float32) * self.scale) for each in (queries, keys))
        distances, rows = topk(x, y, min(k, len(keys)), self.curvature, input="tangent")
        return distances.numpy(), rows.numpy()


@dataclass(frozen=True)
class TrainingSpots:
    """Spots of a run's training sections and where their images lie, at most 5000 of them, spread over the sections.

    Attributes:
        checkpoint: SHA-256 of the checkpoint that has placed them.
        spacing: median distance of one of them to the nearest other; 0 of a single one.
        space: in which distances are measured.
        sections, spots: str (spot,), names. positions: float32 (spot 2), x, y in full-resolution pixels.
        features: float32 (spot width), the network's image features.
    """

    checkpoint: str
    spacing: float
    space: ImageSpace
    sections: np.ndarray
    spots: np.ndarray
    positions: np.ndarray
    features: np.ndarray

    @classmethod
    def of(
        cls, checkpoint: str, space: ImageSpace, sections: Sequence[Section], features: Sequence[np.ndarray]
    ) -> TrainingSpots:
        """Those of the training ``sections``, with image ``features`` (spot width) of each."""
        names = np.concatenate([[section.name] * section.n_spots for section in sections])
        chosen = np.unique(np.linspace(0, len(names) - 1, min(_MOST, len(names))).round().astype(int))
        placed = np.concatenate(features)[chosen].astype(np.float32)
        spots, positions = (
            np.concatenate([getattr(section, each) for section in sections])[chosen] for each in ("spot_ids", "spot_px")
        )
        spacing = float(np.median(space.nearest(placed, placed, 2)[0][:, -1]))
        return cls(checkpoint, spacing, space, names[chosen], spots.astype(str), positions.astype(np.float32), placed)

    def write(self, path: Path) -> Path:
        """Write everything to an .npz atomically and return its path."""
        facts = {**{name: getattr(self, name) for name in _FACTS}, **asdict(self.space)}
        arrays = {name: getattr(self, name) for name in ("sections", "spots", "positions", "features")}
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, facts=np.array(json.dumps(facts)), **arrays)
        return path


def image_space(run: Run) -> ImageSpace | None:
    """The space that a run has learnt; None where its loss knew no hyperbolic space."""
    alignment = run_alignment(run)
    if alignment is None:
        return None
    lift = alignment.lift
    return ImageSpace(float(lift.scale("image").detach()), float(lift.curvature.detach()))


def read_training_spots(run_folder: str | Path, checkpoint: str) -> TrainingSpots | None:
    """Read what a run has stored; None where it has none, and with a warning where it is of another ``checkpoint``.

    Raises:
        ValueError: the file is damaged.
    """
    path = RunFolder(run_folder).training_spots
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            facts = json.loads(str(stored["facts"]))
            own = {name: facts.pop(name) for name in _FACTS}
            arrays = {name: stored[name] for name in ("sections", "spots", "positions", "features")}
            found = TrainingSpots(space=ImageSpace(**facts), **own, **arrays)
        if len({len(values) for values in arrays.values()}) != 1:
            raise ValueError("its columns are not of one length")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged ({reason_of(error)}); restore it, or remove it to predict without the nearest training spots"
        ) from error
    if found.checkpoint != checkpoint:
        warnings.warn(
            f"{path} is of other weights than the checkpoint of the run has now, and is not used", stacklevel=2
        )
        return None
    return found


def add_nearest(predicted: AnnData, trained: TrainingSpots | None, features: Rows) -> None:
    """Write the nearest training spots into a prediction; nothing where the run has stored none.

    ``obs['nearest_training_spot']`` is SECTION/SPOT and ``obs['nearest_training_distance']`` its distance. Of the three nearest
    ``obsm`` has the rows of training_spots.npz, int32 (spot 3), and the distances, float32 (spot 3).

    Args:
        features: (spot width), the network's image features of the predicted spots.
    """
    if trained is None:
        return
    found = []
    for start in range(0, predicted.n_obs, _SPOTS_AT_A_TIME):
        spots = np.arange(start, min(start + _SPOTS_AT_A_TIME, predicted.n_obs))
        found.append(trained.space.nearest(features[spots], trained.features, NEAREST))
    distances, rows = (np.concatenate(each) for each in zip(*found, strict=True))
    first = rows[:, 0]
    names = np.char.add(np.char.add(trained.sections[first], "/"), trained.spots[first])
    predicted.obs["nearest_training_spot"] = names.astype(object)
    predicted.obs["nearest_training_distance"] = distances[:, 0]
    predicted.obsm[ROWS], predicted.obsm[DISTANCES] = rows.astype(np.int32), distances
    predicted.uns["hyperst"]["training_spots_spacing"] = trained.spacing


def retrieve(space: ImageSpace, queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean ``values`` (key gene) of the nearest keys of each query, as many as the square root of their number: (query gene)."""
    count = round(len(keys) ** 0.5)
    starts = range(0, len(queries), _QUERIES_AT_A_TIME)
    parts = [queries[start : start + _QUERIES_AT_A_TIME] for start in starts]
    return np.concatenate([values[space.nearest(part, keys, count)[1]].mean(axis=1) for part in parts])
