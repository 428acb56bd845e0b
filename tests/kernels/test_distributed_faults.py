"""What goes wrong on one rank is the same error on all, over gloo; a rank that dies is an error on the others."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import pickle
import re
import signal

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from hyperst_kernels import HierarchicalAlignmentLoss, HyperbolicContrastiveLoss, use_reference
from tests.kernels import ranks

LOCAL = {"local_loss": True, "gather_with_grad": True}
NAN = torch.full((3, 4), torch.nan)
# what rank 1 does otherwise: options of the module, arguments of the call; the error of every rank
FAULTS = {
    "d": ({}, {"image_features": torch.ones(3, 5), "text_features": torch.ones(3, 5)}, "the features' d must be the same"),
    "d of one": ({}, {"image_features": torch.ones(3, 5)}, "rank 1: queries .* need 1 <= n <= m and the same d"),
    "dtype": ({}, {"image_features": torch.ones(3, 4).double()}, "dtype must be the same on every rank, got torch.float32 on"),
    "no tensor": ({}, {"image_features": [1.0]}, "rank 1: queries must be a torch.Tensor"),
    "empty": ({}, {"image_features": torch.ones(0, 4), "text_features": torch.ones(0, 4)}, "rank 1: queries"),
    "nan": ({}, {"text_features": NAN}, "rank 1: keys must be finite, got 12 NaN"),
    "far out": ({}, {"text_features": torch.full((3, 4), 1e3)}, r"rank 1: keys reaches sqrt\(c\)\|v\|"),
    "curvature": ({}, {"curvature": torch.tensor(-1.0)}, "rank 1: c must be positive"),
    "scale": ({}, {"logit_scale": torch.tensor(torch.nan)}, "rank 1: logit_scale must be positive"),
    "ids": ({}, {"exclude_ids": torch.arange(3)}, "exclude_ids must be the same on every rank, got None on rank 0"),
    "wrong ids": ({}, {"exclude_ids": torch.ones(3)}, "rank 1: exclude_ids must be integers"),
    "weights": ({}, {"weights": torch.ones(3)}, "weights must be the same on every rank, got None on rank 0 and a value"),
    "positives": ({}, {"positives": (torch.arange(3),) * 2}, "positives must be the same on every rank"),
    "bias": ({}, {"logit_bias": 1.0}, "logit_bias must be the same on every rank"),
    "scales": ({"directions": "rows"}, {"logit_scale": torch.ones(3)}, "directions must be the same on every rank"),
    "directions": ({"directions": "rows"}, {}, "directions must be the same on every rank, got both on rank 0 and rows"),
    "loss": ({"loss": "sigmoid"}, {}, "loss must be the same on every rank, got softmax on rank 0 and sigmoid on rank 1"),
    "frozen": ({}, {"image_features": torch.eye(3, 4)}, "requires_grad of queries of term 0 must be the same on every rank"),
    "local": ({"local_loss": False}, {}, "local_loss must be the same on every rank, got True on rank 0 and False"),
    "gather": ({"gather_with_grad": False}, {}, "gather_with_grad must be the same on every rank"),
}  # fmt: skip
# what both ranks do
PLAIN = {"gather_with_grad": False}
WRONG_EVERYWHERE = {
    "angles of keys": (PLAIN | {"geometry": "angle"}, {}, "rank 0: geometry must not be 'angle' for directions='both'"),
    "scales of keys": (PLAIN, {"logit_scale": torch.ones(3)}, "rank 0: logit_scale must be one number for directions='both'"),
    "no positive": ({}, {"positives": (torch.arange(3), torch.arange(3, 6))}, "positives: no key has the id of a query"),
}  # fmt: skip
# weights of both ranks
UNLIKE = {
    "weights of two dtypes": (
        lambda rank: torch.ones(3, dtype=torch.float64 if rank else torch.float32),
        "weights' dtype must be the same on every rank, got torch.float32 on rank 0 and torch.float64",
    ),
    "weights learnt on one": (
        lambda rank: torch.ones(3, requires_grad=rank == 1),
        "requires_grad of weights must be the same on every rank, got False on rank 0",
    ),
}


def wrong(fault: str, rank: int, world_size: int) -> None:
    if fault in UNLIKE:
        options, given = {}, {"weights": UNLIKE[fault][0](rank)}
    else:
        options, given, _ = FAULTS.get(fault) or WRONG_EVERYWHERE[fault]
    if rank == 0 and fault in FAULTS:
        options, given = {}, {}
    loss = HyperbolicContrastiveLoss(group=torch.distributed.group.WORLD, **{**LOCAL, **options})
    image = torch.eye(3, 4, requires_grad=True)
    loss(**{"image_features": image, "text_features": torch.eye(3, 4), "logit_scale": 9.0, **given})


def reference_on_one_rank(rank: int, world_size: int) -> None:
    loss = HyperbolicContrastiveLoss(group=torch.distributed.group.WORLD, **LOCAL)
    with use_reference() if rank else contextlib.nullcontext():
        loss(torch.eye(3, 4), torch.eye(3, 4), 9.0)


def equal_margins(rank: int, world_size: int) -> torch.Tensor:
    loss = HyperbolicContrastiveLoss(group=torch.distributed.group.WORLD, margin=(1, 1.0)[rank], **LOCAL)
    return loss(torch.eye(3, 4), torch.eye(3, 4), 9.0)


def second_derivatives(rank: int, world_size: int) -> list[str]:
    """What is said of them."""
    said = []
    for options in ({}, {"label_smoothing": 0.1}):
        loss = HyperbolicContrastiveLoss(group=torch.distributed.group.WORLD, **LOCAL, **options)
        image = torch.eye(3, 4, requires_grad=True)
        (grad,) = torch.autograd.grad(loss(image, torch.eye(3, 4), 9.0), image, create_graph=True)
        try:
            grad.square().sum().backward()
        except NotImplementedError as error:
            said.append(str(error))
    return said


def one_number_on_one_rank(rank: int, world_size: int) -> None:
    loss = HyperbolicContrastiveLoss(group=torch.distributed.group.WORLD, directions="rows", **LOCAL)
    loss(torch.eye(3, 4), torch.eye(3, 4), torch.ones(3) if rank == 0 else 1.0)


def wrong_feature(rank: int, world_size: int) -> None:
    names = ("image_spot", "image_niche", "gene_spot", "gene_niche")
    features = {name: torch.eye(3, 4) for name in names}
    if rank == 1:
        features["gene_niche"] = NAN
    HierarchicalAlignmentLoss(group=torch.distributed.group.WORLD)(features, 1.0, 9.0)


def other_module(rank: int, world_size: int) -> None:
    if rank == 1:
        wrong_feature(0, world_size)
    else:
        wrong("d", 0, world_size)


def no_curvature(rank: int, world_size: int) -> None:
    given = {"curvature": lambda: {}["c"]} if rank == 1 else {}
    HyperbolicContrastiveLoss(group=torch.distributed.group.WORLD, **LOCAL, **given)(torch.eye(3), torch.eye(3), 9.0)


def copied(rank: int, world_size: int) -> list[torch.Tensor]:
    """Of modules that hold a group, and of their copies, the losses."""
    everyone = torch.distributed.new_group()
    groups = torch.distributed.group.WORLD, everyone
    losses = [HyperbolicContrastiveLoss(group=group, **LOCAL) for group in groups]
    losses += [copy.deepcopy(loss) for loss in losses] + [pickle.loads(pickle.dumps(losses[0]))]
    return [loss(torch.eye(3, 4), torch.eye(3, 4), 9.0) for loss in losses]


def numbers(rank: int, world_size: int) -> list[str]:
    """What is said of a rank and world size that are not the group's, and what a group alone gives."""
    pair = [torch.distributed.new_group([r]) for r in range(world_size)]
    said = []
    for given in (
        {"rank": rank, "world_size": 3},
        {"rank": 1 - rank, "world_size": 2, "group": torch.distributed.group.WORLD},
        {"group": pair[1 - rank]},
    ):
        try:
            HyperbolicContrastiveLoss(**given)
        except ValueError as error:
            said.append(str(error))
    alone = HyperbolicContrastiveLoss(group=torch.distributed.group.WORLD)
    own = HyperbolicContrastiveLoss(group=pair[rank])
    numbers = [(loss.rank, loss.world_size) for loss in (alone, own, HyperbolicContrastiveLoss())]
    return [*said, repr(numbers)]


