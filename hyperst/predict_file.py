"""Predict a slide of any size into a file: memory does not grow with its spots, and a killed process is gone on with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hyperst.closed_form import blocks_with_closed_form, of_network
from hyperst.data import Section
from hyperst.data.identity import sampled_hash
from hyperst.data.readers.features import find_features
from hyperst.files import require_space, write_h5ad_in_blocks
from hyperst.image_batches import spot_batches
from hyperst.part_file import PartFile
from hyperst.predict import check_options, prepare_section, section_on
from hyperst.prediction_anndata import Known, describe_prediction
from hyperst.progress import Count
from hyperst.run import Run, RunFolder, as_trained, run_checksum
from hyperst.spot_values import compute_batches, require_finite, summarising
from hyperst.stain import Stain, matching
from hyperst_kernels import __version__

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["SlideValues", "image_into_part", "part_path", "section_into_part"]


def part_path(path: str | Path) -> Path:
    """Where a prediction that goes to ``path`` is kept until it is done.

    >>> part_path("predictions/slide.h5ad").as_posix()
    'predictions/slide.h5ad.part'
    """
    path = Path(path)
    return path.with_name(f"{path.name}.part")


@dataclass(frozen=True)
class SlideValues:
    """A prediction whose values are on disk.

    Attributes:
        predicted: as :func:`hyperst.predict.predict_image` returns it, without X.
        section: that was predicted.
        blocks: reads X, float32 (spot gene), some spots after others.
    """

    predicted: AnnData
    section: Section
    blocks: Callable[[], Iterator[np.ndarray]]

    def write(self, path: str | Path) -> Path:
        """Write the prediction to ``path`` (.h5ad), see :func:`hyperst.files.write_h5ad_in_blocks`."""
        return write_h5ad_in_blocks(self.predicted, self.blocks(), path)


@contextmanager
def image_into_part(
    run: Run,
    image: str | Path,
    path: str | Path,
    *,
    spots: str | Path | np.ndarray | None = None,
    mpp: float | None = None,
    min_tissue: float | None = None,
    features: str | Path | None = None,
    niche_features: str | Path | None = None,
    wider_features: Mapping[str, str | Path] | None = None,
    **options: Any,
) -> Iterator[SlideValues]:
    """Predict as :func:`hyperst.predict.predict_image` does, for a file ``path``; see :func:`section_into_part`."""
    check_options(run, mpp, features, niche_features, wider_features)
    section = section_on(
        run,
        Path(image),
        spots,
        mpp=mpp,
        min_tissue=min_tissue,
        skip_damaged=options.get("skip_damaged", False),
        with_features=features is not None,
    )
    given: dict[str, Any] = {"features": features, "niche_features": niche_features, "wider_features": wider_features}
    with section_into_part(run, section, path, **given, **options) as values:
        yield values


@contextmanager
def section_into_part(
    run: Run,
    section: Section,
    path: str | Path,
    *,
    skip_damaged: bool = False,
    features: str | Path | None = None,
    niche_features: str | Path | None = None,
    wider_features: Mapping[str, str | Path] | None = None,
    stain: Stain = "none",
    readers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[SlideValues]:
    """Predict as :func:`hyperst.predict.predict_section` does, and give the prediction to a ``with`` block that writes it.

    What is computed is kept in ``path``.part, beside the file that is to be written. The same call goes on with it after the
    process was killed, and comes, with as many threads on the same kind of machine, to the same bits; when the block ends well
    it is removed.

    Args:
        path: the .h5ad that the block writes.
        readers: processes that read the image beside this one, each with 256 MiB of decoded tiles; 0: this one reads it. The
            values do not depend on it.

    Raises:
        FileExistsError: the part file is of another run, slide, version or other options.
        BlockingIOError: another process predicts the same.
        OSError: the disk has no room. Other errors: see :func:`hyperst.predict.predict_section`.
    """
    if readers < 0:
        raise ValueError(f"readers (--readers): got {readers}, need 0 or more")
    given = {"features": features, "niche features": niche_features}
    given |= {f"features of {level}": place for level, place in (wider_features or {}).items()}
    section = prepare_section(
        run,
        section,
        skip_damaged=skip_damaged,
        features=features,
        niche_features=niche_features,
        wider_features=wider_features,
    )
    known = Known.of(run, stain)
    seen = as_trained(run, section)
    batches = spot_batches(run, seen)
    columns: dict[str, int] = {}
    for number, network in enumerate(run.networks):
        columns[of_network("prediction", number)] = len(run.genes)
        if network.mixture is not None:
            columns[of_network("features", number)] = len(run.model.levels) * network.model.backbone.width
    if known.distances is not None:
        columns["summary"] = 1
    if known.trained is not None:
        columns["image_spot"] = known.trained.features.shape[1]
    part = PartFile(part_path(path), _facts(run, seen, stain, batches, given), batches, columns)
    try:
        require_space(path, 4 * section.n_spots * len(run.genes))
        if section.damaged is not None:
            section.damaged.add_table(part.damage())
        elif len(part.damage()):
            raise FileExistsError(
                f"{part.path} holds a prediction that was begun with --skip-damaged; give that, or remove it"
            )
        _fill(part, run, seen, known, readers, on_progress)
        every = np.arange(section.n_spots)
        distances = part["summary"][every].ravel() if "summary" in columns else None
        placed = part["image_spot"] if "image_spot" in columns else None
        predicted = describe_prediction(run, section, None, distances, placed, known)
        yield SlideValues(predicted, section, partial(_blocks, part, run, section))
    except BaseException:
        part.close()
        raise
    part.remove()


def _fill(
    part: PartFile,
    run: Run,
    section: Section,
    known: Known,
    readers: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Compute the batches that are left."""
    left = part.left
    count = Count(on_progress, section.n_spots, section.n_spots - sum(len(part.batches[number]) for number in left))
    statistics = matching(run, section, known.stain) if left else None
    n_damaged = len(part.damage())
    compute = summarising(run, known.distances)
    for number, found in compute_batches(run, section, compute, part.batches, left, statistics, readers):
        if section.damaged is not None and len(section.damaged) > n_damaged:
            part.put_damage(section.damaged.table())
            n_damaged = len(section.damaged)
        part.put(number, found)
        count.add(len(part.batches[number]))


