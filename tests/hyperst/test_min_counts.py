"""Spots with hardly a count: left out where expression is compared, said and recorded, and predicted all the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from hyperst.cli import app
from hyperst.config import read_run_config
from hyperst.data import read_section, select_genes, with_min_counts
from hyperst.data.check import check_section
from hyperst.evaluation import OURS, evaluate, measured_expression
from hyperst.metrics import mse
from hyperst.plan import plan_run
from hyperst.predict import predict_image, predict_values
from hyperst.run import RunFolder, load_run
from hyperst.synthetic import write_tissue
from hyperst.train import fit

FEW = [3, 12, 20, 40, 55, 60]  # the spots that have a single count, of a gene that hardly varies
DULL = "GENE115"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def thinned(folder: Path, seed: int) -> Path:
    path = write_tissue(folder, seed=seed, name=f"T{seed}", patient="P", n_rows=9, n_cols=9)
    adata = anndata.read_h5ad(path)
    counts = adata.X.toarray()
    counts[FEW] = 0
    counts[FEW, list(adata.var_names).index(DULL)] = 1
    adata.X = counts
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thin")
    return [thinned(folder, seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def run_folder(paths, tiny_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "thin"
    config = replace(tiny_config, training=replace(tiny_config.training, epochs=1))
    with pytest.warns(
        UserWarning, match=r"section T1: 6 of 81 spots have fewer than 200 counts and are left out \(T1_"
    ):
        fit(config, [read_section(paths[0])], folder)
    return folder


def test_spots_below_the_least_count_are_left_out(paths):
    section = read_section(paths[0])
    values = np.arange(81.0, dtype=np.float32)[:, None]
    kept = with_min_counts(replace(section, features={"file": values}), 2)
    rest = np.setdiff1d(np.arange(81), FEW)
    assert kept.n_spots == 75
    assert kept.excluded_spots == tuple(section.spot_ids[FEW])
    assert kept.features["file"].ravel().tolist() == rest.tolist()
    for name in ("spot_ids", "spot_px", "array_index", "library_size"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(section, name)[rest])
    np.testing.assert_array_equal(kept.counts.toarray(), section.counts.toarray()[rest])
    assert with_min_counts(section, 1) is section
    with pytest.raises(ValueError, match=r"section T1: all 81 spots have fewer than 100000 counts .*--min-counts"):
        with_min_counts(section, 100_000)


def test_a_single_count_chooses_no_gene(paths, tiny_config):
    """On the log scale the one count of an empty spot is the largest value of the section."""
    section = read_section(paths[0])
    data = replace(tiny_config.data, gene_selection="hvg")
    chosen = plan_run(replace(tiny_config, data=data), [section]).genes
    assert chosen == list(select_genes([with_min_counts(section, 200)], data.n_genes, "hvg"))
    assert DULL not in chosen
    assert DULL in plan_run(replace(tiny_config, data=replace(data, min_counts=0)), [section]).genes


def test_a_run_records_the_spots_left_out(run_folder, paths, tiny_config):
    place = RunFolder(run_folder)
    (record,) = place.read_split().sections
    assert record.n_spots == 75
    assert record.excluded_spots == tuple(read_section(paths[0]).spot_ids[FEW])
    assert load_run(run_folder).config.data.min_counts == 200
    held_out = place.read_split().validation_spots["T1"]
    assert held_out
    assert not set(held_out) & set(record.excluded_spots)
    again = fit(tiny_config, [read_section(paths[0])], run_folder, resume=True)  # the sections are those of the run
    assert again.epochs == 1


def test_a_run_of_an_older_version_goes_on_with_every_spot(run_folder, tmp_path):
    stored = yaml.safe_load(RunFolder(run_folder).config.read_text())
    del stored["data"]["min_counts"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    assert read_run_config(tmp_path / "config.yaml").data.min_counts == 0


def test_evaluation_leaves_them_out_and_says_so(run_folder, paths, tmp_path):
    run, section = load_run(run_folder, device="cpu"), read_section(paths[1])
    found = evaluate(run, section, output=tmp_path)
    rest = np.setdiff1d(np.arange(81), FEW)
    kept = with_min_counts(section, 200)
    assert found.n_spots == 75
    assert found.scores[OURS].mse == pytest.approx(mse(predict_values(run, kept), measured_expression(run, kept)))
    assert measured_expression(run, section)[rest] == pytest.approx(measured_expression(run, kept))
    assert "T2: 6 of 81 spots have fewer than 200 counts and are left out" in found.caveats[0]
    stored = json.loads((found.folder / "metrics.json").read_text())
    assert stored["min_counts"] == 200
    assert stored["excluded_spots"] == list(section.spot_ids[FEW])
    with pytest.raises(FileExistsError, match="with --min-counts 200, which is over other spots"):
        evaluate(run, section, output=tmp_path, min_counts=0)
    everything = evaluate(run, section, output=tmp_path / "all", min_counts=0)
    assert everything.n_spots == 81
    assert not any("left out" in caveat for caveat in everything.caveats)


def test_every_spot_is_predicted(run_folder, paths):
    run = load_run(run_folder, device="cpu")
    predicted = predict_image(run, paths[1].parent / "images" / "T2.png", spots=paths[1])
    assert predicted.n_obs == 81
    assert np.isfinite(predicted.X).all()


def test_check_counts_them(paths):
    (said,) = [found for found in check_section(paths[0]) if "fewer than" in found.message]
    assert (said.level, said.message) == ("warning", "6 of 81 spots have fewer than 200 counts")
    result = call("check", paths[0], "--min-counts", 100_000)
    assert result.exit_code == 1
    assert "81 of 81 spots have fewer than 100000 counts" in result.output
    assert "fewer than" not in call("check", paths[0], "--min-counts", 0).output


def test_the_commands_take_the_least_count(run_folder, paths, tmp_path):
    result = call("train", paths[0], "--n-genes", 12, "--min-counts", 100_000, "-o", tmp_path / "run")
    assert result.exit_code == 1
    assert "all 81 spots have fewer than 100000 counts" in result.stderr
    assert not (tmp_path / "run").exists()
    result = call("evaluate", run_folder, paths[1], "--min-counts", 100_000, "-o", tmp_path / "e")
    assert result.exit_code == 1
    assert "all 81 spots have fewer than 100000 counts" in result.stderr
    result = call("evaluate", run_folder, paths[1], "--min-counts", 0, "-o", tmp_path / "e")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "e" / "T2" / "metrics.json").read_text())["n_spots"] == 81
