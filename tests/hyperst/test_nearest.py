"""The nearest training spots: distances, what a run stores of them, predictions and report that show them."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from hyperst.config import with_ablation
from hyperst.nearest import DISTANCES, ROWS, ImageSpace, read_training_spots, retrieve
from hyperst.predict import predict_section
from hyperst.report.page import write_report
from hyperst.run import RunFolder, load_run
from hyperst.train import fit


def test_distances_are_those_of_the_hyperboloid():
    random = np.random.default_rng(0)
    queries, keys = random.normal(size=(4, 3)), random.normal(size=(9, 3))
    c, scale = 0.7, 0.4

    def point(features):
        tangent = scale * features
        radius = np.sqrt(c) * np.linalg.norm(tangent, axis=1, keepdims=True)
        return np.sinh(radius) * tangent / radius, np.cosh(radius) / np.sqrt(c)

    (x, x_time), (y, y_time) = point(queries), point(keys)
    every = np.arccosh(c * (x_time @ y_time.T - x @ y.T)) / np.sqrt(c)
    distances, rows = ImageSpace(scale, c).nearest(queries.astype(np.float32), keys.astype(np.float32), 5)
    np.testing.assert_array_equal(rows, np.argsort(every, axis=1)[:, :5])
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :5], rtol=1e-5)


def test_retrieval_is_the_mean_of_the_nearest():
    keys = np.arange(9.0)[:, None]
    values = np.stack([keys[:, 0], -keys[:, 0]], axis=1)
    found = retrieve(ImageSpace(1.0, 1.0), np.array([[0.1], [5.0]]), keys, values)  # three of nine
    np.testing.assert_allclose(found, [[1, -1], [5, -5]])


@pytest.fixture(scope="module")
def run(trained):
    return load_run(trained, device="cpu")


def test_a_training_spot_is_nearest_to_itself(run, sections):
    stored = read_training_spots(run.folder, run.checkpoint)
    names = [f"{section.name}/{spot}" for section in sections[:2] for spot in section.spot_ids]
    assert [f"{section}/{spot}" for section, spot in zip(stored.sections, stored.spots, strict=True)] == names
    assert RunFolder(run.folder).training_spots.stat().st_size < 4 * stored.features.size + 20_000
    predicted = predict_section(run, sections[1])
    own = [f"S2/{spot}" for spot in sections[1].spot_ids]
    assert list(predicted.obs["nearest_training_spot"]) == own
    distances = predicted.obsm[DISTANCES]
    assert (distances[:, 0] < 1e-3 * stored.spacing).all()
    assert (np.diff(distances, axis=1) >= 0).all()
    assert predicted.obsm[ROWS].shape == distances.shape == (sections[1].n_spots, 3)
    np.testing.assert_array_equal(stored.spots[predicted.obsm[ROWS][:, 0]], sections[1].spot_ids)


def test_only_so_many_are_kept_of_all_sections(run, sections, monkeypatch):
    monkeypatch.setattr("hyperst.nearest._MOST", 10)
    whole = read_training_spots(run.folder, run.checkpoint)
    counts = [section.n_spots for section in sections[:2]]
    few = type(whole).of("x", whole.space, sections[:2], np.split(whole.features, counts[:1]))
    assert sorted(few.sections) == ["S1"] * 5 + ["S2"] * 5
    for name, spot, features in zip(few.sections, few.spots, few.features, strict=True):
        row = np.flatnonzero((whole.sections == name) & (whole.spots == spot))
        np.testing.assert_array_equal(whole.features[row], features[None])


def test_what_is_stored_of_other_weights_is_not_used_and_damage_is_said(run, tmp_path):
    shutil.copy(RunFolder(run.folder).training_spots, path := RunFolder(tmp_path).training_spots)
    with pytest.warns(UserWarning, match="training_spots.npz is of other weights"):
        assert read_training_spots(tmp_path, "other") is None
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"training_spots.npz is damaged .*remove it to predict without"):
        read_training_spots(tmp_path, run.checkpoint)
    path.unlink()
    assert read_training_spots(tmp_path, run.checkpoint) is None


def test_a_run_without_a_hyperbolic_space_has_none(sections, tiny_config, tmp_path):
    config = with_ablation(replace(tiny_config, training=replace(tiny_config.training, epochs=1)), "euclidean")
    fit(config, sections[:2], tmp_path / "run")
    assert not RunFolder(tmp_path / "run").training_spots.exists()
    assert "nearest_training_spot" not in predict_section(load_run(tmp_path / "run", device="cpu"), sections[2]).obs


def test_the_network_alone_stores_them_too(sections, tiny_config, tmp_path):
    config = with_ablation(replace(tiny_config, training=replace(tiny_config.training, epochs=1)), "full")
    fit(config, sections[:2], tmp_path / "run")
    run = load_run(tmp_path / "run", device="cpu")
    assert run.mixture is None
    stored = read_training_spots(run.folder, run.checkpoint)
    assert len(stored.spots) == sum(section.n_spots for section in sections[:2])


def test_the_report_shows_them_with_pictures_where_images_are_at_hand(evaluated, tmp_path, monkeypatch):
    page = write_report(evaluated, output=tmp_path / "report.html").read_text(encoding="utf-8")
    part = page.partition('<section id="nearest">')[2].partition("</section>")[0]
    assert part.count("<tr>") == 1 + 4  # heads, and four spots
    assert part.count('<img src="data:image/jpeg;base64,') == 4 * 4

    def gone(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr("hyperst.report.nearest.open_image", gone)
    page = write_report(evaluated, output=tmp_path / "report.html").read_text(encoding="utf-8")
    part = page.partition('<section id="nearest">')[2].partition("</section>")[0]
    assert part.count('<img src="data:image/jpeg;base64,') == 4
    assert part.count("S1, ") + part.count("S2, ") == 4 * 3
