"""The deep zoom: where its tiles are, how fine they are, and what they take."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("plotly")
pytest.importorskip("jinja2")

from hyperst.data import open_image
from hyperst.data.identity import sampled_hash
from hyperst.report import page
from hyperst.report.page import render
from hyperst.report.spots import SpotMap, read_spot_map
from hyperst.report.summary import collect
from hyperst.report.zoom import MOST_BYTES, TILE_PX, covered, deep_zoom, tile_pyramid

from .large_slide import MARKED, write_large_slide


@pytest.fixture(scope="module")
def spots(tmp_path_factory) -> SpotMap:
    return read_spot_map(write_large_slide(tmp_path_factory.mktemp("large"), ["A", "B"]), ["A", "B"])


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """A slide that takes many bytes: 2048 x 2048 px without an equal pair."""
    path = tmp_path_factory.mktemp("noise") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (2048, 2048, 3), dtype=np.uint8)).save(path)
    return path


def on_noise(spots: SpotMap, noise: Path, last: float) -> SpotMap:
    """Spots on a grid over the upper left of the slide of noise."""
    steps = np.linspace(20, last, len(spots.spot_ids), dtype=np.float32)
    facts = {name: value for name, value in spots.facts.items() if name != "image_checksum"}
    return replace(
        spots,
        positions=np.stack([steps, steps[::-1]], axis=1),
        extent=(2048, 2048),
        picture_px=8.0,
        facts={**facts, "image_path": str(noise)},
        diameter_px=20.0,
    )


def taken(slide: dict) -> int:
    return sum(len(jpeg) for level in slide["levels"] for jpeg in level["jpegs"])


def picture(level: dict, row: int, column: int) -> np.ndarray:
    place = list(zip(level["rows"], level["columns"], strict=True)).index((row, column))
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(level["jpegs"][place]))))


@pytest.mark.parametrize("side", [64.0, 90.5, 1000.0])
def test_tiles_are_those_under_spots(side):
    positions = np.random.default_rng(0).uniform(0, 900, (20, 2))
    expected = set()
    for row in range(-1, 20):
        for column in range(-1, 20):
            inside = 0 <= row * side < 700 and 0 <= column * side < 900
            near = (np.abs(positions - (np.array([column, row]) + 0.5) * side) <= 40 + side / 2).all(axis=1)
            expected |= {(row, column)} if inside and near.any() else set()
    assert set(map(tuple, covered(positions, 40, side, (900, 700)).tolist())) == expected


def test_a_mark_lies_under_its_spot_at_every_level(spots):
    zooms = deep_zoom([spots], None, MOST_BYTES)
    levels = zooms.slides[zooms.of_map[0]]["levels"]
    assert [level["factor"] for level in levels] == [4, 2, 1]
    x, y = spots.positions[MARKED]
    for level in levels:
        factor = level["factor"]
        marked = covered(spots.positions[[MARKED]], 20, TILE_PX * factor, (6000, 6000))
        found, total = np.zeros(2), 0
        for row, column in marked.tolist():
            rows, columns = np.nonzero(picture(level, row, column)[..., 0] < 100)
            found += np.stack([columns + 0.5 + column * TILE_PX, rows + 0.5 + row * TILE_PX]).sum(axis=1) * factor
            total += len(rows)
        assert total * factor**2 == pytest.approx(
            40**2, rel=0.2
        )  # of 10 x 10 px at the coarsest, the border may be lost
        np.testing.assert_allclose(found / total, [x, y], atol=factor / 2)


def test_tiles_are_the_slides_pixels(spots):
    zooms = deep_zoom([spots], None, MOST_BYTES)
    tiles = [covered(spots.positions, spots.diameter_px, TILE_PX * factor, (6000, 6000)) for factor in (4, 2, 1)]
    with open_image(spots.facts["image_path"]) as slide:
        for level, places in zip(zooms.slides[0]["levels"], tiles, strict=True):
            assert list(zip(level["rows"], level["columns"], strict=True)) == list(map(tuple, places.tolist()))
            for row, column in places[::5].tolist():
                side = TILE_PX * level["factor"]
                expected = slide.read(column * side, row * side, side, side, size=TILE_PX).astype(float)
                # JPEG blurs colours at edges: that the picture is of another place would be seen by far
                assert np.abs(picture(level, row, column) - expected).mean() < 3


def test_the_finest_resolution_that_fits_is_chosen(spots, noise):
    here = on_noise(spots, noise, 2000)
    with open_image(noise) as slide:
        everything = tile_pyramid(slide, here.positions, 20, 4.0, 10**9)
        assert [level["factor"] for level in everything["levels"]] == [4, 2, 1]
        factors = []
        for budget in (taken(everything) * 2, taken(everything) // 2, taken(everything) // 4):
            some = tile_pyramid(slide, here.positions, 20, 4.0, budget)
            assert taken(some) <= budget
            factors.append(some["levels"][-1]["factor"])
        assert factors[0] == 1 < factors[1] < factors[2] < 4
        assert tile_pyramid(slide, here.positions, 20, 4.0, 10_000) is None
        assert tile_pyramid(slide, here.positions, 20, 0.9, 10**9) is None


def test_slides_share_the_bytes_and_leave_the_rest_to_others(spots, noise, tmp_path):
    (tmp_path / "small.png").write_bytes(noise.read_bytes())
    large, small = on_noise(spots, noise, 2000), on_noise(spots, tmp_path / "small.png", 100)
    small = replace(small, positions=small.positions[:40])
    with open_image(noise) as slide:
        alone = [tile_pyramid(slide, each.positions, 20, 8 / 1.5, 10**9) for each in (large, small)]
    budget = taken(alone[1]) + taken(alone[0]) // 2
    zooms = deep_zoom([large, small, large], None, budget)
    assert zooms.of_map == [1, 0, 1]  # both maps of one slide have its pyramid
    assert zooms.slides[0] == alone[1]
    assert budget / 2 < taken(zooms.slides[1]) < taken(alone[0])  # more than its own half
    assert taken(zooms.slides[0]) + taken(zooms.slides[1]) <= budget
    finest = zooms.slides[1]["levels"][-1]["factor"] * 0.5
    assert zooms.words[0] == f"Finest picture: {finest:.3g} µm per pixel where spots are, 4 elsewhere."


def test_without_the_slide_the_thumbnail_stays(spots, noise, tmp_path):
    def said(*changed, **facts: str) -> tuple[str, list]:
        zooms = deep_zoom([replace(spots, facts={**spots.facts, **facts})], *(changed or (None,)), 10**9)
        assert (zooms.of_map == [None]) == (not zooms.slides)
        return zooms.words[0], zooms.slides

    gone = {"image_path": str(tmp_path / "large.tif")}
    assert said(**gone) == ("Finest picture: 3 µm per pixel (the slide large.tif is not at hand).", [])
    words, slides = said(Path(spots.facts["image_path"]).parent, **gone)
    assert words == "Finest picture: 0.5 µm per pixel where spots are, 3 elsewhere."
    assert len(slides) == 1
    for facts in ({"image_path": str(noise)}, {"image_checksum": "0" * 32}):
        words, slides = said(**facts)
        assert "is another file than the one that was predicted)" in words
        assert slides == []
    (tmp_path / "large.tif").write_bytes(b"II*\0")
    words, slides = said(**gone)
    assert "large.tif is no readable TIFF" in words
    assert slides == []
    assert deep_zoom([replace(spots, picture_px=None)], None, 0).words == [""]
    assert deep_zoom([replace(spots, picture_px=1.0)], None, 0).words == ["Finest picture: 0.5 µm per pixel."]


def test_predictions_and_evaluations_say_which_image_is_theirs(evaluated, predicted, section_paths):
    image = section_paths[2].parent / "images" / "S3.png"
    for file in (predicted, evaluated / "evaluation" / "S3" / "expression.h5ad"):
        facts = anndata.read_h5ad(file).uns["hyperst"]
        assert (facts["image_path"], facts["image_checksum"]) == (str(image.resolve()), sampled_hash(image))


def test_numbers_and_tiles_stay_under_15_mb(evaluated, spots, noise, monkeypatch):
    """Where numbers would take all, tiles have their least, and genes are left out as they are said to be."""
    random = np.random.default_rng(0)
    values = random.normal(size=(50_000, 200)).astype(np.float32)
    many = replace(
        on_noise(replace(spots, spot_ids=[f"spot-{i}" for i in range(50_000)]), noise, 2000),
        genes=[f"GENE{i}" for i in range(200)],
        predicted=values,
        measured=None,
        picture="data:image/jpeg;base64," + "A" * 400_000,
        half_widths=None,
        applicability=None,
        nearest=None,
    )
    monkeypatch.setattr(page, "LEAST_BYTES", 1_000_000)
    text = render(collect(evaluated), [many], "hyperst report")
    assert len(text.encode()) < 15_000_000
    shown = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert 500_000 < taken(shown["slides"][0]) <= 1_000_000
    assert 100 < len(shown["maps"][0]["genes"]) < 200
