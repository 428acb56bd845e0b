"""Image files of every kind that is read or refused: one table, from which the tests and docs/reference/image_formats.md come."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

HEIGHT, WIDTH = 250, 330


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
    "Below the first table every row is a file that the tests make: what is read has been compared with what was written, what",
    "is refused says what the file holds and names the remedy. Each region comes as RGB with 8 bit. Commands are those of",
    "[libvips](https://www.libvips.org) and [Bio-Formats](https://www.openmicroscopy.org/bio-formats/).",
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
        (".czi", ".vsi", ".isyntax", ".lif", ".nd2", ".oir"),
        "refused",
        f"export as OME-TIFF from QuPath, or `{CONVERTER}`",
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
    """Whether there are such files: WebP and JPEG with subsampled chroma hold the colours together."""
    return layout != "planar" or not (compression == "WebP" or "YCbCr" in compression)


def write_tiff(path: Path, compression: str, layout: str) -> Path:
    """`PIXELS` as TIFF."""
    options = copy.deepcopy(
        {"photometric": "rgb", **COMPRESSIONS[compression], **LAYOUTS[layout]}
    )  # tifffile adds to it
    if layout == "planar" and compression in JPEG:
        options |= {"photometric": "ycbcr", "subsampling": (1, 1)}  # the only planes of JPEG that tifffile writes
        tifffile.imwrite(path, CHANNELS, **options)
        with tifffile.TiffFile(path, mode="r+b") as file:
            file.pages[0].tags["PhotometricInterpretation"].overwrite(2)
    elif layout == "planar":
        tifffile.imwrite(path, CHANNELS, **options)
    elif "pyramid" in layout:
        with tifffile.TiffWriter(path) as file:
            file.write(PIXELS, subifds=len(STEPS) if layout == "SubIFD pyramid" else None, **options)
            for step in STEPS:
                file.write(PIXELS[::step, ::step], subfiletype=1, **options)
    else:
        metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5} if layout == "OME-TIFF" else None
        tifffile.imwrite(
            path, PIXELS, bigtiff=layout == "BigTIFF", ome=layout == "OME-TIFF", metadata=metadata, **options
        )
    return path


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
    return lambda path: tifffile.imwrite(path, pixels, **copy.deepcopy(options))


def pillow(pixels: np.ndarray, mode: str | None = None, **options: Any) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        image = Image.fromarray(pixels)
        (image if mode is None else image.convert(mode)).save(path, **options)

    return write


def ome(names: list[str]) -> dict[str, Any]:
    return {
        "photometric": "minisblack",
        "metadata": {"axes": "CYX", "Channel": {"Name": names}} if names else {"axes": "CYX"},
    }


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.rint(pixels * share + 255 * (1 - share)).astype(np.uint8)


def premultiplied(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([np.rint(pixels * (alpha[..., None] / 255)).astype(np.uint8), alpha])


def subsampled(path: Path) -> None:
    tifffile.imwrite(path, YCBCR, photometric="ycbcr", subsampling=(1, 1))
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["YCbCrSubSampling"].overwrite((2, 2))


def few_bits(path: Path) -> None:
    tifffile.imwrite(path, GREY, photometric="minisblack")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["BitsPerSample"].overwrite(4)


GREY_RGB = np.repeat(GREY[..., None], 3, axis=-1)
PALETTE_RGB = (PALETTE // 257).astype(np.uint8).T[GREY]
VIPS, FIJI = "vips colourspace", "Fiji: Image > Type > RGB Color"
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
        tiff(np.stack([*CHANNELS, ALPHA]), photometric="rgb", planarconfig="separate", extrasamples=["unassalpha"]),
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
    Kind(
        "TIFF, YCbCr in planes of JPEG",
        "planes.tif",
        tiff(
            YCBCR.transpose(2, 0, 1),
            photometric="ycbcr",
            planarconfig="separate",
            subsampling=(1, 1),
            compression="jpeg",
            compressionargs={"level": 95},
        ),
        PIXELS,
        "converted",
        within=6,
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
        VIPS,
    ),
    Kind(
        "TIFF, 16 bit grey",
        "deep_grey.tif",
        tiff(GREY.astype(np.uint16), photometric="minisblack"),
        None,
        "16 bit",
        VIPS,
    ),
    Kind(
        "TIFF, floating point",
        "float.tif",
        tiff(PIXELS.astype(np.float32), photometric="rgb"),
        None,
        "pixels of 32 bit floating point",
        VIPS,
    ),
    Kind("TIFF, 4 bit grey", "shallow.tif", few_bits, None, "pixels of 4 bit", VIPS),
    Kind(
        "TIFF, black and white",
        "bilevel.tif",
        tiff(GREY > 99, photometric="minisblack"),
        None,
        "pixels of 1 bit",
        VIPS,
    ),
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
        "OME-TIFF, 3 channels without names",
        "three.ome.tif",
        tiff(CHANNELS, **ome([])),
        None,
        "3 separate channels",
        FIJI,
    ),
    Kind(
        "OME-TIFF, 3 channels named Red, Green, Blue",
        "named.ome.tif",
        tiff(CHANNELS, **ome(["Red", "Green", "Blue"])),
        PIXELS,
        "read",
    ),
    Kind("ImageJ TIFF, RGB", "imagej.tif", tiff(PIXELS, imagej=True, photometric="rgb"), PIXELS, "read"),
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
    Kind(
        "PNG, RGB and alpha",
        "alpha.png",
        pillow(np.dstack([PIXELS, ALPHA])),
        over_white(PIXELS, ALPHA),
        "laid over white",
        within=1,
    ),
    Kind("PNG, grey", "grey.png", pillow(GREY), GREY_RGB, "grey in every colour"),
    Kind("PNG, palette", "palette.png", pillow(GREY, "P"), GREY_RGB, "the palette's colours"),
    Kind("PNG, 16 bit grey", "deep.png", pillow(GREY.astype(np.uint16)), None, "pixels of 16 bit", VIPS),
    Kind(
        "PNG, 16 bit RGB",
        "deep_rgb.png",
        lambda path: path.write_bytes(imagecodecs.png_encode(PIXELS.astype(np.uint16))),
        None,
        "pixels of 16 bit",
        VIPS,
    ),
    Kind("PNG, black and white", "bilevel.png", pillow(GREY, "1"), None, "pixels of 1 bit", VIPS),
    Kind("JPEG, RGB", "rgb.jpg", pillow(PIXELS, quality=95), PIXELS, "read", within=6),
    Kind("JPEG, grey", "grey.jpg", pillow(GREY, quality=95), GREY_RGB, "grey in every colour", within=6),
    Kind("JPEG, CMYK", "inks.jpg", pillow(PIXELS, "CMYK"), None, "printing inks (CMYK)", VIPS),
    Kind("JPEG 2000", "rgb.jp2", pillow(PIXELS), PIXELS, "read"),
    Kind("WebP", "rgb.webp", pillow(PIXELS, lossless=True), PIXELS, "read"),
    Kind("BMP", "rgb.bmp", pillow(PIXELS), PIXELS, "read"),
)
