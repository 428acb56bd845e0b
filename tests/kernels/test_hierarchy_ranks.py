"""`HierarchicalAlignmentLoss` in several processes against one, in float64 over gloo."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.distributed
from torch.utils._python_dispatch import TorchDispatchMode

from hyperst_kernels import EntailmentTerm, HierarchicalAlignmentLoss
from tests.kernels import ranks

NAMES = ("image_spot", "image_niche", "gene_spot", "gene_niche")
SHARDS = {2: (2, 5), 3: (3, 1, 4)}
CONES = (EntailmentTerm("image_spot", "gene_spot", 0.7, 0.5), EntailmentTerm("image_niche", "image_spot", 1.2, 0.3))
CASES = {
    "HyperST": ({}, ()),
    "ids": ({}, ("exclude_ids",)),
    "weights": ({}, ("weights",)),
    "cones alone": ({"contrastive": (), "entailment": CONES}, ("weights",)),
    "angles": ({"geometry": "angle", "entailment": ()}, ("exclude_ids", "weights")),
    "no cones": ({"entailment": (), "geometry": "euclidean"}, ("exclude_ids",)),
}


def inputs(given: tuple[str, ...], n: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    draws = torch.randn(len(NAMES), n, 4, generator=generator, dtype=torch.float64) / 2
    found = dict(zip(NAMES, draws, strict=True))
    found |= {"c": torch.tensor(0.6, dtype=torch.float64), "scale": torch.tensor(8.0, dtype=torch.float64)}
    if "weights" in given:
        found["weights"] = torch.arange(n, dtype=torch.float64) / n
    found = {name: x.requires_grad_() for name, x in found.items()}
    if "exclude_ids" in given:
        found["exclude_ids"] = torch.arange(n) % (n - 2)
    return found


def losses(name: str, found: dict[str, torch.Tensor], group=None) -> dict[str, torch.Tensor]:
    """Every loss that the module returns, and the gradients of the total."""
    loss = HierarchicalAlignmentLoss(**CASES[name][0], group=group)
    more = {key: found[key] for key in ("weights", "exclude_ids") if key in found}
    parts = loss({key: found[key] for key in NAMES}, found["c"], found["scale"], **more)
    leaves = {key: x for key, x in found.items() if x.requires_grad}
    grads = torch.autograd.grad(parts["loss"], tuple(leaves.values()), allow_unused=True, materialize_grads=True)
    return {**{part: x.detach() for part, x in parts.items()}, **dict(zip(leaves, grads, strict=True))}


def of_rank(name: str, rank: int, world_size: int) -> dict[str, torch.Tensor]:
    shards = SHARDS[world_size]
    mine = {
        key: x.detach().split(shards)[rank].clone().requires_grad_(x.requires_grad) if x.ndim else x
        for key, x in inputs(CASES[name][1], sum(shards)).items()
    }
    return losses(name, mine, torch.distributed.group.WORLD)


class Gathers(TorchDispatchMode):
    """Counts collectives but for those of sizes and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("c10d::")
        if func.namespace == "c10d" and not (name.startswith("allgather") and args[1][0].dtype == torch.int64):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def collectives(rank: int, world_size: int) -> list[str]:
    with Gathers() as counted:
        of_rank("HyperST", rank, world_size)
    return counted.seen


@pytest.fixture(name="found", scope="module", params=list(SHARDS))
def _found(request, tmp_path_factory):
    cases = {name: functools.partial(of_rank, name) for name in CASES} | {"collectives": collectives}
    return request.param, ranks.run(request.param, tmp_path_factory.mktemp("ranks"), cases)


@pytest.mark.parametrize("name", CASES)
def test_the_mean_over_ranks_is_that_of_one_process(found, name):
    world_size, results = found
    true = losses(name, inputs(CASES[name][1], sum(SHARDS[world_size])))
    for part, expected in true.items():
        parts = [result[part] for result in results[name]]
        mean = torch.stack(parts).mean(0) if expected.ndim == 0 else torch.cat(parts) / world_size
        torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-13)


def test_all_features_travel_together(found):
    for seen in found[1]["collectives"]:
        # features, columns; the gradient of the cones' curvature; columns, gradients of features, of numbers
        assert seen == ["allgather_", "alltoall_base_", "allreduce_", "allgather_", "reduce_scatter_", "allreduce_"]


def test_weights_count_in_every_mean():
    given = inputs(("weights",), 6)
    found, without = losses("weights", given), losses("weights", {k: x for k, x in given.items() if k != "weights"})
    repeated = {k: torch.cat([x[1:], x[1:]]) if x.ndim else x for k, x in given.items() if k != "weights"}
    assert found["image_spot>=gene_spot"] != without["image_spot>=gene_spot"]
    repeats = {**repeated, "weights": torch.cat([given["weights"][1:]] * 2)}
    hinges = losses("cones alone", {k: x.detach().requires_grad_() for k, x in repeats.items()})
    torch.testing.assert_close(hinges["image_spot>=gene_spot"], found["image_spot>=gene_spot"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": torch.ones(3)}, r"weights must have shape \(4,\)"),
        ({"weights": -torch.ones(4)}, "weights must be finite and 0 or more"),
    ],
)
def test_weights_are_checked(change, said):
    features = {name: torch.ones(4, 3) for name in NAMES}
    for contrastive in ({}, {"contrastive": ()}):
        with pytest.raises(ValueError, match=said):
            HierarchicalAlignmentLoss(**contrastive)(features, 1.0, 9.0, **change)
    with pytest.raises(ValueError, match=r"as many rows as features\['gene_niche'\], 4, got shape \(5, 3\)"):
        HierarchicalAlignmentLoss()(features | {"image_spot": torch.ones(5, 3)}, 1.0, 9.0, weights=torch.ones(4))
