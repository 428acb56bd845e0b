"""The distance inside pytorch_metric_learning's losses and miners."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

import hyperst_kernels as hk


@pytest.fixture(name="library")
def _library():
    return pytest.importorskip("pytorch_metric_learning", reason="pytorch_metric_learning is not installed")


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(12, 5, dtype=torch.float64, requires_grad=True), torch.randn(12, 5, dtype=torch.float64)


@pytest.mark.parametrize("input", ["tangent", "lorentz"])
def test_matrix_and_rows(library, input):
    from hyperst_kernels.metric_learning import HyperbolicDistance

    x, y = embeddings()
    distance = HyperbolicDistance(curvature=0.7, input=input)
    assert (distance.is_inverted, distance.normalize_embeddings, distance.power) == (False, False, 1)
    torch.testing.assert_close(distance(x, y), hk.pairwise_distance(x, y, 0.7, input=input))
    torch.testing.assert_close(distance.pairwise_distance(x, y), distance(x, y).diagonal())
    assert not distance(x).diagonal().any()
    assert distance(x.half(), y.half()).dtype == torch.float32
    assert f"curvature=0.7, input='{input}'" in repr(distance)
    with pytest.raises(ValueError, match="input must be one of"):
        HyperbolicDistance(input="poincare")


def test_ntxent_of_pairs_is_the_contrastive_loss(library):
    """NTXent with one positive per query is InfoNCE from queries to keys: loss and every gradient agree."""
    from pytorch_metric_learning.losses import NTXentLoss

    from hyperst_kernels.metric_learning import HyperbolicDistance

    x, y = embeddings()
    y.requires_grad_()
    c = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    theirs = NTXentLoss(temperature=1 / 9, distance=HyperbolicDistance(c))
    assert [p is c for p in theirs.parameters()] == [True]
    labels = torch.arange(len(x))
    # the very same tensor of labels would say that the references are the queries
    loss = theirs(x, labels, ref_emb=y, ref_labels=labels.clone())
    ours = hk.contrastive_loss(x, y, c, 9.0, directions="rows")
    torch.testing.assert_close(loss, ours)
    wanted = torch.autograd.grad(ours, (x, y, c))
    torch.testing.assert_close(torch.autograd.grad(loss, (x, y, c)), wanted, rtol=1e-6, atol=1e-9)


def test_a_miner_and_a_triplet_loss_train(library):
    """Also from coincident embeddings, where a distance has no gradient of its own."""
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import BatchHardMiner

    from hyperst_kernels.metric_learning import HyperbolicDistance

    x = embeddings()[0].detach()
    x[1] = x[0]
    x.requires_grad_()
    labels = torch.arange(12) // 3
    distance = HyperbolicDistance()
    loss, miner = TripletMarginLoss(margin=1.0, distance=distance), BatchHardMiner(distance=distance)
    value = loss(x, labels, miner(x, labels))
    value.backward()
    assert torch.isfinite(x.grad).all()
    assert loss(x.detach() - 0.05 * x.grad, labels) < loss(x.detach(), labels)


def test_an_absent_library_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.distances", None)
    monkeypatch.delitem(sys.modules, "hyperst_kernels.metric_learning", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'hyperst-kernels\[interop\]'"):
        importlib.import_module("hyperst_kernels.metric_learning")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_embeddings_have_distances_in_float32(library, dtype, autocast):
    """Their losses are those of the same numbers in float32, and miners see no ties."""
    from pytorch_metric_learning.losses import NTXentLoss, TripletMarginLoss
    from pytorch_metric_learning.miners import BatchHardMiner

    from hyperst_kernels.metric_learning import HyperbolicDistance

    distance = HyperbolicDistance(0.7)
    x = embeddings()[0].detach().to(dtype)
    labels = torch.arange(12) // 3
    assert distance.pairwise_distance(x, x.flip(0)).dtype == torch.float32
    assert torch.equal(distance(x), distance(x.float()))
    miner = BatchHardMiner(distance=distance)
    for loss in (NTXentLoss(temperature=0.01, distance=distance), TripletMarginLoss(margin=0.1, distance=distance)):
        found = []
        for wide in (False, True):
            leaf = (x.float() if wide else x).clone().requires_grad_()
            with torch.autocast("cpu", dtype=dtype, enabled=autocast):
                value = loss(leaf, labels, miner(leaf, labels))
            found.append((value.float(), torch.autograd.grad(value, leaf)[0]))
        torch.testing.assert_close(found[0][0], found[1][0])
        largest = float(found[1][1].abs().max())
        # the parts of queries and of references are rounded, and so is their sum
        torch.testing.assert_close(found[0][1].float(), found[1][1], rtol=0, atol=3 * torch.finfo(dtype).eps * largest)


def test_testers_rank_by_distance_when_they_are_given_it(library):
    """The documented way: `CustomKNN` of the distance, and no normalisation; embeddings differ in length more than in direction."""
    from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    from hyperst_kernels.metric_learning import HyperbolicDistance

    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    x = (torch.ones(4) + 0.1 * torch.randn(60, 4)) * torch.tensor([0.2, 1.0, 2.0])[labels][:, None]
    data = {"val": torch.utils.data.TensorDataset(x, labels)}
    nearest = hk.topk(x, x, 2, 0.7, input="tangent")[1][:, 1]  # the first is the query itself
    found = {}
    for normalize in (False, True):
        by_distance = CustomKNN(HyperbolicDistance(0.7), batch_size=16)
        accuracy = AccuracyCalculator(include=("precision_at_1",), knn_func=by_distance, device=torch.device("cpu"))
        options = {"dataloader_num_workers": 0, "data_device": torch.device("cpu"), "accuracy_calculator": accuracy}
        tester = GlobalEmbeddingSpaceTester(normalize_embeddings=normalize, **options)
        same = torch.nn.Identity()
        found[normalize] = tester.test(data, 0, same, same)["val"]["precision_at_1_level0"]
    assert found[False] == pytest.approx(float((labels[nearest] == labels).double().mean()))
    assert found[False] > found[True] + 0.2
