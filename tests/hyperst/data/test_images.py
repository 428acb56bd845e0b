"""Every image format gives the same pixels, whole slides are read in parts, and borders are padded."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from hyperst.data import CropConfig, Grid, crop_widths_px, open_image
from hyperst.data.crops import read_spot_crops

HEIGHT, WIDTH = 300, 420


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Smooth colours, so that a resized region can be compared with the mean of what it covers."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 255 // WIDTH, y * 255 // HEIGHT, (x + y) % 256], axis=-1).astype(np.uint8)


def write(path, pixels):
    """``pixels`` in the format that the file's name asks for."""
    kind = path.name
    if kind == "pyramid.tif":
        with tifffile.TiffWriter(path) as file:
            options = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate"}
            file.write(pixels, subifds=2, resolution=(20_000, 20_000), resolutionunit="CENTIMETER", **options)
            for step in (2, 4):
                file.write(pixels[::step, ::step], subfiletype=1, **options)
    elif kind == "strips.tif":
        tifffile.imwrite(path, pixels, rowsperstrip=7, photometric="rgb")
    elif kind == "planar.tif":
        tifffile.imwrite(path, pixels.transpose(2, 0, 1), planarconfig="separate", photometric="rgb", tile=(64, 64))
    elif kind == "slide.ome.tif":
        metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm"}
        tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128), metadata=metadata)
    elif kind == "clear.png":
        Image.fromarray(np.dstack([pixels, np.full((HEIGHT, WIDTH), 255, np.uint8)])).save(path)
    else:
        Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("kind", ["plain.png", "clear.png", "pyramid.tif", "strips.tif", "planar.tif", "slide.ome.tif"])
def test_formats_without_loss_agree(kind, pixels, tmp_path):
    with open_image(write(tmp_path / kind, pixels)) as image:
        assert (image.width, image.height) == (WIDTH, HEIGHT)
        np.testing.assert_array_equal(image.read(0, 0, WIDTH, HEIGHT), pixels)
        np.testing.assert_array_equal(image.read(101, 57, 200, 130), pixels[57:187, 101:301])
        # at another size: the mean over what each pixel covers
        small = image.read(100, 60, 80, 80, size=20).astype(float)
        covered = pixels[60:140, 100:180].reshape(20, 4, 20, 4, 3).mean((1, 3))[..., :2]
        assert np.abs(small[..., :2] - covered).max() < 3


@pytest.mark.parametrize(("kind", "mpp"), [("pyramid.tif", 0.5), ("slide.ome.tif", 0.5), ("plain.png", None)])
def test_recorded_scale(kind, mpp, pixels, tmp_path):
    with open_image(write(tmp_path / kind, pixels)) as image:
        assert image.mpp == (mpp if mpp is None else pytest.approx(mpp))


@pytest.mark.parametrize("kind", ["plain.png", "pyramid.tif"])
def test_outside_is_white(kind, pixels, tmp_path):
    with open_image(write(tmp_path / kind, pixels)) as image:
        corner = image.read(-10, -20, 50, 50)
        assert (corner[:20] == 255).all()
        assert (corner[:, :10] == 255).all()
        np.testing.assert_array_equal(corner[20:, 10:], pixels[:30, :40])
        assert (image.read(WIDTH + 5, 0, 30, 30, size=16) == 255).all()


def test_a_pyramid_is_read_from_the_level_that_is_just_fine_enough(pixels, tmp_path, monkeypatch):
    with open_image(write(tmp_path / "pyramid.tif", pixels)) as image:
        read, levels = image._read_level, []
        monkeypatch.setattr(image, "_read_level", lambda level, *box: levels.append(level) or read(level, *box))
        for size in (200, 100, 50, 10):
            image.read(0, 0, 200, 200, size=size)
        assert levels == [0, 1, 2, 2]


def test_jpeg(pixels, tmp_path):
    with open_image(write(tmp_path / "slide.jpg", pixels)) as image:
        assert np.abs(image.read(0, 0, WIDTH, HEIGHT)[..., :2].astype(int) - pixels[..., :2]).mean() < 4


def test_damaged_and_unsuitable_images_are_named(pixels, tmp_path):
    whole = write(tmp_path / "pyramid.tif", pixels)
    (tmp_path / "short.tif").write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    with pytest.raises(ValueError, match=r"short\.tif"), open_image(tmp_path / "short.tif") as image:
        image.read(0, 0, WIDTH, HEIGHT)
    png = write(tmp_path / "plain.png", pixels)
    (tmp_path / "short.png").write_bytes(png.read_bytes()[: png.stat().st_size // 3])
    with pytest.raises(ValueError, match=r"short\.png"), open_image(tmp_path / "short.png") as image:
        image.read(0, 0, WIDTH, HEIGHT)
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((40, 40), np.uint16))
    with pytest.raises(ValueError, match="8 bit"):
        open_image(tmp_path / "deep.tif")
    (tmp_path / "slide.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="unknown kind"):
        open_image(tmp_path / "slide.bin")
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        open_image(tmp_path / "none.png")
    (tmp_path / "broken.svs").write_bytes(b"x")
    with pytest.raises((ImportError, ValueError), match=r"broken\.svs"):
        open_image(tmp_path / "broken.svs")


def test_a_crop_is_what_the_transform_of_gigapath_leaves_of_its_tile(pixels, tmp_path):
    """Tiles of 256 px at 0.5 um/px, resized to 256 px (bicubic) and cut to the middle 224: the 112 um of a spot's crop."""
    path = write(tmp_path / "whole.png", pixels)
    x, y, um_per_px = 200, 150, 0.5
    grid = Grid("hexagonal", 100 / um_per_px, um_per_px, 100.0)
    widths = crop_widths_px(grid, 55 / um_per_px, CropConfig(image_size=224))
    with open_image(path) as image:
        crop = read_spot_crops(image, np.array([x, y]), widths, 224)[0]
    tile = Image.fromarray(pixels[y - 128 : y + 128, x - 128 : x + 128]).resize((256, 256), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(crop, np.asarray(tile)[16:-16, 16:-16])


@pytest.mark.parametrize(("other", "accepted"), [(0.25, True), (0.6, False), (1.0, False)])
def test_two_scenes_in_one_tiff_are_refused_and_a_label_is_not(pixels, other, accepted, tmp_path):
    """Nothing tells on which of two scenes the spots lie; a label, an overview or a coarser copy is no such question."""
    path = tmp_path / "scenes.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(pixels[: round(HEIGHT * other), :-1], photometric="rgb", metadata={"axes": "YXS", "Name": "left"})
        file.write(pixels, photometric="rgb", metadata={"axes": "YXS", "Name": "right"})
    if accepted:
        with open_image(path) as image:
            np.testing.assert_array_equal(image.read(0, 0, WIDTH, HEIGHT), pixels)
        return
    with pytest.raises(
        ValueError, match=r"scenes\.ome\.tif holds 2 images of much the same size \(left: .*, right: 300 x 420 x 3\)"
    ):
        open_image(path)
