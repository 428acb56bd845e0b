"""Whether spots lie on tissue and, where they do not, which mirroring, turn or scale would put them there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hyperst.data.tissue import TissueMap

__all__ = ["Placement", "judge_placement"]

BACKGROUND = 0.05  # least share of tissue in the square around a spot; measured spots have 0.2 and more
_SUSPECT = 0.02  # share of spots on background from which another placement is looked for
_FEWER = 0.25  # an explanation leaves at most this part of them on background
_GAIN = 0.05  # and lies on so much more tissue, in the mean over spots
_ENOUGH = 2000  # spots to find the scale with: Visium HD has hundreds of thousands
_SCALES = np.geomspace(0.05, 20.0, 301)  # 2 % apart


@dataclass(frozen=True)
class Placement:
    """Where spots lie.

    Attributes:
        fraction: float64 (spot,), share of tissue in a square around each spot.
        background: bool (spot,), whether there is as good as none.
        explanation: what would put the spots on tissue, in words, or None; and how many it would leave on background.
    """

    fraction: np.ndarray
    background: np.ndarray
    explanation: str | None = None
    explained: int = 0

    @property
    def n_background(self) -> int:
        """Number of spots on background."""
        return int(self.background.sum())


def judge_placement(spot_px: np.ndarray, tissue: TissueMap, window_px: float) -> Placement:
    """Count the spots on background and, if they are more than 2 %, look for the mistake that explains them.

    Tried are the mirrorings and turns of the image, the same around the middle of the spots, and other scales. One is named
    if it leaves at most a quarter of these spots on background and gains 5 % of tissue; of several, the one with most tissue.

    Args:
        spot_px: float (spot 2) x, y in full-resolution pixels.
        window_px: side of the squares around them, see :func:`hyperst.data.tissue.spot_window`.
    """
    fraction = tissue.fraction(spot_px, window_px)
    background = fraction < BACKGROUND
    if not tissue.share or background.mean() <= _SUSPECT:
        return Placement(fraction, background)
    best, gain = Placement(fraction, background), _GAIN
    for words, moved, scale in _candidates(spot_px, tissue):
        there = tissue.fraction(moved, window_px * scale)
        left = int((there < BACKGROUND).sum())
        if there.mean() - fraction.mean() >= gain and left <= _FEWER * background.sum():
            best, gain = Placement(fraction, background, words, left), float(there.mean() - fraction.mean())
    return best


def _candidates(spot_px: np.ndarray, tissue: TissueMap) -> Iterator[tuple[str, np.ndarray, float]]:
    """(words, positions, scale) of each mistake that files are known to have."""
    x, y = spot_px.T
    width, height = tissue.width, tissue.height
    yield "exchanging x and y", np.stack([y, x], axis=1), 1.0
    yield "mirroring the positions left to right (x to width - x)", np.stack([width - x, y], axis=1), 1.0
    yield "mirroring the positions top to bottom (y to height - y)", np.stack([x, height - y], axis=1), 1.0
    yield "turning the positions by 180 degrees on the image", np.stack([width - x, height - y], axis=1), 1.0
    yield "turning the positions by 90 degrees clockwise on the image", np.stack([width - y, x], axis=1), 1.0
    yield "turning the positions by 90 degrees counterclockwise on the image", np.stack([y, height - x], axis=1), 1.0
    yield "mirroring the positions along the other diagonal", np.stack([width - y, height - x], axis=1), 1.0
    low, high = spot_px.min(axis=0), spot_px.max(axis=0)
    (left, top), (right, bottom) = low, high
    yield "mirroring the array left to right in its place", np.stack([left + right - x, y], axis=1), 1.0
    yield "mirroring the array top to bottom in its place", np.stack([x, top + bottom - y], axis=1), 1.0
    yield "turning the array by 180 degrees in its place", low + high - spot_px, 1.0
    yield from _scaled(spot_px, tissue)


def _scaled(spot_px: np.ndarray, tissue: TissueMap) -> Iterator[tuple[str, np.ndarray, float]]:
    """The scale at which tissue and spots cover each other best, if they stay inside the image."""
    size = np.array([tissue.width, tissue.height])
    some = spot_px[:: max(1, len(spot_px) // _ENOUGH)]
    spacing = float(np.sqrt(np.prod(np.ptp(some, axis=0)) / len(some)))
    best, found = 0.0, None
    for scale in _SCALES:
        moved = some * scale
        if (moved > size).any() or spacing == 0:
            continue
        covered = tissue.fraction(moved, spacing * scale).sum() * (spacing * scale) ** 2
        all_of_both = tissue.share * size.prod() + len(some) * (spacing * scale) ** 2 - covered
        if covered / all_of_both > best:
            best, found = covered / all_of_both, scale
    if found is not None:
        words = f"multiplying the positions by about {found:.3g} (they are those of an image of another resolution)"
        yield words, spot_px * found, float(found)
