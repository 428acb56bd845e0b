"""Where an image file says how large its pixels are: the table from which tests and docs/reference/image_formats.md come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hyperst.data.image_formats import PIXELS, pillow, tiff

MPP = 0.5

ABOUT_SCALE = (
    "One rule holds for every source, `--mpp` and the files of a section too: um/px are between 0.05 and 20. What an image",
    "records and cannot be true is ignored, and told where no other source is found; what `--mpp` or a section's file says and",
    "cannot be true is an error. When the um/px that are used differ from the image's own by more than 10 %, a warning says so.",
)
ABOUT_ORIENTATION = (
    "The tag Orientation of EXIF and TIFF says that an image is to be shown turned or mirrored. Some programs follow it and",
    "others do not, so nothing tells which of the two the positions of spots belong to. Such an image is refused, whatever its",
    "format; the message has the command that stores it as it is shown (`vips autorot`) and the one that removes the tag.",
)
ABOUT_DAMAGE = (
    "A tile that cannot be decoded stops the command and is named. `hyperst predict --skip-damaged` leaves such tiles white,",
    "counts them (`uns['hyperst']['damaged_tiles']`) and marks the spots whose niche they touch (`obs['on_damaged_tile']`).",
    "",
    "An image that must be decoded whole and does not fit into memory is refused before it is decoded, with the command that makes",
    'a tiled TIFF of it: `vips copy slide.png "slide_tiled.tif[tile,pyramid,compression=jpeg,Q=90,bigtiff]"`.',
)


@dataclass(frozen=True)
class Scale:
    """A place where an image file says how large its pixels are: ``mpp`` is what must be read, or ``problem`` be said."""

    what: str
    name: str
    write: Callable[[Path], object]
    mpp: float | None
    problem: str = ""


def ome_size(
    size: float, unit: str | None = "µm", other: float | None = None, **options: Any
) -> Callable[[Path], object]:
    metadata: dict[str, Any] = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size if other is None else other}
    if unit is not None:
        metadata |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    return tiff(PIXELS, photometric="rgb", metadata=metadata, **options)


def tags(per_unit: float, unit: str) -> Callable[[Path], object]:
    return tiff(PIXELS, photometric="rgb", resolution=(per_unit, per_unit), resolutionunit=unit, metadata=None)


def imagej(per_unit: float, unit: str) -> Callable[[Path], object]:
    return tiff(PIXELS, photometric="rgb", imagej=True, resolution=(per_unit, per_unit), metadata={"unit": unit})


NO_SUCH = "which no histology image has"
SCALES = (
    Scale("OME, um", "um.ome.tif", ome_size(0.5), MPP),
    Scale("OME, no unit (um by its schema)", "no_unit.ome.tif", ome_size(0.5, None), MPP),
    Scale("OME, nm", "nm.ome.tif", ome_size(500, "nm"), MPP),
    Scale("OME, mm", "mm.ome.tif", ome_size(5e-4, "mm"), MPP),
    Scale("OME, cm", "cm.ome.tif", ome_size(5e-5, "cm"), MPP),
    Scale("OME, m", "m.ome.tif", ome_size(5e-7, "m"), MPP),
    Scale("OME, inch", "inch.ome.tif", ome_size(0.5 / 25_400, "in"), MPP),
    Scale('OME, "pixel"', "pixel.ome.tif", ome_size(0.5, "pixel"), None),
    Scale('OME, "reference frame"', "frame.ome.tif", ome_size(0.5, "reference frame"), None),
    Scale(
        'OME, "pixel", and resolution tags',
        "both.ome.tif",
        ome_size(1.0, "pixel", resolution=(20_000, 20_000), resolutionunit="CENTIMETER"),
        MPP,
    ),
    Scale("OME, 1400 um", "large.ome.tif", ome_size(1400), None, NO_SUCH),
    Scale("OME, 0.0000014 um", "small.ome.tif", ome_size(1.4e-6), None, NO_SUCH),
    Scale("OME, 0.5 x 1 um", "oblong.ome.tif", ome_size(0.5, other=1.0), None, "pixels must be square"),
    Scale("ImageJ, micron", "micron.tif", imagej(2, "micron"), MPP),
    Scale("ImageJ, um", "um.tif", imagej(2, "um"), MPP),
    Scale("ImageJ, micro sign in its own spelling", "escaped.tif", imagej(2, "\\u00B5m"), MPP),
    Scale("ImageJ, nm", "nm.tif", imagej(0.002, "nm"), MPP),
    Scale("ImageJ, mm", "mm.tif", imagej(2000, "mm"), MPP),
    Scale("ImageJ, cm", "cm.tif", imagej(20_000, "cm"), MPP),
    Scale("ImageJ, inch", "inch.tif", imagej(50_800, "inch"), MPP),
    Scale("ImageJ, pixel", "pixel.tif", imagej(2, "pixel"), None),
    Scale("TIFF resolution per cm", "cm_tag.tif", tags(20_000, "CENTIMETER"), MPP),
    Scale("TIFF resolution per inch", "inch_tag.tif", tags(50_800, "INCH"), MPP),
    Scale("TIFF resolution without unit", "none_tag.tif", tags(20_000, "NONE"), None),
    Scale("TIFF, 72 per inch", "screen.tif", tags(72, "INCH"), None, NO_SUCH),
    Scale(
        "TIFF, Aperio's MPP",
        "aperio.tif",
        tiff(
            PIXELS,
            photometric="rgb",
            description="Aperio Image Library|AppMag = 20|MPP = 0.5000|Left = 2",
            metadata=None,
        ),
        MPP,
    ),
    Scale("PNG, pixels per metre", "dots.png", pillow(PIXELS, dpi=(50_800, 50_800)), MPP),
    Scale("JPEG, 50800 per inch", "dots.jpg", pillow(PIXELS, dpi=(50_800, 50_800)), MPP),
    Scale("PNG, 96 per inch", "screen.png", pillow(PIXELS, dpi=(96, 96)), None, NO_SUCH),
    Scale("JPEG without density", "plain.jpg", pillow(PIXELS), None),
)
