"""Runs of several networks: each a run of its own, predictions are their mean, and what is interrupted goes on."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from hyperst.config import update
from hyperst.evaluation import evaluate
from hyperst.evaluation_images import read_images
from hyperst.export import held_out_figures
from hyperst.predict import predict_section
from hyperst.report.origin import require_origin
from hyperst.report.spots import read_spot_map
from hyperst.report.summary import collect
from hyperst.run import RunFolder, load_run, run_checksum
from hyperst.spot_values import predict_values
from hyperst.train import fit


@pytest.fixture(name="config", scope="module")
def _config(tiny_config):
    return update(tiny_config, {"model": {"networks": 2}, "training": {"epochs": 2}})


@pytest.fixture(name="folder", scope="module")
def _folder(config, sections, tmp_path_factory):
    folder, begun = tmp_path_factory.mktemp("networks") / "run", []
    summary = fit(config, sections[:2], folder, on_network=lambda *of: begun.append(of))
    stored = [each.read_summary() for each in (RunFolder(folder), RunFolder(folder).network(2))]
    assert begun == [(1, 2), (2, 2)]
    assert summary.seconds == stored[0]["seconds"] + stored[1]["seconds"]
    assert summary.validation_mse == stored[0]["validation_mse"]
    measured = [sorted(path.name for path in each.glob("*.npz")) for each in (folder, folder / "networks" / "2")]
    assert measured == [["calibration.npz", "tissue_pixels.npz", "training_spots.npz"], []]
    return folder


def test_a_prediction_is_the_mean_of_runs_of_one_network(config, sections, folder, tmp_path):
    run, section = load_run(folder), sections[2]
    other = load_run(RunFolder(folder).network(2).path)
    first = replace(run, others=())
    assert (run.networks[1].checkpoint, run.genes) == (other.checkpoint, other.genes)
    assert run.split.validation_spots != other.split.validation_spots
    values = [predict_values(each, section) for each in (first, other)]
    assert not np.allclose(*values)
    mean = np.mean(values, axis=0, dtype=np.float64).astype(np.float32)
    np.testing.assert_array_equal(predict_values(run, section), mean)
    predicted = predict_section(run, section)
    np.testing.assert_array_equal(predicted.X, mean)
    assert predicted.uns["hyperst"]["networks"] == 2
    seen = [read_images(each, section) for each in (run, first, other)]
    np.testing.assert_array_equal(seen[0]["network"], np.mean([each["network"] for each in seen[1:]], axis=0))
    np.testing.assert_array_equal(seen[0]["own"], seen[1]["own"])
    assert set(seen[0]) == set(seen[1])
    fit(replace(config, model=replace(config.model, networks=1)), sections[:2], tmp_path / "alone")
    np.testing.assert_array_equal(predict_values(load_run(tmp_path / "alone"), section), values[0])


def test_further_networks_read_no_crops_and_warn_of_nothing_again(config, sections, tmp_path, crops_read):
    fewest = int(np.sort(sections[0].library_size)[1])  # one spot has less
    few = update(config, {"data": {"min_counts": fewest}, "training": {"epochs": 1}})
    with pytest.warns(UserWarning, match="are left out|is left out") as warned:
        fit(few, sections[:2], tmp_path / "run")
    left_out = [str(warning.message) for warning in warned if "left out" in str(warning.message)]
    assert len(left_out) == len(set(left_out))
    n_spots = sum((section.library_size >= fewest).sum() for section in sections[:2])
    assert len(crops_read) == len(set(crops_read)) == n_spots


def test_networks_that_are_not_trained_yet_are_told_and_trained_by_resuming(config, sections, folder, tmp_path):
    whole = shutil.copytree(folder, tmp_path / "run")
    checksum, second = run_checksum(whole), RunFolder(whole).network(2)
    second.summary.unlink()  # as after an interruption
    with pytest.warns(UserWarning, match="^the training of 1 of the 2 networks of the run .* --resume --output"):
        part = load_run(whole)
    assert part.others == ()
    assert run_checksum(whole) != checksum
    evaluate(part, sections[2])
    assert held_out_figures(whole, part.genes, part.best_epoch)[1] == [sections[2].name]
    path = tmp_path / "part.h5ad"
    predict_section(part, sections[2]).write_h5ad(path)
    require_origin(read_spot_map(path, part.genes), path, collect(whole))
    fit(config, sections[:2], whole, resume=True)
    np.testing.assert_array_equal(
        predict_values(load_run(whole), sections[2]), predict_values(load_run(folder), sections[2])
    )
    # what some of the networks have done does not pass for what all do
    assert held_out_figures(whole, part.genes, part.best_epoch, networks=2)[1] == []
    with pytest.raises(ValueError, match=r"not predicted by the run .* as it is now: .* \(networks: 1 and 2\)"):
        require_origin(read_spot_map(path, part.genes), path, collect(whole))
    shutil.rmtree(RunFolder(whole).networks)
    RunFolder(whole).networks.mkdir()
    second.path.mkdir()
    second.write_genes(part.genes)  # a kill in the first moment of a start
    fit(config, sections[:2], whole, resume=True)
    np.testing.assert_array_equal(
        predict_values(load_run(whole), sections[2]), predict_values(load_run(folder), sections[2])
    )


def test_a_network_of_another_run_is_refused(folder, sections, tiny_config, tmp_path):
    whole = shutil.copytree(folder, tmp_path / "run")
    fit(update(tiny_config, {"data": {"n_genes": 11}, "training": {"epochs": 1}}), sections[:2], tmp_path / "other")
    shutil.rmtree(whole / "networks" / "2")
    shutil.copytree(tmp_path / "other", whole / "networks" / "2")
    with pytest.raises(ValueError, match=r"2 is no network of the run in .*: it has other genes"):
        load_run(whole)


def test_what_is_left_of_a_network_is_not_taken_for_one_of_a_new_run(config, sections, folder, tmp_path):
    shutil.copytree(RunFolder(folder).networks, tmp_path / "run" / "networks")
    with pytest.raises(FileExistsError, match="holds networks/, which a run writes"):
        fit(config, sections[:2], tmp_path / "run")
