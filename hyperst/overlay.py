"""A section's spots drawn on its image: a mirrored or mis-scaled one is seen at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from hyperst.data.check import Report
from hyperst.files import atomic_path

__all__ = ["draw_overlay"]

_MARK = "hyperst check"
_ON, _OFF = "#00ff66", "#e4002b"


def draw_overlay(report: Report, path: str | Path) -> Path:
    """Draw the spots of an examined section on its image: those on background red, the others green; a PNG.

    The spot of the smallest array row and column is labelled, so that a mirrored array shows. An earlier overlay is replaced.

    Raises:
        ValueError: the section could not be read, or has no image.
        FileExistsError: ``path`` is a file that ``hyperst check`` did not make.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import EllipseCollection
    from matplotlib.figure import Figure

    if report.section is None or report.picture is None:
        raise ValueError(f"{report.path}: nothing to draw, no section or no image was read")
    path = Path(path)
    if path.exists() and not _is_ours(path):
        raise FileExistsError(f"{path} exists and was not made by `hyperst check`; choose another folder with --output")
    section, (picture, scale) = report.section, report.picture
    height, width = picture.shape[:2]
    spots = section.spot_px * scale
    pitch = (section.grid.pitch_px or section.spot_diameter_px or 0.02 * width / scale) * scale
    diameter = section.spot_diameter_px * scale if section.spot_diameter_px else 0.55 * pitch
    background = np.zeros(len(spots), bool) if report.placement is None else report.placement.background

    figure = Figure(figsize=(8, 8 * height / width + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    axis.imshow(picture)
    for which, colour in ((~background, _ON), (background, _OFF)):
        sizes = np.full(int(which.sum()), diameter)
        axis.add_collection(
            EllipseCollection(
                sizes, sizes, np.zeros(len(sizes)), units="xy", offsets=spots[which], offset_transform=axis.transData,
                facecolors="none", edgecolors=colour, linewidths=1.0,
            )
        )  # fmt: skip
    if section.array_index is not None:
        first = int(np.lexsort(section.array_index.T[::-1])[0])
        row, column = section.array_index[first]
        axis.annotate(
            f"row {row}, column {column}", spots[first], xytext=(0, 22), textcoords="offset points", ha="center",
            color="black", fontsize=9, arrowprops={"arrowstyle": "->"}, bbox={"facecolor": "white", "alpha": 0.7, "lw": 0},
        )  # fmt: skip
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(_title(report), fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png", metadata={"Software": _MARK})
    return path


def _title(report: Report) -> str:
    section = report.section
    assert section is not None
    scale = "um/px unknown" if section.grid.um_per_px is None else f"{section.grid.um_per_px:.3g} um/px"
    where = "" if report.placement is None else f", {report.placement.n_background} on background (red)"
    small = "" if section.image_path is not None else "\non the downscaled image that came with it"
    return f"{section.name}: {section.n_spots} spots{where}; {section.grid.kind} grid, {scale}{small}"


def _is_ours(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == _MARK
    except OSError:
        return False
