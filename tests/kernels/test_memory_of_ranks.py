"""What the losses of one rank hold at once, measured over the number of ranks with the rows of all fixed."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.distributed

import hyperst_kernels as hk
from tests.kernels import ranks
from tests.kernels.peak import Peak

N, DIM = 1024, 2048
WORLDS = (4, 8)
KEYS = N * DIM * 4  # bytes of the keys of all ranks
LOSSES = {"softmax": {}, "sigmoid": {"loss": "sigmoid"}}


def held(scheme: str, loss: str, rank: int, world_size: int) -> int:
    hk.limit_cpu_memory(0)
    generator = torch.Generator().manual_seed(rank)
    features = [(torch.randn(N // world_size, DIM, generator=generator) / DIM**0.5).requires_grad_() for _ in range(2)]
    group = torch.distributed.group.WORLD
    module = hk.HyperbolicContrastiveLoss(
        group=group, local_loss=True, gather_with_grad=True, scheme=scheme, **LOSSES[loss]
    )
    with Peak() as peak:
        module(*features, 9.0).backward()
    return peak.bytes


@pytest.fixture(name="found", scope="module")
def _found(tmp_path_factory):
    cases = {(s, loss): functools.partial(held, s, loss) for s in ("gather", "ring") for loss in LOSSES}
    return {world: ranks.run(world, tmp_path_factory.mktemp("ranks"), cases) for world in WORLDS}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_ring_holds_shards_and_gathering_all(found, loss):
    """With twice the ranks a shard is half as large, and the keys of all are what they were."""
    gathered, ring = ([max(found[world][scheme, loss]) for world in WORLDS] for scheme in ("gather", "ring"))
    few, many = ring
    assert many <= 0.6 * few  # half, but for tiles and what does not grow with the features
    few, many = gathered
    copies = 4  # keys, their gradients, and an operand of the products for each
    assert 0.8 * few <= many <= few
    assert many >= copies * KEYS
