"""Stains by Macenko's method: against torchstain on one image, matched slides, and what is said where it cannot be."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from hyperst.macenko import StainVectors, read_tissue_pixels, stain_vectors, write_tissue_pixels
from hyperst.predict import predict_image, predict_values
from hyperst.run import RunFolder, load_run
from hyperst.stain import match_stain, matching

HEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])


def tissue(seed: int = 0, *, n: int = 4000, amounts: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """Pixels of two stains in random amounts, uint8 (pixel 3); of some one alone."""
    random = np.random.default_rng(seed)
    drawn = random.uniform(0.3, 1, (n, 2)) * amounts
    drawn[: n // 4, 0] = drawn[n // 4 : n // 2, 1] = 0
    vectors = np.stack([each / np.linalg.norm(each) for each in (HEMATOXYLIN, EOSIN)])
    return (255 * np.exp(-drawn @ vectors)).round().astype(np.uint8)


@pytest.fixture(scope="module")
def run(trained):
    return load_run(trained, device="cpu")


def test_amounts_are_those_of_the_other_tissue():
    pytest.importorskip("torchstain")
    pale, dark = tissue(amounts=(0.6, 0.9)), tissue()
    own, wanted = stain_vectors(pale, "pale"), stain_vectors(dark, "dark")
    for name, vector in (("hematoxylin", HEMATOXYLIN), ("eosin", EOSIN)):
        found = np.asarray(getattr(own, name))
        assert found @ vector / np.linalg.norm(vector) > 0.99
    image = torch.from_numpy(pale.T.reshape(1, 3, 80, 50) / 255.0)
    matched = own.restained(image, wanted)[0].reshape(3, -1).T * 255
    assert np.abs(matched.numpy() - dark).mean() < 3  # in steps of 255; as they are, 19 apart
    assert np.abs(pale.astype(float) - dark).mean() > 15


def test_one_image_is_matched_as_torchstain_does():
    normalisers = pytest.importorskip("torchstain.torch.normalizers")
    pale, dark = tissue(1, amounts=(0.6, 0.9)), tissue(2)
    normaliser = normalisers.TorchMacenkoNormalizer()
    normaliser.fit(torch.from_numpy(dark.T.reshape(3, 80, 50).copy()), Io=255)
    expected, _, _ = normaliser.normalize(torch.from_numpy(pale.T.reshape(3, 80, 50).copy()), Io=255, stains=False)
    image = torch.from_numpy(pale.T.reshape(1, 3, 80, 50) / 255.0)
    found = stain_vectors(pale, "pale").restained(image, stain_vectors(dark, "dark"))[0].permute(1, 2, 0) * 255
    assert float((found - expected).abs().max()) < 2.5  # whole numbers, and one added before the logarithm


def test_a_run_matches_a_slide(run, sections):
    pytest.importorskip("torchstain")
    pixels = read_tissue_pixels(RunFolder(run.folder).tissue_pixels)
    assert 1000 < len(pixels) <= 10_000
    own, wanted = matching(run, sections[2], "macenko")
    assert wanted == stain_vectors(pixels, "the training sections")
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(match_stain(images, own, wanted)).all()
    values = {stain: predict_values(run, sections[2], stain=stain) for stain in ("none", "macenko")}
    assert np.abs(values["macenko"] - values["none"]).max() > 0
    predicted = predict_image(run, sections[2].path, stain="macenko")
    assert predicted.uns["hyperst"]["stain"] == "macenko"
    np.testing.assert_array_equal(predicted.X, values["macenko"])


def test_without_torchstain_the_remedy_is_said(run, sections, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchstain", None)
    with pytest.raises(ImportError, match=r"--stain macenko needs torchstain.*pip install 'hyperst-kernels\[stain\]'"):
        predict_values(run, sections[2], stain="macenko")


@pytest.mark.parametrize("pixels", [tissue()[:1], np.full((500, 3), 120, np.uint8), np.full((500, 3), 254, np.uint8)])
def test_pixels_without_two_stains_are_refused(pixels):
    pytest.importorskip("torchstain")
    with pytest.raises(ValueError, match="hematoxylin and eosin cannot be told apart around the spots of S"):
        stain_vectors(pixels, "S")


def test_pixels_are_kept_of_all_sections_alike_and_damage_is_said(tmp_path):
    given = [np.full((n, 3), value, np.uint8) for n, value in ((20_000, 1), (9_000, 2))]
    path = write_tissue_pixels(tmp_path / "tissue_pixels.npz", given)
    np.testing.assert_array_equal(np.bincount(read_tissue_pixels(path)[:, 0]), [0, 5000, 5000])
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"tissue_pixels.npz is damaged.*leave --stain macenko out"):
        read_tissue_pixels(path)


def test_words_of_stain_vectors():
    assert str(StainVectors((0.6, 0.8, 0.0), (0.0, 0.6, 0.8), (2.0, 1.0))) == (
        "hematoxylin 0.60, 0.80, 0.00, up to 2.00; eosin 0.00, 0.60, 0.80, up to 1.00"
    )
