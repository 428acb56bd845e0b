"""How many um a pixel can measure: one rule, whatever said it."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "LARGEST_SCALE_ERROR",
    "PLAUSIBLE_UM_PER_PX",
    "RecordedScale",
    "check_mpp",
    "recorded_scale",
    "scale_conflict",
    "um_per_unit",
]

PLAUSIBLE_UM_PER_PX = (0.05, 20.0)
"""Pixels of a histology image, um: from finer than a 100x objective to a thumbnail in which a spot has a few pixels left."""
LARGEST_SCALE_ERROR = 0.10
"""Two statements of um/px that differ by more, relatively, contradict each other."""

_UM_PER_UNIT = {
    "pm": 1e-6,
    "Å": 1e-4,
    "nm": 1e-3,
    "μm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "dm": 1e5,
    "m": 1e6,
    "in": 25_400.0,
    "inch": 25_400.0,
    "inches": 25_400.0,
}
# What a number that is no um/px would be in another unit, for the message.
_OTHER_UNITS = (("m", 1e6), ("mm", 1e3), ("nm", 1e-3))


@dataclass(frozen=True)
class RecordedScale:
    """What an image file says about its pixels.

    Attributes:
        mpp: um/px, or None when the file records none that can be true.
        source: where in the file it stands, such as "OME PhysicalSizeX".
        problem: what the file records instead, when that cannot be true; else "".
    """

    mpp: float | None = None
    source: str = ""
    problem: str = ""


def check_mpp(value: float, source: str, remedy: str = "") -> float:
    """Return ``value`` as float if it can be the um/px of a histology image.

    Args:
        source: who says so, such as "--mpp".
        remedy: what to do where ``value`` is no um/px, as a sentence.

    Raises:
        ValueError: zero, negative, not finite, or outside `PLAUSIBLE_UM_PER_PX`.

    >>> check_mpp(0.5, "--mpp")
    0.5
    >>> check_mpp(1400, "--mpp")
    Traceback (most recent call last):
    ...
    ValueError: --mpp says 1400 um per pixel; the pixels of a histology image measure 0.05 to 20 um (0.25 in a 40x scan, 0.5
    in a 20x scan). Is it in nm? Then it is 1.4 um
    """
    if _plausible(value):
        return float(value)
    low, high = PLAUSIBLE_UM_PER_PX
    said = f"says {value:g}" if math.isfinite(value) and value > 0 else f"is {value:g}, no"
    message = (
        f"{source} {said} um per pixel; the pixels of a histology image measure {low:g} to {high:g} um "
        "(0.25 in a 40x scan, 0.5 in a 20x scan)"
    )
    for unit, um in _OTHER_UNITS:
        if _plausible(value * um):
            message += f". Is it in {unit}? Then it is {value * um:.4g} um"
    raise ValueError(message + (f". {remedy}" if remedy else ""))


def recorded_scale(x: float, y: float, source: str) -> RecordedScale:
    """What a file's um per pixel along x and y amount to; without an mpp, and with the problem, where they cannot be true.

    Many files carry the dots per inch of a screen or a printer, so that a wrong value is no error of the file.

    >>> recorded_scale(0.5, 0.5, "resolution tags").mpp
    0.5
    >>> recorded_scale(352.8, 352.8, "resolution tags").problem
    'its resolution tags say 352.8 um/px, which no histology image has'
    """
    for value in (x, y):
        if not _plausible(value):
            return RecordedScale(None, source, f"its {source} say {value:.4g} um/px, which no histology image has")
    if abs(x / y - 1) > LARGEST_SCALE_ERROR:
        return RecordedScale(
            None, source, f"its {source} say {x:.4g} x {y:.4g} um per pixel, but pixels must be square"
        )
    return RecordedScale(float(x), source)


def scale_conflict(used: float | None, recorded: RecordedScale, image: Path | None) -> str:
    """Words for an image whose own um/px are not those that are used; "" where both agree or one is unknown.

    >>> scale_conflict(1.4, RecordedScale(0.5, "resolution tags"), Path("slide.tif"))
    'slide.tif: its resolution tags say 0.5 um/px, but 1.4 um/px are used'
    """
    if used is None or recorded.mpp is None or abs(used / recorded.mpp - 1) <= LARGEST_SCALE_ERROR:
        return ""
    return f"{image}: its {recorded.source} say {recorded.mpp:.4g} um/px, but {used:.4g} um/px are used"


def um_per_unit(name: str) -> float | None:
    """Length of a unit in um, or None for what is no length ("pixel", "reference frame").

    >>> um_per_unit("µm"), um_per_unit("cm"), um_per_unit("Inch"), um_per_unit("pixel")
    (1.0, 10000.0, 25400.0, None)
    """
    name = unicodedata.normalize("NFKC", name.replace("\\u00B5", "µ").strip())  # two letters look like a micro sign
    return _UM_PER_UNIT.get(name if len(name) < 3 else name.lower())


def _plausible(value: float) -> bool:
    low, high = PLAUSIBLE_UM_PER_PX
    return math.isfinite(value) and low <= value <= high
