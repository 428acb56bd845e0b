"""Several processes against one, in float64 over gloo: the contract stated in docs/howto/several_gpus.md."""

from __future__ import annotations

import functools
import warnings
from typing import NamedTuple

import pytest
import torch
import torch.distributed

from hyperst_kernels import HyperbolicContrastiveLoss, contrastive_loss
from tests.kernels import ranks

DIM = 5
SHARDS = {2: (5, 3), 3: (4, 1, 6), 4: (2, 3, 1, 4), 8: (1, 2, 1, 3, 1, 1, 2, 1)}
NO_POSITIVE = 100  # an id of the last rank's queries that no key has


class Case(NamedTuple):
    """Options of the module, and what its call is given beside features, curvature and logit scale."""

    options: dict
    given: tuple[str, ...] = ()
    equal: bool = False


LOCAL, GLOBAL = {"local_loss": True, "gather_with_grad": True}, {"local_loss": False, "gather_with_grad": True}
RING = {**LOCAL, "scheme": "ring"}
CASES = {
    "local": Case(LOCAL),
    "local, equal shards": Case(LOCAL, equal=True),
    "local, ids": Case(LOCAL, ("exclude_ids",)),
    "local, rows": Case({**LOCAL, "directions": "rows"}, ("exclude_ids",)),
    "local, euclidean": Case({**LOCAL, "geometry": "euclidean"}),
    "local, weights": Case(LOCAL, ("weights",)),
    "local, no weight": Case(LOCAL, ("no weights",)),
    "local, smoothed": Case({**LOCAL, "label_smoothing": 0.1}, ("exclude_ids",)),
    "local, debiased": Case(LOCAL, ("debias", "more keys")),
    "local, margin": Case({**LOCAL, "margin": 0.2, "label_smoothing": 0.1}, ("exclude_ids", "more keys")),
    "local, sigmoid": Case({**LOCAL, "loss": "sigmoid"}, ("weights", "exclude_ids")),
    "local, positives": Case(LOCAL, ("positives",)),
    "local, positives, weights": Case({**LOCAL, "directions": "rows"}, ("positives", "weights")),
    "local, sigmoid, positives": Case({**LOCAL, "loss": "sigmoid"}, ("positives",)),
    "local, scales": Case(LOCAL, ("scales", "exclude_ids")),
    "local, scales, rows": Case({**LOCAL, "directions": "rows"}, ("scales",)),
    "local, scales, debiased": Case({**LOCAL, "geometry": "cosine", "debias": 0.3}, ("scales", "more keys")),
    "local, more keys": Case(LOCAL, ("more keys", "exclude_ids")),
    "local, more keys, positives": Case(LOCAL, ("more keys", "positives")),
    "global": Case(GLOBAL, ("exclude_ids",)),
    "global, equal shards": Case(GLOBAL, ("exclude_ids",), equal=True),
    "global, weights": Case(GLOBAL, ("weights",)),
    "global, smoothed": Case({**GLOBAL, "label_smoothing": 0.1}, ("positives",)),
    "global, debiased": Case(GLOBAL, ("debias",)),
    "global, debiased alike, positives": Case({**GLOBAL, "debias": 0.01}, ("positives",)),
    "global, margin": Case({**GLOBAL, "margin": 0.2}),
    "global, sigmoid": Case({**GLOBAL, "loss": "sigmoid"}),
    "global, positives": Case(GLOBAL, ("positives",)),
    "global, angle": Case({**GLOBAL, "geometry": "angle"}),
    "local, angle": Case({**LOCAL, "geometry": "angle"}),
    "local, angle, rows": Case({**LOCAL, "geometry": "angle", "directions": "rows"}),
    "global, scales": Case(GLOBAL, ("scales",)),
    "global, more keys": Case(GLOBAL, ("more keys", "exclude_ids")),
    "ring": Case(RING),
    "ring, equal shards": Case(RING, equal=True),
    "ring, ids": Case(RING, ("exclude_ids",)),
    "ring, rows": Case({**RING, "directions": "rows"}, ("exclude_ids", "weights")),
    "ring, euclidean": Case({**RING, "geometry": "euclidean"}),
    "ring, cosine": Case({**RING, "geometry": "cosine"}),
    "ring, more keys": Case(RING, ("more keys", "exclude_ids")),
    "ring, scales": Case(RING, ("scales", "more keys")),
    "ring, smoothed": Case({**RING, "label_smoothing": 0.1}, ("exclude_ids",)),
    "ring, debiased": Case(RING, ("debias", "more keys")),
    "ring, margin": Case({**RING, "geometry": "euclidean", "margin": 0.2}, ("exclude_ids", "more keys")),
    "ring, sigmoid": Case({**RING, "loss": "sigmoid"}, ("weights", "exclude_ids", "more keys", "bias")),
    "ring, positives": Case(RING, ("positives", "more keys")),
    "ring, angle": Case({**RING, "geometry": "angle", "label_smoothing": 0.1}),
    "ring, global": Case({**RING, "local_loss": False}, ("exclude_ids", "weights")),
    "global, plain": Case({"local_loss": False, "gather_with_grad": False}, ("exclude_ids",)),
    "local, plain": Case({"local_loss": True, "gather_with_grad": False}),
}


