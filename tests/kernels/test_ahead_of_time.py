"""The kernels compile for every architecture, spill nothing, fit, and do not grow: without a GPU."""

from __future__ import annotations

import json

import pytest
import torch

from hyperst_kernels.gpu import launch
from tests.kernels import ahead_of_time as aot

TABLE = aot.known_resources()
needs_a_table = pytest.mark.skipif(TABLE is None, reason=f"no table of resources for Triton {aot.VERSION}")


@pytest.mark.parametrize(("target", "name"), [(t, name) for t in aot.TARGETS for name in aot.variants(t)])
def test_kernels_need_no_more_than_the_table_says(target, name):
    found = aot.compile_variant(target, aot.variants(target)[name])
    known = None if TABLE is None else TABLE[target][name]
    assert known is None or set(found) == set(known)
    assert not aot.complaints(target, found, known)


@needs_a_table
def test_a_broken_configuration_is_reported(tmp_path, monkeypatch):
    """Tiles of 256 x 128 for four warps do not fit into registers."""
    path = tmp_path / "launch_table.json"
    broken = {"rows": 256, "columns": 128, "inner": 32, "warps": 4, "stages": 3}
    path.write_text(json.dumps({"any": {"product": {"512:bfloat16": broken}}}), encoding="utf-8")
    monkeypatch.setenv("HYPERST_LAUNCH_TABLE", str(path))
    name = "pairs 512 bfloat16"
    found = aot.compile_variant("sm_90", aot.variants("sm_90")[name])
    said = " ".join(aot.complaints("sm_90", found, TABLE["sm_90"][name]))
    assert "pairwise spills" in said
    assert "pairwise grew" in said


# from Triton 3.7 on, tiles of the gradient are half as wide: whole ones spill
BACKWARD_LIMIT = 28 if aot.VERSION == "3.6" else 33


@needs_a_table
@pytest.mark.parametrize(
    ("kernel", "kind", "limit"),
    [("log_sum_exps", "contrastive", 32), ("grad_points", "contrastive backward", BACKWARD_LIMIT)],
)
def test_instructions_per_pair(kernel, kind, limit):
    """Of the tiles that neither meet the diagonal nor hold near or far pairs: nearly all of them."""
    with aot.compiling_for("sm_90"):
        table = launch.settings(kind, 128, torch.bfloat16)
    pairs_per_thread = table["rows"] * table["columns"] / (32 * table["warps"])
    assert 15 < TABLE["sm_90"]["loss 128 bfloat16"][kernel]["loop"] / pairs_per_thread <= limit


def test_a_table_with_an_unknown_kernel_is_reported():
    need = {"registers": 32, "spills": 0, "shared": 300000, "instructions": 200, "tensor": 0, "loop": 0}
    assert "not in the table" in aot.complaints("sm_90", {"new": need}, {})[0]
    before = {"old": {**need, "shared": 0, "tensor": 4}}
    shared, tensor = aot.complaints("sm_90", {"old": need}, before)
    assert "300000 bytes" in shared
    assert "tensor cores" in tensor


def test_the_harness_leaves_no_trace():
    from triton.runtime.jit import JITFunction

    run = JITFunction.run
    with aot.compiling_for("sm_90"):
        assert launch.architecture() == "cuda:90"
        assert JITFunction.run is not run
    assert JITFunction.run is run
