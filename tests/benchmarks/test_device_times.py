"""Rows of a GPU without one: all but the device's clock and its memory."""

from __future__ import annotations

import pytest
import torch

from benchmarks import contrastive, device_times, measure, peers
from benchmarks.concerns import HINGES, LOSS, OPERATORS, PAIRS, ROW_WISE
from benchmarks.device import Meter
from benchmarks.problem import OURS


def find(rows, **wanted):
    """The one row that has these values."""
    (found,) = [row for row in rows if all(getattr(row, key) == value for key, value in wanted.items())]
    return found


def clock(work):
    work()
    return 0.5


METER = Meter("cpu", clock, clock, lambda step: 7)
# row-wise operators have no backward pass of their own on a CPU without machine code
UNRUN = METER._replace(seconds=lambda work: 0.5)


@pytest.mark.parametrize("operator", ROW_WISE)
def test_bytes_of_rows(operator):
    """Those of the table in docs/explanation/kernels.md: a copy moves 2 matrices in the same time."""
    loads = {"parallel_transport": 3, **dict.fromkeys(("exp_map", "log_map", "inner", "distance", "exterior_angle"), 2)}
    stores = {name: 0 for name in ("inner", "distance", "exterior_angle", "distance0", "half_aperture")}
    n, d = 64, 32
    rows = list(device_times.row_wise(operator, n, d, UNRUN))
    vectors, value = loads.get(operator, 1), stores.get(operator, 1)
    singles = (operator == "lift") + (value == 0)
    scalars = 2 if operator == "exp_map0" else 1
    for phase, matrices, numbers in (
        ("forward", vectors + value, singles),
        ("backward", 2 * vectors + value, singles + scalars),
    ):
        share = find(rows, provider=OURS, metric=f"share of copy {phase}").median
        assert share == pytest.approx((matrices + numbers / d) / 2)


def test_hinges_and_pairs():
    rows = list(device_times.hinges(64, 32, UNRUN))
    assert find(rows, operation=HINGES, metric="share of copy backward").median == pytest.approx((4 + 2 / 32) / 2)
    rows = list(device_times.pairwise(16, 8, METER))
    assert find(rows, operation=PAIRS, provider=f"{OURS}, tf32", metric="ratio eager / ours forward").median == 1
    assert find(rows, metric="backward s").median == 0.5


def test_loss():
    rate = 1e9
    rows = list(device_times.loss(16, 32, torch.float32, [peers.EAGER, "open_clip"], METER, rate=rate))
    assert find(rows, provider=peers.EAGER, metric="ratio both").median == 1
    assert find(rows, provider=measure.AGAIN, metric="both s").repeats == device_times.ROUNDS
    assert find(rows, provider=OURS, metric="peak bytes").median == 7
    share = find(rows, provider=OURS, metric="share of product both")
    assert share.median == pytest.approx(8 * 3 * 16 * 16 * 32 / rate / 0.5)
    rows = list(device_times.loss(16, 32, torch.float32, [contrastive.ONE_BY_ONE], METER, contrastive.HIERARCHY))
    assert find(rows, provider=contrastive.ONE_BY_ONE, metric="ratio both").operation == contrastive.HIERARCHY
    assert not any("share" in row.metric for row in rows)
    rows = list(device_times.one_step(16, 32, torch.bfloat16, METER, rate))
    assert find(rows, metric="share of product forward", dtype="bfloat16").median > 0
    assert device_times.rate_of_products(METER, 8) == 2 * 8**3 / 0.5


def test_a_collapsed_batch():
    rows = list(device_times.collapsed(16, 32, torch.float32, METER))
    assert find(rows, provider=device_times.DIFFERENCES, metric="ratio both").median == 1
    assert find(rows, provider=device_times.CENTRED, metric="forward s").settings == {"spread": device_times.SPREAD}


def test_every_operator_has_rows(monkeypatch):
    monkeypatch.setattr(device_times, "ROWS", (8, 4))
    monkeypatch.setattr(device_times, "SIDE", (8, 4))
    monkeypatch.setattr(device_times, "PRODUCT", 4)
    monkeypatch.setattr(device_times, "LOSSES", [(8, 4, torch.float32)])
    monkeypatch.setattr(device_times, "HIERARCHIES", [(8, 4, torch.bfloat16)])
    monkeypatch.setattr(device_times, "ONE_STEP", (8, 4, torch.bfloat16))
    monkeypatch.setattr(device_times, "COLLAPSED", [(8, 4, torch.bfloat16)])
    monkeypatch.setattr(device_times, "BESIDE", (peers.EAGER,))
    for operator in OPERATORS:
        rows = list(device_times.timings(operator, UNRUN if operator in (*ROW_WISE, HINGES) else METER))
        assert any(row.operation == operator and row.provider.startswith(OURS) for row in rows)
        marked = list(device_times.unchecked(iter(rows)))
        assert {row.setting for row in marked} == {"checked=0"}
        assert not any("ratio" in row.metric or "share" in row.metric for row in marked)
        assert any(row.metric == "forward s" for row in marked)
    assert operator != LOSS
