"""The table of docs/howto/several_gpus.md, row by row, in two processes: what becomes of gradients in DDP, FSDP2 and alone."""

from __future__ import annotations

import functools
import itertools
import warnings

import pytest
import torch
import torch.distributed
from torch import nn
from torch.distributed.fsdp import fully_shard

from hyperst_kernels import HyperbolicContrastiveLoss
from tests.kernels import ranks

WORLD, SHARDS = 2, (5, 3)
FLAGS = list(itertools.product((True, False), repeat=2))  # local_loss, gather_with_grad
# (local_loss, gather_with_grad): the encoder's gradient as a multiple of that of one process, after a mean over ranks
ENCODER = {(True, True): 1.0, (False, True): 1.0, (False, False): 1 / WORLD, (True, False): None}


class Model(nn.Module):
    """An encoder of both views, a curvature and a logit scale."""

    def __init__(self, group=None, local_loss: bool = False, gather_with_grad: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(6, 4, dtype=torch.float64)
        self.curvature, self.scale = (nn.Parameter(torch.tensor([x], dtype=torch.float64)) for x in (0.8, 9.0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.loss = HyperbolicContrastiveLoss(group=group, local_loss=local_loss, gather_with_grad=gather_with_grad)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.loss(self.encoder(image), self.encoder(text), self.scale, curvature=self.curvature)


def pairs() -> torch.Tensor:
    return torch.randn(2, sum(SHARDS), 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in found.items()}


def of_rank(wrapper: str, local_loss: bool, gather_with_grad: bool, rank: int, world_size: int):
    model = Model(torch.distributed.group.WORLD, local_loss, gather_with_grad)
    if wrapper == "DDP":
        model = nn.parallel.DistributedDataParallel(model)
    elif wrapper == "FSDP2":
        fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (world_size,)))
    elif wrapper == "compiled":
        model.forward = torch.compile(model.forward, backend="aot_eager")
    loss = model(*(x.split(SHARDS)[rank] for x in pairs()))
    loss.backward()
    return {"loss": loss.detach(), **gradients(model)}


def in_one_graph(rank: int, world_size: int) -> torch.Tensor:
    loss = HyperbolicContrastiveLoss(group=torch.distributed.group.WORLD)
    return torch.compile(loss, backend="aot_eager", fullgraph=True)(torch.eye(3), torch.eye(3), 9.0)


@pytest.fixture(name="found", scope="module")
def _found(tmp_path_factory):
    cases = {
        (wrapper, *flags): functools.partial(of_rank, wrapper, *flags)
        for wrapper in ("none", "DDP", "FSDP2")
        for flags in FLAGS
    }
    cases["compiled", True, True] = functools.partial(of_rank, "compiled", True, True)
    cases["in one graph"] = in_one_graph
    return ranks.run(WORLD, tmp_path_factory.mktemp("ranks"), cases)


@functools.cache
def true() -> dict[str, torch.Tensor]:
    model = Model()
    loss = model(*pairs())
    loss.backward()
    return {"loss": loss.detach(), **gradients(model)}


close = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-13)


WAYS = [*itertools.product(("none", "DDP", "FSDP2"), FLAGS), ("compiled", (True, True))]


@pytest.mark.parametrize(("wrapper", "flags"), WAYS)
def test_gradients(found, wrapper, flags):
    results = found[(wrapper, *flags)]
    if wrapper in ("DDP", "FSDP2"):  # which leave the mean on every rank
        for name in true().keys() - {"loss"}:
            assert torch.equal(results[0][name], results[1][name])
    mean = {name: torch.stack([result[name] for result in results]).mean(0) for name in true()}
    for name in ("curvature", "scale", "loss"):
        close(mean[name], true()[name])
    for name in ("encoder.weight", "encoder.bias"):
        if (share := ENCODER[flags]) is None:
            assert (mean[name] - true()[name]).norm() > 0.1 * true()[name].norm()
        else:
            close(mean[name], true()[name] * share)


@pytest.mark.parametrize("flags", FLAGS)
def test_values(found, flags):
    """A local loss is a rank's part, a global one the whole."""
    values = torch.stack([result["loss"] for result in found[("none", *flags)]])
    whole = true()["loss"].expand(WORLD)
    assert torch.allclose(values, whole, rtol=1e-12) == (not flags[0])


def test_one_graph_is_refused(found):
    for error in found["in one graph"]:
        assert isinstance(error, RuntimeError)
        assert "leave out fullgraph=True" in str(error)
