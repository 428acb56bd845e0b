"""What modules hold: their geometry, their curvature in each of its forms, and scalars that shard and load."""

from __future__ import annotations

import copy
import functools
import math
import warnings

import pytest
import torch
from torch import nn

import hyperst_kernels as hk
from hyperst_kernels.reference.contrastive import dissimilarity
from tests.kernels import ranks


def pairs(n: int = 6, d: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return x, torch.cat([y, x[:1] + 1e-6])  # with a near pair


# --------------------------------------------------------------------------------------------------------- similarity


@pytest.mark.parametrize("input", ["tangent", "lorentz"])
@pytest.mark.parametrize("geometry", ["lorentz", "euclidean", "cosine"])
def test_similarity_is_minus_the_distance_of_the_losss_own_geometry(geometry, input):
    x, y = pairs()
    x[1] = y[2] = 0  # a zero vector is at 1 from everything in the cosine geometry
    c = torch.tensor(0.7, dtype=torch.float64)
    loss = hk.HyperbolicContrastiveLoss(0.7, input=input, geometry=geometry)
    want = -dissimilarity(x, y, c, input, geometry, pairwise=True)
    torch.testing.assert_close(loss.similarity(x, y), want, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(hk.similarity(x, y, 0.7, input=input, geometry=geometry), want, rtol=1e-9, atol=1e-12)
    half = loss.similarity(x.bfloat16(), y.bfloat16())
    assert half.dtype == torch.bfloat16


def test_the_loss_is_that_of_its_similarity():
    """InfoNCE of the ranking that a user evaluates by, for every geometry."""
    x, y = pairs()
    for geometry in ("lorentz", "euclidean", "cosine"):
        loss = hk.HyperbolicContrastiveLoss(0.7, geometry=geometry, directions="rows")
        logits = 3 * loss.similarity(x, y)
        want = nn.functional.cross_entropy(logits, torch.arange(len(x)))
        torch.testing.assert_close(loss(x, y, 3.0), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean", "cosine"])
def test_similarity_names_its_arguments(geometry):
    with pytest.raises(ValueError, match="queries and keys must have the same number of features"):
        hk.similarity(torch.ones(2, 3), torch.ones(2, 4), geometry=geometry)
    with pytest.raises(ValueError, match="geometry must be one of"):
        hk.similarity(torch.ones(2, 3), torch.ones(2, 3), geometry="poincare")


# ---------------------------------------------------------------------------------------------------------- curvature


def test_a_tensor_is_a_buffer_and_a_parameter_a_parameter():
    loss = hk.HyperbolicContrastiveLoss(torch.tensor(0.7))
    assert list(loss.state_dict()) == ["curvature"]
    assert not list(loss.parameters())
    assert loss.to(torch.float64).curvature.dtype == torch.float64
    learnt = hk.HyperbolicContrastiveLoss(nn.Parameter(torch.tensor(0.7)))
    assert [name for name, _ in learnt.named_parameters()] == ["curvature"]
    assert not hk.HyperbolicContrastiveLoss(0.7).state_dict()


class Softplus(nn.Module):
    """A curvature of the user's own."""

    def __init__(self):
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(1))

    def forward(self):
        return nn.functional.softplus(self.raw)


FORMS = {
    "lift": lambda lift: lift,
    "function": lambda lift: lambda: lift.curvature,
    "parameter": lambda lift: lift.log_curvature,
    "module": lambda lift: Softplus(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_learnt_curvature_takes_more_than_one_step(form):
    """A tensor computed once from a lift fails at the second step, its graph being gone."""
    x, y = (t.float() for t in pairs())
    lift = hk.LorentzLift(4, curvature=2.0)
    curvature = FORMS[form](lift)
    if form == "parameter":
        nn.init.constant_(curvature, 2.0)
    loss = hk.HyperbolicContrastiveLoss(curvature)
    learnt = [*loss.parameters(), *lift.parameters()]
    assert (form == "function") == (not list(loss.parameters()))
    steps = torch.optim.SGD(list({id(p): p for p in learnt}.values()), 0.1)
    values = []
    for _ in range(3):
        steps.zero_grad()
        value = loss(x, y, 5.0)
        value.backward()
        steps.step()
        values.append(float(value))
    assert values[0] > values[1] > values[2]


def test_the_curvature_of_one_call():
    x, y = pairs()
    loss = hk.HyperbolicContrastiveLoss(1.0)
    want = hk.contrastive_loss(x, y, 0.3, 5.0)
    lift = hk.LorentzLift(4, curvature=0.3).double()
    nn.init.constant_(lift.log_curvature, math.log(0.3))
    for curvature in (0.3, torch.tensor(0.3, dtype=torch.float64), lift, lambda: 0.3):
        torch.testing.assert_close(loss(x, y, 5.0, curvature=curvature), want)


def test_similarities_take_the_curvature_of_one_call():
    """What was trained with a curvature is ranked by it."""
    x, y = pairs()
    loss = hk.HyperbolicContrastiveLoss(1.0)
    for curvature in (0.3, torch.tensor(0.3, dtype=torch.float64), lambda: 0.3):
        torch.testing.assert_close(loss.similarity(x, y, curvature=curvature), hk.similarity(x, y, 0.3))
    torch.testing.assert_close(loss.similarity(x, y), hk.similarity(x, y, 1.0))


# ------------------------------------------------------------------------------------------------------------ scalars


def modules() -> list[nn.Module]:
    from hyperst.model.alignment import Alignment, AlignmentConfig

    return [
        hk.LorentzLift(4),
        hk.EntailmentLoss(),
        hk.HierarchicalAlignmentLoss(),
        hk.HyperbolicContrastiveLoss(hk.LorentzLift(4)),
        Alignment(AlignmentConfig(), 4),
    ]


def test_no_parameter_is_a_scalar_and_what_they_mean_is():
    assert all(p.ndim > 0 for module in modules() for p in module.parameters())
    lift = hk.LorentzLift(4)
    assert lift.curvature.shape == lift.scale("gene").shape == ()


@pytest.mark.parametrize("prefix", ["", "model."])
def test_checkpoints_of_scalars_load(prefix):
    """In modules that stand alone, in copies of them, and inside others."""
    for module in (*modules(), *copy.deepcopy(modules())):
        holder = module if not prefix else nn.ModuleDict({"model": module})
        old = {name: torch.full(p.shape, -0.3).reshape(()) for name, p in holder.named_parameters()}
        holder.load_state_dict(old, strict=False)
        assert all(torch.equal(p, torch.full((1,), -0.3)) for p in module.parameters())
        holder.load_state_dict(holder.state_dict())


def shard(rank: int, world_size: int) -> None:
    from torch.distributed.fsdp import fully_shard

    mesh = torch.distributed.init_device_mesh("cpu", (world_size,))
    torch.manual_seed(0)
    x, y = torch.randn(2, 6, 4)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lift = hk.LorentzLift(4, ("image", "gene"), output="tangent")
            self.loss = hk.HyperbolicContrastiveLoss(lambda: self.lift.curvature)

        def forward(self, x, y):
            return self.loss(self.lift(x, "image"), self.lift(y, "gene"), 5.0)

    def train(model):
        steps = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            steps.zero_grad()
            loss = model(x, y)
            loss.backward()
            steps.step()
        return loss.detach()

    plain, sharded = Model(), Model()
    fully_shard(sharded, mesh=mesh)
    torch.testing.assert_close(train(sharded), train(plain))
    for one, other in zip(sharded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.full_tensor(), other.data)
    distributed = torch.distributed.tensor.distribute_tensor(x, mesh)
    for call in (
        lambda: hk.distance(distributed, y),
        lambda: hk.contrastive_loss(distributed, y),
        lambda: hk.pairwise_distance(distributed, y),
        lambda: hk.contrastive_loss(x, y, weights=distributed[:, 0]),
        lambda: hk.centroid(x, weights=distributed[:, 0]),
        lambda: hk.contrastive_loss(x, y, exclude_ids=distributed[:, 0].long()),
        lambda: hk.distance(x, y, distributed[0, 0]),
        lambda: hk.LorentzLift(4, ("image",))(distributed, "image"),
    ):
        with pytest.raises(TypeError, match=r"got a DTensor: pass \w+.to_local\(\) .* \w+.full_tensor\(\)"):
            call()
    sharded.reshard()
    with pytest.raises(RuntimeError, match="inside the forward of the sharded module"):
        hk.distance(x, y, sharded.lift.curvature)


def test_fully_shard_trains_a_lift(tmp_path):
    """In a process of its own: a group is one for each process. And DTensors are refused with what to do."""
    ranks.raised(ranks.run(1, tmp_path, {"shard": shard})["shard"])


# ------------------------------------------------------------------------------------- what is printed, and warned about


def test_a_module_prints_its_options():
    lift = hk.LorentzLift(4, ("image",), curvature=2.0)
    assert "curvature=2 learnt within (0.1, 10), output=lorentz, scales={image: 0.5}" in repr(lift)
    assert "curvature=1 fixed" in repr(hk.LorentzLift(4, learn_curvature=False))
    assert repr(hk.EntailmentLoss(0.7)) == "EntailmentLoss(eta=0.7, min_radius=0.1, input='lorentz')"
    loss = hk.HyperbolicContrastiveLoss(0.7)
    assert "(curvature=0.7, loss='softmax', input='tangent', geometry='lorentz', directions='both')" in repr(loss)
    loss = hk.HyperbolicContrastiveLoss(label_smoothing=0.1, debias=0.01, margin=0.0)
    assert "label_smoothing=0.1, debias=0.01, margin=0.0, directions='both'" in repr(loss)
    several = hk.HyperbolicContrastiveLoss(rank=1, world_size=2, local_loss=True, gather_with_grad=True)
    assert "local_loss=True, gather_with_grad=True, rank=1, world_size=2" in repr(several)
    for curvature, shown in (
        (torch.tensor(0.7), "curvature=0.7,"),
        (nn.Parameter(torch.tensor([0.7])), "curvature=0.7, learnt,"),
        (lift, "curvature=LorentzLift, "),
        (lambda: 1.0, "curvature=computed at every step,"),
        (torch.tensor(0.7, device="meta"), "curvature=on meta,"),
    ):
        assert shown in repr(hk.HyperbolicContrastiveLoss(curvature))
    hierarchy = repr(hk.HierarchicalAlignmentLoss())
    assert "image_spot->gene_spot: weight=0.5, directions='both'" in hierarchy
    assert "image_spot>=gene_spot: eta=0.7, weight=0.5" in hierarchy


@pytest.mark.parametrize("make", [hk.HyperbolicContrastiveLoss, lambda c: hk.LorentzLift(4, curvature=c)])
def test_a_negative_curvature_is_told_its_c(make):
    with pytest.raises(ValueError, match=r"got -0.5: the curvature of the space is -c, so pass c = 0.5"):
        make(-0.5)


@pytest.mark.parametrize("start", [math.log(1 / 0.07), 2.6593, nn.Parameter(torch.tensor([math.log(10)]))])
def test_a_logarithm_for_a_logit_scale_is_warned_about_once(start):
    x, y = pairs()
    features = {name: x for name in ("image_spot", "image_niche", "gene_spot", "gene_niche")}
    for call in (
        functools.partial(hk.HyperbolicContrastiveLoss(), x, y),
        functools.partial(hk.HierarchicalAlignmentLoss(), features, 1.0),
    ):
        with pytest.warns(UserWarning, match=r"inverse temperature itself, logit_scale.exp\(\)") as found:
            call(start)
        assert [warning.filename for warning in found] == [__file__]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call(start)


@pytest.mark.parametrize("scale", [1 / 0.07, 2.3, 2.5, torch.tensor(100.0)])
def test_an_inverse_temperature_is_not_warned_about(scale):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hk.HyperbolicContrastiveLoss()(*pairs(), scale)
