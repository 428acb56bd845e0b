"""An image of another section: what `hyperst check` says of it, every command that reads measured spots says too."""

from __future__ import annotations

import anndata
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from hyperst.cli import app
from hyperst.data import check_section, read_section
from hyperst.data.check import require_placement

from .data.slides import slide, write_slide


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A section, an image of the same size whose tissue lies elsewhere, and what check says of them together."""
    folder = tmp_path_factory.mktemp("other")
    adata, image = slide()
    adata.X = 2 * adata.X  # it is a tissue that the trained run has seen: other counts make another section of it
    path = write_slide(folder, adata, image)
    Image.fromarray(image[::-1, ::-1]).save(folder / "other.png")
    (found,) = [each for each in check_section(path, image=folder / "other.png") if each.level == "error"]
    assert "spots lie on background" in found.message
    assert "or the image is of another section" in found.remedy
    return path, folder / "other.png", f"section S on {folder / 'other.png'}: {found.message}; {found.remedy}"


def test_training_refuses_it(other, tmp_path):
    path, image, words = other
    result = call("train", path, "--image", image, "--n-genes", 12, "-o", tmp_path / "run")
    assert result.exit_code == 1, result.output
    assert words in result.stderr
    assert not (tmp_path / "run").exists()


def test_evaluation_refuses_it(other, trained, tmp_path):
    path, image, words = other
    result = call("evaluate", trained, path, "--missing", "zero", "--image", image, "-o", tmp_path / "out")
    assert result.exit_code == 1, result.output
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


def test_prediction_warns_of_it(other, trained, tmp_path):
    """Spots that are given are all predicted."""
    path, image, words = other
    with pytest.warns(UserWarning, match="spots lie on background") as caught:
        result = call("predict", trained, image, "--spots", path, "-o", tmp_path / "p.h5ad")
    assert result.exit_code == 0, result.output
    assert words in [str(warning.message) for warning in caught]
    assert anndata.read_h5ad(tmp_path / "p.h5ad").n_obs == 81


def test_a_few_spots_on_background_are_a_warning(tmp_path):
    adata, image = slide()
    index = adata.obs["array_row"].to_numpy()
    image[: int(adata.obsm["spatial"][index == 1, 1].mean() - 15)] = 230  # nothing left under the first of nine rows
    section = read_section(write_slide(tmp_path, adata, image))
    with pytest.warns(UserWarning, match="section S on .*: 9 of 81 spots lie on background"):
        require_placement(section)
