"""A few spots of each map beside the training spots whose images are nearest, with pictures where the images are at hand."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hyperst.data import open_image
from hyperst.data.crops import read_spot_crops
from hyperst.nearest import TrainingSpots
from hyperst.records import SectionRecord
from hyperst.report.spots import SpotMap

__all__ = ["Example", "Neighbour", "nearest_examples"]

_EXAMPLES = 4
_SIDE_PX = 72


@dataclass(frozen=True)
class Neighbour:
    """A training spot: its section, name, distance, and a JPEG of its niche as a data URI, None where the image is not at hand."""

    section: str
    spot: str
    distance: float
    picture: str | None


@dataclass(frozen=True)
class Example:
    """A spot of a map, and the training spots that are nearest to it; ``picture`` as that of a :class:`Neighbour`."""

    spot: str
    picture: str | None
    neighbours: tuple[Neighbour, ...]


def nearest_examples(
    spots: SpotMap, trained: TrainingSpots, records: Sequence[SectionRecord], niche_um: float | None
) -> list[Example]:
    """Four spots from the nearest to the farthest of a map, of which one is nearest to the training and one farthest from it.

    Args:
        records: of the training sections. niche_um: width of the pictures; None leaves them out.

    Returns:
        None of them where the map has no neighbours, or they were looked up among those of other weights.
    """
    if spots.nearest is None or spots.checkpoint != trained.checkpoint:
        return []
    rows, distances = spots.nearest
    order = np.argsort(distances[:, 0], kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(_EXAMPLES, len(order))).round().astype(int))]
    pictures = _training_pictures(trained, np.unique(rows[chosen]), records, niche_um)
    return [
        Example(
            spots.spot_ids[spot],
            _from_overview(spots, spot, niche_um),
            tuple(
                Neighbour(str(trained.sections[row]), str(trained.spots[row]), float(distance), pictures.get(int(row)))
                for row, distance in zip(rows[spot], distances[spot], strict=True)
            ),
        )
        for spot in chosen
    ]


def _training_pictures(
    trained: TrainingSpots, rows: np.ndarray, records: Sequence[SectionRecord], niche_um: float | None
) -> dict[int, str]:
    """Pictures of the niches of these training spots, by row; without those of images that cannot be read any more."""
    found: dict[int, str] = {}
    for record in records:
        own = rows[trained.sections[rows] == record.name]
        if niche_um is None or record.image is None or record.um_per_px is None or not len(own):
            continue
        with suppress(OSError, ValueError, ImportError, MemoryError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an image that training has warned about
            with open_image(Path(record.image)) as image:
                for row in own:
                    crop = read_spot_crops(image, trained.positions[row], [niche_um / record.um_per_px], _SIDE_PX)[0]
                    found[int(row)] = _as_uri(Image.fromarray(crop))
    return found


def _from_overview(spots: SpotMap, spot: int, niche_um: float | None) -> str | None:
    """The niche of a spot of a map, cut from the map's picture."""
    if spots.picture is None or niche_um is None or spots.um_per_px is None:
        return None
    with Image.open(io.BytesIO(base64.b64decode(spots.picture.partition(",")[2]))) as overview:
        scale = overview.width / spots.extent[0]
        half = niche_um / spots.um_per_px * scale / 2
        x, y = spots.positions[spot] * scale
        return _as_uri(overview.convert("RGB").resize((_SIDE_PX,) * 2, box=_within(overview.size, x, y, half)))


def _within(size: tuple[int, int], x: float, y: float, half: float) -> tuple[float, float, float, float]:
    """A square around (x, y), cut off at the borders of the picture, which hold a pixel of it at least."""
    left, top = (float(np.clip(at - half, 0, most - 1)) for at, most in zip((x, y), size, strict=True))
    right, bottom = (
        float(np.clip(at + half, low + 1, most)) for at, low, most in zip((x, y), (left, top), size, strict=True)
    )
    return left, top, right, bottom


def _as_uri(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