def inputs(case: Case, world_size: int) -> tuple[dict[str, torch.Tensor], list[int], list[int]]:
    """What one process has, rows in the order of ranks; the rows of queries and of keys on every rank."""
    generator = torch.Generator().manual_seed(0)
    rows = [4] * world_size if case.equal else list(SHARDS[world_size])
    keys = [n + max(2 - r, 0) for r, n in enumerate(rows)] if "more keys" in case.given else rows
    n, m = sum(rows), sum(keys)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    found = {"image": draw(n, DIM) / 2, "text": draw(m, DIM) / 2, "c": torch.tensor(0.7), "scale": torch.tensor(9.0)}
    found["scale"] = 5 + draw(n).abs() if "scales" in case.given else found["scale"]
    if "bias" in case.given:
        found["logit_bias"] = torch.tensor(-2.0)
    found = {name: x.double().requires_grad_() for name, x in found.items()}
    if "exclude_ids" in case.given:
        found["exclude_ids"] = torch.arange(m) % (m - 3)
    if "weights" in case.given:
        found["weights"] = draw(n).abs().requires_grad_()
    if "debias" in case.given:
        found["debias"] = 0.02 * torch.rand(n, generator=generator, dtype=torch.float64)
    if "no weights" in case.given:
        found["weights"] = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    if "positives" in case.given:
        of_queries, of_keys = torch.arange(n) % 4, torch.arange(m) % 5
        of_queries[n - rows[-1] :] = NO_POSITIVE
        found["query_ids"], found["key_ids"] = of_queries, of_keys
    return found, rows, keys


def call(loss, found: dict[str, torch.Tensor], *features_and_numbers) -> torch.Tensor:
    more = {name: found[name] for name in ("exclude_ids", "weights", "debias", "logit_bias") if name in found}
    if "query_ids" in found:
        more["positives"] = (found["query_ids"], found["key_ids"])
    return loss(*features_and_numbers, **more)


def leaves(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x for name, x in found.items() if x.requires_grad}


def of_rank(case: Case, rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """This rank's loss, and the gradients of what it holds."""
    found, rows, keys = inputs(case, world_size)
    of_keys = ("text", "exclude_ids", "key_ids")
    mine = {}
    for name, x in found.items():
        if x.ndim > 0:
            x = x.detach().split(keys if name in of_keys else rows)[rank].clone().requires_grad_(x.requires_grad)
        mine[name] = x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = HyperbolicContrastiveLoss(mine["c"], group=torch.distributed.group.WORLD, **case.options)
    value = call(loss, mine, mine["image"], mine["text"], mine["scale"])
    grads = torch.autograd.grad(value, tuple(leaves(mine).values()))
    return {"loss": value.detach(), **dict(zip(leaves(mine), grads, strict=True))}


@functools.cache
def of_one_process(name: str, world_size: int) -> dict[str, torch.Tensor]:
    """The loss of all rows, and its gradients. Positives come first among keys, those of rank 0 before those of rank 1."""
    case = CASES[name]
    found, rows, keys = inputs(case, world_size)
    starts = torch.tensor([0, *keys]).cumsum(0)
    positive = torch.cat([torch.arange(n) + start for n, start in zip(rows, starts[:-1], strict=True)])
    order = torch.cat([positive, torch.tensor([j for j in range(sum(keys)) if j not in set(positive.tolist())]).long()])
    ordered = {k: x[order] if k in ("exclude_ids", "key_ids") else x for k, x in found.items()}
    options = {k: v for k, v in case.options.items() if k not in RING}
    loss = functools.partial(contrastive_loss, **options)
    value = call(loss, ordered, found["image"], found["text"][order], found["c"], found["scale"])
    grads = torch.autograd.grad(value, tuple(leaves(found).values()))
    return {"loss": value.detach(), **dict(zip(leaves(found), grads, strict=True))}


@pytest.fixture(name="found", scope="module", params=list(SHARDS))
def _found(request, tmp_path_factory):
    """The number of processes, and what each of them found in every case."""
    world_size = request.param
    cases = {name: functools.partial(of_rank, case) for name, case in CASES.items()}
    return world_size, ranks.run(world_size, tmp_path_factory.mktemp("ranks"), cases)


def joined(results: list[dict[str, torch.Tensor]], name: str, mean: bool = True) -> torch.Tensor:
    """What DistributedDataParallel's mean over ranks makes of it; rows that one rank holds count 1 / world_size."""
    parts = [result[name] for result in results]
    found = torch.stack(parts).mean(0) if parts[0].ndim == 0 else torch.cat(parts) / len(parts)
    return found if mean else found * len(parts)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.options["gather_with_grad"]])
def test_the_mean_over_ranks_is_that_of_one_process(found, name):
    world_size, results = found
    true = of_one_process(name, world_size)
    for part in true:
        assert_close(joined(results[name], part), true[part])
    for result in results[name]:  # of numbers, every rank has the mean
        for part in [part for part, x in true.items() if x.ndim == 0 and part != "loss"]:
            assert_close(result[part], true[part])
    if not CASES[name].options["local_loss"]:
        for result in results[name]:
            assert_close(result["loss"], true["loss"])


def test_a_global_loss_without_gathered_gradients_scales_the_features_gradient(found):
    world_size, results = found
    true = of_one_process("global, plain", world_size)
    for part in ("image", "text"):  # 1 / world_size of it after DDP's mean
        assert_close(joined(results["global, plain"], part, mean=False), true[part])
    for part in ("loss", "c", "scale"):
        assert_close(joined(results["global, plain"], part), true[part])


def test_a_local_loss_without_gathered_gradients_is_wrong_and_warned_about(found):
    with pytest.warns(UserWarning, match="gather_with_grad=True"):
        HyperbolicContrastiveLoss(local_loss=True, world_size=2)
    world_size, results = found
    true = of_one_process("local, plain", world_size)
    assert_close(joined(results["local, plain"], "loss"), true["loss"])
    wrong = joined(results["local, plain"], "image") - true["image"]
    assert wrong.norm() > 0.1 * true["image"].norm()


def test_several_processes_need_an_initialised_group():
    with pytest.raises(ValueError, match="world_size"):
        HyperbolicContrastiveLoss(world_size=2)(torch.eye(3), torch.eye(3), 1.0)
