"""The ways of reading a slide that are timed read the same crops, and the table says what is not installed."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from benchmarks import slides
from benchmarks.problem import OURS
from hyperst.synthetic_slide import write_slide


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return write_slide(tmp_path_factory.mktemp("slide") / "slide.tif", 1100, tile=128)


def test_all_ways_read_the_same_crops(slide):
    pytest.importorskip("zarr")
    pytest.importorskip("openslide")
    corners = slides.corners_on(1100)
    wanted = slides.from_memory(tifffile.imread(slide, level=0), corners)
    for way in (slides.ours, slides.with_tifffile, slides.with_openslide):
        for crop, other in zip(way(slide, corners), wanted, strict=True):
            # ours resizes with what lies around the crop, which moves its border; openslide has another decoder
            inner = np.abs(crop[2:-2, 2:-2].astype(int) - other[2:-2, 2:-2])
            assert inner.max() <= (0 if way is slides.with_tifffile else 8), way.__name__


def test_the_limit_decodes_what_lies_under_the_crops_once(slide):
    tiles = slides.tiles_under(slide, slides.corners_on(1100))
    assert slides.decoded(slide, tiles) == 3 * 128**2 * len(tiles)
    assert 0 < len(tiles) <= 81
    assert slides.tiles_under(slide, np.array([[0, 0]])) == [0, 1, 9, 10]


def test_what_is_missing_is_a_row_that_says_so(monkeypatch, tmp_path):
    def missing(path, corners):
        raise ImportError("No module named 'openslide'")

    monkeypatch.setattr(slides, "with_openslide", missing)
    found = slides.rows(600, repeats=1)
    assert {row.provider: row.note for row in found}[slides.OPENSLIDE] == "No module named 'openslide'"
    text = slides.table(found)
    assert "| openslide | No module named 'openslide' |  |" in text
    assert f"| {OURS} | " in text
