"""Operators are functions from what a user calls to the kernels of a device, which are imported when they are called."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import hyperst_kernels as hk
from benchmarks.cases import CASES, ROW_WISE

WITHOUT_TRITON = """
import sys, torch, hyperst_kernels as hk
x, y = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
losses = hk.contrastive_loss(x, y), hk.entailment_loss(x, y), hk.distance(x, y).sum(), hk.pairwise_distance(x, y).sum()
sum(losses).backward()
assert "triton" not in sys.modules
"""


def test_triton_is_imported_by_a_call_on_a_gpu_alone():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", CASES)
def test_a_call_takes_leading_dimensions_and_reaches_the_dispatchers_operator(name, monkeypatch):
    case, seen = CASES[name], []
    operator = ROW_WISE[case.operator]
    inputs = case.inputs(6, 3, 0, 1.0, torch.float64)
    compute = type(operator.operator).__call__
    monkeypatch.setattr(
        type(operator.operator), "__call__", lambda self, *args: seen.append(self) or compute(self, *args)
    )
    found = operator(*(x.reshape(2, 3, 3) if x.ndim == 2 else x for x in inputs), *case.flags)
    assert operator.operator in seen
    want = operator.portable(*inputs, *case.flags)
    assert found.shape == (2, 3, *want.shape[1:])
    torch.testing.assert_close(found.flatten(0, 1), want, rtol=1e-10, atol=1e-12)
    seen.clear()
    with hk.use_reference():
        operator(*inputs, *case.flags)
    assert operator.operator not in seen
