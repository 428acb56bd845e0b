"""Centroids, aperture and models of points far out, through the public functions."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch.nn import functional as F

import hyperst_kernels as hk
from benchmarks import oracle

EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}


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
        (lambda x: hk.exp_map0(torch.tensor([90.0])), r"overflows torch.float32 \(limit 88.7 at c = 1\)"),
        (lambda x: hk.exp_map0(torch.tensor([8.3e4]), 1e-6), r"overflows torch.float32 \(limit 82.5 at c = 1e-06\)"),
        (
            lambda x: hk.exp_map0(torch.tensor([6e3]).half(), 1e-6),
            r"overflows torch.float16 \(limit 4.87 at c = 1e-06\)",
        ),
        (lambda x: hk.poincare_to_lorentz(torch.tensor([1.0])), "in torch.float32 points of radius 15.4 and more"),
    ],
)
def test_errors_say_what_is_needed(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.ones(2, 3, 4))


@pytest.mark.parametrize("c", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_points_are_made_up_to_where_they_overflow(c, dtype):
    limit = min(math.asinh(c**0.5 * torch.finfo(dtype).max), {torch.float64: 709.0}.get(dtype, 88.6))
    v = torch.tensor([[0.6, 0.8]], dtype=torch.float64) * (limit - 0.2) / c**0.5
    x = hk.exp_map0(v.to(dtype), c)
    assert torch.isfinite(x).all()
    tolerance = 4 * torch.finfo(dtype).eps * limit
    assert float(hk.distance0(x, c).double()) == pytest.approx((limit - 0.2) / c**0.5, rel=tolerance / 4)
    torch.testing.assert_close(hk.log_map0(x, c).double(), v.to(dtype).double(), rtol=tolerance, atol=0)


@pytest.mark.parametrize("c", [1e-6, 1e-3, 1.0, 3.0, 1e4])
@pytest.mark.parametrize("d", [3, 8, 64])
@pytest.mark.parametrize(
    ("dtype", "radius", "error"),
    [
        (torch.float32, 10.0, 0.005),
        (torch.float32, 14.0, 0.3),
        (torch.float64, 30.0, 0.005),
        (torch.float64, 34.0, 0.3),
    ],
)
def test_the_poincare_round_trip_loses_what_its_docstring_says(dtype, radius, error, d, c):
    a = F.normalize(torch.randn(2000, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1)
    x = (math.sinh(radius) / c**0.5 * a).to(dtype)
    back = hk.poincare_to_lorentz(hk.lorentz_to_poincare(x, c), c)
    lost = float((hk.distance0(back, c) - hk.distance0(x, c)).abs().max()) * c**0.5
    # 1 - tanh(p/2) = 2 e^-p, off by 3.5 eps
    derived = -math.log1p(-3.5 * EPS[dtype] * math.exp(radius) / 2)
    assert error / 20 < lost <= derived <= error


@pytest.mark.parametrize("c", [1e-3, 1.0])
def test_slope_of_a_half_aperture_by_c_where_that_by_the_point_does_not_fit(c):
    """asin s = s for s = 2 K / (sqrt(c) |x|), and ds/dc = -s / 2c."""
    curvature = torch.tensor(c, requires_grad=True)
    (slope,) = torch.autograd.grad(hk.half_aperture(torch.tensor([[1e25, 0.0]]), curvature).sum(), curvature)
    assert float(slope) == pytest.approx(-0.1 / (c**1.5 * 1e25), rel=1e-6)
