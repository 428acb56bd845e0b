"""A cohort of slides: one failure stops no other, what is there is kept, and every way to predict gives the same files."""

from __future__ import annotations

import importlib.util
import re
import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import psutil
import pytest

from hyperst.cohort import Options, predict_cohort
from hyperst.cohort.tables import COLUMNS
from hyperst.data import SectionSource, find_tissue, open_image, read_manifest
from hyperst.predict import predict_image
from hyperst.run import load_run
from hyperst.synthetic import write_tissue

from ..test_cli import call, failure
from ..test_several_processes import command
from .conftest import DAMAGED, SIZE

REASON = r"images/T07\.png is no readable image"


def files(folder: Path) -> dict[str, bytes]:
    """Whole files by name; what a killed process was writing has a hidden name."""
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*.h5ad")}


@pytest.fixture
def begun(found, tmp_path) -> Path:
    """A folder with the predictions of five slides."""
    for number in range(5):
        shutil.copy(found.folder / f"T{number:02}.h5ad", tmp_path)
    return tmp_path


def test_one_damaged_slide_stops_no_other(found):
    assert list(found.failures) == [DAMAGED]
    assert re.search(REASON, found.failures[DAMAGED])
    assert sum(result.status == "predicted" for result in found.results) == 19
    assert len(files(found.folder)) == 20  # and cohort.h5ad
    assert REASON.split(r"\.")[0] in (found.folder / "logs" / f"{DAMAGED}.txt").read_text()
    table = pd.read_csv(found.folder / "cohort.csv")
    assert list(table) == list(COLUMNS)
    assert list(table["slide"]) == [f"T{number:02}" for number in range(20)]
    (failed,) = table[table["status"] == "failed"].itertuples()
    assert (failed.slide, failed.error) == (DAMAGED, found.failures[DAMAGED])
    assert np.isnan([failed.spots, failed.tissue_mm2]).all()
    assert (table["seconds"] > 0).all()


def test_a_slide_is_predicted_as_it_is_alone(found, manifest, run):
    """At the spots of a section, and on the grid of an image, with the tissue of its whole image."""
    loaded, folder = load_run(run, device="cpu"), manifest.parent
    for name, given in (("T00", folder / "T00.h5ad"), ("T01", folder / "images" / "T01.png")):
        alone = predict_image(loaded, given, mpp=2.8)
        stored = anndata.read_h5ad(found.folder / f"{name}.h5ad")
        np.testing.assert_array_equal(stored.X, alone.X)
        assert list(stored.obs_names) == list(alone.obs_names)
        assert stored.uns["hyperst"]["units"] == alone.uns["hyperst"]["units"]
        with open_image(folder / "images" / f"{name}.png") as image:
            share = find_tissue(image, 100 / 2.8).mask.mean()
            area = share * image.width * image.height * 2.8**2 / 1e6
        assert stored.uns["hyperst"]["tissue_mm2"] == pytest.approx(area)


def test_pseudo_bulk_is_the_mean_over_spots(found):
    bulk = anndata.read_h5ad(found.folder / "cohort.h5ad")
    table = pd.read_csv(found.folder / "cohort.csv", index_col="slide")
    assert list(bulk.obs_names) == [f"T{number:02}" for number in range(20) if f"T{number:02}" != DAMAGED]
    for name, row in zip(bulk.obs_names, bulk.X, strict=True):
        stored = anndata.read_h5ad(found.folder / f"{name}.h5ad")
        np.testing.assert_array_equal(row, stored.X.mean(axis=0, dtype=np.float64).astype(np.float32))
        assert bulk.obs.loc[name, "n_spots"] == stored.n_obs
        assert bulk.obs.loc[name, "tissue_mm2"] == stored.uns["hyperst"]["tissue_mm2"]
        for fact in ("unlike_share", "unlike_slide"):
            assert bulk.obs.loc[name, fact] == stored.uns["hyperst"][fact]
            assert table.loc[name, fact] == pytest.approx(stored.uns["hyperst"][fact], rel=1e-5)  # has six digits
        assert list(bulk.var_names) == list(stored.var_names)
    assert list(bulk.obs["patient"].cat.categories) == [f"P{number}" for number in range(10)]
    assert bulk.uns["hyperst"]["units"] == stored.uns["hyperst"]["units"]