@pytest.fixture(name="found", scope="module")
def _found(tmp_path_factory):
    cases = {name: functools.partial(wrong, name) for name in (*FAULTS, *WRONG_EVERYWHERE, *UNLIKE)}
    functions = (
        reference_on_one_rank,
        equal_margins,
        second_derivatives,
        one_number_on_one_rank,
        wrong_feature,
        other_module,
        no_curvature,
        numbers,
        copied,
    )
    cases |= {function.__name__: function for function in functions}
    return ranks.run(2, tmp_path_factory.mktemp("ranks"), cases)


@pytest.mark.parametrize("fault", [*FAULTS, *WRONG_EVERYWHERE, *UNLIKE])
def test_a_fault_of_one_rank_is_the_same_error_on_every_rank(found, fault):
    one, other = found[fault]
    assert type(one) is type(other) is (TypeError if fault == "no tensor" else ValueError)
    assert str(one) == str(other)
    assert re.search((FAULTS | WRONG_EVERYWHERE | UNLIKE)[fault][-1], str(one)), one


def test_faults_of_other_kinds(found):
    for name, said in (
        ("one_number_on_one_rank", "logit_scale must be one for each query on every rank or one number on every rank"),
        ("wrong_feature", r"rank 1: features\['gene_niche'\] must be finite, got 12 NaN"),
        ("other_module", "must be the same on every rank"),
    ):
        one, other = found[name]
        assert type(one) is type(other) is ValueError
        assert str(one) == str(other)
        assert re.search(said, str(one)), one


