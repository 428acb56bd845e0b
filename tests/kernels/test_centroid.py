"""Centroids of points, near and far out, with and without weights."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import hyperst_kernels as hk
from benchmarks import oracle
from tests.kernels.far_out import EPS
from tests.kernels.row_wise import vectors_and_curvature


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("c", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("spread", ["ray", "angles", "both"])
@pytest.mark.parametrize("radius", [1.0, 8.0, 14.0])
def test_centroid_of_points_far_out(spread, c, dtype, radius):
    """-<m, m>_L is 1 where the terms of its textbook form are e^2p: along a ray it lost 3 % at radius 8, 38 % at 10."""
    g = torch.Generator().manual_seed(0)
    a = F.normalize(torch.tensor([[0.3, -0.7, 0.5, 0.1]], dtype=torch.float64), dim=1)
    if spread != "ray":
        a = F.normalize(a + 2 * math.exp(-radius) * torch.randn(5, 4, generator=g, dtype=torch.float64), dim=1)
    steps = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None] * (spread != "angles")
    x = (torch.sinh(radius + steps) * a / c**0.5).to(dtype)
    at = [oracle.vector(row) for row in x]
    got, want = hk.centroid(x, c), oracle.centroid(at, mpmath.mpf(c))
    known = 0
    for _ in range(8):  # one ulp up or down in every number
        moved = torch.nextafter(x, x * torch.where(torch.rand(x.shape, generator=g) < 0.5, 0.5, 2.0).to(dtype))
        other = oracle.centroid([oracle.vector(row) for row in moved], mpmath.mpf(c))
        known = max(known, oracle.norm([p - q for p, q in zip(other, want, strict=True)]))
    assert oracle.error(got, want) <= 4 * EPS[dtype] + 2 * float(known / oracle.norm(want))


@given(st.integers(0, 2**31))
def test_centroid_far_out_and_metric_axioms(seed):
    torch.manual_seed(seed)
    center = torch.nn.functional.normalize(torch.randn(1, 4), dim=-1) * 5
    x = hk.exp_map0(center + 0.1 * torch.randn(6, 4) / 5)
    ours = hk.centroid(x)
    rows = [oracle.vector(row) for row in x]
    mean = [mpmath.fsum(column) / 6 for column in zip(*rows, strict=True)]
    mean_t = mpmath.fsum(oracle.time(row, 1) for row in rows) / 6
    scale = mpmath.sqrt(mean_t**2 - oracle.norm(mean) ** 2)
    exact = torch.tensor([float(value / scale) for value in mean])
    assert float((ours - exact).norm() / exact.norm()) <= 1e-5  # twice the measured 2e-6 at radius 5, with margin
    d = hk.pairwise_distance(x.double(), x.double())
    torch.testing.assert_close(d, d.T)
    assert not d.diagonal().any()
    assert (d[:, None] <= d[:, :, None] + d[None] + 1e-9).all()


def test_centroid_of_large_points_and_its_slopes():
    x = torch.tensor([[0.6, 0.8, 0.0], [0.6, 0.8, 0.0]]) * torch.tensor([[1e35], [5e34]])
    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    for z in (leaf, exact):
        hk.centroid(z).sum().backward()
    torch.testing.assert_close(hk.centroid(x), hk.centroid(x.double()).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(leaf.grad, exact.grad.float(), rtol=1e-6, atol=0)


def test_a_set_without_weight_is_at_the_origin_and_leaves_the_others_alone():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 2, generator=g)
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    c = torch.tensor(0.7, requires_grad=True)
    leaf, weights = x.clone().requires_grad_(), mask.float().requires_grad_()
    out = hk.centroid(leaf, c, weights)
    out.sum().backward()
    alone = x[0].clone().requires_grad_()
    first = hk.centroid(alone[mask[0]], 0.7)
    first.sum().backward()
    torch.testing.assert_close(out[0], first)
    torch.testing.assert_close(out[2], x[2, 0])
    torch.testing.assert_close(leaf.grad[0], alone.grad)
    assert not out[1].any()
    assert not leaf.grad[1].any()
    assert all(torch.isfinite(t.grad).all() for t in (leaf, weights, c))
    torch.testing.assert_close(hk.centroid(x, 0.7, mask), out)
    # weights beyond what a sum holds, one set of weights for all, and the points along another dimension
    torch.testing.assert_close(hk.centroid(x, 0.7, torch.full((4,), 3e38)), hk.centroid(x, 0.7))
    turned = hk.centroid(x.movedim(1, 0), 0.7, mask, dim=0)
    torch.testing.assert_close(turned, out)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda x: hk.centroid(x, weights=torch.tensor([1.0, -1.0, 0.5])),
            r"weights must be finite and 0 or more, got -1 at index 1",
        ),
        (
            lambda x: hk.centroid(x, weights=torch.tensor([1.0, math.nan, 0.5])),
            "weights must be finite .* got nan at index 1",
        ),
        (lambda x: hk.centroid(x, weights=torch.ones(2)), r"weights must have shape \(2, 3\), .* got \(2,\)"),
        (
            lambda x: hk.centroid(x, weights=torch.ones(2, 3, 1)),
            r"weights must have shape \(2, 3\), .* got \(2, 3, 1\)",
        ),
        (lambda x: hk.centroid(x, weights=torch.ones(())), r"weights must have shape \(2, 3\), .* got \(\)"),
        (lambda x: hk.centroid(x, dim=-1), r"dim must be a dimension of points, .* got -1"),
        (lambda x: hk.centroid(x, dim=3), r"dim must be a dimension of points, .* got 3"),
        (lambda x: hk.centroid(x[0, 0]), r"x must have shape \(..., n, d\), got \(4,\)"),
    ],
)
def test_errors_say_what_is_needed(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.ones(2, 3, 4))


def test_gradients_of_public_functions():
    x, _, c = vectors_and_curvature()
    assert torch.autograd.gradcheck(hk.centroid, (x, c))