def test_a_killed_cohort_goes_on_and_has_the_same_files(found, manifest, run, tmp_path):
    """Killed with its workers at work, and gone on with in one process."""
    process = command("hyperst", "predict", run, manifest, "-o", tmp_path, "--workers", 2, "--device", "cpu")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[3/20]"):
            break
    workers = [each for each in psutil.Process(process.pid).children() if "spawn_main" in " ".join(each.cmdline())]
    assert len(workers) == 2
    process.kill()
    process.wait()
    psutil.wait_procs(workers, timeout=30)
    assert not any(worker.is_running() for worker in workers)
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("[!.]*.h5ad")}
    assert 2 <= len(written) < 20  # of the first three, one may be the damaged one
    assert "cohort.h5ad" not in written
    result = call("predict", run, manifest, "-o", tmp_path, "--workers", 0, "--device", "cpu")
    assert result.exit_code == 1
    assert result.output.count("spots, predicted before") == len(written)
    assert re.search(rf"failed {DAMAGED}: .*{REASON}", result.output)
    assert f"19 of 20 slides predicted: {tmp_path}" in result.output
    assert files(tmp_path) == files(found.folder)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in written} == written


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra cluster)")
def test_ray_gives_the_same_files(found, manifest, run, tmp_path):
    seen = []
    done = predict_cohort(
        run, read_manifest(manifest), tmp_path, workers=2, engine="ray", on_slide=lambda *told: seen.append(told)
    )
    assert list(done.failures) == [DAMAGED]
    assert [told[1:] for told in seen] == [(number, 20) for number in range(1, 21)]
    assert files(tmp_path) == files(found.folder)


def test_without_ray(manifest, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    message = failure("predict", run, manifest, "-o", tmp_path / "cohort", "--engine", "ray")
    assert "Ray (--engine ray) is not installed: pip install 'hyperst-kernels[cluster]'" in message
    assert "need at least 1 on Ray" in failure(
        "predict", run, manifest, "-o", tmp_path, "--engine", "ray", "--workers", 0
    )


def test_srun_shares_the_slides_and_one_process_writes_the_table(found, manifest, run, begun):
    """The exit code of the first task tells of the failure; another one's would end the job before all are done."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1], "SLURM_STEP_TASKS_PER_NODE": "2"}
    started = [
        command(
            "hyperst", "predict", run, manifest, "-o", begun,
            SLURM_STEP_NUM_TASKS=2, SLURM_PROCID=rank, SLURM_LOCALID=rank, **place,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    (said, _), (other, _) = (process.communicate(timeout=300) for process in started)
    assert [process.returncode for process in started] == [1, 0], said + other
    assert said.count("spots, predicted before") == 5
    assert "[20/20]" in said
    assert f"19 of 20 slides predicted: {begun}" in said
    assert other == ""
    assert files(begun) == files(found.folder)


def test_a_second_call_tries_what_failed_and_again_tries_all(found, manifest, run, begun, monkeypatch):
    slides = read_manifest(manifest)[:5]
    first = predict_cohort(run, slides, begun, workers=0)
    assert [result.status for result in first.results] == ["kept"] * 5
    assert pd.read_csv(begun / "cohort.csv")["seconds"].isna().all()
    assert first.table()["spots"].equals(found.table()["spots"][:5])
    before = files(begun)
    again = predict_cohort(run, slides, begun, workers=0, again=True)
    assert [result.status for result in again.results] == ["predicted"] * 5
    assert files(begun) == before


def test_exports_are_made_of_what_is_there(manifest, run, begun):
    """Of five predictions that are there; a file beside one that is not there is nobody's to replace."""
    sources = read_manifest(manifest)[:6]
    (begun / "T05.csv").write_text("mine")
    options = Options(exports=("csv",))
    with pytest.raises(FileExistsError, match=r"T05\.csv exists"):
        predict_cohort(run, sources, begun, options, workers=0)
    (begun / "T05.csv").unlink()
    before = files(begun)
    found = predict_cohort(run, sources, begun, options, workers=0)
    assert [result.status for result in found.results] == ["kept"] * 5 + ["predicted"]
    assert {name: x for name, x in files(begun).items() if name in before} == before
    tables = {name: pd.read_csv(begun / f"{name}.csv") for name in ("T00", "T05")}
    assert all(len(x) == anndata.read_h5ad(begun / f"{name}.h5ad").n_obs for name, x in tables.items())


def test_predictions_of_another_kind_are_not_kept(found, manifest, run, begun, tmp_path):
    """Of other options, another run, an image that has changed, or made outside of a cohort."""
    slides = read_manifest(manifest)[:2]
    with pytest.raises(FileExistsError, match=r"T00\.h5ad exists: predicted by another run .*, with other options"):
        predict_cohort(run, slides, begun, Options(stain="match"), workers=0)
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "config.yaml").write_text((run / "config.yaml").read_text() + "\n")
    with pytest.raises(FileExistsError, match="by another run"):
        predict_cohort(other, slides, begun, workers=0)
    copy = tmp_path / "copy"
    shutil.copytree(manifest.parent, copy)
    moved = [replace(slide, path=copy / slide.path.relative_to(manifest.parent)) for slide in slides]
    assert [each.status for each in predict_cohort(run, moved, begun, workers=0).results] == ["kept", "kept"]
    shutil.copy(copy / "images" / "T03.png", copy / "images" / "T00.png")  # beside the section, which names it
    with pytest.raises(FileExistsError, match=r"T00\.h5ad exists: .* from other files than now"):
        predict_cohort(run, moved, begun, workers=0)
    predict_image(load_run(run, device="cpu"), slides[1].path, mpp=2.8).write_h5ad(begun / "T01.h5ad")
    for again in (False, True):
        with pytest.raises(FileExistsError, match=r"T01\.h5ad exists, is no prediction of a cohort"):
            predict_cohort(run, slides[1:], begun, workers=0, again=again)


