"""Several processes against one, in float64 over gloo: the contract stated in HyperbolicContrastiveLoss's docstring."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from hyperst_kernels import HyperbolicContrastiveLoss, contrastive_loss

ROWS, DIM = 5, 7


def features(world_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image and text features of all ranks, and ids with repeats within and across ranks."""
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, world_size * ROWS, DIM, generator=generator, dtype=torch.float64) / 2
    return image, text, torch.arange(world_size * ROWS) % (world_size * ROWS - 3)


def parameters() -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.7, 9.0))


def one_rank(rank: int, world_size: int, folder: str, options: dict) -> None:
    """Save this rank's loss, the gradients of its rows, and those of curvature and logit scale."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size
    )
    image, text, ids = features(world_size)
    mine = slice(rank * ROWS, (rank + 1) * ROWS)
    image, text = image[mine].requires_grad_(), text[mine].requires_grad_()
    c, scale = parameters()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = HyperbolicContrastiveLoss(c, rank=rank, world_size=world_size, **options)
    value = loss(image, text, scale, exclude_ids=ids[mine])
    grads = torch.autograd.grad(value, (image, text, c, scale))
    torch.save((value.detach(), *grads), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def all_ranks(world_size: int, folder, **options) -> tuple[torch.Tensor, ...]:
    """Per-rank results: losses (r), features' gradients (r rows d), scalars' gradients (r)."""
    torch.multiprocessing.spawn(one_rank, (world_size, str(folder), options), nprocs=world_size)
    results = [torch.load(f"{folder}/{rank}.pt") for rank in range(world_size)]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def one_process(world_size: int, directions: str) -> tuple[torch.Tensor, ...]:
    image, text, ids = features(world_size)
    leaves = (image.requires_grad_(), text.requires_grad_(), *parameters())
    loss = contrastive_loss(*leaves, directions=directions, exclude_ids=ids)
    return (loss.detach(), *torch.autograd.grad(loss, leaves))


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("world_size", "options"),
    [
        (2, {"local_loss": True, "gather_with_grad": True}),
        (4, {"local_loss": False, "gather_with_grad": True}),
        (3, {"local_loss": True, "gather_with_grad": True, "directions": "rows"}),
    ],
)
def test_the_gradient_after_averaging_over_ranks_is_that_of_one_process(world_size, options, tmp_path):
    losses, *grads = all_ranks(world_size, tmp_path, **options)
    loss, *expected = one_process(world_size, options.get("directions", "both"))
    assert close(losses.mean(), loss)
    # DDP takes the mean over ranks of parameters' gradients: a row that one rank holds counts 1 / world_size
    for found, true in zip(grads[:2], expected[:2], strict=True):
        assert close(found.flatten(0, 1) / world_size, true)
    for found, true in zip(grads[2:], expected[2:], strict=True):
        assert close(found.mean(), true)


def test_a_global_loss_without_gathered_gradients_scales_the_features_gradient(tmp_path):
    losses, *grads = all_ranks(3, tmp_path, local_loss=False, gather_with_grad=False)
    loss, *expected = one_process(3, "both")
    assert close(losses, loss.expand(3))
    for found, true in zip(grads[:2], expected[:2], strict=True):
        assert close(found.flatten(0, 1), true)  # 1 / world_size of it after DDP's mean
    for found, true in zip(grads[2:], expected[2:], strict=True):
        assert close(found.mean(), true)


def test_a_local_loss_without_gathered_gradients_is_wrong_and_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="gather_with_grad=True"):
        HyperbolicContrastiveLoss(local_loss=True, world_size=2)
    _, image, *_ = all_ranks(2, tmp_path, local_loss=True, gather_with_grad=False)
    true = one_process(2, "both")[1]
    assert (image.flatten(0, 1) / 2 - true).norm() > 0.1 * true.norm()


def test_several_processes_need_an_initialised_group():
    with pytest.raises(ValueError, match="world_size"):
        HyperbolicContrastiveLoss(world_size=2)(torch.eye(3), torch.eye(3), 1.0)
