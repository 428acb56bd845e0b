"""Exterior angles of all pairs in machine code, and in the PyTorch calls beside it, against the reference in float64."""

from __future__ import annotations

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hyperst_kernels as hk
from benchmarks import cases, oracle
from hyperst_kernels.blocked import blocks
from hyperst_kernels.cpu.native import bindings
from hyperst_kernels.operators.register import ops
from tests.kernels.instruction_sets import instruction_set  # noqa: F401

pytestmark = [
    pytest.mark.skipif(bindings.library() is None, reason="the package was installed without a compiler"),
    pytest.mark.usefixtures("instruction_set"),
]
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(params=["native", "portable"])
def path(request, monkeypatch):
    """One way to compute, in several tiles of several chunks."""
    monkeypatch.setitem(blocks.SIDE, "cpu", (24, 300))
    if request.param == "portable":
        monkeypatch.setattr(bindings, "usable", lambda x: False)


def values_and_gradients(x, y, c, upstream, input):
    leaves = [t.clone().requires_grad_() for t in (x, y, c)]
    angles = hk.pairwise_exterior_angle(*leaves, input=input)
    return angles.detach(), *torch.autograd.grad(angles, leaves, upstream)


def reference(x, y, c, upstream, input):
    with hk.use_reference():
        return values_and_gradients(x.double(), y.double(), c.double(), upstream.double(), input)


def vectors(n: int, d: int, radius: float, generator: torch.Generator) -> torch.Tensor:
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    lengths = radius * (0.5 + torch.rand(n, 1, generator=generator, dtype=torch.float64))
    return lengths * x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("input", ["tangent", "lorentz"])
@pytest.mark.parametrize("radius", [1e-6, 1e-3, 0.3, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("aligned", [0, 3, 60])  # rows that are so with a column: none, a few, too many for differences
def test_values_and_gradients(path, radius, aligned, input):
    g = torch.Generator().manual_seed(0)
    x, y = vectors(70, 8, radius, g), vectors(610, 8, radius, g)
    turned = y[:aligned] / y[:aligned].norm(dim=1, keepdim=True) * x[:aligned].norm(dim=1, keepdim=True)
    x[:aligned] = 0.99 * turned + 1e-2 * x[:aligned]
    if aligned == 60:
        y[:300] = y[:1] * (1 + torch.rand(300, 1, generator=g))  # each is with x[0]
    x[65], y[40] = 0, 0
    if input == "lorentz":
        x, y = (hk.exp_map0(t, 0.8) for t in (x, y))
    x, y, c = x.float(), y.float(), torch.tensor(0.8)
    upstream = torch.randn(610, 70, generator=g).T  # not in one piece
    angles, *got = values_and_gradients(x, y, c, upstream, input)
    want_angles, *want = reference(x, y, c, upstream, input)
    assert ((angles - want_angles).abs() <= 1e-5).all()
    for ours, exact in zip(got[:2], want[:2], strict=True):
        assert ((ours - exact).norm(dim=1) <= 1e-4 * exact.norm(dim=1).clamp(min=1e-30)).all()
    # the gradient of c is a sum of all slopes, which cancel: of points up to 1 / 2c each, and less near the origin
    sizes = sum(float((t.double() * slope).norm(dim=1).sum()) for t, slope in zip((x, y), want[:2], strict=True))
    assert abs(float(got[2] - want[2])) <= 1e-5 * sizes


@given(seed=st.integers(0, 2**31), d=st.integers(1, 6), input=st.sampled_from(["tangent", "lorentz"]))
def test_portable_angles_are_those_in_machine_code(seed, d, input):
    """Equal, near, opposite vectors, on one ray, at the origin."""
    x, y = cases.tangents(8, d, seed, 20.0)
    if input == "lorentz":
        x, y = (hk.exp_map0(t, 0.8) for t in (x, y))
    x, y = x.float(), y.float()
    native = hk.pairwise_exterior_angle(x, y, 0.8, input=input)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bindings, "usable", lambda t: False)
        portable = hk.pairwise_exterior_angle(x, y, 0.8, input=input)
    pairs = [t.double().expand(8, 8, d) for t in (x[:, None], y)]
    apart = hk.distance(*pairs, 0.8, input=input) > 1e3 * EPS * (1 + hk.distance0(pairs[0], 0.8, input=input))
    assert ((native - portable).abs()[apart] <= 64 * EPS * 2.0**3 * (d + 4)).all()


def test_nan_stays_nan(path):
    x, y, c = torch.randn(30, 4), torch.randn(310, 4), torch.tensor(1.0)
    x[25, 1], y[305, 2] = torch.nan, torch.inf
    angles = ops.pairwise_exterior_angle(x, y, c, True)
    dx, dy, dc = ops.pairwise_exterior_angle_backward(torch.ones_like(angles), x, y, c, True)
    assert all(torch.isnan(some).all() for some in (angles[25], angles[:, 305], dx[25], dy[305], dc))
    assert torch.isfinite(angles[:25, :305]).all()


def atan2(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(y)
    bindings.library().hyperst_atan2(y.data_ptr(), x.data_ptr(), out.data_ptr(), len(y))
    return out


def test_atan2_against_mpmath():
    ratios = torch.cat([torch.logspace(-30, 30, 500), torch.linspace(0, 4, 801)])
    y, x = ratios.repeat(2), torch.cat([torch.ones_like(ratios), -torch.ones_like(ratios)])
    for a, b, got in zip(y, x, atan2(y, x), strict=True):
        want = mpmath.atan2(*oracle.vector(torch.stack([a, b])))
        assert abs(float(got) - want) <= 2 * EPS * want
    ends = atan2(torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0.0, 0.0, -1.0, torch.nan]))
    assert ends[:3].tolist() == pytest.approx([0, torch.pi / 2, torch.pi])
    assert torch.isnan(ends[3])
