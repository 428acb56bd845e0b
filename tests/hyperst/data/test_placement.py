"""Spots that do not lie on tissue are counted, and the mistake in their positions is named."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from hyperst.data import check_section, find_tissue, read_section
from hyperst.data.check import examine_section
from hyperst.data.placement import judge_placement
from hyperst.overlay import draw_overlay
from tests.hyperst.data.slides import HEIGHT, WIDTH, slide, write_slide

MISTAKES = {
    "exchanging x and y": lambda x, y, w, h: (y, x),
    "left to right (x to width": lambda x, y, w, h: (w - x, y),
    "top to bottom (y to height": lambda x, y, w, h: (x, h - y),
    "180 degrees on the image": lambda x, y, w, h: (w - x, h - y),
    "by 90 degrees counterclockwise": lambda x, y, w, h: (h - y, x),
    "by 90 degrees clockwise": lambda x, y, w, h: (y, w - x),
    "other diagonal": lambda x, y, w, h: (h - y, w - x),
    "multiplying the positions by about 2": lambda x, y, w, h: (x / 2, y / 2),
    "multiplying the positions by about 0.9": lambda x, y, w, h: (x / 0.9, y / 0.9),
    "multiplying the positions by about 10": lambda x, y, w, h: (x / 10, y / 10),
}


def moved(spots: np.ndarray, name: str, width: int, height: int) -> np.ndarray:
    return np.stack(MISTAKES[name](*np.asarray(spots, dtype=float).T, width, height), axis=1)


def errors(path, **options):
    return [finding for finding in check_section(path, **options) if finding.level == "error"]


def test_a_right_section_passes(tmp_path):
    report = examine_section(write_slide(tmp_path, *slide()))
    assert report.usable
    assert report.placement.n_background == 0
    assert "every spot lies on tissue" in [finding.message for finding in report.findings]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_positions_is_named(tmp_path, name):
    adata, image = slide()
    wrong = moved(adata.obsm["spatial"], name, WIDTH, HEIGHT)
    if (wrong > [WIDTH, HEIGHT]).any() or (wrong < 0).any():  # outside is refused before: put the tissue into a corner
        image, shift = np.roll(image, (-100, -450), axis=(0, 1)), np.array([450, 100])
        wrong = moved(adata.obsm["spatial"] - shift, name, WIDTH, HEIGHT)
    adata.obsm["spatial"] = wrong
    found = errors(write_slide(tmp_path, adata, image))
    assert len(found) == 1
    assert name in found[0].message
    assert "lie on background" in found[0].message
    assert "would leave 0 there" in found[0].message


@pytest.mark.parametrize("name", ["C3", "MOB2"])
def test_mistakes_in_real_sections_are_named(real_data, name):
    folder = real_data / ("mob" if name == "MOB2" else "her2st")
    section = read_section(folder / "h5ad" / f"{name}.h5ad")
    pitch = section.grid.pitch_px
    with section.open_image() as image:
        tissue, size = find_tissue(image, pitch), (image.width, image.height)
    assert judge_placement(section.spot_px, tissue, pitch).n_background == 0
    for mistake in list(MISTAKES)[:-3]:
        placement = judge_placement(moved(section.spot_px, mistake, *size), tissue, pitch)
        assert mistake in str(placement.explanation)
        assert placement.explained == 0
        assert placement.n_background > 0.1 * section.n_spots


@pytest.mark.parametrize("colour", [255, 0])
def test_spots_on_an_empty_image(tmp_path, colour):
    adata, image = slide()
    found = errors(write_slide(tmp_path, adata, np.full_like(image, colour)))
    assert [finding.message for finding in found] == ["81 of 81 spots lie on background: no tissue found on the image"]


def test_a_few_spots_on_background_are_a_warning(tmp_path):
    adata, image = slide()
    index = adata.obs["array_row"].to_numpy()
    image[: int(adata.obsm["spatial"][index == 1, 1].mean() - 15)] = 230  # nothing left under the first of nine rows
    report = examine_section(write_slide(tmp_path, adata, image))
    assert report.usable
    assert [f.message for f in report.findings if "lie on" in f.message] == ["9 of 81 spots lie on background"]


def test_a_damaged_tile_is_found(tmp_path):
    """The thumbnail comes from the pyramid; only a crop reads the full resolution."""
    adata, image = slide()
    image = image.repeat(2, axis=0).repeat(2, axis=1)
    adata.obsm["spatial"] = 2 * adata.obsm["spatial"]
    adata.uns["spatial"]["S"]["metadata"]["mpp"] /= 2
    path = tmp_path / "S.h5ad"
    adata.write_h5ad(path)
    file = tmp_path / "S.tif"
    options = {"photometric": "rgb", "compression": "zlib", "tile": (256, 256), "metadata": None}
    with tifffile.TiffWriter(file) as tif:
        tif.write(image, subifds=1, **options)
        tif.write(image[::2, ::2], subfiletype=1, **options)
    assert errors(path, image=file) == []
    with tifffile.TiffFile(file) as tif:
        page = tif.pages[0]
        first = adata.obsm["spatial"][0]
        tile = int(first[1] // 256) * -(-2 * WIDTH // 256) + int(first[0] // 256)
        start, length = page.dataoffsets[tile], page.databytecounts[tile]
    content = bytearray(file.read_bytes())
    content[start : start + length] = bytes(length)
    file.write_bytes(content)
    found = errors(path, image=file)
    assert len(found) == 1
    assert "S_0x0" in found[0].message
    assert "cannot be read" in found[0].message


def test_the_overlay_shows_every_spot_in_its_colour(tmp_path):
    adata, image = slide()
    adata.obsm["spatial"][:3] = [[60, 60], [160, 1240], [1440, 1240]]
    adata.obs = adata.obs.drop(columns=["array_row", "array_col"])
    report = examine_section(write_slide(tmp_path, adata, image))
    path = draw_overlay(report, tmp_path / "S_spots.png")
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    red = (np.abs(picture - [0xE4, 0, 0x2B]).max(axis=-1) < 40).sum()
    green = (np.abs(picture - [0, 0xFF, 0x66]).max(axis=-1) < 40).sum()
    assert report.placement.n_background == 3
    assert green / red == pytest.approx(78 / 3, rel=0.25)  # as the spots; lines are drawn with soft edges
    assert draw_overlay(report, path) == path


def test_an_overlay_replaces_nothing_else(tmp_path):
    report = examine_section(write_slide(tmp_path, *slide()))
    file = tmp_path / "images" / "S.png"
    before = file.read_bytes()
    with pytest.raises(FileExistsError, match="was not made by"):
        draw_overlay(report, file)
    assert file.read_bytes() == before
