"""Histology images behind one small interface.

``open_image`` returns a :class:`SlideImage`. JPEG, PNG and the like are decoded once and kept; TIFF is read tile by tile, so
a whole-slide image never has to fit in memory; scanner formats go through openslide. Every region is RGB uint8.
"""

from __future__ import annotations

from pathlib import Path

from hyperst.data.images.base import SlideImage
from hyperst.data.images.damage import DamagedTiles
from hyperst.data.images.pil import DecodedImage

__all__ = ["IMAGE_SUFFIXES", "DamagedTiles", "SlideImage", "open_image"]

_PIL_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".jp2", ".j2k")
_TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".qptiff")
_OPENSLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif", ".svslide", ".dcm")
IMAGE_SUFFIXES = _TIFF_SUFFIXES + _PIL_SUFFIXES + _OPENSLIDE_SUFFIXES
"""File name endings that :func:`open_image` knows, in the order in which a section's image is looked for."""

_SCANNER_SUFFIXES = (
    ".czi",
    ".vsi",
    ".isyntax",
    ".lif",
    ".nd2",
    ".oir",
    ".ets",
    ".zvi",
    ".afi",
    ".mds",
    ".kfb",
    ".sdpc",
)
_CONVERT_SLIDE = (
    "export it as pyramidal OME-TIFF from the scanner's software or from QuPath, or convert it with Bio-Formats: "
    "bfconvert -series 0 -tilex 512 -tiley 512 -pyramid-resolutions 5 -pyramid-scale 2 {name} {stem}.ome.tif"
)


def open_image(path: str | Path, *, damaged: DamagedTiles | None = None) -> SlideImage:
    """Open a histology image without decoding it.

    Args:
        path: .tif .tiff .btf .qptiff (tile by tile with tifffile), .jpg .jpeg .png .bmp .webp .jp2 .j2k (Pillow), .svs .ndpi
            .mrxs .scn .vms .bif .svslide .dcm (openslide). Grey images are repeated over RGB, transparency is laid over
            white. docs/reference/image_formats.md has a table.
        damaged: takes down the tiles that cannot be decoded, which are then white; by default such a tile is an error.
            Images that are decoded whole cannot be read in part.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown kind of image, damaged file, or pixels that are no 8 bit grey / RGB of a brightfield image.
        ImportError: the reader for this kind is not installed.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "slide.png"
    ...     Image.new("RGB", (40, 30), "purple").save(path)
    ...     with open_image(path) as image:
    ...         image.width, image.height, image.read(-5.5, 0, 20, 20, size=8).shape
    (40, 30, (8, 8, 3))
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"image {path} does not exist" if not path.exists() else f"image {path} is no file")
    suffix = path.suffix.lower()
    if suffix in _OPENSLIDE_SUFFIXES:
        from hyperst.data.images.openslide import OpenSlideImage

        return OpenSlideImage(path, damaged)
    if suffix in _TIFF_SUFFIXES:
        from hyperst.data.images.tiff import TiffImage

        return TiffImage(path, damaged)
    if suffix in _PIL_SUFFIXES:
        return DecodedImage(path)
    if suffix in _SCANNER_SUFFIXES:
        remedy = _CONVERT_SLIDE.format(name=path.name, stem=path.name.split(".")[0])
        raise ValueError(f"image {path}: {suffix} slides are not read; {remedy}")
    raise ValueError(f"image {path}: unknown kind {suffix!r}; convert it to one of {', '.join(IMAGE_SUFFIXES)}")