def test_other_files_are_not_overwritten(manifest, run, tmp_path):
    slides = read_manifest(manifest)[:1]
    for name in ("cohort.csv", "cohort.h5ad"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(FileExistsError, match=rf"{name} exists, is no table of a cohort"):
            predict_cohort(run, slides, tmp_path, workers=0)
        (tmp_path / name).unlink()
    (tmp_path / "logs").write_text("mine")
    with pytest.raises(FileExistsError, match="logs is a file"):
        predict_cohort(run, slides, tmp_path, workers=0)
    (tmp_path / "logs").unlink()
    with pytest.raises(ValueError, match="a slide is called cohort"):
        predict_cohort(run, [replace(slides[0], name="cohort")], tmp_path, workers=0)
    assert not list(tmp_path.iterdir())


def test_a_stored_prediction_that_is_damaged_is_named(manifest, run, begun):
    with h5py.File(begun / "T01.h5ad", "r+") as file:
        del file["obs"]
    with pytest.raises(ValueError, match=r"T01\.h5ad is damaged .*; remove it"):
        predict_cohort(run, read_manifest(manifest)[:2], begun, workers=0)


def test_the_table_of_this_call_names_the_patient_or_else_the_section(run, tmp_path):
    """Of predictions that are kept too."""
    said = SectionSource(write_tissue(tmp_path, seed=5, name="A", patient="PAT1", **SIZE))
    silent = SectionSource(write_tissue(tmp_path, seed=6, name="B", **SIZE))
    for patients, expected in (
        (("PX", "PY"), ["PX", "PY"]),
        ((None, None), ["PAT1", None]),
        (("PZ", None), ["PZ", None]),
    ):
        sources = [replace(source, patient=patient) for source, patient in zip((said, silent), patients, strict=True)]
        predict_cohort(run, sources, tmp_path / "out", workers=0)
        found = anndata.read_h5ad(tmp_path / "out" / "cohort.h5ad").obs["patient"]
        assert list(found.astype(object).where(found.notna(), None)) == expected


def test_where_all_fail_no_mean_is_left(found, manifest, run, tmp_path):
    shutil.copy(found.folder / "cohort.h5ad", tmp_path)
    slides = [slide for slide in read_manifest(manifest) if slide.name == DAMAGED]
    assert list(predict_cohort(run, slides, tmp_path, workers=0).failures) == [DAMAGED]
    assert {path.name for path in tmp_path.iterdir()} == {"cohort.csv", "logs"}


def test_what_is_for_a_manifest_is_refused_for_one_image(manifest, run, tmp_path, monkeypatch):
    image = manifest.parent / "images" / "T01.png"
    for option in (["--workers", 2], ["--engine", "ray"], ["--again"]):
        result = call("predict", run, image, *option)
        assert result.exit_code == 2
        assert "is for a manifest" in result.output
    with pytest.raises(ValueError, match="sources: got no slide"):
        predict_cohort(run, [], tmp_path)
    with pytest.raises(ValueError, match=r"workers \(--workers\): got -1"):
        predict_cohort(run, read_manifest(manifest), tmp_path, workers=-1)
    with pytest.raises(ValueError, match=r"engine \(--engine\): got 'slurm'"):
        predict_cohort(run, read_manifest(manifest), tmp_path, engine="slurm")


def test_least_tissue_is_for_images_of_a_manifest(manifest, run, tmp_path):
    slides = read_manifest(manifest)[:2]
    done = predict_cohort(run, slides, tmp_path, Options(min_tissue=0.999), workers=0)
    few = anndata.read_h5ad(tmp_path / "T01.h5ad")
    assert done.failures == {}
    assert (few.obs["tissue_fraction"] >= 0.999).all()
    assert anndata.read_h5ad(tmp_path / "T00.h5ad").n_obs == 36
