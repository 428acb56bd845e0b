"""Where slides are predicted: processes that are killed, GPUs in turn, the shares of a cluster's machines, several ranks."""

from __future__ import annotations

import itertools
import os
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

import hyperst.cohort.run
from hyperst.cohort.ranks import Ranks
from hyperst.cohort.run import _predicted
from hyperst.cohort.slides import SlideResult
from hyperst.on_ray import _shares
from hyperst.pool import Ended, run_in_processes

from .ends import broken, make


def test_a_process_that_is_killed_ends_no_other_and_another_takes_its_place():
    outcomes = dict(run_in_processes(["a", "killed", "b", "c"], [make]))
    assert "ended with exit code 9 before it was done" in outcomes["killed"].reason
    assert [outcomes[task][0] for task in "abc"] == ["a", "b", "c"]
    assert outcomes["b"][1] == outcomes["c"][1] != outcomes["a"][1]
    assert os.getpid() not in {outcomes[task][1] for task in "abc"}


def test_a_process_that_cannot_begin_is_told():
    ((task, outcome),) = run_in_processes(["a"], [broken])
    assert task == "a"
    assert isinstance(outcome, Ended)
    assert "exit code 3" in outcome.reason


def places(monkeypatch, gpus: int, *, device=None, workers=None, ranks=None) -> tuple[list[str | None], int]:
    """The devices of the processes that are started, and their threads."""
    seen: list[str | None] = []

    def start(slides, makers):
        seen.extend(maker() for maker in makers)
        return iter(())

    threads: list[int] = []
    monkeypatch.setattr(hyperst.cohort.run, "run_in_processes", start)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    assert list(_predicted([], lambda device: device, workers, "local", device, ranks)) == []
    assert len(set(threads)) == 1
    return seen, threads[0]


def test_each_process_has_its_share_of_threads_and_a_gpu_in_turn(monkeypatch):
    assert places(monkeypatch, 0) == ([None], 6)
    assert places(monkeypatch, 0, workers=4) == ([None] * 4, 1)
    assert places(monkeypatch, 2) == (["cuda:0", "cuda:1"], 3)
    assert places(monkeypatch, 2, device="cuda", workers=3) == (["cuda:0", "cuda:1", "cuda:0"], 2)
    assert places(monkeypatch, 2, device="cuda:1", workers=2) == (["cuda:1"] * 2, 3)
    assert places(monkeypatch, 2, device="cpu") == (["cpu"], 6)
    rank = SimpleNamespace(local_rank=3, share=lambda slides, predict: predict(slides))
    assert places(monkeypatch, 2, workers=2, ranks=rank) == (["cuda:1"] * 2, 3)


def cluster(*nodes: tuple[int, int]) -> SimpleNamespace:
    """A cluster of machines with so many cores and GPUs."""
    listed = [{"Alive": True, "Resources": {"CPU": float(cpu), "GPU": float(gpu)}} for cpu, gpu in nodes]
    return SimpleNamespace(nodes=lambda: [*listed, {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 9.0}}])


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "expected"),
    [
        ([(8, 0), (4, 0)], None, True, (2, 4)),
        ([(4, 0), (4, 0), (4, 0)], 4, True, (4, 2)),
        ([(4, 0), (4, 0), (0, 0)], 8, True, (8, 1)),
        ([(16, 2), (8, 4), (4, 0)], None, True, (6, 2)),
        ([(16, 2), (8, 0)], 2, False, (2, 8)),
    ],
)
def test_every_machine_of_a_cluster_has_room_for_its_part(nodes, workers, gpus, expected):
    count, needs = _shares(cluster(*nodes), workers, gpus)
    assert (count, needs["num_cpus"]) == expected
    by_gpu = gpus and any(gpu for _, gpu in nodes)
    assert needs["num_gpus"] == int(by_gpu)
    assert sum(min(cpu // needs["num_cpus"], gpu if by_gpu else cpu) for cpu, gpu in nodes) >= count


def test_more_workers_than_a_cluster_has_room_for():
    with pytest.raises(ValueError, match=r"workers \(--workers\): got 13, but the cluster has 12 cores"):
        _shares(cluster((8, 0), (4, 0)), 13, True)
    with pytest.raises(ValueError, match=r"got 3, but the cluster has 2 GPUs"):
        _shares(cluster((8, 2)), 3, True)


@pytest.fixture
def two(monkeypatch) -> list[Ranks]:
    """Both of two ranks, in this process."""
    store = dist.HashStore()
    variables = {"LOCAL_RANK": "0"}
    monkeypatch.setenv("LOCAL_RANK", "0")
    found = []
    monkeypatch.setattr("hyperst.cohort.ranks._COHORTS", itertools.repeat(0))
    for rank in (0, 1):
        monkeypatch.setattr(dist, "rendezvous", lambda address, rank=rank: iter([(store, rank, 2)]))
        found.append(Ranks(variables))
    return found


def test_what_the_first_rank_refuses_ends_the_others(two):
    def plan():
        raise FileExistsError("T00.h5ad exists")

    with pytest.raises(FileExistsError, match="exists"):
        two[0].from_first(plan)
    with pytest.raises(SystemExit) as ended:
        two[1].from_first(plan)
    assert ended.value.code == 1


def test_a_slide_is_of_one_rank_and_the_first_hears_of_all(two):
    slides = [SimpleNamespace(name=name) for name in "abc"]
    assert two[0].from_first(lambda: 7) == two[1].from_first(lambda: 8) == 7

    def predict(taken):
        return (SlideResult(slide.name, "predicted", spots=5) for slide in taken)

    first = two[0].share(slides, predict)
    assert next(first).slide == "a"
    assert [result.slide for result in two[1].share(slides, predict)] == ["b", "c"]
    assert [(result.slide, result.spots) for result in first] == [("b", 5), ("c", 5)]
