"""Tissue is found where it is, and nowhere else: glass, ink, borders and noise have none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial import cKDTree

from hyperst.data import TissueMap, find_tissue, open_image, read_section, tile_grid
from tests.hyperst.data.slides import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, glass, slide, with_pen

PITCH = 71.0
RANDOM = np.random.default_rng(0)
SIDE = 420


def uniform(*colour: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), colour, np.uint8)


def bordered(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[:90] = image[:, -70:] = 0
    image[-50:] = 255
    return image


PENS = {"black": (20, 20, 25), "blue": (30, 60, 180), "green": (20, 140, 60), "red": (200, 30, 40)}
NO_TISSUE = {
    "white": uniform(255, 255, 255),
    "black": uniform(0, 0, 0),
    "one colour": uniform(190, 110, 170),
    "grey": uniform(120, 120, 120),
    "noise": RANDOM.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8),
    "grey noise": np.repeat(RANDOM.integers(0, 256, (SIDE, SIDE, 1), dtype=np.uint8), 3, axis=2),
    "light noise": RANDOM.integers(200, 256, (SIDE, SIDE, 3), dtype=np.uint8),
    "glass": glass(SIDE, SIDE),
    "black and white borders": bordered(glass(SIDE, SIDE)),
    **{f"{name} pen": with_pen(glass(SIDE, SIDE), colour) for name, colour in PENS.items()},
}


def save(image: np.ndarray, path):
    Image.fromarray(image).save(path, compress_level=1)
    return open_image(path)


@pytest.mark.parametrize("pitch", [20.0, PITCH])
@pytest.mark.parametrize("name", NO_TISSUE)
def test_where_there_is_no_tissue_nothing_is_predicted(tmp_path, name, pitch):
    with (
        save(NO_TISSUE[name], tmp_path / "slide7.png") as image,
        pytest.raises(ValueError, match="no tissue") as caught,
    ):
        tile_grid(image, pitch)
    for words in ("slide7.png", "--mpp", "--min-tissue", "--spots"):
        assert words in str(caught.value)


@pytest.mark.parametrize("change", ["none", "borders", "blue", "red"])
def test_tiles_lie_on_the_tissue_and_cover_it(tmp_path, change):
    _, pixels = slide()
    pixels = bordered(pixels) if change == "borders" else pixels if change == "none" else with_pen(pixels, PENS[change])
    with save(pixels, tmp_path / "slide.png") as image:
        tiles = tile_grid(image, PITCH)
        everywhere = tile_grid(image, PITCH, min_tissue=0)
    assert len(everywhere) == (WIDTH // 71) * (HEIGHT // 71)
    # the mask is blurred by an eighth of a pitch (9 px) to each side, so edges are known to two of these
    inside = (everywhere > np.array([LEFT, TOP]) + PITCH / 2).all(1) & (
        everywhere < np.array([RIGHT, BOTTOM]) - PITCH / 2
    ).all(1)
    outside = (everywhere < np.array([LEFT, TOP]) - PITCH / 2 - 18).any(1) | (
        everywhere > np.array([RIGHT, BOTTOM]) + PITCH / 2 + 18
    ).any(1)
    kept = {tuple(tile) for tile in tiles}
    assert {tuple(tile) for tile in everywhere[inside]} <= kept
    assert not {tuple(tile) for tile in everywhere[outside]} & kept


def test_tissue_that_fills_the_image_is_all_tissue(tmp_path):
    _, pixels = slide()
    with save(pixels[TOP:BOTTOM, LEFT:RIGHT], tmp_path / "cut.png") as image:
        assert find_tissue(image, PITCH).share > 0.9


@given(
    mask=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=5, max_size=5),
    corner=st.tuples(st.integers(-4, 8), st.integers(-4, 8)),
    side=st.integers(1, 6),
)
def test_fractions_are_those_of_the_pixels(mask, corner, side):
    mask = np.asarray(mask)
    padded = np.zeros((25, 26))
    padded[10:15, 10:16] = mask
    x, y = corner
    wanted = padded[10 + y : 10 + y + side, 10 + x : 10 + x + side].mean()
    tissue = TissueMap(mask, width=60, height=50)  # pixels of 10
    found = tissue.fraction(10 * (np.array([[x, y]]) + side / 2), 10 * side)
    assert found == pytest.approx([wanted], abs=1e-9)


def test_min_tissue_must_be_a_share(tmp_path):
    with save(slide()[1], tmp_path / "slide.png") as image, pytest.raises(ValueError, match="min_tissue"):
        tile_grid(image, PITCH, min_tissue=15)


@pytest.mark.parametrize("name", ["C2", "C3", "C4", "C5"])
def test_real_sections_are_covered_and_glass_is_not(real_data, name):
    """At most 3 % of tiles are further than a pitch from every measured spot; 97 % of these lie in a tile."""
    section = read_section(real_data / "her2st" / "h5ad" / f"{name}.h5ad")
    pitch = section.grid.pitch_px
    with section.open_image() as image:
        tiles = tile_grid(image, pitch)
    nearest = cKDTree(section.spot_px).query(tiles)[0]
    covered = np.abs(section.spot_px[:, None] - tiles[None]).max(axis=-1).min(axis=1) <= pitch / 2
    assert (nearest > pitch).mean() <= 0.03
    assert covered.mean() >= 0.97
