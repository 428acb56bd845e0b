"""Image files of every kind that is read or refused: one table, from which the tests and docs/reference/image_formats.md come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

HEIGHT, WIDTH = 250, 330
MPP = 0.5


def smooth_pixels() -> np.ndarray:
    """Smooth colours, uint8 (h w 3): what JPEG keeps within a few grey levels, and a wrong colour space misses by tens."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 255 // WIDTH, y * 255 // HEIGHT, (x + y) * 255 // (HEIGHT + WIDTH)], axis=-1).astype(np.uint8)


PIXELS = smooth_pixels()
GREY = PIXELS[..., 1]
ALPHA = PIXELS[..., 0]
CHANNELS = PIXELS.transpose(2, 0, 1)
YCBCR = np.asarray(Image.fromarray(PIXELS).convert("YCbCr"))
PALETTE = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2]).astype(np.uint16) * 257


INTRODUCTION = (
    "Every row is a file that the tests make: what is read has been compared with what was written, what is refused says so",
    "and names the remedy. Each region comes as RGB with 8 bit. Commands are those of [libvips](https://www.libvips.org) and",
    "[Bio-Formats](https://www.openmicroscopy.org/bio-formats/).",
)


class Endings(NamedTuple):
    """File name endings that one library reads, or none does."""

    endings: tuple[str, ...]
    reader: str
    how: str


CONVERTER = "bfconvert"
ENDINGS = (
    Endings((".tif", ".tiff", ".btf", ".qptiff"), "tifffile", "only the tiles or strips under a crop; `.ome.tif` too"),
    Endings((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".jp2", ".j2k"), "Pillow", "whole, once"),
    Endings(
        (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif", ".svslide", ".dcm"),
        'openslide (`pip install "hyperst-kernels[openslide]"`)',
        "only the tiles under a crop; companion files must lie beside it",
    ),
    Endings(
        (".czi", ".vsi", ".isyntax", ".lif", ".nd2", ".oir"), "refused", f"export as OME-TIFF from QuPath, or `{CONVERTER}`"
    ),
)


# Compressions and layouts of TIFF: what each passes to tifffile.

LOSSLESS = {
    "none": {},
    "LZW": {"compression": "lzw"},
    "LZW with predictor": {"compression": "lzw", "predictor": True},
    "deflate": {"compression": "adobe_deflate"},
    "PackBits": {"compression": "packbits"},
    "Zstandard": {"compression": "zstd"},
    "LZMA": {"compression": "lzma"},
    "LERC": {"compression": "lerc"},
    "PNG": {"compression": "png"},
    "JPEG 2000": {"compression": "jpeg2000"},
    "JPEG 2000 (Aperio, RGB)": {"compression": "aperio_jp2000_rgb"},
    "JPEG XL": {"compression": "jpegxl"},
    "JPEG XR": {"compression": "jpegxr"},
    "WebP": {"compression": "webp", "compressionargs": {"level": 100, "lossless": True}},
}
_JPEG = {"compression": "jpeg", "compressionargs": {"level": 95}}
JPEG = {
    "JPEG, RGB": {**_JPEG, "subsampling": None},
    "JPEG, YCbCr": {**_JPEG, "subsampling": (1, 1)},
    "JPEG, YCbCr 4:2:2": {**_JPEG, "subsampling": (2, 1)},
    "JPEG, YCbCr 4:2:0": {**_JPEG, "subsampling": (2, 2)},
}
COMPRESSIONS: dict[str, dict[str, Any]] = {**LOSSLESS, **JPEG}
LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {"rowsperstrip": 16},
    "one strip": {"rowsperstrip": HEIGHT},
    "tiles": {"tile": (96, 96)},
    "240 px tiles": {"tile": (240, 240)},
    "planar": {"tile": (96, 96), "planarconfig": "separate"},
    "pyramid": {"tile": (96, 96)},
    "SubIFD pyramid": {"tile": (96, 96)},
    "BigTIFF": {"tile": (96, 96)},
    "OME-TIFF": {"tile": (96, 96)},
}
STEPS = (2, 4)  # of the coarser resolutions of a pyramid


def exists(compression: str, layout: str) -> bool:
    """Whether there are such files: JPEG in YCbCr and WebP hold colours together, so that planes have neither."""
    return layout != "planar" or not (compression in JPEG or compression == "WebP")


