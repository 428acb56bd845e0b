"""Panels of tissue: the image with a scale bar, spots at their true size with a colour bar; and how figures are saved."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hyperst.files import atomic_path
from hyperst.plots.tissue import Tissue

__all__ = [
    "FORMATS",
    "check_format",
    "draw_image",
    "draw_spots",
    "nice_length",
    "paper_style",
    "require_figure",
    "save",
]

FORMATS = ("pdf", "svg", "png")
_MARK = "hyperst figure"
_MOST_VECTORS = 5000  # spots that a vector graphic holds one by one
_FAINT_SIDE = 400  # pixels of the picture behind spots
_BAR_SHARE = 0.3  # of a panel's width, the longest scale bar


@contextmanager
def paper_style() -> Iterator[None]:
    """Small type that stays text in PDF and SVG."""
    import matplotlib

    settings: Any = {
        "font.size": 7,
        "axes.titlesize": 7,
        "axes.labelsize": 7,
        "figure.titlesize": 8,
        "xtick.labelsize": 6,
        "ytick.labelsize": 6,
        "legend.fontsize": 6,
        "axes.linewidth": 0.5,
        "pdf.fonttype": 42,
        "svg.fonttype": "none",
    }
    with matplotlib.rc_context(settings):
        yield


def check_format(path: str | Path) -> str:
    """The format that the ending of ``path`` names. Raises ValueError where it names none."""
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise ValueError(f"{path} must end in one of {', '.join(f'.{each}' for each in FORMATS)}")
    return ending


def require_figure(path: Path) -> None:
    """Raise FileExistsError where ``path`` is a file that is none of these figures."""
    if path.is_file() and _MARK.encode() not in path.read_bytes():
        raise FileExistsError(f"{path} exists and is no figure of hyperst; choose another place with --output")


def save(figure: Any, path: str | Path, dpi: int) -> Path:
    """Write a figure atomically, in the format that ``path`` ends in; an earlier file is replaced."""
    path = Path(path)
    ending = check_format(path)
    metadata = {"Software": _MARK} if ending == "png" else {"Creator": _MARK}
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format=ending, metadata=metadata)
    return path


def draw_image(axis: Any, tissue: Tissue, title: str) -> None:
    """The tissue, with a scale bar; circles for the spots where there is no image."""
    _frame(axis, tissue, title)
    if tissue.picture is not None:
        axis.imshow(tissue.picture, extent=_extent(tissue))
    else:
        axis.add_collection(_circles(axis, tissue, facecolors="none", edgecolors="0.6", linewidths=0.4))
    _scale_bar(axis, tissue)


def draw_spots(axis: Any, tissue: Tissue, values: np.ndarray, title: str, **colours: Any) -> Any:
    """Spots coloured by ``values`` (spot,) over the faint tissue; ``colours`` are those of a collection: cmap, norm."""
    _frame(axis, tissue, title)
    if tissue.picture is not None:
        step = max(1, max(tissue.picture.shape) // _FAINT_SIDE)
        axis.imshow(tissue.picture[::step, ::step], extent=_extent(tissue), alpha=0.35)
    circles = _circles(axis, tissue, array=values, linewidths=0, **colours)
    circles.set_rasterized(len(values) > _MOST_VECTORS)
    axis.add_collection(circles)
    return circles


def nice_length(longest: float) -> float:
    """The longest of 1, 2, 5, 10, 20, ... and their tenths that is at most ``longest``.

    >>> nice_length(730), nice_length(20), nice_length(0.17)
    (500, 20, 0.1)
    """
    power = 10.0 ** math.floor(math.log10(longest))
    found = max(step for step in (1, 2, 5) if step * power <= longest * (1 + 1e-9)) * power
    return round(found) if found >= 1 else found


def _frame(axis: Any, tissue: Tissue, title: str) -> None:
    left, top, right, bottom = tissue.box
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, top)
    axis.set_aspect("equal")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title)


def _extent(tissue: Tissue) -> tuple[float, float, float, float]:
    left, top, right, bottom = tissue.box
    return left, right, bottom, top


def _circles(axis: Any, tissue: Tissue, **style: Any) -> Any:
    from matplotlib.collections import EllipseCollection

    sizes = np.full(len(tissue.spot_px), tissue.diameter_px)
    angles = np.zeros(len(sizes))
    return EllipseCollection(
        sizes, sizes, angles, units="xy", offsets=tissue.spot_px, offset_transform=axis.transData, **style
    )


def _scale_bar(axis: Any, tissue: Tissue) -> None:
    """A black bar on white in the lower left corner, in um, or in pixels of the full image where um/px are unknown."""
    left, top, right, bottom = tissue.box
    unit = 1.0 if tissue.um_per_px is None else tissue.um_per_px
    length = nice_length(_BAR_SHARE * (right - left) * unit)
    text = (
        f"{length:g} px"
        if tissue.um_per_px is None
        else f"{length / 1000:g} mm"
        if length >= 1000
        else f"{length:g} µm"
    )
    x, y, gap = left + 0.05 * (right - left), bottom - 0.05 * (bottom - top), 0.02 * (bottom - top)
    axis.plot([x, x + length / unit], [y, y], color="black", linewidth=1.5, solid_capstyle="butt")
    axis.text(
        x + length / unit / 2, y - gap, text, ha="center", va="bottom", color="black", fontsize=6,
        bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1},
    )  # fmt: skip
