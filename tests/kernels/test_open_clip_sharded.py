"""open_clip's model sharded by FSDP2, in a loop like open_clip's, whose own program has no such option up to 3.3."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from benchmarks.torchvision_of_another_build import prepare_torchvision
from hyperst_kernels import topk
from tests.kernels import ranks
from tests.kernels.test_open_clip import _clip, make  # noqa: F401

WORLD, ROWS, STEPS = 2, 8, 3
HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(ROWS, 3, 32, 32, generator=generator), torch.randint(1, 49407, (ROWS, 16), generator=generator))
        for _ in range(STEPS)
    ]


def hyperbolic_model(siglip: bool) -> nn.Module:
    """FSDP2 shards no parameter of shape (): open_clip's option makes the logit scale one of shape (1,), and the bias."""
    from hyperst_kernels.interop.open_clip import hyperbolic

    return hyperbolic(make(nonscalar_logit_scale=True, init_logit_bias=0.0 if siglip else None), 0.7)


def shard(model: nn.Module, policy: MixedPrecisionPolicy) -> None:
    mesh = torch.distributed.init_device_mesh("cpu", (WORLD,))
    for block in (*model.visual.transformer.resblocks, *model.transformer.resblocks):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for name in ("encode_image", "encode_text"):
        register_fsdp_forward_method(model, name)


def train(model: nn.Module, siglip: bool, rank: int = 0, world_size: int = 1) -> list[float]:
    """Steps of all rows; the loss of each, a rank's part of it."""
    from hyperst_kernels.interop.open_clip import create_loss
    from tests.kernels.test_open_clip import arguments

    where = {"rank": rank, "world_size": world_size, "local_loss": world_size > 1, "gather_with_grad": world_size > 1}
    loss = create_loss(arguments(siglip=siglip, **where), 0.7)
    optimizer = torch.optim.SGD(model.parameters(), 0.03)
    history, own = [], slice(rank * ROWS // world_size, (rank + 1) * ROWS // world_size)
    for image, text in batches():
        optimizer.zero_grad()
        value = sum(loss(**model(image[own], text[own]), output_dict=True).values())
        value.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        history.append(value.item())
    return history


def of_rank(siglip: bool, policy: MixedPrecisionPolicy, rank: int, world_size: int):
    prepare_torchvision()
    model = hyperbolic_model(siglip)
    shard(model, policy)
    history = train(model, siglip, rank, world_size)
    with torch.no_grad():
        image, text = batches()[0]
        nearest = topk(model.encode_image(image), model.encode_text(text), 3, 0.7, input="tangent")[0]
    return history, nearest, {name: x.full_tensor() for name, x in model.state_dict().items()}


CASES = {
    name: (siglip, policy)
    for name, siglip, policy in (
        ("softmax", False, MixedPrecisionPolicy()),
        ("sigmoid", True, MixedPrecisionPolicy()),
        ("softmax, bf16", False, HALF),
    )
}


class OfRank:
    """`of_rank` of a case, which travels to processes by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, rank: int, world_size: int):
        return of_rank(*CASES[self.name], rank, world_size)


@pytest.fixture(name="found", scope="module")
def _found(tmp_path_factory):
    prepare_torchvision()
    pytest.importorskip("open_clip", reason="open_clip is not installed; `make loops` runs these tests with it")
    return ranks.run(WORLD, Path(tmp_path_factory.mktemp("sharded")), {name: OfRank(name) for name in CASES})


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_does_of_all_rows(clip, found, name):
    one, other = ranks.raised(found[name])
    assert all(torch.equal(x, other[2][key]) for key, x in one[2].items())
    siglip, policy = CASES[name]
    model = hyperbolic_model(siglip)
    start = {key: x.clone() for key, x in model.state_dict().items()}
    history = train(model, siglip)
    part = [sum(values) / WORLD for values in zip(one[0], other[0], strict=True)]
    digits = 1e-5 if policy is not HALF else 2e-2
    assert part == pytest.approx(history, rel=digits)
    for key, x in model.state_dict().items():
        moved = float((x - start[key]).norm())
        assert float((one[2][key] - x).norm()) <= (1e-3 if policy is not HALF else 0.2) * moved, key
    with torch.no_grad():
        image, text = batches()[0]
        nearest = topk(model.encode_image(image), model.encode_text(text), 3, 0.7, input="tangent")[0]
    torch.testing.assert_close(one[1].float(), nearest, rtol=digits, atol=0)
