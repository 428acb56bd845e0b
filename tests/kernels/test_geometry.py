"""Maps, distances and cones against 60-digit arithmetic, over the nasty regions."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hyperst_kernels as hk
from benchmarks import oracle

EPS = torch.finfo(torch.float32).eps


CURVATURES = [float(torch.tensor(c)) for c in (1e-6, 1e-3, 0.25, 1.0, 4.0, 1e4)]  # as float32 has them
DIGITS = 200  # of products of two points at radius 60, whose difference from 1 may be e^-28


@st.composite
def pairs(draw, smallest=1e-6, largest=60.0):
    """Two float32 tangent vectors: radius 1e-6..60, any angle from coincident to antipodal; on one ray exactly or but for
    rounding, on one axis or two."""
    d = draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    a, noise = (
        torch.nn.functional.normalize(torch.randn(d, generator=generator, dtype=torch.float64), dim=0) for _ in range(2)
    )
    radius = [10 ** draw(st.floats(math.log10(smallest), math.log10(largest))) for _ in range(2)]
    axes = torch.eye(d, dtype=torch.float64)
    u = (a * radius[0]).float().double()
    kind = draw(
        st.sampled_from(["generic", "near", "coincident", "antipodal", "origin", "doubled", "ray", "axis", "two axes"])
    )
    if kind == "generic":
        v = noise * radius[1]
    elif kind == "near":
        v = u + noise * radius[0] * 10 ** draw(st.floats(-5, -1))
    elif kind == "coincident":
        v = u.clone()
    elif kind == "antipodal":
        v = -u
    elif kind == "origin":
        v = torch.zeros_like(u)
    elif kind == "doubled":
        v = u * draw(st.sampled_from([-0.5, 0.25, 0.5]))
    elif kind == "ray":
        v = a * radius[1]
    else:
        u, v = axes[0] * radius[0], axes[-1 if kind == "two axes" else 0] * radius[1]
    return u.float(), v.float()


def perturbed(u):
    """One ulp up and down in every component at once, and in every other the other way: how far the inputs are known."""
    turned = torch.ones_like(u)
    turned[1::2] = -1
    return [torch.nextafter(u, torch.inf * sense) for sense in (turned.abs(), -turned.abs(), turned, -turned)]


def conditioning(f, u, v):
    base = f(oracle.vector(u), oracle.vector(v))
    changes = [abs(f(oracle.vector(p), oracle.vector(v)) - base) for p in perturbed(u)]
    changes += [abs(f(oracle.vector(u), oracle.vector(p)) - base) for p in perturbed(v)]
    return float(max(changes))


@given(pairs(), st.sampled_from(CURVATURES))
def test_distance_of_tangent_vectors(pair, c):
    u, v = (z / c**0.5 for z in pair)
    f = lambda a, b: oracle.tangent_distance(a, b, mpmath.mpf(c))  # noqa: E731
    with mpmath.workdps(DIGITS):
        exact = float(f(oracle.vector(u), oracle.vector(v)))
        known = conditioning(f, u, v)
    ours = float(hk.distance(u, v, c, input="tangent"))
    assert abs(ours - exact) <= 8 * EPS * exact + 2 * known


@given(pairs(), st.sampled_from(CURVATURES))
def test_distance_of_points(pair, c):
    x, y = (hk.exp_map0(z / c**0.5, c) for z in pair)
    f = lambda a, b: oracle.distance(a, b, mpmath.mpf(c))  # noqa: E731
    with mpmath.workdps(DIGITS):
        exact = float(f(oracle.vector(x), oracle.vector(y)))
        known = conditioning(f, x, y)
    assert abs(float(hk.distance(x, y, c)) - exact) <= 8 * EPS * exact + 2 * known


@given(pairs(smallest=1e-3), st.sampled_from(CURVATURES), st.sampled_from(["tangent", "lorentz"]), st.booleans())
def test_distance_gradient(pair, c, input, swapped):
    pair = [z / c**0.5 for z in (pair[::-1] if swapped else pair)]
    u, v = pair if input == "tangent" else (hk.exp_map0(z, c) for z in pair)
    leaf = u.clone().requires_grad_()
    hk.distance(leaf, v, c, input=input).backward()
    assert torch.isfinite(leaf.grad).all()
    if torch.equal(u, v):
        assert not leaf.grad.any()
        return
    f = oracle.tangent_distance if input == "tangent" else oracle.distance

    def slope(a, b):
        return oracle.gradient(lambda w: f(w, b, mpmath.mpf(c)), a, "1e-60")

    with mpmath.workdps(DIGITS):
        exact = slope(oracle.vector(u), oracle.vector(v))
        others = [slope(oracle.vector(p), oracle.vector(v)) for p in perturbed(u)]
        others += [slope(oracle.vector(u), oracle.vector(p)) for p in perturbed(v)]
        known = max(oracle.norm([p - q for p, q in zip(other, exact, strict=True)]) for other in others)
        error = oracle.norm([p - q for p, q in zip(oracle.vector(leaf.grad), exact, strict=True)])
        assert error <= 8 * EPS * oracle.norm(exact) + 2 * known


@given(pairs(), st.sampled_from(CURVATURES))
def test_exp_and_log_map0(pair, c):
    u = pair[0] / c**0.5
    radius = float(u.norm()) * c**0.5
    tolerance = 4 * EPS * (1 + radius)  # e^radius is taken of a rounded number
    exact = oracle.exp_map0(oracle.vector(u), mpmath.mpf(c))
    x = hk.exp_map0(u, c)
    error = oracle.norm([p - q for p, q in zip(oracle.vector(x), exact, strict=True)])
    assert error <= tolerance * oracle.norm(exact)
    assert float((hk.log_map0(x, c) - u).norm()) <= 2 * tolerance * float(u.norm())


@given(pairs(smallest=1e-2), st.sampled_from(CURVATURES))
def test_exterior_angle(pair, c):
    u, v = (z / c**0.5 for z in pair)
    angle = float(hk.exterior_angle(u, v, c, input="tangent"))
    assert 0 <= angle <= math.pi + EPS * 4
    cosine = float(torch.nn.functional.cosine_similarity(u.double(), v.double(), dim=0)) if v.any() else 1.0
    if abs(cosine) > 1 - 1e-8:  # theta below 1e-4, where the angle jumps between 0 and pi
        return
    f = lambda a, b: oracle.exterior_angle(  # noqa: E731
        oracle.exp_map0(a, mpmath.mpf(c)), oracle.exp_map0(b, mpmath.mpf(c)), mpmath.mpf(c)
    )
    with mpmath.workdps(DIGITS):
        exact, known = float(f(oracle.vector(u), oracle.vector(v))), conditioning(f, u, v)
    assert abs(angle - exact) <= 8 * EPS * math.pi + 2 * known


@given(st.floats(-6, 1.5), st.sampled_from(CURVATURES))
def test_half_aperture(log_radius, c):
    x = torch.tensor([10**log_radius / c**0.5, 0.0])
    X = mpmath.sqrt(c) * mpmath.mpf(float(x[0]))
    exact = float(mpmath.asin(min(mpmath.mpf(1), mpmath.mpf("0.2") / X)))
    rim = 2e-7 / abs(float(X) - 0.2) ** 0.5 if abs(float(X) - 0.2) < 1e-3 else 0.0
    assert abs(float(hk.half_aperture(x, c)) - exact) <= 1e-6 + rim


GOLDEN = [
    ((0.3, -0.4, 1.2), 1, -3.25622708128, 1.84925767668, 0.171016010097, 2.56535007911),
    ((1.2, 1.5, 0.1), 1, -1.46488926742, 0.930334344866, 0.171016010097, 0.190861416620),
    ((0.3, -0.4, 1.2), 0.5, -3.83782224917, 1.79438496333, 0.263621314977, 2.44710321116),
    ((0.3, -0.4, 1.2), 4, -7.02029656126, 2.01396490838, 0.0551720989763, 2.90214070974),
]


@pytest.mark.parametrize(("w", "c", "product", "d", "aperture", "angle"), GOLDEN)
def test_golden_values(w, c, product, d, aperture, angle):
    v, w = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64), torch.tensor(w, dtype=torch.float64)
    x, y = hk.exp_map0(v, c), hk.exp_map0(w, c)
    got = [hk.inner(x, y, c), hk.distance(x, y, c), hk.half_aperture(x, c), hk.exterior_angle(x, y, c)]
    assert got == pytest.approx([product, d, aperture, angle], rel=1e-11)
    assert float(hk.distance(v, w, c, input="tangent")) == pytest.approx(d, rel=1e-11)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 2.0])
def test_maps_undo_each_other(scale):
    torch.manual_seed(0)
    x, y = (hk.exp_map0(torch.randn(20, 5, dtype=torch.float64) * scale, 0.7) for _ in range(2))
    v = hk.log_map(x, y, 0.7)
    grow = float(y.norm(dim=-1).max() * x.norm(dim=-1).max() + 1)  # both maps amplify rounding by the radii
    torch.testing.assert_close(hk.exp_map(x, v, 0.7), y, rtol=0, atol=1e-13 * grow)
    torch.testing.assert_close(
        hk.poincare_to_lorentz(hk.lorentz_to_poincare(x, 0.7), 0.7), x, rtol=1e-12 * grow, atol=0
    )
    back = hk.parallel_transport(y, x, hk.parallel_transport(x, y, v, 0.7), 0.7)
    torch.testing.assert_close(back, v, rtol=0, atol=1e-13 * grow * float(v.norm(dim=-1).max() + 1))
    torch.testing.assert_close(hk.project(hk.lift(x, 0.7)), x, rtol=0, atol=0)


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


def test_gradients_against_finite_differences():
    torch.manual_seed(1)
    x, y = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    c = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    for input in ("tangent", "lorentz"):
        for f in (hk.distance, hk.exterior_angle):
            assert torch.autograd.gradcheck(lambda a, b, k, f=f, i=input: f(a, b, k, input=i), (x, y, c))
        assert torch.autograd.gradgradcheck(lambda a, b, k, i=input: hk.distance(a, b, k, input=i), (x, y, c))
        assert torch.autograd.gradcheck(lambda a, k, i=input: hk.half_aperture(a, k, input=i), (x, c))
    for f in (hk.exp_map, hk.log_map, hk.inner):
        assert torch.autograd.gradcheck(f, (x, y, c))
    for f in (hk.exp_map0, hk.log_map0, hk.lift, hk.lorentz_to_poincare, hk.centroid):
        assert torch.autograd.gradcheck(f, (x, c))


def test_branch_points_have_finite_gradients():
    x = torch.zeros(3, 4, requires_grad=True)
    total = hk.exp_map0(x).sum() + hk.log_map0(x).sum() + hk.distance(x, x.detach()).sum() + hk.half_aperture(x).sum()
    total = total + hk.exterior_angle(x, torch.ones(3, 4)).sum() + hk.log_map(x, x.detach()).sum()
    total.backward()
    assert torch.isfinite(x.grad).all()
    assert float(hk.exterior_angle(x.detach(), torch.ones(3, 4))[0]) == pytest.approx(math.pi / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    x, y = torch.randn(5, 8).to(dtype), torch.randn(5, 8).to(dtype)
    got = hk.distance(x, y, input="tangent")
    assert got.dtype == dtype
    torch.testing.assert_close(got, hk.distance(x.float(), y.float(), input="tangent").to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: hk.distance(torch.ones(2, dtype=torch.int64), torch.ones(2)), TypeError, "x must be a floating"),
        (lambda: hk.distance(torch.ones(2, 3), torch.ones(4, 3)), ValueError, r"x \(2, 3\), y \(4, 3\)"),
        (lambda: hk.exp_map0(torch.tensor([float("nan")])), ValueError, "v must be finite, got 1"),
        (lambda: hk.exp_map0(torch.tensor([100.0])), ValueError, "overflows"),
        (lambda: hk.log_map0(torch.ones(2), c=-1.0), ValueError, "c must be positive and finite, got -1.0"),
        (
            lambda: hk.distance(torch.ones(2), torch.ones(2), input="ball"),
            ValueError,
            "'tangent', 'lorentz', got 'ball'",
        ),
        (lambda: hk.poincare_to_lorentz(torch.ones(2)), ValueError, "inside the Poincare ball"),
        (lambda: hk.pairwise_distance(torch.ones(2, 3), torch.ones(2, 4)), ValueError, "same number of features"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()
