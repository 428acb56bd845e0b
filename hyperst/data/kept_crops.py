"""Crops that are read once and kept, for all the datasets of a training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hyperst.data.crops import CropConfig, crop_widths_px, read_crops
from hyperst.data.sections import Section

__all__ = ["KeptCrops"]


class KeptCrops:
    """Crops of spots in memory, uint8, each read from its image once, whichever datasets ask for it."""

    def __init__(self) -> None:
        self._sections: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}

    def holds(self, section: Section, crop: CropConfig, spots: np.ndarray) -> bool:
        """Whether those of all these ``spots``, int64 (n,), have been read."""
        found = self._sections.get(_key(section, crop))
        return found is not None and bool(found[1][spots].all())

    def read(
        self, section: Section, crop: CropConfig, spots: np.ndarray, on_crops: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Crops (spot level s s 3) of a section, in which those of ``spots``, int64 (n,), are filled in.

        ``on_crops`` is called with numbers of spots that add up to n. Errors: see :func:`hyperst.data.read_crops`.
        """
        key, size = _key(section, crop), crop.image_size
        if key not in self._sections:
            crops = np.empty((section.n_spots, len(crop.levels), size, size, 3), dtype=np.uint8)
            self._sections[key] = crops, np.zeros(section.n_spots, dtype=bool)
        crops, known = self._sections[key]
        missing = spots[~known[spots]]
        tell = on_crops or (lambda _: None)
        if len(missing) < len(spots):
            tell(len(spots) - len(missing))
        for spot, of_spot in read_crops(section, crop, missing):
            crops[spot], known[spot] = of_spot, True
            tell(1)
        return crops


def _key(section: Section, crop: CropConfig) -> tuple:
    """What decides how the crops of a section look."""
    widths = crop_widths_px(section.grid, section.spot_diameter_px, crop)
    return section.image_path, section.spot_px.tobytes(), widths, crop.image_size