def _blocks(part: PartFile, run: Run, section: Section) -> Iterator[np.ndarray]:
    for values in blocks_with_closed_form(run, section, {name: part[name] for name in part.columns}):
        require_finite(run, section, values)
        yield values


def _facts(
    run: Run, section: Section, stain: Stain, batches: Sequence[np.ndarray], features: Mapping[str, str | Path | None]
) -> dict[str, Any]:
    """What the values of a section's spots depend on, and their order, under the names that messages use."""
    files = {"section": section.path, "image": section.image_path}
    files |= {name: find_features(place, section.name) for name, place in features.items() if place is not None}
    if stain == "macenko":
        files["tissue pixels"] = RunFolder(run.folder).tissue_pixels
    hashes = {name: sampled_hash(path) for name, path in files.items() if path is not None and path.is_file()}
    grid = section.grid
    order = [*map(len, batches), *np.concatenate(batches).tolist()]
    return {
        "version": [__version__, str(torch.__version__)],
        "run": run_checksum(run.folder),
        "files": hashes,
        "spots": hashlib.sha256(np.ascontiguousarray(section.spot_px).tobytes()).hexdigest(),
        "order": hashlib.sha256(np.asarray(order, dtype="<i8").tobytes()).hexdigest(),
        "um/px": [grid.um_per_px, grid.pitch_px, section.spot_diameter_px],
        "stain": stain,
        "device": run.device.type,
    }
