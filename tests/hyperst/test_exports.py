"""Predictions as tables and detections of QuPath: nothing is lost, nothing half-written, and what is known of genes goes along."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest

from hyperst.evaluation import evaluate
from hyperst.export import check_exports, export_path, held_out_figures, write_export
from hyperst.export.spots import FACTS, blocks_of_spots, spacing_px, spots_of
from hyperst.files import atomic_folder
from hyperst.predict import predict_section
from hyperst.run import load_run

from .test_cli import call, failure

FLOAT32 = {"rtol": 1e-6, "atol": 0}  # seven digits are written


@pytest.fixture(scope="module")
def adata(predicted):
    return anndata.read_h5ad(predicted)


def test_a_table_holds_every_number(adata, tmp_path, monkeypatch):
    whole = pd.read_csv(write_export(adata, tmp_path / "a.csv"), index_col="spot")
    assert list(whole.index) == list(adata.obs_names)
    np.testing.assert_allclose(whole[["x", "y"]], adata.obsm["spatial"], **FLOAT32)
    np.testing.assert_allclose(
        whole[["x_um", "y_um"]], adata.obsm["spatial"] * adata.uns["hyperst"]["um_per_px"], **FLOAT32
    )
    np.testing.assert_allclose(whole["tissue_fraction"], adata.obs["tissue_fraction"], **FLOAT32)
    np.testing.assert_allclose(whole[list(adata.var_names)], adata.X, **FLOAT32)
    monkeypatch.setattr("hyperst.export.spots._BLOCK", 7)
    assert write_export(adata, tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_only_some_spots_are_text_at_a_time(adata):
    many = anndata.AnnData(np.arange(4500, dtype=np.float32)[:, None])
    parts = list(blocks_of_spots(many))
    assert [part.stop - part.start for part, _ in parts] == [2000, 2000, 500]
    np.testing.assert_array_equal(np.concatenate([values for _, values in parts]), many.X)


def test_places_of_a_table_can_be_predicted_again(adata, evaluated, section_paths, tmp_path):
    table = write_export(adata, tmp_path / "a.csv")
    image = section_paths[2].parent / "images" / "S3.png"
    result = call("predict", evaluated, image, "--spots", table, "--mpp", 1.4, "-o", tmp_path / "b.h5ad")
    assert result.exit_code == 0, result.output
    again = anndata.read_h5ad(tmp_path / "b.h5ad")
    assert list(again.obs_names) == list(adata.obs_names)
    # places are written with seven digits: crops move by 1e-4 px at most
    np.testing.assert_allclose(again.X, adata.X, rtol=0, atol=1e-2 * float(adata.X.std()))


def test_detections_of_qupath(adata, tmp_path, monkeypatch):
    """QuPath reads objectType, name, classification and measurements of properties, and no NaN."""
    marked = adata.copy()
    marked.obs["doubt"] = np.where(np.arange(adata.n_obs) == 1, np.nan, 0.25)
    marked.obs["on_damaged_tile"] = np.arange(adata.n_obs) == 2
    monkeypatch.setattr("hyperst.export.spots._BLOCK", 7)
    stored = json.loads(write_export(marked, tmp_path / "a.geojson").read_text(), parse_constant=pytest.fail)
    assert stored["type"] == "FeatureCollection"
    assert len(stored["features"]) == adata.n_obs
    diameter = spots_of(adata).diameter_px
    for number, feature in enumerate(stored["features"]):
        properties = feature["properties"]
        assert (properties["objectType"], properties["name"]) == ("detection", adata.obs_names[number])
        assert "predicted" in properties["classification"]["name"].lower()
        measured = properties["measurements"]
        np.testing.assert_allclose([measured[gene] for gene in adata.var_names], adata.X[number], **FLOAT32)
        assert ("doubt" in measured) == (number != 1)
        assert measured["on_damaged_tile"] == (number == 2)
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        corners = np.asarray(ring[:-1])
        centre = adata.obsm["spatial"][number]
        np.testing.assert_allclose(np.linalg.norm(corners - centre, axis=1), diameter / 2, atol=0.01)
        # isEllipse: the ellipse that fits these bounds
        np.testing.assert_allclose(np.ptp(corners, axis=0), diameter, atol=0.01)


def test_a_prediction_without_an_image(adata):
    """The diameter of a spot is half their spacing."""
    bare = adata.copy()
    del bare.uns["spatial"]
    spots = spots_of(bare)
    assert spots.thumbnail is None
    assert spots.diameter_px == pytest.approx(spacing_px(adata.obsm["spatial"]) / 2)
    assert spacing_px(np.array([[3.0, 4.0]])) == 2


def test_what_is_no_prediction(adata, tmp_path):
    for broken in (anndata.AnnData(np.ones((2, 2))), adata[:0].copy()):
        with pytest.raises(ValueError, match="this is no prediction"):
            write_export(broken, tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"a\.txt must end in one of \.csv, \.geojson, \.zarr"):
        write_export(adata, tmp_path / "a.txt")
    renamed = adata.copy()
    renamed.var_names = ["tissue_fraction", *adata.var_names[1:]]
    for ending in ("csv", "geojson"):
        with pytest.raises(ValueError, match="gene tissue_fraction has the name of a column"):
            write_export(renamed, tmp_path / f"a.{ending}")
    assert list(tmp_path.iterdir()) == []
    assert len(spots_of(adata).facts.columns) > 2
    assert set(spots_of(adata).facts.columns) <= set(FACTS)


def test_an_export_that_fails_says_how_to_write_it(evaluated, section_paths, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("hyperst.export.write.write_csv", full)
    result = call("predict", evaluated, section_paths[2], "-o", out := tmp_path / "p q.h5ad", "--export", "csv")
    assert result.exit_code == 1
    assert f"the prediction itself is whole: {out}. Its .csv" in result.output
    monkeypatch.undo()
    said = result.output.partition("in Python: ")[2].splitlines()[0]
    exec(f"import anndata, hyperst.export\n{said}")
    assert out.with_suffix(".csv").is_file()


def test_what_can_be_told_before_the_work(tmp_path, monkeypatch):
    prediction = tmp_path / "a.b.h5ad"
    check_exports(prediction, ["csv", "geojson"], ["ERBB2"])
    assert export_path(prediction, "csv").name == "a.b.csv"
    with pytest.raises(ValueError, match="got 'parquet', need some of csv, geojson, zarr"):
        check_exports(prediction, ["parquet"], ["ERBB2"])
    with pytest.raises(ValueError, match="gene x has the name of a column"):
        check_exports(prediction, ["csv"], ["ERBB2", "x"])
    with pytest.raises(ValueError, match="gene applicability has the name of a column"):
        check_exports(prediction, ["geojson"], ["ERBB2", "applicability"])
    (tmp_path / "a.b.geojson").write_text("mine")
    with pytest.raises(FileExistsError, match=r"a\.b\.geojson exists"):
        check_exports(prediction, ["geojson"], ["ERBB2"])
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    with pytest.raises(ImportError, match=r"pip install 'hyperst-kernels\[spatialdata\]'"):
        check_exports(prediction, ["zarr"], ["ERBB2"])


def test_exports_of_the_command_line(evaluated, section_paths, tmp_path):
    out = tmp_path / "p.h5ad"
    result = call("predict", evaluated, section_paths[2], "-o", out, "--export", "csv", "--export", "geojson")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "p.geojson", "p.h5ad"]
    assert f"next: hyperst plot {evaluated} {out}" in result.output
    assert "scanpy.pl.spatial" not in result.output
    out.unlink()
    assert "p.csv exists" in failure("predict", evaluated, section_paths[2], "-o", out, "--export", "csv")
    (tmp_path / "two.csv").write_text(f"section,name\n{section_paths[1]},A\n{section_paths[2]},B\n")
    result = call("predict", evaluated, tmp_path / "two.csv", "-o", tmp_path / "many", "--export", "csv")
    assert result.exit_code == 0, result.output
    found = {path.name for path in (tmp_path / "many").iterdir()}
    assert found == {"A.csv", "A.h5ad", "B.csv", "B.h5ad", "cohort.csv", "cohort.h5ad", "logs"}


def test_genes_carry_what_was_found_on_sections_held_out(evaluated, adata):
    found = pd.read_csv(evaluated / "evaluation" / "S3" / "per_gene.csv", index_col="gene").loc[adata.var_names]
    for ours, theirs in (("pcc", "held_out_pcc"), ("mse", "held_out_mse"), ("pcc_null", "held_out_pcc_null")):
        np.testing.assert_array_equal(adata.var[theirs], found[ours])
    assert adata.uns["hyperst"]["held_out_sections"] == "S3"
    own = anndata.read_h5ad(evaluated / "evaluation" / "S3" / "expression.h5ad").var
    np.testing.assert_allclose(own["held_out_pcc"], found["pcc"], rtol=1e-5)


def test_means_over_held_out_sections(evaluated, sections, tmp_path):
    """Of the weights and the stain that predict, over the sections where a gene has a value."""
    folder = tmp_path / "run"
    shutil.copytree(evaluated, folder)
    run = load_run(folder, device="cpu")
    shutil.copytree(folder / "evaluation" / "S3", folder / "evaluation" / "S4")
    table = folder / "evaluation" / "S4" / "per_gene.csv"
    other = pd.read_csv(table, index_col="gene")
    other["pcc"] += 0.5
    other.loc[run.genes[0], "pcc"] = np.nan
    other.to_csv(table)
    one = pd.read_csv(folder / "evaluation" / "S3" / "per_gene.csv", index_col="gene")["pcc"]
    means, names = held_out_figures(folder, run.genes, run.best_epoch)
    assert len(names) == 2
    expected = one + 0.25
    expected[run.genes[0]] = one[run.genes[0]]
    np.testing.assert_allclose(means["held_out_pcc"], expected[run.genes], rtol=1e-12)
    for epoch, stain in ((run.best_epoch + 1, "none"), (run.best_epoch, "match")):
        nothing, none = held_out_figures(folder, run.genes, epoch, stain)
        assert (list(nothing.columns), none) == ([], [])
    shutil.rmtree(folder / "evaluation")
    bare = predict_section(replace(run, folder=folder), sections[2])
    assert not [name for name in bare.var.columns if name.startswith("held_out")]
    assert bare.uns["hyperst"]["held_out_sections"] == ""


def test_a_gene_that_no_held_out_section_has(evaluated, sections, tmp_path):
    run = load_run(evaluated, device="cpu")
    without = sections[2].genes != run.genes[0]
    section = replace(
        sections[2], name="S5", genes=sections[2].genes[without], counts=sections[2].counts[:, np.flatnonzero(without)]
    )
    shutil.copytree(evaluated, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    evaluate(load_run(tmp_path / "run", device="cpu"), section)
    means, _ = held_out_figures(tmp_path / "run", run.genes, run.best_epoch)
    assert np.isnan(means["held_out_pcc"].iloc[0])
    assert np.isfinite(means["held_out_mse"].iloc[1:]).all()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), ValueError("no")])
def test_a_folder_is_whole_or_not_there(tmp_path, interruption):
    def make(fail):
        with atomic_folder(tmp_path / "a.zarr") as place:
            (place / "deep").mkdir(parents=True)
            (place / "deep" / "part").write_text("1")
            if fail:
                raise interruption

    with pytest.raises(type(interruption)):
        make(fail=True)
    assert list(tmp_path.iterdir()) == []
    make(fail=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
    assert (tmp_path / "a.zarr" / "deep" / "part").read_text() == "1"
    with pytest.raises(FileExistsError, match=r"a\.zarr exists"), atomic_folder(tmp_path / "a.zarr"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_what_a_killed_process_left_of_a_folder_goes_with_the_next_try(tmp_path):
    place = tmp_path / "a.zarr"
    command = "import os, signal, sys; from hyperst.files import atomic_folder\n"
    command += "with atomic_folder(sys.argv[1]) as place: place.mkdir(); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", command, str(place)], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.")
    os.utime(left, (0, 0))
    with atomic_folder(place) as temporary:
        temporary.mkdir()
    assert list(tmp_path.iterdir()) == [place]
