"""How kernels are launched: the table and versions of Triton, rows far apart in memory, the device of the tensors."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch

pytest.importorskip("triton")

from hyperst_kernels.gpu import launch
from hyperst_kernels.operators import register
from tests.kernels.backends import INTERPRETED
from tests.kernels.launched import functions_of_triton


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Write a user's table and read tables again, before and after."""

    def write(**places):
        path = tmp_path / "table.json"
        path.write_text(json.dumps(places), encoding="utf-8")
        monkeypatch.setenv("HYPERST_LAUNCH_TABLE", str(path))
        launch.forget_tables()

    yield write
    launch.forget_tables()


@pytest.mark.parametrize(
    ("version", "warps"), [("3.6.0", 1), ("3.7.0", 2), ("3.8.1", 2), ("3.9.0", 4), ("3.10.0", 4), ("4.0.0", 4)]
)
def test_settings_since_a_version_of_triton(table, monkeypatch, version, warps):
    sections = {"cuda:90": 1, "cuda:90, triton 3.7": 2, "cuda:90, triton 3.9": 4, "cuda:80, triton 3.6": 8}
    table(**{place: {"map": {"16:float32": {"warps": w}}} for place, w in sections.items()})
    monkeypatch.setattr(launch, "architecture", lambda: "cuda:90")
    monkeypatch.setattr(launch.triton, "__version__", version)
    assert launch.settings("map", 7, torch.float32) == {"warps": warps}


def test_what_a_version_does_not_set_is_as_before(table, monkeypatch):
    table(**{"cuda:90, triton 3.6": {"map": {"16:float32": {"warps": 2}}}, "cuda": {"map": {"32": {"warps": 3}}}})
    monkeypatch.setattr(launch, "architecture", lambda: "cuda:90")
    assert launch.settings("map", 32, torch.float32) == {"warps": 3}
    assert "warps" in launch.settings("pair", 32, torch.float32)  # of the shipped table


def test_rows_that_lie_far_apart_are_brought_together():
    """Kernels count in 32 bits within a tile of rows."""
    memory = torch.empty(launch.LARGEST_STRIDE + 8)
    for stride, same in ((launch.LARGEST_STRIDE, True), (launch.LARGEST_STRIDE + 1, False)):
        x = memory.as_strided((2, 4), (stride, 1))
        x.copy_(torch.arange(8.0).view(2, 4))
        given = launch.unit_stride(x)
        assert torch.equal(given, x)
        assert (given is x) == same
        assert given.stride(0) <= launch.LARGEST_STRIDE


def test_columns_apart_are_brought_together():
    x = torch.arange(12.0).view(3, 4).T
    assert launch.unit_stride(x).stride() == (3, 1)
    assert launch.unit_stride(x[:, :1]).data_ptr() == x.data_ptr()  # one feature has no stride


@pytest.mark.parametrize("arguments", [(torch.ones(2), 5), ([torch.ones(2), torch.ones(3)], 5), (None, torch.ones(2))])
def test_the_device_of_the_tensors_is_current_while_the_table_is_read(monkeypatch, arguments):
    seen = []

    @contextlib.contextmanager
    def on_device_of(x):
        seen.append(("current", len(x)))
        yield
        seen.append(("left",))

    monkeypatch.setattr(launch, "on_device_of", on_device_of)
    called = launch.on_own_device(lambda *_: seen.append(("table",)))
    called(*arguments)
    assert seen == [("current", 2), ("table",), ("left",)]


def test_what_belongs_together_is_one_parameter():
    """15: pointers, strides and gradients of three matrices, and the bundles. Kernels had 51 before they took bundles."""
    counts = {name: len(function.arg_names) for name, function in functions_of_triton().items()}
    assert len(counts) > 100
    assert {name: count for name, count in counts.items() if count > 15} == {}


@pytest.mark.triton
@pytest.mark.any_arithmetic
def test_this_process_runs_kernels():
    assert launch.architecture() == "interpreter" if INTERPRETED else launch.architecture() != "interpreter"
    assert "CPU" in register.TRITON if INTERPRETED else "CUDA" in register.TRITON


@pytest.mark.triton
@pytest.mark.any_arithmetic
def test_settings_exist_for_every_bucket_and_dtype():
    for d in (1, 16, 17, 512, 4097, launch.LARGEST_ROW):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            for kind in ("product", "plain product"):
                assert {"rows", "columns", "inner", "warps", "stages"} == set(launch.settings(kind, d, dtype))
            assert {"rows", "warps"} == set(launch.settings("map", d, dtype)) == set(launch.settings("pair", d, dtype))
