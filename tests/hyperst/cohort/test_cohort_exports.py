"""Exports of a cohort: always of the prediction that is there, and nobody else's file is taken for one or removed."""

from __future__ import annotations

import os
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from hyperst.cohort import Options, predict_cohort
from hyperst.cohort.exports import SlideExports
from hyperst.data import SectionSource
from hyperst.synthetic import write_tissue

from .conftest import SIZE


def require_of(folder: Path, um_per_px: float) -> None:
    """A.csv is of A.h5ad, which has this scale."""
    table, stored = pd.read_csv(folder / "A.csv"), anndata.read_h5ad(folder / "A.h5ad")
    assert stored.uns["hyperst"]["um_per_px"] == um_per_px
    np.testing.assert_allclose(table[["x", "y"]], stored.obsm["spatial"], rtol=1e-6)  # has seven digits
    np.testing.assert_allclose(table["x_um"], um_per_px * table["x"], rtol=1e-6)
    np.testing.assert_allclose(table[stored.var_names], stored.X, rtol=1e-6)


def test_an_export_is_always_of_the_prediction_that_is_there(run, tmp_path):
    write_tissue(tmp_path, seed=5, name="A", **SIZE)
    folder = tmp_path / "out"

    def predict(mpp, *exports, again=False):
        source = SectionSource(tmp_path / "images" / "A.png")
        (result,) = predict_cohort(
            run, [source], folder, Options(mpp=mpp, exports=exports), workers=0, again=again
        ).results
        assert result.status != "failed", result.error
        return result

    predict(2.8, "csv")
    require_of(folder, 2.8)
    (folder / "A.geojson").write_text("mine")
    replaced = predict(2.6, again=True)
    assert "A.csv was of the prediction before this one, and is removed" in replaced.notes
    assert not (folder / "A.csv").exists()
    assert predict(2.6, "csv").status == "kept"
    require_of(folder, 2.6)
    (folder / "A.h5ad").unlink()
    predict(2.8, "csv")
    require_of(folder, 2.8)
    (folder / "A.csv").write_text("changed")
    for again in (False, True):
        with pytest.raises(FileExistsError, match=r"A\.csv exists, is not as an export of this cohort was written"):
            predict(2.8, "csv", again=again)
    said = " ".join(predict(2.6, again=True).notes)
    assert "A.csv is left" in said
    assert "A.geojson is left" in said
    assert (folder / "A.csv").read_text() == "changed"
    assert (folder / "A.geojson").read_text() == "mine"


@pytest.fixture
def exports(tmp_path) -> SlideExports:
    (tmp_path / "A.h5ad").write_text("prediction")
    (tmp_path / "logs").mkdir()
    return SlideExports(tmp_path / "A.h5ad", tmp_path / "logs" / "A.exports.json")


def write_folder(path: Path) -> None:
    path.mkdir()
    (path / "part").write_text("x")


def test_a_write_that_is_killed_is_begun_again(exports, tmp_path, monkeypatch):
    """In its midst, or between its record and its move: neither leaves a file that nobody knows."""

    def killed(*_):
        raise KeyboardInterrupt

    def begun(path):
        write_folder(path)
        killed()

    with pytest.raises(KeyboardInterrupt):
        exports.write("zarr", begun)
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            exports.write("zarr", write_folder)
    assert not (tmp_path / "A.zarr").exists()
    assert exports.missing(("zarr",)) == ["zarr"]
    exports.write("zarr", write_folder)
    assert exports.missing(("csv", "zarr")) == ["csv"]
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"A.exports.json"}


def test_an_export_of_another_prediction_is_replaced(exports, tmp_path):
    exports.write("csv", lambda path: path.write_text("old"))
    exports.write("zarr", write_folder)
    exports.prediction.write_text("another prediction")
    assert exports.missing(("csv", "zarr")) == ["csv", "zarr"]
    exports.write("csv", lambda path: path.write_text("new"))
    assert exports.missing(("csv", "zarr")) == ["zarr"]
    assert (tmp_path / "A.csv").read_text() == "new"
    assert exports.remove() == ([tmp_path / "A.csv", tmp_path / "A.zarr"], [])


def test_a_file_of_somebody_else_stays(exports, tmp_path):
    """One of that name, a folder that has more in it than was written, and a link to what was written."""
    (tmp_path / "A.geojson").write_text("mine")
    exports.write("zarr", write_folder)
    (tmp_path / "A.zarr" / "more").write_text("mine")
    exports.write("csv", lambda path: path.write_text("table"))
    os.rename(tmp_path / "A.csv", tmp_path / "moved.csv")
    (tmp_path / "A.csv").symlink_to(tmp_path / "moved.csv")
    for ending in ("csv", "geojson", "zarr"):
        with pytest.raises(FileExistsError, match=rf"A\.{ending} exists"):
            exports.write(ending, lambda path: None)
    assert exports.remove() == ([], [tmp_path / f"A.{ending}" for ending in ("csv", "geojson", "zarr")])
    assert (tmp_path / "A.geojson").read_text() == (tmp_path / "A.zarr" / "more").read_text() == "mine"
    assert (tmp_path / "moved.csv").read_text() == "table"


def test_without_its_record_no_file_is_known(exports, tmp_path):
    exports.write("csv", lambda path: path.write_text("table"))
    exports.record.write_text("no JSON")
    with pytest.raises(FileExistsError, match=r"A\.csv exists"):
        exports.require_own(("csv", "geojson"))
