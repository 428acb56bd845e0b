"""Every compression, layout and kind of pixels: right colours, or a refusal that says what the file holds and what to do."""

from __future__ import annotations

import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hyperst.data import open_image
from hyperst.data.images import IMAGE_SUFFIXES
from tests.hyperst.data import image_formats as formats
from tests.hyperst.data.image_scales import SCALES

JPEG_ERROR = 2.0  # grey levels, mean: quality 95 on smooth colours gives below 1.2, another colour space tens


def decoded_by_tifffile(path: Path, layout: str) -> list[np.ndarray]:
    """Each resolution as tifffile reads it, (h w 3)."""
    with tifffile.TiffFile(path) as file:
        levels = [level.asarray() for level in file.series[0].levels]
    return [level.transpose(1, 2, 0) for level in levels] if layout == "planar" else levels


@pytest.mark.parametrize(
    ("compression", "layout"),
    [pair for pair in itertools.product(formats.COMPRESSIONS, formats.LAYOUTS) if formats.exists(*pair)],
)
def test_compressions_and_layouts(compression, layout, tmp_path):
    path = formats.write_tiff(tmp_path / "slide.tif", compression, layout)
    with open_image(path) as image:
        assert (image.width, image.height) == (formats.WIDTH, formats.HEIGHT)
        # one tile first: whatever is read lazily must not come between seek and read
        np.testing.assert_array_equal(
            image.read(70, 80, 30, 20), image.read(0, 0, formats.WIDTH, formats.HEIGHT)[80:100, 70:100]
        )
        levels = [image._read_level(level, 0, 0, *image._level_size(level)) for level in range(len(image._levels()))]
    assert len(levels) == (1 + len(formats.STEPS) if "pyramid" in layout else 1)
    for level, expected in zip(levels, decoded_by_tifffile(path, layout), strict=True):
        np.testing.assert_array_equal(level, expected)
    error = np.abs(levels[0].astype(int) - formats.PIXELS)
    assert error.mean() <= JPEG_ERROR if compression in formats.JPEG else error.max() == 0


def test_jpeg_with_shared_tables(tmp_path):
    """libtiff, and with it most scanners, stores the tables of all tiles once."""
    path = tmp_path / "slide.tif"
    Image.fromarray(formats.PIXELS).save(path, compression="jpeg", quality=95)
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].jpegtables is not None
    with open_image(path) as image:
        pixels = image.read(0, 0, formats.WIDTH, formats.HEIGHT)
    np.testing.assert_array_equal(pixels, tifffile.imread(path))
    assert np.abs(pixels.astype(int) - formats.PIXELS).mean() <= JPEG_ERROR


def test_closed_images_open_again(tmp_path):
    path = formats.write_tiff(tmp_path / "slide.tif", "JPEG, YCbCr 4:2:0", "SubIFD pyramid")
    with open_image(path) as image:
        whole = image.read(0, 0, formats.WIDTH, formats.HEIGHT)
    np.testing.assert_array_equal(image.read(0, 0, formats.WIDTH, formats.HEIGHT), whole)
    image.close()


@pytest.mark.parametrize("kind", formats.KINDS, ids=lambda kind: kind.what)
def test_kinds_of_pixels(kind, tmp_path):
    path = tmp_path / kind.name
    kind.write(path)
    if kind.read is None:
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is looked at below
            open_image(path)
        for words in (str(path), kind.as_, kind.remedy):
            assert words in str(error.value)
        return
    with open_image(path) as image:
        pixels = image.read(0, 0, image.width, image.height)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - kind.read).max() <= kind.within


@given(st.integers(0, 255), st.integers(0, 255))
def test_premultiplied_and_plain_alpha_agree(colour, alpha):
    """The same tissue over the same glass, however the file stores it; the product was rounded to a grey level."""
    from hyperst.data.images.tiff_pixels import _with_extra

    plain = np.array([[[colour, colour, colour, alpha]]], np.uint8)
    product = plain.copy()
    product[..., :3] = np.rint(colour * alpha / 255)
    exact = colour * alpha / 255 + 255 - alpha
    for pixels, kind in ((plain, 2), (product, 1)):
        assert abs(int(_with_extra(lambda rgb: rgb, 3, kind)(pixels)[0, 0, 0]) - exact) <= 0.5


def test_ycbcr_with_other_coefficients_and_codes(tmp_path):
    """Rec. 709 coefficients and video codes (16 to 235 and 240), from a colour computed by hand."""
    rational = [(2126, 10_000), (7152, 10_000), (722, 10_000)]
    codes = [16, 235, 128, 240, 128, 240]
    rgb = np.array([200.0, 90.0, 160.0])
    luma = float(rgb @ [0.2126, 0.7152, 0.0722])
    cb, cr = (rgb[2] - luma) / (2 - 2 * 0.0722), (rgb[0] - luma) / (2 - 2 * 0.2126)
    stored = np.rint([16 + luma * 219 / 255, 128 + cb * 112 / 127, 128 + cr * 112 / 127]).astype(np.uint8)
    tags = [
        (529, 5, 3, [value for pair in rational for value in pair], True),
        (532, 5, 6, [value for code in codes for value in (code, 1)], True),
    ]
    tifffile.imwrite(
        tmp_path / "video.tif",
        np.broadcast_to(stored, (32, 32, 3)).copy(),
        photometric="ycbcr",
        subsampling=(1, 1),
        extratags=tags,
    )
    with tifffile.TiffFile(tmp_path / "video.tif") as file:
        assert file.pages[0].tags["ReferenceBlackWhite"].value == tuple(tags[1][3])
    with open_image(tmp_path / "video.tif") as image:
        # half a code of luma and chroma is at most 0.5 * 255 / 219 + 0.5 * 127 / 112 * 1.86, and rounding
        np.testing.assert_allclose(image.read(4, 4, 1, 1)[0, 0], rgb, atol=2.2)


