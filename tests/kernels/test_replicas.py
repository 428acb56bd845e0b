"""What is learnt beside encoders stays the same in every process, in the ways that are documented: two over gloo against one."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hyperst_kernels import HyperbolicContrastiveLoss
from tests.kernels import ranks

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


def inside(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """A curvature and a logit scale inside of what is wrapped."""
    wrapped = nn.parallel.DistributedDataParallel(whole_model(rank, world_size))
    example("learned_curvature").train(wrapped, batches(rank))
    return wrapped.module.state_dict()


def apart(rank: int, world_size: int, **options: str) -> dict[str, torch.Tensor]:
    """A curvature and a logit scale outside the wrapped encoders."""
    model, numbers = whole_model(), nn.ParameterList([torch.ones(1).double(), torch.tensor([5.0]).double()])
    encoders = nn.parallel.DistributedDataParallel(model.image), nn.parallel.DistributedDataParallel(model.text)
    where = {"rank": rank, "world_size": world_size, "local_loss": True, "gather_with_grad": True}
    loss = HyperbolicContrastiveLoss(numbers[0], **where, **options)
    steps = torch.optim.SGD([*encoders[0].parameters(), *encoders[1].parameters(), *numbers], 0.01)
    for image, text in batches(rank):
        steps.zero_grad()
        loss(encoders[0](image) / 4, encoders[1](text) / 4, numbers[1]).backward()
        steps.step()
    return {f"number {i}": p.data for i, p in enumerate(numbers)}


def sigmoid(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    return apart(rank, world_size, loss="sigmoid")


def in_chunks(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    large_batch = example("large_batch")
    torch.manual_seed(1)
    model = nn.parallel.DistributedDataParallel(large_batch.Encoders().double())
    loss = HyperbolicContrastiveLoss(rank=rank, world_size=world_size, local_loss=True, gather_with_grad=True)
    steps = torch.optim.SGD(model.parameters(), 0.1)
    for image, text in batches(rank):
        steps.zero_grad()
        chunks = list(zip(image.split(4), text.split(4), strict=True))
        large_batch.backward_in_chunks(model, lambda *out: loss(*out[:3], curvature=out[3]), chunks)
        steps.step()
    return model.module.state_dict()


def left(_: int, folder: str) -> None:
    ranks.join(0, 1, folder)
    inside(0, 1)
    gc.collect()
    torch.distributed.destroy_process_group()
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in threads if "gloo" in name], threads


def test_a_group_that_is_left_has_no_threads(tmp_path):
    """Else one of them that clears up an exchange aborts Python's end."""
    torch.multiprocessing.spawn(left, (str(tmp_path),), nprocs=1)


WAYS = {"inside": inside, "apart": apart, "sigmoid": sigmoid, "chunks": in_chunks}


@pytest.fixture(name="learnt", scope="module")
def _learnt(tmp_path_factory) -> dict[str, list[dict[str, torch.Tensor]]]:
    """What is learnt in each way by each rank."""
    found = ranks.run(WORLD, tmp_path_factory.mktemp("ranks"), WAYS)
    return {way: ranks.raised(of_ranks) for way, of_ranks in found.items()}


@pytest.mark.parametrize("way", WAYS)
def test_replicas_agree(learnt, way):
    one, other = learnt[way]
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_processes_learn_what_one_does_of_all_rows(learnt):
    model = whole_model()
    start = model.lift.log_curvature.item(), model.log_scale.item()
    example("learned_curvature").train(model, batches())
    torch.testing.assert_close(learnt["inside"][0], dict(model.state_dict()), rtol=1e-9, atol=1e-12)
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
    torch.testing.assert_close(learnt["chunks"][0], dict(encoders.state_dict()), rtol=1e-9, atol=1e-12)