def test_an_error_of_any_kind_reaches_every_rank(found):
    for error in found["no_curvature"]:
        assert isinstance(error, RuntimeError)
        assert str(error) == "rank 1: KeyError('c')"


def test_copies_of_a_module_share_its_group(found):
    for losses in found["copied"]:
        assert len({float(loss) for loss in losses}) == 1


def test_numbers_that_contradict_the_group_are_refused(found):
    for rank, said in enumerate(found["numbers"]):
        default, given, outside, several = said
        assert f"default group, rank={rank} and world_size=2, got rank={rank} and world_size=3" in default
        assert f"in group, rank={rank} and world_size=2, got rank={1 - rank} and world_size=2" in given
        assert f"group must hold this process, of rank {rank}" in outside
        assert several == repr([(rank, 2), (0, 1), (0, 1)])


def test_a_scheme_is_one_of_those_there_are():
    with pytest.raises(ValueError, match="scheme must be one of 'auto', 'gather', 'ring', got 'star'"):
        HyperbolicContrastiveLoss(scheme="star")
    with pytest.raises(ValueError, match="scheme='ring' needs gather_with_grad=True"):
        HyperbolicContrastiveLoss(scheme="ring")


# of each scheme and pass: a collective that rank 1 does not come back from, and how many such calls it makes before
LAST_CALLS = {
    ("gather", "forward"): ("all_gather", 1),  # of sizes
    ("gather", "backward"): ("reduce_scatter", 0),
    ("ring", "forward"): ("batch_isend_irecv", 1),  # keys
    ("ring", "backward"): ("batch_isend_irecv", 4),  # keys twice, and sums of both shards' columns
}


def until_death(rank: int, folder: str, scheme: str, where: str) -> None:
    """Rank 1 kills itself: before features or sums are exchanged, or before gradients are."""
    ranks.join(rank, 2, folder)
    if rank == 1:
        name, before = LAST_CALLS[scheme, where]
        collective, calls = getattr(torch.distributed, name), []

        def killed(*given, **options):
            calls.append(name)
            if len(calls) > before:
                os.kill(os.getpid(), signal.SIGKILL)
            return collective(*given, **options)

        setattr(torch.distributed, name, killed)
    loss = HyperbolicContrastiveLoss(group=torch.distributed.group.WORLD, scheme=scheme, **LOCAL)
    try:
        loss(torch.eye(3, 4, requires_grad=True), torch.eye(3, 4, requires_grad=True), 9.0).backward()
    except RuntimeError as error:
        torch.save(str(error), f"{folder}/error.pt")
    os._exit(0)  # threads of a group that lost a member do not always end in peace


@pytest.mark.parametrize(("scheme", "where"), LAST_CALLS)
def test_a_rank_that_dies_is_an_error_on_the_others(scheme, where, tmp_path):
    context = torch.multiprocessing.spawn(until_death, (str(tmp_path), scheme, where), nprocs=2, join=False)
    for process in context.processes:
        process.join(ranks.SECONDS + 60)
    assert [process.exitcode for process in context.processes] == [0, -signal.SIGKILL]
    assert torch.load(tmp_path / "error.pt")


def test_a_reference_on_one_rank_is_an_error_on_every_rank(found):
    for error in found["reference_on_one_rank"]:
        assert re.search(r"inside use_reference\(\) must be the same on every rank", str(error))


def test_equal_margins_of_two_types(found):
    one, other = found["equal_margins"]
    assert one == other


def test_second_derivatives_are_refused(found):
    for said in found["second_derivatives"]:
        assert len(said) == 2
        assert all("contrastive_loss has no second derivative" in words for words in said)
