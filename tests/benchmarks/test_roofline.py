"""Predictions from counts: what is counted, what follows from it, and that the page holds it."""

from __future__ import annotations

import math
import shutil

import pytest

from benchmarks.roofline import __main__ as command
from benchmarks.roofline import counts, model
from benchmarks.roofline.chips import CHIPS
from benchmarks.roofline.tables import BATCHES, TABLES, Case, cases
from tests.kernels import ahead_of_time
from tests.kernels.launches import Launches

KNOWN = counts.read()


def of(chip: str, n: int, dim: int = 128, dtype: str = "bf16") -> tuple[model.Pass, model.Pass]:
    return Case(CHIPS[chip], n, dim, dtype).passes(KNOWN)


def test_the_page_holds_what_the_command_prints(tmp_path, capsys):
    page = tmp_path / "roofline.md"
    shutil.copy(command.PAGE, page)
    command.main(["--write"], page)
    assert page.read_text(encoding="utf-8") == command.PAGE.read_text(encoding="utf-8")
    command.main([])
    printed = capsys.readouterr().out
    assert all(f"{name}\n\n{table(KNOWN)}\n" in printed for name, table in TABLES.items())


@pytest.mark.skipif(ahead_of_time.VERSION != "3.6", reason="counts are of what Triton 3.6 compiles")
@pytest.mark.parametrize(("target", "dim", "dtype"), [("sm_90", 128, "bf16"), ("gfx942", 512, "bf16")])
def test_counts_are_those_of_the_kernels(target, dim, dtype):
    """Launches exactly; instructions as far as the table of resources lets them grow."""
    found, known = counts.counted(target, dim, dtype, (4096,)), KNOWN[target][f"{dim} {dtype}"]
    assert found.launches[4096] == known.launches[4096]
    assert found.by_rows == known.by_rows
    for now, before in zip(found[:2], known[:2], strict=True):
        assert now[:4] == before[:4]
        assert now.instructions == pytest.approx(before.instructions, rel=ahead_of_time.GROWTH - 1)
        assert now.special == pytest.approx(before.special, rel=ahead_of_time.GROWTH - 1)


def test_a_tile_by_hand():
    """4096 pairs and one round of tiles: 32 of 128 rows on 132 processors, each over 64 tiles of columns."""
    chip, tile = CHIPS["H200"], counts.Tile(rows=128, columns=64, inner=128, warps=4, instructions=2000, special=256)
    known = counts.Counted(tile, tile, True, {4096: (Launches(0, 0), Launches(0, 0))})
    found = model.forward(chip, known, 4096, 128, "bf16")
    product = 2 * 128 * 64 * 128 / (4096 * model.attained())
    clocks = 64 * (2000 * 4 / 4 + 256 * 4 * 32 / 16 + product)
    assert found.predicted == pytest.approx(clocks / chip.clock)
    assert found.floor == pytest.approx(64 * 256 * 4 * 32 / 16 / chip.clock)


@pytest.mark.parametrize("chip", CHIPS)
def test_time_grows_with_the_pairs(chip):
    """Where kernels are what a pass takes, four times the time for twice the batch, but for the last round and stripes."""
    for case in cases(CHIPS[chip]):
        for one in case.passes(KNOWN):
            assert 0 < one.floor <= one.predicted < math.inf
    for dtype in counts.DTYPES:
        small, large = (of(chip, n, 384, dtype) for n in (65536, 131072))
        for before, after in zip(small, large, strict=True):
            assert 3.2 <= after.kernels / before.kernels <= 4.8


def test_a_small_batch_takes_its_launches():
    forward, backward = of("H200", BATCHES[0])
    assert forward.predicted == forward.launches > forward.kernels
    assert backward.predicted == backward.launches > backward.kernels


def test_predictions_are_of_the_size_of_what_was_measured():
    """Within a factor of two either way on the H200, whose times enter nowhere but in those of launches and of products.

    In bf16: float32 was measured with kernels that split features in their loops, and no device has run those that are counted.
    """
    measured = [(case, case.measured()) for case in cases(CHIPS["H200"])]
    compared = [
        found / one.predicted
        for case, times in measured
        if times and case.n >= 32768 and case.dtype == "bf16"
        for found, one in zip(times, case.passes(KNOWN), strict=True)
    ]
    assert len(compared) >= 8
    assert all(0.5 < ratio < 2 for ratio in compared), compared
