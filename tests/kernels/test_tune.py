"""The tuning command, with a stopwatch that prefers what it is told to."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

from hyperst_kernels.gpu import launch, tune
from tests.kernels.backends import INTERPRETED

pytestmark = [pytest.mark.triton, pytest.mark.any_arithmetic]
interpreted = pytest.mark.skipif(not INTERPRETED, reason="measures nothing: needs no GPU")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(tune, "ROWS", 32)
    monkeypatch.setattr(tune, "SIDE", 32)


def prefers(kind, key, value):
    """A stopwatch that is faster where the setting ``key`` of ``kind`` has the value, and runs everything once."""

    def measure(run):
        run()
        return 1.0 if launch._forced.get(kind, {}).get(key) == value else 2.0

    return measure


def silent(line):
    pass


def tuned(measure, dtypes=("float32",), **options):
    return tune.tuned([64], dtypes, measure, "cpu", tell=silent, **options)


@interpreted
def test_the_best_is_written_and_used(tmp_path, monkeypatch, small):
    path = tmp_path / "here" / "table.json"
    monkeypatch.setenv("HYPERST_LAUNCH_TABLE", str(path))
    assert launch.user_table_path() == path
    shipped = launch.settings("map", 64, torch.float32)
    found = {entry.kind: entry for entry in tuned(prefers("pair", "warps", 4))}
    assert found["pair"].key == "64:float32"
    assert found["pair"].settings["warps"] == 4
    assert found["map"].settings == shipped  # nothing was faster
    for entry in found.values():
        tune.write(entry, path)
    assert launch.settings("pair", 33, torch.float32)["warps"] == 4
    assert launch.settings("pair", 33, torch.float16) != found["pair"].settings
    # another run adds to it
    tune.write(tune.Found("map", "128:float32", {"rows": 9, "warps": 1}), path)
    table = json.loads(path.read_text())["interpreter"]
    assert table["pair"]["64:float32"]["warps"] == 4
    assert launch.settings("map", 128, torch.float32) == {"rows": 9, "warps": 1}
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]
    monkeypatch.undo()
    launch.forget_tables()


@interpreted
@pytest.mark.parametrize("dtype", tune.DTYPES.values(), ids=str)
def test_every_launch_that_is_timed_runs(small, dtype):
    for problem in tune._problems(64, dtype, "cpu"):
        problem.prepared()()


@interpreted
def test_what_does_not_fit_is_no_candidate_and_other_errors_are_raised(small):
    def too_large(run):
        if launch._forced.get("map", {}).get("rows") == 2:
            raise RuntimeError("out of resource: shared memory")
        return 1.0 if launch._forced else 2.0

    found = {entry.kind: entry for entry in tuned(too_large, ["bfloat16"])}
    assert found["map"].settings["rows"] != 2

    def broken(run):
        raise RuntimeError("an illegal memory access")

    with pytest.raises(RuntimeError, match="illegal"):
        list(tuned(broken, ["bfloat16"]))
    assert not launch._forced


def test_candidates_near_the_setting_in_use_come_first():
    shipped = {"rows": 4, "warps": 2}
    candidates = [{"rows": 16, "warps": 1}, {"rows": 4, "warps": 4}, {}, shipped, {"rows": 2, "warps": 4}]
    near, both, far, none = tune.ordered(candidates, shipped)
    assert near == {"rows": 4, "warps": 4}
    assert both == {"rows": 2, "warps": 4}
    assert far == {"rows": 16, "warps": 1}
    assert none == {}
    assert [tune.distance_of(values, shipped) for values in (shipped, near, both, far, none)] == [0, 1, 2, 3, 4]


def test_candidates_of_the_gradient_keep_whether_one_pass_may_serve_both_sides():
    shipped = {"rows": 64, "columns": 64, "warps": 4, "stages": 2, "atomic": 0}
    blocks, *by_rows = tune._backward_candidates(shipped)
    assert blocks == {}
    assert shipped in by_rows
    assert {values["atomic"] for values in by_rows} == {0}
    assert tune.distance_of(tune.ordered(by_rows, shipped)[0], shipped) < 1
    assert all("atomic" not in values for values in tune._backward_candidates({}))


@interpreted
def test_the_setting_in_use_is_measured_first_and_all_others_once(small):
    measured = []

    def measure(run):
        measured.append(dict(launch._forced))
        return 1.0

    next(tuned(measure))
    shipped = launch.settings("map", 64, torch.float32)
    candidates = [values for values in tune._row_candidates(64) if values != shipped]
    assert measured[0] == {}
    assert len(measured) == 1 + len(candidates)
    steps = [tune.distance_of(forced["map"], shipped) for forced in measured[1:]]
    assert steps == sorted(steps)


@interpreted
def test_time_runs_out_inside_a_kind(small):
    """What was measured until then is kept, is not taken for all, and nothing is begun after."""
    minutes = iter(range(1000))
    found = list(tuned(lambda run: 1.0 / (1 + len(launch._forced)), minutes=3, clock=lambda: 60.0 * next(minutes)))
    (only,) = found
    assert only.kind == "map"
    assert not only.whole
    shipped = launch.settings("map", 64, torch.float32)
    assert only.settings in tune.ordered(tune._row_candidates(64), shipped)[:2]


@interpreted
def test_a_table_is_continued_unless_asked_again(tmp_path, monkeypatch, small):
    path, started = tmp_path / "table.json", []

    def measure(run):
        started.append(run)
        return 1.0

    assert tune.measured(path) == set()
    tune.write(tune.Found("map", "64:float32", {"rows": 2, "warps": 1}), path)
    tune.write(tune.Found("pair", "64:float32", {"rows": 2, "warps": 1}, whole=False), path)
    known = tune.measured(path)
    assert known == {("map", "64:float32")}
    assert "map" not in [entry.kind for entry in tuned(measure, known=known)]
    monkeypatch.setattr(tune, "__version__", "another")
    assert tune.measured(path) == set()

    # the command, with a device and a stopwatch in place of theirs
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tune.triton.testing, "do_bench", lambda run, **options: measure(run))
    generate = tune.tuned

    def without_a_device(dims, dtypes, stopwatch, device, **rest):
        return generate(dims, dtypes, stopwatch, "cpu", tell=silent, **rest)

    monkeypatch.setattr(tune, "tuned", without_a_device)
    arguments = ["tune", "--dims", "64", "--dtypes", "float32", "--output", str(path)]
    assert tune.main(arguments) == 0
    kinds = set(json.loads(path.read_text())["measured"]["interpreter"])
    assert kinds == {"map", "pair", "product", "plain product", "contrastive"}
    started.clear()
    assert tune.main(arguments) == 0
    assert not started
    assert tune.main([*arguments, "--again", "--minutes", "0"]) == 0
    assert not started
    assert tune.main([*arguments, "--again"]) == 0
    assert started


KILLED = """
import sys, time
from pathlib import Path
from hyperst_kernels.gpu import tune

tune.ROWS = tune.SIDE = 32
kinds = 0
def measure(run):
    if kinds == 2:
        time.sleep(3600)
    return 1.0
for found in tune.tuned([64], ["float32"], measure, "cpu"):
    tune.write(found, Path(sys.argv[1]))
    kinds += 1
    print(found.kind, flush=True)
"""


@interpreted
def test_what_was_measured_survives_a_kill(tmp_path):
    path = tmp_path / "table.json"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    with child.stdout:
        while (line := child.stdout.readline()) != "pair\n":
            assert line, "the child ended"
    child.kill()
    child.wait()
    assert tune.measured(path) == {("map", "64:float32"), ("pair", "64:float32")}


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main(["tune"]) == 1
    assert "no GPU" in capsys.readouterr().err
