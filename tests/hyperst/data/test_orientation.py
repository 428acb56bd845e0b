"""Images that are not shown as they are stored: refused with both ways out, never read the wrong way round."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from hyperst.data import open_image

PIXELS = np.zeros((20, 30, 3), np.uint8)
PIXELS[0, 0] = 255


def write(path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(PIXELS).save(path, exif=exif)
    return path


@pytest.mark.parametrize("name", ["scan.jpg", "scan.png", "scan.webp"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif(name, orientation, tmp_path):
    path = write(tmp_path / name, orientation)
    with pytest.raises(ValueError, match=rf"{name} has the tag Orientation {orientation}: .* vips autorot .* exiftool"):
        open_image(path)


@pytest.mark.parametrize("orientation", [0, 1, 9])
@pytest.mark.parametrize("name", ["scan.png", "scan.tif"])
def test_no_orientation_that_changes_anything(name, orientation, tmp_path):
    if name.endswith("png"):
        path = write(tmp_path / name, orientation)
    else:
        path = tmp_path / name
        tifffile.imwrite(path, PIXELS, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    with open_image(path) as image:
        np.testing.assert_array_equal(image.read(0, 0, 30, 20), PIXELS)


@pytest.mark.parametrize("orientation", [2, 6])
def test_tiff(orientation, tmp_path):
    path = tmp_path / "scan.ome.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    with pytest.raises(ValueError, match=rf"Orientation {orientation}: .*scan_upright.tif\[tile,pyramid") as caught:
        open_image(path)
    assert "no readable TIFF" not in str(caught.value)


def test_a_png_with_the_tag_behind_its_pixels(tmp_path):
    """Only reading the pixels finds it, and then it is refused all the same."""
    content = write(tmp_path / "a.png", 3).read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    chunk = content[start:end]
    assert zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
    last = content.index(b"IEND") - 4
    (tmp_path / "b.png").write_bytes(content[:start] + content[end:last] + chunk + content[last:])
    with open_image(tmp_path / "b.png") as image, pytest.raises(ValueError, match="tag Orientation 3"):
        image.read(0, 0, 30, 20)


def test_damaged_exif_says_nothing(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=b"Exif\0\0no tiff at all", quality=100, subsampling=0)
    with open_image(tmp_path / "a.jpg") as image:
        assert image.read(0, 0, 30, 20).shape == (20, 30, 3)
