"""What is learnt beside encoders stays the same in every process, in the ways that are documented: two over gloo against one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hyperst_kernels import HyperbolicContrastiveLoss

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
ROWS, STEPS, WORLD = 6, 3, 2


def example(name: str):
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name)


def batches(rank: int | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The rows of a rank, or all, in float64."""
    torch.manual_seed(0)
    mine = slice(None) if rank is None else slice(rank * ROWS, (rank + 1) * ROWS)
    return [
        (image[mine].double(), text[mine]) for image, text in (example("toy").pairs(WORLD * ROWS) for _ in range(STEPS))
    ]


def whole_model(rank: int = 0, world_size: int = 1) -> nn.Module:
    torch.manual_seed(1)
    return example("learned_curvature").Model(rank, world_size).double()


def apart(rank: int, **options: str) -> dict[str, torch.Tensor]:
    """A curvature and a logit scale outside the wrapped encoders."""
    model, numbers = whole_model(), nn.ParameterList([torch.ones(1).double(), torch.tensor([5.0]).double()])
    encoders = nn.parallel.DistributedDataParallel(model.image), nn.parallel.DistributedDataParallel(model.text)
    where = {"rank": rank, "world_size": WORLD, "local_loss": True, "gather_with_grad": True}
    loss = HyperbolicContrastiveLoss(numbers[0], **where, **options)
    steps = torch.optim.SGD([*encoders[0].parameters(), *encoders[1].parameters(), *numbers], 0.01)
    for image, text in batches(rank):
        steps.zero_grad()
        loss(encoders[0](image) / 4, encoders[1](text) / 4, numbers[1]).backward()
        steps.step()
    return {f"number {i}": p.data for i, p in enumerate(numbers)}


def in_chunks(rank: int) -> dict[str, torch.Tensor]:
    large_batch = example("large_batch")
    torch.manual_seed(1)
    model = nn.parallel.DistributedDataParallel(large_batch.Encoders().double())
    loss = HyperbolicContrastiveLoss(rank=rank, world_size=WORLD, local_loss=True, gather_with_grad=True)
    steps = torch.optim.SGD(model.parameters(), 0.1)
    for image, text in batches(rank):
        steps.zero_grad()
        chunks = list(zip(image.split(4), text.split(4), strict=True))
        large_batch.backward_in_chunks(model, lambda *out: loss(*out[:3], curvature=out[3]), chunks)
        steps.step()
    return model.module.state_dict()


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    wrapped = nn.parallel.DistributedDataParallel(whole_model(rank, WORLD))
    example("learned_curvature").train(wrapped, batches(rank))
    found = {"inside": wrapped.module.state_dict(), "apart": apart(rank), "sigmoid": apart(rank, loss="sigmoid")}
    torch.save({**found, "chunks": in_chunks(rank)}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(name="learnt", scope="module")
def _learnt(tmp_path_factory) -> list[dict[str, dict[str, torch.Tensor]]]:
    """What each rank has learnt in each way."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(one_rank, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("way", ["inside", "apart", "sigmoid", "chunks"])
def test_replicas_agree(learnt, way):
    one, other = (rank[way] for rank in learnt)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_processes_learn_what_one_does_of_all_rows(learnt):
    model = whole_model()
    start = model.lift.log_curvature.item(), model.log_scale.item()
    example("learned_curvature").train(model, batches())
    torch.testing.assert_close(learnt[0]["inside"], dict(model.state_dict()), rtol=1e-9, atol=1e-12)
    assert (model.lift.log_curvature.item(), model.log_scale.item()) != start
    twin = whole_model()
    twin.load_state_dict(model.state_dict())
    assert twin.lift.curvature.item() == model.lift.curvature.item()


def test_chunks_in_two_processes_have_the_gradients_of_all_rows(learnt):
    large_batch = example("large_batch")
    torch.manual_seed(1)
    encoders, loss = large_batch.Encoders().double(), HyperbolicContrastiveLoss()
    steps = torch.optim.SGD(encoders.parameters(), 0.1)
    for batch in batches():
        steps.zero_grad()
        image, text, scale, curvature = encoders(*batch)
        loss(image, text, scale, curvature=curvature).backward()
        steps.step()
    torch.testing.assert_close(learnt[0]["chunks"], dict(encoders.state_dict()), rtol=1e-9, atol=1e-12)
