"""The closed-form head: what it recovers, what it leaves alone, and how it is kept in a run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from hyperst.checkpoint import MIXTURE, load_checkpoint
from hyperst.closed_form import Mixture, fit_head, fit_mixture, head_features
from hyperst.data.crops import LEVELS
from hyperst.data.kept_crops import KeptCrops
from hyperst.evaluation_images import read_images
from hyperst.metrics import mse
from hyperst.predict import predict_values
from hyperst.run import RunFolder, load_run
from hyperst.spot_values import encode, over_spots
from hyperst.train import fit
from hyperst.train.head import add_closed_form

WIDTH, GENES = 6, 10


def spots(seed: int = 0, *, n: int = 300, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Features, and two factors of them that make up all genes."""
    random = np.random.default_rng(seed)
    loadings = np.random.default_rng(99).normal(size=(2, GENES))
    features = random.normal(size=(n, WIDTH))
    return features, features[:, :2] @ loadings + noise * random.normal(size=(n, GENES)) + 3.0


def parts(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features, a network's output that overfits, targets, blocks and validation spots."""
    features, targets = spots(seed, noise=1.0)
    validation = np.arange(len(targets)) % 5 == 0
    noise = np.random.default_rng(seed + 1).normal(size=targets.shape)
    network = np.where(validation[:, None], 3.0 + noise, targets)
    return features, network.astype(np.float32), targets, np.arange(len(targets)) // 10, validation


def test_a_linear_map_is_recovered_on_new_spots():
    head = fit_head(*spots(0), np.arange(300))
    features, targets = spots(1)
    share_left = ((head(features) - targets) ** 2).mean() / targets.var(axis=0).mean()
    assert share_left < 0.01


def test_noise_of_single_genes_is_left_alone():
    """Two components of the targets are of the image: the prediction has no others."""
    features, targets = spots(0, noise=0.5)
    predicted = fit_head(features, targets, np.arange(300))(features)
    singular = np.linalg.svd(predicted - predicted.mean(axis=0), compute_uv=False)
    assert singular[2] < 0.1 * singular[1]


def test_targets_without_a_trace_in_the_image_are_predicted_by_their_mean():
    features, targets = spots(0)[0], np.random.default_rng(5).normal(size=(300, GENES))
    predicted = fit_head(features, targets, np.arange(300))(spots(1)[0])
    assert np.abs(predicted - targets.mean(axis=0)).max() < 0.5 * targets.std()


def test_features_of_another_world_are_clipped():
    head = fit_head(*spots(0), np.arange(300))
    far = head(np.full((1, WIDTH), 1e6))
    np.testing.assert_array_equal(far, head(np.full((1, WIDTH), 1e9)))
    assert np.abs(far - 3).max() < 10 * spots(0)[1].std()


def test_a_feature_or_a_gene_that_does_not_vary_changes_nothing():
    features, targets = spots(0)
    features, targets = np.c_[features, np.full(300, 7.0)], np.c_[targets, np.full(300, 2.0)]
    head = fit_head(features, targets, np.arange(300))
    moved = features.copy()
    moved[:, -1] = -100
    np.testing.assert_array_equal(head(moved), head(features))
    np.testing.assert_allclose(head(features)[:, -1], 2.0, rtol=1e-12)


@pytest.mark.parametrize("n", [2, 3])
def test_a_few_spots_of_one_block_are_enough(n):
    features, targets = spots(0, n=n)
    head = fit_head(features, targets, np.zeros(n, dtype=int))
    assert np.isfinite(head(features)).all()
    alike = fit_head(np.ones((n, WIDTH)), targets, np.zeros(n, dtype=int))
    np.testing.assert_allclose(alike(features), np.repeat(targets.mean(axis=0)[None], n, axis=0), rtol=1e-9)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_on_validation_spots_the_mixture_is_never_worse_than_the_mean(seed, alone):
    features, network, targets, blocks, validation = parts(seed)
    if seed == 2:  # nothing to be learnt
        targets = np.random.default_rng(3).permutation(targets)
    mixture = fit_mixture(features, network, targets, blocks, validation, alone=alone)
    mean = np.repeat(targets[~validation].mean(axis=0)[None], validation.sum(), axis=0)
    error = mse(mixture(features[validation], network[validation]), targets[validation])
    assert error <= mse(mean, targets[validation]) * (1 + 1e-6)
    assert 0 <= mixture.strength <= 1
    assert mixture.share == 1 if alone else 0 <= mixture.share <= 1


def test_what_was_held_out_decides_between_head_and_network():
    """The network errs on what it has not seen, so the head has the share; a network that is right has it instead."""
    features, network, targets, blocks, validation = parts()
    assert fit_mixture(features, network, targets, blocks, validation).share > 0.8
    noise = np.random.default_rng(0).normal(size=features.shape)
    assert fit_mixture(noise, targets, targets, blocks, validation).share < 0.2


def test_tensors_give_the_same_mixture_bit_by_bit(tmp_path):
    features, network, targets, blocks, validation = parts()
    mixture = fit_mixture(features, network, targets, blocks, validation)
    torch.save(mixture.as_tensors(), tmp_path / "m.pt")
    again = Mixture.from_tensors(torch.load(tmp_path / "m.pt", weights_only=True))
    np.testing.assert_array_equal(again(features, network), mixture(features, network))


def test_a_spot_is_seen_with_the_mean_of_its_neighbourhood(sections):
    section = sections[0]
    features = np.random.default_rng(0).normal(size=(section.n_spots, 2 * WIDTH)).astype(np.float32)
    seen = head_features(section, features, LEVELS, ("niche",))
    np.testing.assert_array_equal(seen[:, :WIDTH], features[:, WIDTH:])
    reach = 1.35 * section.grid.pitch_px
    for spot, size in ((0, 3), (40, 7)):
        near = np.linalg.norm(section.spot_px - section.spot_px[spot], axis=1) < reach
        assert near.sum() == size
        np.testing.assert_allclose(seen[spot, WIDTH:], features[near, WIDTH:].mean(axis=0), rtol=1e-5, atol=1e-6)
    assert head_features(section, features, LEVELS, LEVELS).shape == (section.n_spots, 4 * WIDTH)


def test_a_run_predicts_with_its_mixture(trained, sections):
    run = load_run(trained, device="cpu")
    assert run.mixture is not None
    found = over_spots(run, sections[2], partial(encode, run), lambda _: None)
    features = head_features(sections[2], found["features"], LEVELS, LEVELS)
    expected = run.mixture(features, found["prediction"])
    np.testing.assert_array_equal(predict_values(run, sections[2]), expected)
    images = read_images(run, sections[2])
    np.testing.assert_array_equal(images["network"], found["prediction"])
    np.testing.assert_array_equal(images["prediction"], expected)
    assert not np.array_equal(expected, found["prediction"])


def test_a_run_without_a_head_predicts_with_its_network(trained, sections, tmp_path):
    """As a run of before does, and one whose training has not ended, which says so."""
    network = read_images(load_run(trained, device="cpu"), sections[2])["network"]
    place = RunFolder(shutil.copytree(trained, tmp_path / "run"))
    checkpoint = load_checkpoint(place.best)
    del checkpoint[MIXTURE]
    torch.save(checkpoint, place.best)
    with pytest.warns(UserWarning, match="has not ended, so the network predicts without"):
        np.testing.assert_array_equal(predict_values(load_run(place.path, device="cpu"), sections[2]), network)
    lines = place.config.read_text().splitlines()
    kept = [line for line in lines if not line.startswith("  head: ")]
    assert len(kept) == len(lines) - 1
    place.config.write_text("\n".join(kept))
    np.testing.assert_array_equal(predict_values(load_run(place.path, device="cpu"), sections[2]), network)


def test_a_training_killed_before_the_head_was_fitted_goes_on_with_it(trained, tiny_config, sections, tmp_path):
    expected = predict_values(load_run(trained, device="cpu"), sections[2])
    place = RunFolder(shutil.copytree(trained, tmp_path / "run"))
    checkpoint = load_checkpoint(place.best)
    del checkpoint[MIXTURE]
    torch.save(checkpoint, place.best)
    place.summary.unlink()
    fit(tiny_config, sections[:2], place.path, resume=True)
    np.testing.assert_array_equal(predict_values(load_run(place.path, device="cpu"), sections[2]), expected)


def test_heads_of_the_configuration(tiny_config, sections, tmp_path):
    """The network alone leaves nothing in the checkpoint; the closed form is never fitted to validation sections."""
    quick = replace(tiny_config, training=replace(tiny_config.training, epochs=1))
    for head in ("network", "closed-form"):
        config = replace(quick, model=replace(quick.model, head=head))
        fit(config, sections[:1], tmp_path / head, validation_sections=sections[1:2])
    assert MIXTURE not in load_checkpoint(RunFolder(tmp_path / "network").best)
    mixture = load_run(tmp_path / "closed-form", device="cpu").mixture
    assert mixture is not None
    assert (mixture.share, len(mixture.head.points)) == (1.0, sections[0].n_spots)


def test_of_very_many_spots_some_of_each_side_are_drawn(trained, sections, tmp_path, monkeypatch):
    monkeypatch.setattr("hyperst.train.head._MOST", (20, 5))
    place = RunFolder(shutil.copytree(trained, tmp_path / "run"))
    before, _ = add_closed_form(place, sections[:2], (), "cpu", KeptCrops())
    mixture = load_run(place.path, device="cpu").mixture
    assert mixture is not None
    assert (len(before.head.points), len(mixture.head.points)) == (20, 25)  # the held-out ones are fitted in the end


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda stored: stored.pop("points"), "its closed-form head is incomplete"),
        (
            lambda stored: stored.update({"mixture.mean": torch.zeros(3)}),
            "its closed-form head predicts 3 genes, need 12",
        ),
    ],
)
def test_a_damaged_head_is_refused(trained, tmp_path, change, words):
    place = RunFolder(shutil.copytree(trained, tmp_path / "run"))
    checkpoint = load_checkpoint(place.best)
    change(checkpoint[MIXTURE])
    torch.save(checkpoint, place.best)
    with pytest.raises(ValueError, match=rf"best\.ckpt does not fit .*: {words}"):
        load_run(place.path, device="cpu")