def write_tiff(path: Path, compression: str, layout: str) -> Path:
    """`PIXELS` as TIFF."""
    options = {"photometric": "rgb", **COMPRESSIONS[compression], **LAYOUTS[layout]}
    if layout == "planar":
        tifffile.imwrite(path, CHANNELS, **options)
    elif "pyramid" in layout:
        with tifffile.TiffWriter(path) as file:
            file.write(PIXELS, subifds=len(STEPS) if layout == "SubIFD pyramid" else None, **options)
            for step in STEPS:
                file.write(PIXELS[::step, ::step], subfiletype=1, **options)
    else:
        metadata = {"axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP} if layout == "OME-TIFF" else None
        tifffile.imwrite(path, PIXELS, bigtiff=layout == "BigTIFF", ome=layout == "OME-TIFF", metadata=metadata, **options)
    return path


# Kinds of pixels.


@dataclass(frozen=True)
class Kind:
    """A kind of pixels.

    Attributes:
        what: what the file is.
        name: its name; the ending chooses the reader.
        write: writes it.
        read: RGB uint8 (h w 3) that must be read, within ``within`` grey levels; None if the file must be refused.
        as_: how the page says that it is read, or what a refusal says the file holds.
        remedy: what a refusal says must be done.
    """

    what: str
    name: str
    write: Callable[[Path], object]
    read: np.ndarray | None
    as_: str
    remedy: str = ""
    within: int = 0


def tiff(pixels: np.ndarray, **options: Any) -> Callable[[Path], object]:
    return lambda path: tifffile.imwrite(path, pixels, **options)


def pillow(pixels: np.ndarray, mode: str | None = None, **options: Any) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        image = Image.fromarray(pixels)
        (image if mode is None else image.convert(mode)).save(path, **options)

    return write


def ome(names: list[str]) -> dict[str, Any]:
    return {"photometric": "minisblack", "metadata": {"axes": "CYX", "Channel": {"Name": names}} if names else {"axes": "CYX"}}


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.rint(pixels * share + 255 * (1 - share)).astype(np.uint8)


def premultiplied(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([np.rint(pixels * (alpha[..., None] / 255)).astype(np.uint8), alpha])


def subsampled(path: Path) -> None:
    """Uncompressed YCbCr that says its chroma is subsampled."""
    tifffile.imwrite(path, YCBCR, photometric="ycbcr", subsampling=(1, 1))
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["YCbCrSubSampling"].overwrite((2, 2))


def few_bits(path: Path) -> None:
    """Grey that says it has 4 bit."""
    tifffile.imwrite(path, GREY // 16, photometric="minisblack", bitspersample=4)


GREY_RGB = np.repeat(GREY[..., None], 3, axis=-1)
PALETTE_RGB = (PALETTE // 257).astype(np.uint8).T[GREY]
VIPS, FIJI, EIGHT = "vips colourspace", "Fiji: Image > Type > RGB Color", "8 bit per channel"
KINDS = (
    Kind("TIFF, RGB", "rgb.tif", tiff(PIXELS, photometric="rgb"), PIXELS, "read"),
    Kind("TIFF, grey", "grey.tif", tiff(GREY, photometric="minisblack"), GREY_RGB, "grey in every colour"),
    Kind("TIFF, grey, white is zero", "white.tif", tiff(255 - GREY, photometric="miniswhite"), GREY_RGB, "inverted"),
    Kind(
        "TIFF, palette",
        "palette.tif",
        tiff(GREY, photometric="palette", colormap=PALETTE),
        PALETTE_RGB,
        "the palette's colours",
    ),
    Kind(
        "TIFF, RGB and a sample of no stated meaning",
        "unspecified.tif",
        tiff(np.dstack([PIXELS, ALPHA]), photometric="rgb", extrasamples=["unspecified"]),
        PIXELS,
        "the sample is left out",
    ),
    Kind(
        "TIFF, RGB and alpha",
        "alpha.tif",
        tiff(np.dstack([PIXELS, ALPHA]), photometric="rgb", extrasamples=["unassalpha"]),
        over_white(PIXELS, ALPHA),
        "laid over white",
    ),
    Kind(
        "TIFF, RGB and alpha, planar",
        "planar_alpha.tif",
        tiff(
            np.stack([*CHANNELS, ALPHA]), photometric="rgb", planarconfig="separate", extrasamples=["unassalpha"]
        ),
        over_white(PIXELS, ALPHA),
        "laid over white",
    ),
    Kind(
        "TIFF, RGB multiplied with alpha",
        "premultiplied.tif",
        tiff(premultiplied(PIXELS, ALPHA), photometric="rgb", extrasamples=["assocalpha"]),
        over_white(PIXELS, ALPHA),
        "laid over white",
        within=1,  # the product with alpha was rounded
    ),
    Kind(
        "TIFF, YCbCr without compression",
        "ycbcr.tif",
        tiff(YCBCR, photometric="ycbcr", subsampling=(1, 1)),
        np.asarray(Image.fromarray(YCBCR, mode="YCbCr").convert("RGB")),
        "converted",
        within=1,  # Pillow rounds in fixed point
    ),
    Kind("TIFF, YCbCr, subsampled without JPEG", "chroma.tif", subsampled, None, "subsampled YCbCr", "vips copy"),
    Kind(
        "TIFF, YCbCr in JPEG 2000",
        "ycbcr2000.tif",
        tiff(YCBCR, photometric="ycbcr", subsampling=(1, 1), compression="jpeg2000"),
        None,
        "YCbCr colours in compression JPEG2000",
        "vips copy",
    ),
    Kind(
        "TIFF, JPEG 2000 (Aperio, YCbCr)",
        "aperio.tif",
        tiff(YCBCR, photometric="rgb", compression="aperio_jp2000_ycbc", tile=(64, 64)),
        None,
        "Aperio's JPEG 2000 in YCbCr",
        "name the file .svs",
    ),
    Kind(
        "TIFF, CMYK",
        "inks.tif",
        tiff(np.dstack([PIXELS, ALPHA]), photometric="separated"),
        None,
        "printing inks (CMYK)",
        VIPS,
    ),
    Kind("TIFF, CIELAB", "lab.tif", tiff(PIXELS, photometric="cielab"), None, "CIELAB colours", VIPS),
    Kind(
        "TIFF, 16 bit RGB",
        "deep.tif",
        tiff(PIXELS.astype(np.uint16) * 257, photometric="rgb"),
        None,
        "pixels of 16 bit",
        EIGHT,
    ),
    Kind(
        "TIFF, 16 bit grey", "deep_grey.tif", tiff(GREY.astype(np.uint16), photometric="minisblack"), None, "16 bit", EIGHT
    ),
    Kind(
        "TIFF, floating point",
        "float.tif",
        tiff(PIXELS.astype(np.float32), photometric="rgb"),
        None,
        "pixels of 32 bit floating point",
        EIGHT,
    ),
    Kind("TIFF, 4 bit grey", "shallow.tif", few_bits, None, "pixels of 4 bit", EIGHT),
    Kind("TIFF, black and white", "bilevel.tif", tiff(GREY > 99, photometric="minisblack"), None, "pixels of 1 bit", EIGHT),
    Kind(
        "TIFF, 4 grey samples per pixel (fluorescence)",
        "four.tif",
        tiff(np.dstack([PIXELS, ALPHA]), photometric="minisblack", planarconfig="contig"),
        None,
        "4 channels of unknown meaning",
        FIJI,
    ),
    Kind(
        "OME-TIFF, 4 channels (fluorescence)",
        "four.ome.tif",
        tiff(np.stack([*CHANNELS, ALPHA]), **ome(["DAPI", "FITC", "Cy3", "Cy5"])),
        None,
        "4 separate channels (DAPI, FITC, Cy3, Cy5)",
        FIJI,
    ),
    Kind(
        "OME-TIFF, 3 channels without names", "three.ome.tif", tiff(CHANNELS, **ome([])), None, "3 separate channels", FIJI
    ),
    Kind(
        "OME-TIFF, 3 channels named Red, Green, Blue",
        "named.ome.tif",
        tiff(CHANNELS, **ome(["Red", "Green", "Blue"])),
        PIXELS,
        "read",
    ),
    Kind(
        "ImageJ TIFF, RGB", "imagej.tif", tiff(PIXELS, imagej=True, photometric="rgb"), PIXELS, "read"
    ),
    Kind(
        "ImageJ TIFF, composite of 3 channels",
        "composite.tif",
        tiff(CHANNELS, imagej=True, photometric="minisblack", metadata={"axes": "CYX", "mode": "composite"}),
        None,
        "3 separate channels",
        FIJI,
    ),
    Kind(
        "TIFF, a stack of planes or times",
        "stack.tif",
        tiff(np.stack([PIXELS, PIXELS]), photometric="rgb"),
        None,
        "several images or planes",
        "save the one brightfield (H&E) plane",
    ),
    Kind("PNG, RGB", "rgb.png", pillow(PIXELS), PIXELS, "read"),
    Kind("PNG, RGB and alpha", "alpha.png", pillow(np.dstack([PIXELS, ALPHA])), over_white(PIXELS, ALPHA), "laid over white", within=1),
    Kind("PNG, grey", "grey.png", pillow(GREY), GREY_RGB, "grey in every colour"),
    Kind("PNG, palette", "palette.png", pillow(GREY, "P"), GREY_RGB, "the palette's colours"),
    Kind("PNG, 16 bit grey", "deep.png", pillow(GREY.astype(np.uint16)), None, "pixels of 16 bit", EIGHT),
    Kind(
        "PNG, 16 bit RGB",
        "deep_rgb.png",
        lambda path: path.write_bytes(imagecodecs.png_encode(PIXELS.astype(np.uint16))),
        None,
        "pixels of 16 bit",
        EIGHT,
    ),
    Kind("PNG, black and white", "bilevel.png", pillow(GREY, "1"), None, "pixels of 1 bit", EIGHT),
    Kind("JPEG, RGB", "rgb.jpg", pillow(PIXELS, quality=95), PIXELS, "read", within=6),
    Kind("JPEG, grey", "grey.jpg", pillow(GREY, quality=95), GREY_RGB, "grey in every colour", within=6),
    Kind("JPEG, CMYK", "inks.jpg", pillow(PIXELS, "CMYK"), None, "printing inks (CMYK)", VIPS),
    Kind("JPEG 2000", "rgb.jp2", pillow(PIXELS), PIXELS, "read"),
    Kind("WebP", "rgb.webp", pillow(PIXELS, lossless=True), PIXELS, "read"),
    Kind("BMP", "rgb.bmp", pillow(PIXELS), PIXELS, "read"),
)


# um per pixel.

ABOUT_SCALE = (
    "One rule holds for every source, `--mpp` and the files of a section too: um/px are between 0.05 and 20. What an image",
    "records and cannot be true is ignored, and told where no other source is found; what `--mpp` or a section's file says and",
    "cannot be true is an error. When the um/px that are used differ from the image's own by more than 10 %, a warning says so.",
)
ABOUT_DAMAGE = (
    "A tile that cannot be decoded stops the command and is named. `hyperst predict --skip-damaged` leaves such tiles white,",
    "counts them (`uns['hyperst']['damaged_tiles']`) and marks the spots whose niche they touch (`obs['on_damaged_tile']`).",
    "",
    "An image that must be decoded whole and does not fit into memory is refused before it is decoded, with the command that makes",
    "a tiled TIFF of it: `vips copy slide.png \"slide_tiled.tif[tile,pyramid,compression=jpeg,Q=90,bigtiff]\"`.",
)


@dataclass(frozen=True)
class Scale:
    """A place where an image file says how large its pixels are: ``mpp`` is what must be read, or ``problem`` be said."""

    what: str
    name: str
    write: Callable[[Path], object]
    mpp: float | None
    problem: str = ""


def ome_size(size: float, unit: str | None = "µm", other: float | None = None, **options: Any) -> Callable[[Path], object]:
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
        tiff(PIXELS, photometric="rgb", description="Aperio Image Library|AppMag = 20|MPP = 0.5000|Left = 2", metadata=None),
        MPP,
    ),
    Scale("PNG, pixels per metre", "dots.png", pillow(PIXELS, dpi=(50_800, 50_800)), MPP),
    Scale("JPEG, 50800 per inch", "dots.jpg", pillow(PIXELS, dpi=(50_800, 50_800)), MPP),
    Scale("PNG, 96 per inch", "screen.png", pillow(PIXELS, dpi=(96, 96)), None, NO_SUCH),
    Scale("JPEG without density", "plain.jpg", pillow(PIXELS), None),
)
