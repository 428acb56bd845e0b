"""Likelihoods of counts against SciPy, the expected target against its sum, and runs that learn from them."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from hyperst.config import RunConfig, update
from hyperst.data import SpotDataset, align_genes, attach_features
from hyperst.data.targets import TARGETS, transform
from hyperst.evaluation import measured_expression
from hyperst.model.likelihood import CountLikelihood
from hyperst.predict import predict_values
from hyperst.run import RunFolder, load_run
from hyperst.train import fit

KINDS = ("poisson", "negative-binomial")
SHARES = np.array([1e-7, 1e-4, 1e-3, 0.02, 0.3])
THETA = np.array([0.05, 0.5, 3.0, 40.0, 1e4])


def likelihood_of(kind: str, target: str = "log1p_cp10k", library_size: float = 1.0) -> CountLikelihood:
    """Five genes of known dispersion, in float64."""
    found = CountLikelihood(len(SHARES), kind, target).double()
    found.library_size.fill_(library_size)
    if found.log_inverse_dispersion is not None:
        found.log_inverse_dispersion.data = torch.tensor(THETA).log()
    return found


class Both(torch.nn.Module):
    """Both functions of a likelihood in one."""

    def __init__(self, likelihood: CountLikelihood) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, output, counts, library_size):
        return self.likelihood(output, counts, library_size), self.likelihood.expected_target(output)


def distribution(kind: str, mean: np.ndarray):
    return stats.poisson(mean) if kind == "poisson" else stats.nbinom(THETA, THETA / (THETA + mean))


@pytest.mark.parametrize("kind", KINDS)
def test_the_likelihood_is_that_of_scipy(kind):
    library = np.array([1.0, 300.0, 2e4, 3e6])
    counts = np.array([[0, 0, 0, 1, 0], [0, 1, 2, 5, 90], [3, 0, 40, 0, 7000], [0, 2000, 1, 60_000, 1_000_000]])
    output = torch.tensor(SHARES).logit().expand(4, 5)
    given = (torch.tensor(counts), torch.tensor(library))
    found = likelihood_of(kind)(output, *given).detach().numpy()
    expected = -distribution(kind, library[:, None] * SHARES).logpmf(counts)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-8)  # SciPy's own log gamma of 1e6 rounds to 2e-9
    narrow = likelihood_of(kind).float()(output.float(), *given).detach().numpy()
    np.testing.assert_allclose(narrow, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [-200.0, 0.0, 200.0])
def test_extreme_outputs_and_counts_stay_finite(kind, value):
    likelihood = likelihood_of(kind).float()
    output = torch.full((3, 5), value, requires_grad=True)
    counts = torch.tensor([0.0, 1.0, 1e6])[:, None].expand(3, 5)
    loss = likelihood(output, counts, torch.tensor([0.0, 1.0, 1e6]))
    assert (loss[0] == 0).all()  # a spot without any count says nothing
    loss.sum().backward()
    given = [output.grad, *(parameter.grad for parameter in likelihood.parameters())]
    assert all(torch.isfinite(each).all() for each in (loss, likelihood.expected_target(output), *given))
    assert (output.grad[0] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_differences(kind):
    counts, library = torch.tensor([[0.0, 2, 1, 30, 100], [1, 0, 9, 3, 200]]), torch.tensor([400.0, 900.0])

    def both(output, *dispersion):
        given = dict(zip(["likelihood.log_inverse_dispersion"], dispersion, strict=False))
        return torch.func.functional_call(model, given, (output, counts, library))

    model = Both(likelihood_of(kind, library_size=700.0))
    free = [parameter.detach().clone() for parameter in model.parameters()]
    inputs = [torch.tensor(SHARES).logit().repeat(2, 1), *free]
    assert torch.autograd.gradcheck(both, [each.requires_grad_() for each in inputs])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("library", [50.0, 8000.0])
def test_the_expected_target_is_the_sum_over_all_counts(kind, target, library):
    counts = np.arange(int(40 * library) + 100)[:, None]
    values = transform(counts.astype(float), np.full(len(counts), library), target)
    expected = (distribution(kind, library * SHARES).pmf(counts) * values).sum(axis=0)
    output = torch.tensor(SHARES).logit()[None]
    found = likelihood_of(kind, target, library).expected_target(output)[0].detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    narrow = likelihood_of(kind, target, library).float().expected_target(output.float())[0].detach().numpy()
    np.testing.assert_allclose(narrow, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_known_shares_and_dispersions_are_recovered(kind):
    random = np.random.default_rng(0)
    library = random.integers(500, 20_000, 2000).astype(float)
    share, theta = np.array([1e-3, 5e-3, 2e-2]), np.array([0.5, 2.0, 8.0])
    mean = library[:, None] * share
    drawn = random.poisson(mean) if kind == "poisson" else random.negative_binomial(theta, theta / (theta + mean))
    counts, total = torch.tensor(drawn, dtype=torch.float64), torch.tensor(library)
    likelihood = CountLikelihood(3, kind, "log1p_cp10k").double()
    output = likelihood.initialise(counts, total).double()
    started = output.sigmoid().numpy()
    output += torch.tensor([0.7, -0.7, 0.3])  # the start is nearly the answer: away from it
    output.requires_grad_()
    optimiser = torch.optim.LBFGS([output, *likelihood.parameters()], max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = likelihood(output[None], counts, total).mean()
        value.backward()
        return value

    optimiser.step(loss)
    spread = 1 / mean.sum(axis=0) if kind == "poisson" else 1 / (mean / (1 + mean / theta)).sum(axis=0)
    for found, errors in ((output.sigmoid().detach().numpy(), 4), (started, 8)):  # of moments: less efficient
        assert (np.abs(np.log(found / share)) < errors * np.sqrt(spread)).all()
    if likelihood.log_inverse_dispersion is not None:
        np.testing.assert_allclose(likelihood.log_inverse_dispersion.detach().exp().numpy(), theta, rtol=0.15)


def test_a_start_without_counts_is_refused_and_a_gene_without_is_not():
    likelihood = CountLikelihood(2, "negative-binomial", "log2")
    with pytest.raises(ValueError, match=r"model.likelihood: the training spots have no counts"):
        likelihood.initialise(torch.zeros(3, 2), torch.zeros(3))
    output = likelihood.initialise(torch.tensor([[0.0, 4.0], [0.0, 7.0]]), torch.tensor([90.0, 110.0]))
    assert torch.isfinite(output).all()
    assert torch.isfinite(likelihood.log_inverse_dispersion).all()
    assert output[0].sigmoid() == pytest.approx(0.5 / 201)


def test_items_have_the_raw_counts(sections):
    genes = sections[0].genes[:5]
    items = SpotDataset(
        sections[:2], genes, RunConfig(crop=replace(RunConfig().crop, image_size=16)).crop, raw_counts=True
    )
    last = items[len(items) - 1]
    assert torch.equal(last["counts"], torch.from_numpy(align_genes(sections[1], genes)[-1]))
    assert last["library_size"] == float(sections[1].counts[[-1]].sum())


@pytest.mark.parametrize(("kind", "target"), [("poisson", "log2"), ("negative-binomial", "log1p_cp10k")])
def test_a_run_learns_from_counts_and_predicts_on_the_targets_scale(kind, target, sections, tiny_config, tmp_path):
    config = update(tiny_config, {"data": {"target": target}, "model": {"likelihood": kind}})
    fit(config, sections[:2], tmp_path / "run")
    place = RunFolder(tmp_path / "run")
    curves = pd.read_csv(place.metrics)
    assert curves["training_nll"].is_monotonic_decreasing
    run = load_run(place.path, device="cpu")
    assert run.mixture is not None
    assert run.config.model.likelihood == kind
    measured = measured_expression(run, sections[2])
    errors = ((predict_values(run, sections[2]) - measured) ** 2).mean(axis=0)
    assert errors.mean() < (measured**2).mean() / 4
    place.config.write_text(place.config.read_text().replace(f"likelihood: {kind}", "likelihood: gaussian"))
    with pytest.raises(ValueError, match=f"model.likelihood is 'gaussian', not '{kind}'"):
        load_run(place.path, device="cpu")


def test_counts_go_with_features_from_a_file_and_a_resumed_run(sections, tiny_config, tmp_path):
    known = []
    for section in sections[:2]:
        with h5py.File(path := tmp_path / f"{section.name}.h5", "w") as file:
            file["features"] = np.random.default_rng(len(known)).normal(size=(section.n_spots, 6)).astype(np.float32)
            file["barcodes"] = section.spot_ids.astype("S")
        known.append(attach_features(section, path))
    model = {"backbone": "precomputed", "likelihood": "negative-binomial", "head": "network"}
    config = update(tiny_config, {"data": {"feature_key": "file"}, "model": model})
    fit(config, known, tmp_path / "whole")

    def stop(epoch, best):
        if epoch["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(config, known, tmp_path / "parts", on_epoch=stop)
    fit(config, known, tmp_path / "parts", resume=True)
    whole, parts = (load_run(tmp_path / name, device="cpu") for name in ("whole", "parts"))
    dispersion = [run.model.likelihood.log_inverse_dispersion for run in (whole, parts)]
    assert torch.equal(*dispersion)
    np.testing.assert_array_equal(*(predict_values(run, known[1]) for run in (whole, parts)))
