"""Converted points against geoopt's formulas in float64, and against geoopt itself where it is installed."""

from __future__ import annotations

import pytest
import torch

import hyperst_kernels as hk
from hyperst_kernels.interop import from_geoopt, to_geoopt


def points(k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of points of <x, x> = -k, time first, written as geoopt defines them."""
    torch.manual_seed(0)
    space = torch.randn(2, 20, 5, dtype=torch.float64)
    time = (k + (space**2).sum(-1, keepdim=True)).sqrt()
    x, y = torch.cat([time, space], dim=-1)
    return x, y


@pytest.mark.parametrize("k", [0.3, 1.0, 4.0])
def test_distances_agree_with_geoopts_formula(k):
    k = torch.tensor(k, dtype=torch.float64, requires_grad=True)
    x, y = points(k.detach())
    product = (x[:, 1:] * y[:, 1:]).sum(-1) - x[:, 0] * y[:, 0]
    expected = k.detach().sqrt() * torch.acosh(-product / k.detach())
    (ours_x, c), (ours_y, _) = from_geoopt(x, k), from_geoopt(y, k)
    torch.testing.assert_close(hk.distance(ours_x, ours_y, c), expected, rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad(c, k)
    torch.testing.assert_close(grad, -1 / k.detach() ** 2)


@pytest.mark.parametrize("k", [0.3, 4.0])
def test_round_trip(k):
    x, _ = points(torch.tensor(k, dtype=torch.float64))
    space, c = from_geoopt(x, k)
    again, same = to_geoopt(space, c)
    assert same == pytest.approx(k)
    torch.testing.assert_close(again, x, rtol=1e-14, atol=0)
    half = to_geoopt(space.bfloat16(), c)[0]
    assert half.dtype == torch.bfloat16


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="k must be positive"):
        from_geoopt(torch.ones(3), 0.0)
    with pytest.raises(ValueError, match="k must be positive"):
        from_geoopt(torch.ones(3), torch.tensor(-1.0))
    with pytest.raises(ValueError, match="at least one space component"):
        from_geoopt(torch.ones(1), 1.0)
    with pytest.raises(TypeError, match="x must be a floating tensor"):
        from_geoopt(torch.ones(3, dtype=torch.int64), 1.0)
    with pytest.raises(ValueError, match="c must be positive"):
        to_geoopt(torch.ones(3), -2.0)


@pytest.mark.parametrize("k", [0.3, 4.0])
def test_against_geoopt_itself(k):
    geoopt = pytest.importorskip("geoopt", reason="geoopt is not installed")
    manifold = geoopt.Lorentz(torch.tensor(k, dtype=torch.float64))
    x, y = points(manifold.k.detach())
    (ours_x, c), (ours_y, _) = from_geoopt(x, manifold.k), from_geoopt(y, manifold.k)
    torch.testing.assert_close(hk.distance(ours_x, ours_y, c), manifold.dist(x, y), rtol=1e-9, atol=1e-9)
    v = torch.randn(20, 5, dtype=torch.float64)
    lifted = manifold.expmap0(torch.nn.functional.pad(v, (1, 0)))
    torch.testing.assert_close(to_geoopt(hk.exp_map0(v, c), c)[0], lifted, rtol=1e-9, atol=1e-9)
    # their maps between the models use the unit ball, while their PoincareBall has the radius 1/sqrt(c), like ours
    ball_x, ball_y = hk.lorentz_to_poincare(ours_x, c), hk.lorentz_to_poincare(ours_y, c)
    torch.testing.assert_close(ball_x, geoopt.manifolds.lorentz.math.lorentz_to_poincare(x, manifold.k) * k**0.5)
    ball = geoopt.PoincareBall(c.detach().clone())  # it writes into a tensor it is given
    torch.testing.assert_close(ball.dist(ball_x, ball_y), hk.distance(ours_x, ours_y, c), rtol=1e-9, atol=1e-9)
