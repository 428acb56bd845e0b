"""The formulas of benchmarks.cluster beside the bytes that real losses send, in 2, 4 and 8 processes over gloo."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch
import torch.distributed
import torch.distributed.nn
from torch import nn

from benchmarks.cluster.schemes import SCHEMES, Problem
from hyperst_kernels import HyperbolicContrastiveLoss
from tests.kernels import ranks
from tests.kernels.traffic import Traffic

SIZES = (2, 4, 8)
ROWS, DIM = 3, 4


def ours(scheme: str, group, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    loss = HyperbolicContrastiveLoss(group=group, local_loss=True, gather_with_grad=True, scheme=scheme)
    return loss(image, text, 9.0)


def open_clip(group, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Its local loss with gathered gradients, in short."""
    images, texts = (torch.cat(torch.distributed.nn.all_gather(x, group)) for x in (image, text))
    rank, n = torch.distributed.get_rank(group), image.shape[0]
    labels = torch.arange(n * rank, n * (rank + 1))
    ways = 9.0 * image @ texts.T, 9.0 * text @ images.T
    return sum(nn.functional.cross_entropy(logits, labels) for logits in ways) / 2


LOSSES = {
    "gather": functools.partial(ours, "gather"),
    "ring": functools.partial(ours, "ring"),
    "open_clip": open_clip,
}


def counted(name: str, dtype: torch.dtype, group, size: int) -> Counter:
    """Bytes of one step by kind of message."""
    found: Counter = Counter()
    image, text = (torch.eye(ROWS, DIM, dtype=dtype, requires_grad=True) for _ in range(2))
    with Traffic(size) as traffic:
        LOSSES[name](group, image, text).backward()
    for kind, sent in traffic.found:
        found[kind] += sent
    return found


def of_rank(rank: int, world_size: int) -> dict:
    """Cases of the groups that this rank belongs to: the first 2, 4 and 8 processes."""
    found: dict = {}
    for size in SIZES:
        group = torch.distributed.new_group(range(size))
        if rank < size:
            for name in LOSSES:
                for dtype in (torch.bfloat16, torch.float32):
                    found[name, size, dtype] = counted(name, dtype, group, size)
    return found


@pytest.fixture(name="found", scope="module")
def _found(tmp_path_factory):
    found = ranks.run(max(SIZES), tmp_path_factory.mktemp("ranks"), {"of_rank": of_rank})["of_rank"]
    for result in found:
        if isinstance(result, Exception):
            raise result
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LOSSES)
def test_bytes_that_are_sent_are_those_of_the_formula(found, name, size, dtype):
    expected: Counter = Counter()
    for message in SCHEMES[name].messages(Problem(ROWS * size, size, DIM, dtype.itemsize)):
        expected[message.kind] += message.bytes
    assert expected.total() > 0
    for result in found[:size]:
        assert result[name, size, dtype] == expected
