"""Averaging over the orientations of the crops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hyperst.config import RunConfig, update
from hyperst.model import HyperST, ModelConfig
from hyperst.model.hyperst import orientations
from hyperst.predict import predict_values
from hyperst.run import RunFolder, load_run
from hyperst.train import fit


def models(**settings) -> tuple[HyperST, HyperST]:
    """One network without and with averaging, in float64."""
    torch.manual_seed(0)
    plain = HyperST(5, ModelConfig(width=16, **settings), image_size=32).eval()
    averaged = HyperST(5, replace(plain.config, average="dihedral"), image_size=32).eval()
    averaged.load_state_dict(plain.state_dict())
    return plain.double(), averaged.double()


def batch() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {
        f"{level}_image": torch.randn(3, 3, 32, 32, generator=random, dtype=torch.float64)
        for level in ("spot", "niche")
    }


def test_the_orientations_are_all_eight():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    found = [each["spot_image"] for each in orientations({"spot_image": image})]
    assert len({tuple(each.flatten().tolist()) for each in found}) == 8
    transposed = [each.transpose(-2, -1) for each in found]
    assert all(any(torch.equal(one, other) for other in found) for one in transposed)


@pytest.mark.parametrize("likelihood", ["gaussian", "negative-binomial"])
@torch.inference_mode()
def test_what_is_predicted_does_not_depend_on_the_orientation(likelihood):
    plain, averaged = models(likelihood=likelihood)
    expected = averaged.encode_images(batch())
    every = [plain.encode_images(turned) for turned in orientations(batch())]
    assert set(expected) == {"prediction", "features", "image_spot"}
    for name, value in expected.items():
        mean = torch.stack([each[name] for each in every]).mean(dim=0)
        torch.testing.assert_close(value, mean, rtol=1e-12, atol=1e-12)
        for turned in orientations(batch()):
            torch.testing.assert_close(averaged.encode_images(turned)[name], value, rtol=1e-12, atol=1e-12)
    assert max(float((each["prediction"] - expected["prediction"]).abs().max()) for each in every) > 1e-4
    torch.testing.assert_close(averaged.predict(batch()), expected["prediction"])


def test_precomputed_features_cannot_be_turned():
    changes = {"data": {"feature_key": "file"}, "model": {"backbone": "precomputed", "average": "dihedral"}}
    with pytest.raises(ValueError, match=r"model.average is 'dihedral', which turns crops.*--average none"):
        update(RunConfig(), changes)


def test_a_run_remembers_how_it_averages(sections, tiny_config, tmp_path):
    config = update(tiny_config, {"model": {"average": "dihedral"}, "training": {"epochs": 1}})
    fit(config, sections[:2], tmp_path / "run")
    run = load_run(tmp_path / "run", device="cpu")
    assert run.model.config.average == "dihedral"
    values = predict_values(run, sections[2])
    run.model.config = replace(run.model.config, average="none")
    once = predict_values(run, sections[2])
    assert 0 < np.abs(values - once).mean() < np.abs(values - values.mean(axis=0)).mean()
    place = RunFolder(tmp_path / "run")
    place.config.write_text(place.config.read_text().replace("average: dihedral", "average: none"))
    with pytest.raises(ValueError, match=r"model.average is 'none', not 'dihedral'"):
        load_run(place.path, device="cpu")
