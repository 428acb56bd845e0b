"""The tuning command, with a stopwatch that prefers what it is told to."""

from __future__ import annotations

import json

import pytest
import torch

from hyperst_kernels.gpu import launch, tune
from tests.kernels.triton import INTERPRETED


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


@pytest.mark.skipif(not INTERPRETED, reason="measures nothing: needs no GPU")
def test_the_best_is_written_and_used(tmp_path, monkeypatch, small):
    path = tmp_path / "here" / "table.json"
    monkeypatch.setenv("HYPERST_LAUNCH_TABLE", str(path))
    assert launch.user_table_path() == path
    shipped = launch.settings("map", 64, torch.float32)
    found = tune.tuned([64], ["float32"], prefers("pair", "warps", 4), "cpu", tell=lambda line: None)
    assert found["pair"]["64:float32"]["warps"] == 4
    assert found["map"]["64:float32"] == shipped  # nothing was faster
    tune.write(found, path)
    assert launch.settings("pair", 33, torch.float32)["warps"] == 4
    assert launch.settings("pair", 33, torch.float16) != found["pair"]["64:float32"]
    # another run adds to it
    tune.write({"map": {"128:float32": {"rows": 9, "warps": 1}}}, path)
    table = json.loads(path.read_text())["interpreter"]
    assert table["pair"]["64:float32"]["warps"] == 4
    assert launch.settings("map", 128, torch.float32) == {"rows": 9, "warps": 1}
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]
    monkeypatch.undo()
    launch.forget_tables()


@pytest.mark.skipif(not INTERPRETED, reason="measures nothing: needs no GPU")
def test_what_does_not_fit_is_no_candidate_and_other_errors_are_raised(small):
    def too_large(run):
        if launch._forced.get("map", {}).get("rows") == 2:
            raise RuntimeError("out of resource: shared memory")
        return 1.0 if launch._forced else 2.0

    found = tune.tuned([64], ["bfloat16"], too_large, "cpu", tell=lambda line: None)
    assert found["map"]["64:bfloat16"]["rows"] != 2

    def broken(run):
        raise RuntimeError("an illegal memory access")

    with pytest.raises(RuntimeError, match="illegal"):
        tune.tuned([64], ["bfloat16"], broken, "cpu")
    assert not launch._forced


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main(["tune"]) == 1
    assert "no GPU" in capsys.readouterr().err
