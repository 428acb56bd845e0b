"""What the losses send to other processes: shards of any size, gradients summed in float32, and how many bytes of both."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.distributed

from hyperst_kernels import HyperbolicContrastiveLoss, contrastive_loss
from hyperst_kernels.distributed import Gather, Ranks
from tests.kernels import ranks
from tests.kernels.traffic import Traffic

WORLD, DIM = 3, 4
NUMBERS = 4  # c, logit scale, and a factor of queries and of keys
# options, sums of each column and numbers of its slopes
OTHER_LOSSES: dict[str, tuple[dict, int, int]] = {
    "smoothed targets": ({"label_smoothing": 0.1}, 8, 6),
    "debiased": ({"debias": 0.1}, 8, 5),
    "a margin": ({"margin": 0.1}, 6, 5),
    "a sigmoid": ({"loss": "sigmoid"}, 0, 0),
}
SHARDS = {"equal": (4, 4, 4), "unequal": (2, 5, 1), "an empty one": (3, 0, 2), "all empty": (0, 0, 0)}


def gathered(rows: tuple[int, ...], rank: int, world_size: int) -> tuple[torch.Tensor, ...]:
    """Rows numbered by rank and place, and the gradient of a sum in which every rank weighs every row otherwise."""
    first = sum(rows[:rank])
    x = torch.arange(first, first + rows[rank], dtype=torch.float64)[:, None].requires_grad_()
    everything = Gather(Ranks(None), with_grad=True)(x, rows)
    numbers = everything.detach().flatten()
    (numbers * 2.0**rank * everything.flatten()).sum().backward()
    return numbers, x.grad.flatten()


def half(dtype: torch.dtype, rank: int, world_size: int) -> torch.Tensor:
    """Gradients 2 / eps, 1 and eps / 4, in ranks: in whatever order they are added in ``dtype``, the last two are lost."""
    x = torch.zeros(1, 1, dtype=dtype, requires_grad=True)
    everything = Gather(Ranks(None), with_grad=True)(x, (1,) * world_size)
    eps = torch.finfo(dtype).eps
    everything.backward(torch.full_like(everything, (2 / eps, 1.0, eps / 4)[rank]))
    return x.grad


def sent(dtype: torch.dtype, ids: bool, scheme: str, rank: int, world_size: int, **options) -> list[tuple[str, int]]:
    n = SHARDS["unequal"][rank]
    image, text = (torch.eye(n, DIM, dtype=dtype, requires_grad=True) for _ in range(2))
    group = torch.distributed.group.WORLD
    loss = HyperbolicContrastiveLoss(group=group, local_loss=True, gather_with_grad=True, scheme=scheme, **options)
    with Traffic(world_size) as counted:
        loss(image, text, 9.0, exclude_ids=torch.arange(n) if ids else None).backward()
    return counted.found


def far_out() -> torch.Tensor:
    """Queries and keys (2 n d) of radius 40."""
    x = torch.randn(2, 16 * WORLD, 32, generator=torch.Generator().manual_seed(0))
    return (40 * x / x.norm(dim=-1, keepdim=True)).to(torch.bfloat16)


def far_out_gradients(scheme: str, rank: int, world_size: int) -> tuple[torch.Tensor, ...]:
    leaves = [x.chunk(WORLD)[rank].clone().requires_grad_() for x in far_out()]
    group = torch.distributed.group.WORLD
    loss = HyperbolicContrastiveLoss(group=group, local_loss=True, gather_with_grad=True, scheme=scheme)
    return torch.autograd.grad(loss(*leaves, 1.0), leaves)


@pytest.fixture(name="found", scope="module")
def _found(tmp_path_factory):
    cases = {name: functools.partial(gathered, rows) for name, rows in SHARDS.items()}
    cases |= {str(dtype): functools.partial(half, dtype) for dtype in (torch.bfloat16, torch.float16)}
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        for scheme in ("gather", "ring"):
            cases[f"bytes of {dtype}, {scheme}"] = functools.partial(sent, dtype, dtype == torch.float32, scheme)
    for scheme in ("gather", "ring"):
        for name, (options, _, _) in OTHER_LOSSES.items():
            cases[f"bytes of {name}, {scheme}"] = functools.partial(sent, torch.float32, True, scheme, **options)
    cases |= {f"far out, {scheme}": functools.partial(far_out_gradients, scheme) for scheme in ("gather", "ring")}
    return ranks.run(WORLD, tmp_path_factory.mktemp("ranks"), cases)


@pytest.mark.parametrize("name", SHARDS)
def test_rows_come_in_a_ring_and_gradients_are_summed(found, name):
    rows = SHARDS[name]
    starts = [sum(rows[:rank]) for rank in range(WORLD)]
    for rank, (numbers, grad) in enumerate(found[name]):
        ring = [(rank + i) % WORLD for i in range(WORLD)]
        expected = [number for r in ring for number in range(starts[r], starts[r] + rows[r])]
        assert numbers.tolist() == expected
        own = expected[: rows[rank]]
        assert grad.tolist() == [number * (2.0**WORLD - 1) for number in own]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_half_precision_are_summed_in_float32(found, dtype):
    for grad in found[str(dtype)]:
        assert grad.dtype == dtype
        assert grad.item() == 2 / torch.finfo(dtype).eps + 2


@pytest.mark.parametrize("scheme", ["gather", "ring"])
def test_gradients_of_half_precision_are_rounded_once(found, scheme):
    """Far out, where what ranks add to a key cancels; curvature and scale are numbers of float32."""
    leaves = [x.double().requires_grad_() for x in far_out()]
    true = torch.autograd.grad(contrastive_loss(*leaves, 1.0, 1.0) * WORLD, leaves)
    for found_grad, expected in zip(zip(*found[f"far out, {scheme}"], strict=True), true, strict=True):
        error = (torch.cat(found_grad).double() - expected).norm() / expected.norm()
        # one rounding to bfloat16, and distances of float32 at radius 40
        assert error < 2 * torch.finfo(torch.bfloat16).eps / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_bytes_are_those_of_the_documented_formula(found, dtype):
    longest, wide = max(SHARDS["unequal"]), max(dtype.itemsize, 4)
    of_ids = [("all-gather", (WORLD - 1) * longest * 8)] if dtype == torch.float32 else []
    for n, counted in zip(SHARDS["unequal"], found[f"bytes of {dtype}, gather"], strict=True):
        assert counted == [
            ("all-gather", (WORLD - 1) * 5 * 8),
            ("all-gather", (WORLD - 1) * longest * DIM * dtype.itemsize),
            *of_ids,
            ("all-to-all", (WORLD - 1) * n * 8),
            ("all-gather", (WORLD - 1) * longest * 16),
            ("reduce-scatter", (WORLD - 1) * longest * DIM * wide),
            ("all-reduce", NUMBERS * 8),
        ]


@pytest.mark.parametrize("name", OTHER_LOSSES)
def test_bytes_of_other_losses(found, name):
    """Sums of each column and numbers of its slopes as documented, ids, and limits of a margin; c, the scale, no factors."""
    options, sums, slopes = OTHER_LOSSES[name]
    rows, longest = SHARDS["unequal"], max(SHARDS["unequal"])
    known = [8, 4] if "margin" in options else [8]  # bytes of what is known of each key
    for n, counted in zip(rows, found[f"bytes of {name}, gather"], strict=True):
        assert counted == [
            ("all-gather", (WORLD - 1) * 5 * 8),
            ("all-gather", (WORLD - 1) * longest * DIM * 4),
            *(("all-gather", (WORLD - 1) * longest * size) for size in known),
            *([("all-to-all", (WORLD - 1) * n * sums * 8)] if sums else []),
            *([("all-gather", (WORLD - 1) * longest * slopes * 8)] if slopes else []),
            ("reduce-scatter", (WORLD - 1) * longest * DIM * 4),
        ]
    for n, counted in zip(rows, found[f"bytes of {name}, ring"], strict=True):
        others, of_all = sum(rows) - n, sum(rows)
        both_ways = others * 2 * (DIM * 4 + sum(known)) + others * slopes * 8 + of_all * (sums * 8 + DIM * 4)
        assert sum(size for kind, size in counted if kind == "ring") == both_ways


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_bytes_of_a_ring_are_those_of_the_documented_formula(found, dtype):
    rows, wide, ids = SHARDS["unequal"], max(dtype.itemsize, 4), 8 * (dtype == torch.float32)
    for n, counted in zip(rows, found[f"bytes of {dtype}, ring"], strict=True):
        others = sum(rows) - n
        names = {name for name, _ in counted}
        received = {name: sum(size for other, size in counted if other == name) for name in names}
        forward, backward = others * (DIM * dtype.itemsize + ids), others * (DIM * dtype.itemsize + ids + 16)
        returned = sum(rows) * (8 + DIM * wide)
        assert received == {
            "all-gather": (WORLD - 1) * 5 * 8, "ring": forward + backward + returned, "all-reduce": NUMBERS * 8
        }  # fmt: skip
