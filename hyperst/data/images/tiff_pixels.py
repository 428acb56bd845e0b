"""What the samples of a TIFF are, and how they become RGB; what is no brightfield image is refused with the remedy.

Photometric interpretation and ExtraSamples decide, never the number of samples alone: four samples can be red, green, blue
and an alpha, four inks, or four fluorescent dyes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from einops import repeat

__all__ = ["RgbConverter", "UnsuitablePixelsError", "rgb_converter"]

RgbConverter = Callable[[np.ndarray], np.ndarray]
"""(h w samples) uint8 to RGB uint8 (h w 3)."""

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _YCBCR: 3}
_UNSPECIFIED, _PREMULTIPLIED, _UNASSOCIATED = 0, 1, 2
_JPEG = {6, 7, 33007, 34892}
_JPEG_2000_YCBCR = 33003
_OTHER_COLOURS = {
    4: "a transparency mask",
    _CMYK: "printing inks (CMYK)",
    8: "CIELAB colours",
    9: "CIELAB colours",
    10: "CIELAB colours",
    32803: "raw sensor data of a camera",
    32844: "logarithmic luminance",
    32845: "logarithmic luminance (LogLuv)",
    34892: "raw sensor data of a camera",
}

TO_SRGB = 'vips colourspace IN.tif "OUT.tif[tile,pyramid,compression=jpeg,Q=90,bigtiff]" srgb'
TO_RGB_TILES = 'vips copy IN.tif "OUT.tif[tile,pyramid,compression=jpeg,Q=90,bigtiff]"'
_BRIGHTFIELD = "HyperST needs the brightfield (H&E) scan in RGB"
_MERGE = f"{_BRIGHTFIELD}; if the channels are red, green and blue, merge them (Fiji: Image > Type > RGB Color) and save again"


class UnsuitablePixelsError(ValueError):
    """Pixels that are no 8 bit grey or RGB of a brightfield image: ``holds`` says what they are, ``remedy`` what to do."""

    def __init__(self, holds: str, remedy: str) -> None:
        super().__init__(f"{holds}; {remedy}")
        self.holds, self.remedy = holds, remedy


def rgb_converter(page: Any, planes: int = 1, channels: Sequence[str] = ()) -> RgbConverter:
    """Return what turns the decoded samples of a page into RGB.

    Args:
        page: ``tifffile.TiffPage``, the first of the image's planes.
        planes: number of pages that hold one channel each; 1 for a page with all samples.
        channels: names of the channels, where the file names them.

    Raises:
        UnsuitablePixelsError: no 8 bit, no colours that are known, or channels of unknown meaning.
    """
    samples, photometric = int(page.samplesperpixel), int(page.photometric)
    if int(page.compression) == _JPEG_2000_YCBCR:  # no decoder says whether it has made RGB of it
        raise UnsuitablePixelsError(
            "Aperio's JPEG 2000 in YCbCr",
            'name the file .svs: openslide reads it (pip install "hyperst-kernels[openslide]")',
        )
    if photometric in _OTHER_COLOURS:
        raise UnsuitablePixelsError(_OTHER_COLOURS[photometric], f"convert to RGB: {TO_SRGB}")
    if photometric not in _COLOURS:
        raise UnsuitablePixelsError(
            f"colours of unknown kind (photometric {photometric})", f"convert to RGB: {TO_SRGB}"
        )
    _check_depth(page, photometric)
    if planes > 1:
        names = [name.lower() for name in channels]
        if planes == 3 and photometric == _BLACK_IS_ZERO and names in (["red", "green", "blue"], ["r", "g", "b"]):
            return _unchanged
        named = f" ({', '.join(channels)})" if any(channels) else ""
        raise UnsuitablePixelsError(f"{planes * samples} separate channels{named}, as of fluorescence", _MERGE)
    extra = [int(kind) for kind in page.extrasamples or ()]
    extra += [_UNSPECIFIED] * (samples - _COLOURS[photometric] - len(extra))
    if samples != _COLOURS[photometric] + len(extra):
        raise UnsuitablePixelsError(f"{samples} samples per pixel of {_name(photometric)}", f"export again: {TO_SRGB}")
    if len(extra) > 1 or (extra == [_UNSPECIFIED] and photometric != _RGB):
        raise UnsuitablePixelsError(f"{samples} channels of unknown meaning, as of fluorescence", _MERGE)
    if extra and photometric == _YCBCR:
        raise UnsuitablePixelsError("YCbCr colours with a further sample", f"convert to RGB: {TO_RGB_TILES}")
    return _with_extra(_colours(page, photometric), _COLOURS[photometric], extra[0] if extra else _UNSPECIFIED)


def _check_depth(page: Any, photometric: int) -> None:
    bits = page.bitspersample
    if photometric == _PALETTE and page.dtype == np.uint8:
        return  # an index may have fewer bits
    if page.dtype != np.uint8 or bits != 8:
        kind = {"f": "floating point", "i": "signed"}.get(getattr(page.dtype, "kind", ""), "")
        raise UnsuitablePixelsError(
            f"pixels of {bits} bit{' ' + kind if kind else ''}",
            f"{_BRIGHTFIELD} with 8 bit per channel: {TO_SRGB}; look whether the result is too dark",
        )


def _colours(page: Any, photometric: int) -> RgbConverter:
    """What turns the samples other than extra ones into RGB."""
    if photometric == _RGB:
        return _unchanged
    if photometric == _PALETTE:
        table = _colour_table(page.colormap)
        return lambda pixels: table[pixels[..., 0]]
    if photometric == _WHITE_IS_ZERO:
        return lambda pixels: repeat(255 - pixels, "h w 1 -> h w rgb", rgb=3)
    if photometric == _BLACK_IS_ZERO:
        return lambda pixels: repeat(pixels, "h w 1 -> h w rgb", rgb=3)
    return _from_ycbcr(page)


def _with_extra(colours: RgbConverter, n: int, extra: int) -> RgbConverter:
    """Lay transparency over white; a further sample that the file does not call alpha says nothing about colours."""
    if extra == _PREMULTIPLIED:

        def over_white(pixels: np.ndarray) -> np.ndarray:
            # A colour above its alpha is an error of lossy compression: it cannot be brighter than white.
            total = colours(pixels[..., :n]).astype(np.uint16) + (255 - pixels[..., n : n + 1])
            return np.minimum(total, 255).astype(np.uint8)

        return over_white
    if extra == _UNASSOCIATED:

        def mixed_with_white(pixels: np.ndarray) -> np.ndarray:
            alpha = pixels[..., n : n + 1].astype(np.float32) / 255
            return np.rint(colours(pixels[..., :n]) * alpha + 255 * (1 - alpha)).astype(np.uint8)

        return mixed_with_white
    return lambda pixels: colours(pixels[..., :n])


def _unchanged(pixels: np.ndarray) -> np.ndarray:
    return pixels


def _colour_table(colormap: np.ndarray) -> np.ndarray:
    """(256, 3) uint8 of a ColorMap tag (3, entries) of 16 bit; some writers leave 8 bit values in it."""
    entries = np.asarray(colormap, dtype=np.float64).T
    if entries.max() > 255:
        entries = entries / 257
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(entries)] = np.rint(entries)
    return table


class _Codes(NamedTuple):
    """ReferenceBlackWhite: which codes stand for black and white, and for no and most chroma."""

    black: float
    white: float
    cb_zero: float
    cb_most: float
    cr_zero: float
    cr_most: float


def _from_ycbcr(page: Any) -> RgbConverter:
    """YCbCr as TIFF 6.0, section 21, has it; a JPEG decoder has made RGB of it already."""
    import tifffile

    compression = int(page.compression)
    if compression in _JPEG and page.planarconfig == 1:
        return _unchanged
    if page.is_subsampled or (compression in tifffile.TIFF.IMAGE_COMPRESSIONS and compression not in _JPEG):
        what = "subsampled YCbCr colours" if page.is_subsampled else "YCbCr colours"
        name = tifffile.COMPRESSION(compression).name
        raise UnsuitablePixelsError(f"{what} in compression {name}", f"convert to RGB: {TO_RGB_TILES}")
    red, green, blue = _rationals(page, "YCbCrCoefficients") or (0.299, 0.587, 0.114)
    codes = _Codes(*(_rationals(page, "ReferenceBlackWhite") or (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)))

    def convert(pixels: np.ndarray) -> np.ndarray:
        luma, cb, cr = (pixels[..., sample].astype(np.float64) for sample in range(3))
        luma = (luma - codes.black) * 255 / (codes.white - codes.black)
        cb = (cb - codes.cb_zero) * 127 / (codes.cb_most - codes.cb_zero)
        cr = (cr - codes.cr_zero) * 127 / (codes.cr_most - codes.cr_zero)
        r, b = luma + cr * (2 - 2 * red), luma + cb * (2 - 2 * blue)
        g = (luma - blue * b - red * r) / green
        # Codes outside the colours that RGB has are part of YCbCr.
        return np.clip(np.rint(np.stack([r, g, b], axis=-1)), 0, 255).astype(np.uint8)

    return convert


def _rationals(page: Any, name: str) -> tuple[float, ...] | None:
    tag = page.tags.get(name)
    if tag is None:
        return None
    values = np.asarray(tag.value, dtype=np.float64).reshape(-1, 2)
    return tuple(float(value) for value in values[:, 0] / values[:, 1])


def _name(photometric: int) -> str:
    import tifffile

    return tifffile.PHOTOMETRIC(photometric).name