def test_empty_tiles_are_white_in_every_photometric(tmp_path):
    """A tile that the file leaves out is background, also where 0 is white."""
    for photometric, glass in (("miniswhite", 0), ("minisblack", 255)):
        path = tmp_path / f"{photometric}.tif"
        tifffile.imwrite(path, np.full((128, 128), 100, np.uint8), photometric=photometric, tile=(64, 64))
        with tifffile.TiffFile(path, mode="r+b") as file:
            page = file.pages[0]
            counts, offsets = list(page.databytecounts), list(page.dataoffsets)
            counts[1] = offsets[1] = 0
            page.tags["TileByteCounts"].overwrite(counts)
            page.tags["TileOffsets"].overwrite(offsets)
        with open_image(path) as image:
            pixels = image.read(0, 0, 128, 128)
        assert (pixels[:64, 64:] == 255).all()
        assert (pixels[64:] == abs(100 - (255 - glass))).all()


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.what)
def test_recorded_um_per_px(scale, tmp_path):
    path = tmp_path / scale.name
    scale.write(path)
    with open_image(path) as image:
        assert image.mpp == (None if scale.mpp is None else pytest.approx(scale.mpp, rel=1e-4))
        assert scale.problem in image.scale.problem
        assert bool(scale.problem) == bool(image.scale.problem)


def test_files_whose_name_says_something_else(tmp_path):
    Image.fromarray(formats.PIXELS).save(tmp_path / "real.png")
    tifffile.imwrite(tmp_path / "real.tif", formats.PIXELS)
    for name, content, told in (
        ("slide.tif", (tmp_path / "real.png").read_bytes(), "it holds a PNG image: name it slide.png"),
        ("slide.png", (tmp_path / "real.tif").read_bytes(), "it holds a TIFF: name it slide.tif"),
        ("slide.jpg", b"", "it is empty"),
        ("empty.tif", b"", "it is empty"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=told):
            open_image(tmp_path / name)


def test_every_ending_is_on_the_page_and_refused_ones_name_the_converter(tmp_path):
    *read, refused = formats.ENDINGS
    assert sorted(ending for part in read for ending in part.endings) == sorted(IMAGE_SUFFIXES)
    for ending in refused.endings:
        (tmp_path / f"slide{ending}").write_bytes(b"x" * 100)
        with pytest.raises(ValueError, match=rf"slide\{ending}.*OME-TIFF.*{formats.CONVERTER}"):
            open_image(tmp_path / f"slide{ending}")


def png_of_nothing(path: Path, width: int, height: int) -> None:
    """A PNG that says how large it is and holds nearly nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def test_a_large_png_in_little_memory_is_refused_with_the_command(tmp_path, monkeypatch):
    from hyperst.data.images import memory

    path = tmp_path / "slide.png"
    png_of_nothing(path, 30_000, 30_000)
    monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 30)
    command = 'vips copy "{}" "{}[tile,pyramid,compression=jpeg,Q=90,bigtiff]"'
    with open_image(path) as image, pytest.raises(MemoryError) as error:
        image.read(0, 0, 100, 100)
    # 30000^2 pixels of 4 bytes in Pillow and 3 in the array
    assert "30000 x 30000 px" in str(error.value)
    assert "takes 5.9 GiB; 1.0 GiB are free" in str(error.value)
    assert command.format(path, tmp_path / "slide_tiled.tif") in str(error.value)


def test_available_memory_is_the_least_of_what_limits_it(monkeypatch):
    resource = pytest.importorskip("resource", reason="limits of a process are Unix's")
    import psutil

    from hyperst.data.images.memory import available_bytes

    free = available_bytes()
    assert 0 < free <= psutil.virtual_memory().total
    limit = psutil.Process().memory_info().vms + (50 << 20)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
    assert available_bytes() <= 51 << 20


def test_thumbnails_of_one_resolution_never_hold_the_slide(tmp_path, monkeypatch):
    from hyperst.data.images import base

    path = formats.write_tiff(tmp_path / "slide.tif", "none", "tiles")
    with open_image(path) as image:
        whole = image.thumbnail(100)
        read, largest = image._read_level, []
        monkeypatch.setattr(base, "_BAND_PIXELS", formats.WIDTH * 64)
        monkeypatch.setattr(
            image,
            "_read_level",
            lambda level, *box: largest.append((box[2] - box[0]) * (box[3] - box[1])) or read(level, *box),
        )
        in_bands = image.thumbnail(100)
    assert len(largest) >= 4
    assert max(largest) <= formats.WIDTH * (64 + 2 * 6)  # the band and its margins
    assert np.abs(in_bands.astype(int) - whole).max() <= 1
