"""A damaged tile is named, or left white and counted once; damaged files of any kind end in one message."""

from __future__ import annotations

import functools
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from hyperst.data import open_image
from hyperst.data.images import DamagedTiles
from tests.hyperst.data import image_formats as formats

TILE = 96  # side of the tiles of formats.LAYOUTS
ACROSS = -(-formats.WIDTH // TILE)
CORRUPT = 5  # the second tile of the second row
WHERE = (slice(TILE, 2 * TILE), slice(TILE, 2 * TILE))


def corrupt(path: Path, tile: int, level: int = 0) -> Path:
    """Overwrite a tile of a resolution with bytes that no codec takes."""
    with tifffile.TiffFile(path) as file:
        page = file.series[0].levels[level].pages[0]
        offset, size = page.dataoffsets[tile], page.databytecounts[tile]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\x00\xff\x00\x11" * (size // 4))
    return path


@pytest.mark.parametrize("compression", ["deflate", "JPEG, YCbCr 4:2:0", "JPEG 2000", "WebP"])
def test_one_corrupt_tile(compression, tmp_path):
    path = formats.write_tiff(tmp_path / "slide.tif", compression, "SubIFD pyramid")
    with open_image(path) as image:
        whole = image.read(0, 0, formats.WIDTH, formats.HEIGHT)
        coarse = image._read_level(1, 0, 0, *image._level_size(1))
    corrupt(path, CORRUPT)
    assert ACROSS == 4  # so that tile 5 is where WHERE says
    with open_image(path) as image:
        with pytest.raises(ValueError, match=rf"slide\.tif: tile {CORRUPT} of level 0 at x 96, y 96 .*--skip-damaged"):
            image.read(0, 0, formats.WIDTH, formats.HEIGHT)
        np.testing.assert_array_equal(image.read(200, 0, 100, 250), whole[:, 200:300])  # the others can be read
    damaged = DamagedTiles()
    with open_image(path, damaged=damaged) as image:
        for _ in range(2):
            pixels = image.read(0, 0, formats.WIDTH, formats.HEIGHT)
        np.testing.assert_array_equal(image._read_level(1, 0, 0, *image._level_size(1)), coarse)
    expected = whole.copy()
    expected[WHERE] = 255
    np.testing.assert_array_equal(pixels, expected)
    assert len(damaged) == 1
    centres = np.array([[144.0, 144.0], [90.0, 144.0], [80.0, 144.0], [144.0, 197.0], [144.0, 203.0]])
    assert damaged.touched(centres, width=20).tolist() == [True, True, False, True, False]


def test_damage_of_a_coarse_resolution_is_counted_in_full_pixels(tmp_path):
    path = corrupt(formats.write_tiff(tmp_path / "slide.tif", "deflate", "SubIFD pyramid"), 1, level=1)
    damaged = DamagedTiles()
    with open_image(path, damaged=damaged) as image:
        image.read(0, 0, formats.WIDTH, formats.HEIGHT)
        assert len(damaged) == 0
        image._read_level(1, 0, 0, *image._level_size(1))
    assert len(damaged) == 1  # level 1 from x 96 to 165 is x 192 to 330
    assert damaged.touched(np.array([[189.0, 50.0], [195.0, 50.0]]), width=2).tolist() == [False, True]


def test_a_cut_file_keeps_what_came_before_the_cut(tmp_path):
    path = formats.write_tiff(tmp_path / "slide.tif", "none", "tiles")
    with tifffile.TiffFile(path) as file:
        last = file.pages[0].dataoffsets[-1]
    path.write_bytes(path.read_bytes()[: last + 100])
    damaged = DamagedTiles()
    with open_image(path, damaged=damaged) as image:
        pixels = image.read(0, 0, formats.WIDTH, formats.HEIGHT)
    expected = formats.PIXELS.copy()
    expected[2 * TILE :, 3 * TILE :] = 255
    np.testing.assert_array_equal(pixels, expected)
    assert len(damaged) == 1


@functools.cache
def whole_file(name: str, *how: str) -> bytes:
    """An undamaged file: a TIFF in a compression and layout, or what Pillow writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        if how:
            formats.write_tiff(path, *how)
        else:
            formats.pillow(formats.PIXELS)(path)
        return path.read_bytes()


FILES = (
    ("slide.tif", "deflate", "SubIFD pyramid"),
    ("slide.tif", "JPEG, YCbCr 4:2:0", "OME-TIFF"),
    ("slide.tif", "none", "planar"),
    ("slide.tif", "LZW", "BigTIFF"),
    ("slide.png",),
    ("slide.jpg",),
    ("slide.jp2",),
    ("slide.bmp",),
    ("slide.webp",),
)


@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.booleans(),
    st.floats(0.05, 1),
)
def test_no_damage_gives_a_traceback(tmp_path_factory, file, changes, near_the_start, kept):
    """Bytes changed anywhere or in the headers, and files cut short: pixels of the right shape, or one message."""
    content = bytearray(whole_file(*file))
    # headers, and the directory of a TIFF that tifffile writes, are at the start
    span = min(600, len(content)) if near_the_start else len(content)
    for place, value in changes:
        content[int(place * span)] = value
    path = tmp_path_factory.mktemp("damage") / file[0]
    path.write_bytes(content[: max(8, int(kept * len(content)))])
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with open_image(path) as image:
                assert image.read(30, 20, 50, 40).shape == (40, 50, 3)
                assert image.read(30, 20, 50, 40, size=12).shape == (12, 12, 3)
        except (ValueError, MemoryError) as error:
            assert file[0] in str(error)  # noqa: PT017 - there may be none
