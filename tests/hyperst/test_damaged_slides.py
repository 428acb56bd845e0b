"""`hyperst predict --skip-damaged`: what could not be decoded is white, counted, and marked in the result."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

from hyperst.cli import app
from hyperst.data import crop_widths_px
from hyperst.files import write_h5ad_atomic
from hyperst.predict import predict_image
from hyperst.run import load_run

TILE = 96


@pytest.fixture(scope="module")
def run(trained):
    return load_run(trained, device="cpu")


@pytest.fixture(scope="module")
def slide(sections, tmp_path_factory):
    """The third section's image as a tiled TIFF without its tile under the middle; and the box of that tile."""
    pixels = np.asarray(Image.open(sections[2].image_path))
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", compression="deflate", tile=(TILE, TILE))
    row, column = pixels.shape[0] // 2 // TILE, pixels.shape[1] // 2 // TILE
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        number = row * -(-page.imagewidth // TILE) + column
        offset, size = page.dataoffsets[number], page.databytecounts[number]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * size)
    return path, (column * TILE, row * TILE, (column + 1) * TILE, (row + 1) * TILE)


def test_a_damaged_tile_stops_a_prediction(run, slide, sections):
    with pytest.raises(ValueError, match=r"slide\.tif: tile .*--skip-damaged"):
        predict_image(run, slide[0], spots=sections[2].spot_px, mpp=sections[2].grid.um_per_px)


def test_skipped_tiles_are_white_counted_and_marked(run, slide, sections, tmp_path):
    path, (left, upper, right, lower) = slide
    section = sections[2]
    options = {"spots": section.spot_px, "mpp": section.grid.um_per_px}
    predicted = predict_image(run, path, skip_damaged=True, **options)
    assert predicted.uns["hyperst"]["damaged_tiles"] == 1
    _, niche = crop_widths_px(section.grid, section.spot_diameter_px, run.config.crop)
    x, y = section.spot_px.T
    near = (x + niche / 2 > left) & (x - niche / 2 < right) & (y + niche / 2 > upper) & (y - niche / 2 < lower)
    assert 0 < near.sum() < len(near)
    np.testing.assert_array_equal(predicted.obs["on_damaged_tile"], near)
    # the same as of an image that is white there
    pixels = np.asarray(Image.open(section.image_path)).copy()
    pixels[upper:lower, left:right] = 255
    Image.fromarray(pixels).save(tmp_path / "white.png")
    white = predict_image(run, tmp_path / "white.png", **options)
    np.testing.assert_array_equal(predicted.X, white.X)
    assert "on_damaged_tile" not in white.obs
    write_h5ad_atomic(predicted, tmp_path / "predicted.h5ad")


def test_the_command_says_how_many(trained, slide, sections, tmp_path):
    command = ["predict", str(trained), str(slide[0]), "--mpp", str(sections[2].grid.um_per_px)]
    command += ["--device", "cpu", "--output", str(tmp_path / "predicted.h5ad")]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1
    assert not (tmp_path / "predicted.h5ad").exists()
    told = CliRunner().invoke(app, [*command, "--skip-damaged"])
    assert told.exit_code == 0, told.output
    assert "damaged tiles of the image left white: 1;" in told.output
    (tmp_path / "slides.csv").write_text(f"section,name,mpp\n{slide[0]},first,{sections[2].grid.um_per_px}\n")
    command = ["predict", str(trained), str(tmp_path / "slides.csv"), "--device", "cpu", "-o", str(tmp_path / "all")]
    command += ["--workers", "0"]
    assert CliRunner().invoke(app, command).exit_code == 1
    told = CliRunner().invoke(app, [*command, "--skip-damaged"])
    assert "damaged tiles of the image left white: 1;" in told.output
    one, listed = (anndata.read_h5ad(tmp_path / name) for name in ("predicted.h5ad", "all/first.h5ad"))
    np.testing.assert_array_equal(listed.X, one.X)
    np.testing.assert_array_equal(listed.obs["on_damaged_tile"], one.obs["on_damaged_tile"])


def test_an_undamaged_slide_says_so(run, sections):
    section = sections[2]
    predicted = predict_image(
        run, section.image_path, spots=section.spot_px, mpp=section.grid.um_per_px, skip_damaged=True
    )
    assert predicted.uns["hyperst"]["damaged_tiles"] == 0
    assert not predicted.obs["on_damaged_tile"].any()


@pytest.mark.parametrize("mpp", [0, -1, float("nan"), 1400])
def test_no_prediction_at_an_impossible_scale(mpp, run, sections):
    with pytest.raises(ValueError, match=r"mpp \(--mpp\) .* 0\.05 to 20 um"):
        predict_image(run, sections[2].image_path, mpp=mpp)
