"""The command line end to end: what it makes, what it says, and how it fails."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from PIL import Image
from typer.testing import CliRunner, Result

from hyperst.cli import app

SMALL = ["--n-genes", "12", "--width", "16", "--image-size", "32", "--epochs", "1", "--networks", "1"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def failure(*arguments: object) -> str:
    """Standard error of a command that has to fail with one message, exit code 1 and no traceback."""
    result = call(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture
def change(section_paths, tmp_path):
    """A copy of the first section, changed by a function of its AnnData, with its image beside it."""

    def changed(edit, name="bad", image=True):
        adata = anndata.read_h5ad(section_paths[0])
        adata = edit(adata) or adata
        path = tmp_path / f"{name}.h5ad"
        adata.write_h5ad(path)
        if image:
            source = next((section_paths[0].parent / "images").glob("S1.*"))
            (tmp_path / f"{name}{source.suffix}").write_bytes(source.read_bytes())
        return path

    return changed


@pytest.fixture(scope="module")
def run_folder(section_paths, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    result = call("train", *section_paths[:2], "--output", folder, *SMALL)
    assert result.exit_code == 0, result.output
    assert "kept epoch 1" in result.output
    assert "network alone, with which a closed-form head is mixed" in " ".join(result.output.split())
    assert "S2" in result.output
    return folder


def test_train_evaluate_predict(run_folder, section_paths, tmp_path):
    result = call("evaluate", run_folder, section_paths[2], "--gene", (run_folder / "genes.txt").read_text().split()[0])
    assert result.exit_code == 0, result.output
    for words in ("training mean", "ridge on stain", "null", "PCC-10", "supports no claim about", "expression.png"):
        assert words in result.output, result.output
    assert (run_folder / "evaluation" / "S3" / "metrics.json").is_file()

    image = next((section_paths[2].parent / "images").glob("S3.*"))
    result = call("predict", run_folder, image, "--spots", section_paths[2], "-o", tmp_path / "at_spots.h5ad")
    assert result.exit_code == 0, result.output
    at_spots = anndata.read_h5ad(tmp_path / "at_spots.h5ad")
    assert list(at_spots.obs_names) == list(anndata.read_h5ad(section_paths[2]).obs_names)

    from hyperst.data import read_section

    result = call("predict", run_folder, image, "--mpp", read_section(section_paths[2]).grid.um_per_px)
    assert result.exit_code == 0, result.output
    tiles = anndata.read_h5ad(run_folder / "predictions" / "S3.h5ad")
    assert tiles.n_obs > 10
    assert list(tiles.var_names) == list(at_spots.var_names)


def test_evaluating_several_sections_writes_their_mean(run_folder, section_paths, tmp_path):
    copies = []
    for name in ("A", "B"):
        adata = anndata.read_h5ad(section_paths[2])
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        source = next((section_paths[2].parent / "images").glob("S3.*"))
        (tmp_path / f"{name}{source.suffix}").write_bytes(source.read_bytes())
        copies.append(tmp_path / f"{name}.h5ad")
    result = call("evaluate", run_folder, *copies, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "summary.json").is_file()


def test_ridge_is_left_out_when_the_training_sections_are_gone(run_folder, section_paths, tmp_path):
    import shutil

    shutil.copytree(run_folder, tmp_path / "run")
    split = tmp_path / "run" / "split.json"
    split.write_text(split.read_text().replace("S1.h5ad", "gone.h5ad"))
    result = call("evaluate", tmp_path / "run", section_paths[2])
    assert result.exit_code == 0, result.output
    assert "ridge regression left out" in result.output
    assert "gone.h5ad" in result.output
    assert "ridge on stain" not in result.output


def test_configuration_files_presets_and_options(section_paths, tmp_path):
    import yaml

    (tmp_path / "c.yaml").write_text("training: {epochs: 1, seed: 5}\ndata: {n_genes: 9}\n")
    result = call(
        "train", *section_paths[:2], "-o", tmp_path / "run", "--config", tmp_path / "c.yaml", "--ablation", "no_hea",
        "--n-genes", 7, "--width", 16, "--image-size", 32, "--target", "log2",
        "--validation-sections", section_paths[2],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (stored["training"]["seed"], stored["data"]["n_genes"], stored["data"]["target"]) == (5, 7, "log2")
    assert stored["alignment"]["entailment"] == "none"
    assert "validation sections" in result.output


def test_precomputed_features_need_no_image(section_paths, tmp_path):
    paths = []
    for path in section_paths:
        adata = anndata.read_h5ad(path)
        adata.obsm["uni"] = np.random.default_rng(0).normal(size=(adata.n_obs, 6)).astype(np.float32)
        adata.write_h5ad(tmp_path / path.name)
        paths.append(tmp_path / path.name)
    result = call("train", *paths[:2], "-o", tmp_path / "run", "--feature-key", "uni", *SMALL[:4], "--epochs", 1)
    assert result.exit_code == 0, result.output
    result = call("evaluate", tmp_path / "run", paths[2])
    assert result.exit_code == 0, result.output
    result = call("predict", tmp_path / "run", paths[2], "-o", tmp_path / "p.h5ad")
    assert result.exit_code == 0, result.output
    assert anndata.read_h5ad(tmp_path / "p.h5ad").n_vars == 12


def test_check_tells_good_from_bad(section_paths, change):
    good = call("check", *section_paths)
    assert good.exit_code == 0, good.output
    assert "3 of 3 sections can be used" in good.output

    def negative(adata):
        adata.X = -adata.X

    bad = call("check", section_paths[0], change(negative))
    assert bad.exit_code == 1
    assert "error" in bad.output
    assert "negative" in bad.output
    assert "1 of 2 sections can be used" in bad.output


def test_no_image(change, tmp_path):
    message = failure("train", change(lambda adata: None, image=False), "-o", tmp_path / "run", *SMALL)
    assert "no full-resolution image" in message
    assert "--image" in message


def test_spots_outside_the_image(change, tmp_path):
    def shift(adata):
        adata.obsm["spatial"] = adata.obsm["spatial"] + 100_000.0

    assert "outside image" in failure("train", change(shift), "-o", tmp_path / "run", *SMALL)


def test_a_downscaled_image(change, section_paths, tmp_path):
    path = change(lambda adata: None)
    image = next(file for file in tmp_path.iterdir() if file.suffix in (".png", ".jpg"))
    with Image.open(image) as full:
        full.convert("RGB").resize((full.width // 3, full.height // 3)).save(image)
    message = failure("train", path, "-o", tmp_path / "run", *SMALL)
    assert "downscaled" in message
    assert "full-resolution" in message


def test_negative_counts(change, tmp_path):
    def negative(adata):
        adata.X = -adata.X

    assert "negative" in failure("train", change(negative), "-o", tmp_path / "run", *SMALL)


def test_log_normalised_counts(change, tmp_path):
    def normalise(adata):
        adata.X = scipy.sparse.csr_matrix(np.log1p(scipy.sparse.csr_matrix(adata.X).toarray()))
        adata.layers.clear()

    message = failure("train", change(normalise), "-o", tmp_path / "run", *SMALL)
    assert "layers" in message
    assert "counts" in message


def test_duplicate_gene_names(change, tmp_path):
    def duplicate(adata):
        adata.var_names = [adata.var_names[0], *adata.var_names[:1], *adata.var_names[2:]]

    assert "var_names_make_unique" in failure("train", change(duplicate), "-o", tmp_path / "run", *SMALL)


def test_no_common_genes(change, section_paths, tmp_path):
    def rename(adata):
        adata.var_names = [f"ENSG{i:011d}" for i in range(adata.n_vars)]

    message = failure("train", section_paths[1], change(rename), "-o", tmp_path / "run", *SMALL)
    assert "no gene in common" in message


def test_no_genes_of_the_run(change, run_folder):
    def rename(adata):
        adata.var_names = [f"ENSG{i:011d}" for i in range(adata.n_vars)]

    assert "bad" in failure("evaluate", run_folder, change(rename))


def test_wrong_um_per_px(change, tmp_path):
    def is_visium(adata):
        adata.uns["spatial"]["S1"]["metadata"]["technology"] = "Visium"

    message = failure("train", change(is_visium), "--mpp", 7.5, "-o", tmp_path / "run", *SMALL)
    assert "7.5" in message
    assert "contradict" in message


def test_truncated_file(section_paths, tmp_path):
    data = section_paths[0].read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(data[: len(data) // 2])
    message = failure("train", tmp_path / "cut.h5ad", "-o", tmp_path / "run", *SMALL)
    assert "cut.h5ad" in message
    assert "cut short" in message


@pytest.mark.parametrize(
    ("interruption", "code"), [(OSError(errno.ENOSPC, "No space left on device"), 1), (KeyboardInterrupt(), 130)]
)
def test_a_failed_write_leaves_what_was_computed(run_folder, section_paths, tmp_path, monkeypatch, interruption, code):
    def fail(self, place, values):
        raise interruption

    with monkeypatch.context() as patched:
        patched.setattr(h5py.Dataset, "__setitem__", fail)
        result = call("predict", run_folder, section_paths[2], "-o", tmp_path / "p.h5ad")
    assert result.exit_code == code, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["p.h5ad.part"]
    assert call("predict", run_folder, section_paths[2], "-o", tmp_path / "p.h5ad").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["p.h5ad"]
    if code == 1:
        assert "no space left" in result.stderr
        assert "p.h5ad" in result.stderr


def test_a_full_disk_leaves_the_old_evaluation(run_folder, section_paths, tmp_path, monkeypatch):
    assert call("evaluate", run_folder, section_paths[2], "-o", tmp_path).exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "S3").iterdir()}

    def fail(self, path, **options):
        path.write_bytes(b"gene,")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    assert "no space left" in failure("evaluate", run_folder, section_paths[2], "-o", tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "S3").iterdir()} == before


def test_a_run_is_not_overwritten(run_folder, section_paths):
    assert "--resume" in failure("train", *section_paths[:2], "-o", run_folder, *SMALL)


def test_no_run(section_paths, tmp_path):
    assert "holds no run" in failure("evaluate", tmp_path, section_paths[2])


def test_a_missing_section(tmp_path):
    assert "absent.h5ad does not exist" in failure("train", tmp_path / "absent.h5ad", "-o", tmp_path / "run")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--output", "x"],
        ["train", "--resume", "--output", "x", "--epochs", "5"],
        ["train", "a.h5ad", "--epochs", "many"],
        ["train", "a.h5ad", "--devices", "0"],
        ["predict", "run", "image.jpg", "-o", "table.csv"],
        ["fly"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments):
    assert call(*arguments).exit_code == 2


def test_debug_shows_where(tmp_path):
    result = call("--debug", "evaluate", tmp_path, tmp_path / "x.h5ad")
    assert isinstance(result.exception, FileNotFoundError)


def test_help_is_quick_and_names_every_command():
    script = "import sys, hyperst.cli; assert not {'torch', 'lightning', 'anndata'} & set(sys.modules), 'slow import'"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    result = call("--help")
    assert all(command in result.output for command in ("demo", "train", "evaluate", "predict", "check", "report"))


@pytest.mark.timeout(1500)
def test_demo_end_to_end_without_a_terminal(tmp_path):
    command = [sys.executable, "-m", "hyperst", "demo", "--output", str(tmp_path / "demo")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "120"})
    assert result.returncode == 0, result.stderr
    for words in ("epoch", "training mean", "ridge", "null", "expression.png", "What to try next", "hyperst train"):
        assert words in result.stdout
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    stored = pd.read_json(tmp_path / "demo" / "run" / "evaluation" / "S4" / "metrics.json", typ="series")
    scores = stored["methods"]
    ours = scores["HyperST (this run)"]
    assert ours["mse"] < scores["training mean"]["mse"]
    assert ours["pcc"] > scores["null: images shuffled between spots"]["pcc"] + 0.2
    assert anndata.read_h5ad(tmp_path / "demo" / "predicted.h5ad").n_obs > 50
    page = tmp_path / "demo" / "report.html"
    assert f"{page}   the report: double-click it" in result.stdout
    assert page.stat().st_size < 15_000_000


def test_demo_replaces_only_its_own_folder(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    assert "was not made by" in failure("demo", "--output", tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "three years of work"
