"""Far from the origin: along a ray, on one ray, and where squares do not fit. Kernels, machine code and the reference."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch.nn import functional as F

import hyperst_kernels as hk
from benchmarks import oracle
from benchmarks.cases import ROW_WISE
from tests.kernels.triton import DEVICE, INTERPRETED, documented

C = 0.75  # which float32 holds exactly
WAYS = ["operator", "reference"]
EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}


def call(way, name, *vectors, flags=(), grad=None):
    """Value, and the gradients of the vectors if the value's is given, on the CPU."""
    compute = ROW_WISE[name].portable if way == "reference" else ROW_WISE[name].operator
    leaves = [v.to(DEVICE).clone().requires_grad_(grad is not None) for v in vectors]
    out = compute(*leaves, torch.tensor(C, dtype=vectors[0].dtype, device=DEVICE), *flags)
    grads = torch.autograd.grad(out, leaves, grad.to(out)) if grad is not None else []
    return [t.detach().cpu() for t in (out, *grads)]


def ray(kind, dtype):
    """Some direction: exactly representable on an axis, or not."""
    if kind == "one feature":
        return torch.ones(1, dtype=dtype)
    if kind == "axis":
        return torch.tensor([0.0, -1.0, 0.0], dtype=dtype)
    return F.normalize(torch.tensor([0.3, -0.7, 0.5, 0.1], dtype=dtype), dim=0)


def slope_of(function, at, i, grad):
    """Gradient by vector i of the inner product of grad with the function's value."""

    def value(z):
        return oracle.dot(oracle.vector(grad), function(*at[:i], z, *at[i + 1 :], mpmath.mpf(C)))

    return oracle.gradient(value, at[i], "1e-35")


KINDS = ["one feature", "axis", "oblique"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("p", "halvings"), [(8.0, 10), (10.0, 12), (12.0, 1), (2.0, -12), (18.0, 22)])
def test_transport_of_a_radial_vector(kind, way, dtype, p, halvings):
    """Its length goes with cosh q / cosh p: nothing of it is left of the textbook form at radius 10."""
    x = math.sinh(p) * ray(kind, dtype)
    y, v, grad = x / 2**halvings, x / 4, -x / 2
    got, *grads = call(way, "parallel_transport", x[None], y[None], v[None], grad=grad[None])
    with mpmath.workdps(100):
        at = [oracle.vector(t) for t in (x, y, v)]
        want = oracle.parallel_transport(*at, mpmath.mpf(C))
        assert oracle.error(got[0], want) <= 16 * EPS[dtype] + documented(4) * (dtype == torch.float32)
        for i, found in enumerate(grads):
            slope = slope_of(oracle.parallel_transport, at, i, grad)
            assert oracle.error(found[0], slope) <= 64 * EPS[dtype] + documented(16) * (dtype == torch.float32), i


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("p", "factor"), [(9.0, -8.0), (12.0, -16.0), (3.0, -0.5), (18.5, -16.0), (2.0, 4.0)])
def test_exp_map_along_a_ray(kind, way, dtype, p, factor):
    """sinh(p - t) and its slopes, which are e^(p+t) less e^(p+t) in the textbook form."""
    x = math.sinh(p) * ray(kind, dtype)
    v, grad = factor * x, x / 8
    got, *grads = call(way, "exp_map", x[None], v[None], grad=grad[None])
    # p and t are rounded, the hyperbolic functions take their difference
    rounding = (16 + 4 * (p + abs(factor)) / min(1, abs(p - abs(factor)))) * EPS[dtype]
    rounding += (documented(8) * (p + abs(factor))) * (dtype == torch.float32)
    with mpmath.workdps(100):
        at = [oracle.vector(t) for t in (x, v)]
        assert oracle.error(got[0], oracle.exp_map(*at, mpmath.mpf(C))) <= rounding
        for i, found in enumerate(grads):
            slope = slope_of(oracle.exp_map, at, i, grad)
            assert oracle.error(found[0], slope) <= 4 * rounding, i


def distance_of(way, x, y, tangent):
    """The distance of two vectors (d), and its gradients."""
    if way != "matrix":
        return call(way, "distance", x[None], y[None], flags=(tangent,), grad=torch.ones(1))
    leaves = [t[None].to(DEVICE).requires_grad_() for t in (x, y)]
    d = hk.pairwise_distance(*leaves, C, input="tangent" if tangent else "lorentz", precision="ieee")
    return [d.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(d.sum(), leaves))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", [*WAYS, "matrix"])
@pytest.mark.parametrize("tangent", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("radius", "share"),
    [(1e-3, 0.5), (5.0, 0.5), (19.0, 0.5), (25.0, 0.5), (40.0, 0.5), (60.0, 0.875), (60.0, 63 / 64)],
)
def test_slope_of_the_distance_on_one_ray(kind, tangent, way, dtype, radius, share):
    """1 away from the other: what rounding leaves of the angle between them must not be multiplied by e^radius."""
    if way == "matrix" and radius > (40 if tangent else 19):
        pytest.skip("the product of two such points is too large for a matrix of distances")
    mantissa, exponent = math.frexp(radius if tangent else math.sinh(radius))
    # of few digits, so that y is on the ray of x: 10 and 8 here, 6 in a share
    x = (2.0**10 * ray(kind, dtype)).round() * round(mantissa * 2**8) * 2.0 ** (exponent - 18)
    y = share * x
    _, *grads = distance_of(way, x, y, tangent)
    for sense, z, got in zip((1, -1), (x, y), grads, strict=True):
        exact = z.double() / z.double().norm()
        want = sense * exact if tangent else sense * exact / torch.sqrt(1 + C * z.double().norm() ** 2)
        # e^-D is taken of rounded radii, and cosh of p
        known = (32 + 8 * radius) * EPS[dtype] + documented(32) * (dtype == torch.float32)
        known *= 8 if way == "matrix" else 1  # a product keeps pairs of which it has lost a few bits
        assert (got[0].double() - want).norm() <= known * want.norm()


@pytest.mark.parametrize("way", [*WAYS, "matrix"])
@pytest.mark.parametrize("y", [(39.0, 1e-7), (40.0, 4e-15), (60.0, 6e-19), (60.0, 6e-22), (64.0, 6e-25)])
def test_an_angle_that_the_numbers_hold_is_not_taken_for_rounding(y, way):
    """Directions 2.6e-9 to 1e-26 apart, far below eps, of vectors on an axis but for one number."""
    if way == "matrix" and y[0] > 40:
        pytest.skip("the product of two such points is too large for a matrix of distances")
    x, y = torch.tensor([y[0] + (y[0] == 39), 0.0]), torch.tensor(y)
    d, *grads = distance_of(way, x, y, True)
    at = [oracle.vector(t) for t in (x, y)]
    want = oracle.tangent_distance(*at, mpmath.mpf(C))
    # sinh of a rounded radius
    assert abs(float(d) - float(want)) <= (1e-6 + float(x[0]) * EPS[x.dtype] + documented(4)) * float(want)
    for i, got in enumerate(grads):
        slope = oracle.gradient(lambda z, i=i: oracle.tangent_distance(*at[:i], z, *at[i + 1 :], mpmath.mpf(C)), at[i])
        assert oracle.error(got[0], slope) <= 2e-5 + documented(64)  # 80 eps of e^(p+q-D)


# rows whose numbers are 1e-34 of one another, or whose product is no number: (operator, vectors, flags)
APART = [
    ("distance", [(45.283345, 0.0), (41.563283, 4.1563283e-21)], (True,)),
    ("distance", [(3.4657e20, 0.0), (2.621e18, 2.621e-2)], (False,)),
    ("distance", [(1.2e18, 0.0), (1.19e18, 5e-16)], (False,)),
    ("distance", [(1e-25, 0.0), (0.0, 1e-25)], (True,)),
    ("log_map", [(3.4657e20, 0.0), (2.621e18, 2.621e-2)], ()),
    ("log_map", [(1.2e18, 0.0), (1.19e18, 5e-16)], ()),
    ("parallel_transport", [(1.2e18, 0.0), (1.188e18, 5e-16), (0.0, 1.0)], ()),
    ("exterior_angle", [(70.883148, 0.0), (70.883163, 7.0883163e-25)], (True,)),
    ("exterior_angle", [(1e-20, 0.0), (6e-30, 1.2e-29)], (True,)),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "vectors", "flags"), APART)
def test_numbers_of_a_row_far_apart(name, vectors, flags, way):
    rows = [torch.tensor([v]) for v in vectors]
    with torch.no_grad():
        shape = call("reference", name, *(r.double() for r in rows), flags=flags)[0].shape
    found = call(way, name, *rows, flags=flags, grad=torch.ones(shape))
    exact = call("reference", name, *(r.double() for r in rows), flags=flags, grad=torch.ones(shape))
    length = max(float(r.norm()) for r in rows) if flags == (True,) else 45.0
    for i, (got, want) in enumerate(zip(found, exact, strict=True)):
        # number by number; the slopes of an angle along and across a ray have no size of their own
        known = (32 + 8 * length) * EPS[torch.float32] + documented(32)
        size = want.abs().max() if name == "exterior_angle" else want.abs()
        assert ((got - want).abs() <= known * size + 1e-37).all(), (i, got, want)


ONE = [
    ("distance0", (False,)),
    ("lorentz_to_poincare", ()),
    ("lift", ()),
    ("log_map0", ()),
    ("half_aperture", (0.1, False)),
]
TWO = [("inner", ()), ("distance", (False,)), ("log_map", ()), ("exterior_angle", (False,))]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1e20, 1e25, 1e35])
@pytest.mark.parametrize(("name", "flags"), ONE + TWO + [("parallel_transport", ())])
def test_squares_that_do_not_fit(name, flags, size, way):
    x = torch.tensor([[0.6, -0.8, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, -0.7]]) * size
    near = torch.tensor([[0.1, 0.2, -0.3], [0.0, 0.7, 0.0], [2.0, 0.0, 1.0]])
    v = torch.tensor([[0.3, 0.1, 0.2], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    vectors = [x] if (name, flags) in ONE else [x, near] if (name, flags) in TWO else [x, near, v]
    exact = call("reference", name, *(t.double() for t in vectors), flags=flags)[0]
    grad = torch.ones_like(exact)
    wants = call("reference", name, *(t.double() for t in vectors), flags=flags, grad=grad)
    gots = call(way, name, *vectors, flags=flags, grad=grad.float())
    # logarithms of 46 to 81 cancel in a slope of log_map, as many roundings in D; slopes of the angle have e^(p-2D), of
    # which each logarithm errs by as many times 2^-22
    tolerance = (1e-3 if name == "log_map" else 1e-5) + documented(3 * 82)
    for got, want in zip(gots, wants, strict=True):
        got, want = got.double().reshape(3, -1), want.reshape(3, -1)
        assert ((got - want).norm(dim=1) <= tolerance * want.norm(dim=1) + 1e-37).all()


@pytest.mark.parametrize("way", WAYS)
def test_numbers_whose_squares_vanish(way):
    x, y = torch.tensor([[3e-25, -4e-25]]), torch.tensor([[0.0, 4e-25]])
    assert float(call(way, "distance0", x, flags=(True,))[0]) == pytest.approx(5e-25, rel=1e-6)
    for tangent in (True, False):
        d = call(way, "distance", x, y, flags=(tangent,))[0]
        assert float(d) == pytest.approx(73**0.5 * 1e-25, rel=2e-6)


def slope_by_curvature(way, name, x, c, flags=()):
    """Gradient by c of the first number of the value."""
    compute = ROW_WISE[name].portable if way == "reference" else ROW_WISE[name].operator
    leaf = torch.tensor(c, dtype=x.dtype, device=DEVICE, requires_grad=True)
    return float(torch.autograd.grad(compute(x.to(DEVICE), leaf, *flags).flatten()[0], leaf)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("size", "c"), [(1e2, 1.0), (1e4, 1.0), (1e10, 1e-6), (1e20, 1.0), (1e-3, 1e4)])
def test_slope_of_the_time_by_the_curvature(size, c, way, dtype):
    """-1 / (2 c^2 x_t), which is next to nothing of the time over 2c: 0 was left of it at |x| = 1e4."""
    c = float(torch.tensor(c, dtype=dtype))
    x = torch.tensor([[size, 0.0]], dtype=dtype)
    want = -1 / (2 * c**2 * math.sqrt(1 / c + float(x[0, 0]) ** 2))
    tolerance = 8 * EPS[dtype] + documented(4) * (dtype == torch.float32)
    assert slope_by_curvature(way, "lift", x, c) == pytest.approx(want, rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("size", "c"), [(1e-3, 1.0), (1e-4, 1.0), (0.11, 1.0), (1e3, 1e-6), (1e-7, 1e4), (5.0, 1.0)])
@pytest.mark.parametrize("name", ["distance0", "log_map0"])
def test_slope_of_the_radius_by_the_curvature(name, size, c, way, dtype):
    """(tanh p - p) / (2 c sqrt c), a third of p^3: the rounding of p was what was seen of it near the origin."""
    c = float(torch.tensor(c, dtype=dtype))
    x = torch.tensor([[size, 0.0]], dtype=dtype)
    p = mpmath.asinh(mpmath.sqrt(c) * float(x[0, 0]))
    want = float((mpmath.tanh(p) - p) / (2 * c * mpmath.sqrt(c)))
    # what is left of the difference where a series of seven terms ends
    tolerance = 128 * EPS[dtype] + documented(64) * (dtype == torch.float32)
    flags = (False,) if name == "distance0" else ()
    assert slope_by_curvature(way, name, x, c, flags) == pytest.approx(want, rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [1e-3, 2.0, 10.0, 18.0, 22.5, 40.0])
def test_radial_slope_of_the_poincare_map(p, kind, way, dtype):
    """1 / ((1 + cosh p) cosh p): one e^-p less than either term of the textbook form."""
    x = math.sinh(p) / C**0.5 * ray(kind, dtype)
    grad = x / x.abs().max()
    _, got = call(way, "lorentz_to_poincare", x[None], grad=grad[None])
    wide = oracle.vector(x)
    cosh_p = mpmath.sqrt(1 + C * oracle.dot(wide, wide))
    want = [g / ((1 + cosh_p) * cosh_p) for g in oracle.vector(grad)]
    # the gradient is on the ray of x but for its rounding, of which a slope across the ray makes that of 1 / (1 + cosh p)
    off = 0 if kind != "oblique" else 2 * EPS[dtype] * float(oracle.norm(oracle.vector(grad)) / (1 + cosh_p))
    tolerance = 16 * EPS[dtype] + documented(8) * (dtype == torch.float32)
    error = float(oracle.norm([a - b for a, b in zip(oracle.vector(got[0]), want, strict=True)]))
    assert error <= tolerance * float(oracle.norm(want)) + off
    by_c = -wide[0] * oracle.dot(wide, wide) / (2 * cosh_p * (1 + cosh_p) ** 2)
    assert slope_by_curvature(way, "lorentz_to_poincare", x[None], C) == pytest.approx(float(by_c), rel=tolerance)


BOTH_FAR = [
    ("inner", (), 1e18, 1e18, 1e4),
    ("inner", (), 1e19, 3e18, 30.0),
    ("log_map", (), 1e19, 1e19, 1.0),
    ("log_map", (), 1e20, 3e25, 1.0),
    ("distance", (False,), 1e35, 1e36, 1.0),
    ("distance", (True,), 100.0, 100.0, 1.0),
    ("distance", (True,), 170.0, 3.0, 4.0),
    ("distance", (True,), 340.0, 350.0, 1.0),
    ("exterior_angle", (True,), 100.0, 100.0, 1.0),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("apart", ["right angle", "opposite", "near"])
@pytest.mark.parametrize(("name", "flags", "first", "second", "c"), BOTH_FAR)
def test_products_of_two_that_do_not_fit(name, flags, first, second, c, apart, way):
    """H = sinh p sinh q is too large for float32 from p + q = 90 on, its root from 177 on; the results are not."""
    x = torch.tensor([[first, 0.0]])
    y = second * torch.tensor([{"right angle": [0.0, 1.0], "opposite": [-1.0, 0.25], "near": [1.0, 1e-5]}[apart]])

    def run(compute, dtype):
        leaves = [z.to(DEVICE, dtype).requires_grad_() for z in (x, y)] + [
            torch.tensor(c, dtype=dtype, device=DEVICE, requires_grad=True)
        ]
        out = compute(*leaves, *flags)
        return [t.detach().cpu().double() for t in (out, *torch.autograd.grad(out.sum(), leaves))]

    wants = run(ROW_WISE[name].portable, torch.float64)
    gots = run(ROW_WISE[name].portable if way == "reference" else ROW_WISE[name].operator, torch.float32)
    # e^(p+q-D) is taken of sums up to 700; logarithms of 90 cancel in a slope of log_map
    tolerance = (700 if flags == (True,) else 200) * 8 * EPS[torch.float32] + documented(2 * 82)
    # by homogeneity the slope by c is what is left of these terms, each over 2c
    terms = wants[0].norm() + sum((z * dz).sum().abs() for z, dz in zip((x, y), wants[1:3], strict=True))
    for i, (got, want) in enumerate(zip(gots, wants, strict=True)):
        size = terms / (2 * c) if i == 3 else want.norm()
        assert (got - want).norm() <= tolerance * size + 1e-37, i


TRANSPORTS = [
    ([1e20, 0.0], [0.0, 1e20], [1.0, 1.0], 1.0),
    ([1e30, 0.0], [0.0, 1e30], [0.0, 1e10], 1.0),
    ([1e3, 0.0], [0.0, 1e25], [0.0, 1e15], 1.0),
    ([1e18, 0.0], [0.0, 1e18], [1.0, 1.0], 1e4),
    ([1e25, 0.0], [1e25, 0.0], [1.0, 2.0], 1.0),
    ([1e25, 0.0], [1e25, 1e20], [1e20, 1e20], 1.0),
    ([1e36, 1e36], [1.0, 0.0], [1e30, 0.0], 1.0),
]


@pytest.mark.parametrize("way", [*WAYS, "torch.func"])
@pytest.mark.parametrize(("x", "y", "v", "c"), TRANSPORTS)
def test_transport_between_points_far_out(x, y, v, c, way):
    """Each growing factor is divided by cosh(D/2) before another is multiplied with it: sinh p sinh q does not fit."""
    name = "parallel_transport"
    compute = ROW_WISE[name].operator if way == "operator" else ROW_WISE[name].portable
    weights = torch.tensor([1.0, 0.5], device=DEVICE)

    def total(*leaves):
        return (compute(*leaves) * weights).sum()

    vectors = [torch.tensor([z], device=DEVICE).requires_grad_() for z in (x, y, v)]
    leaves = [*vectors, torch.tensor(c, device=DEVICE, requires_grad=True)]
    if way == "torch.func":
        grads = torch.func.grad(total, (0, 1, 2, 3))(*leaves)
    else:
        grads = torch.autograd.grad(total(*leaves), leaves)
    with mpmath.workdps(150):
        at = [oracle.vector(z[0]) for z in vectors]
        want = oracle.parallel_transport(*at, mpmath.mpf(c))
        # a wrong digit of theta, or of p - q, is multiplied by sinh p / cosh(D/2)
        tolerance = 32 * EPS[torch.float32] + documented(64)
        assert oracle.error(compute(*leaves)[0], want) <= tolerance
        upstream = oracle.vector(weights)
        for i, got in enumerate(grads[:3]):
            slope = oracle.gradient(
                lambda z, i=i: oracle.dot(upstream, oracle.parallel_transport(*at[:i], z, *at[i + 1 :], mpmath.mpf(c))),
                at[i],
                "1e-50",
            )
            assert oracle.error(got[0], slope) <= tolerance, i
        assert torch.isfinite(grads[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tangent", [(800.0, 800.0), (500.0, 350.0), (1e4, 0.0)])
def test_a_distance_beyond_all_numbers_is_right_or_none(tangent, way, dtype):
    """The machine code forms sinh p sinh q in float64, from which point on it says NaN: never inf, and no slopes of 0."""
    u, v = torch.tensor([[tangent[0], 0.0]], dtype=dtype), torch.tensor([[0.0, tangent[1]]], dtype=dtype)
    d, *grads = call(way, "distance", u, v, flags=(True,), grad=torch.ones(1))
    exact = sum(tangent) - math.log(2) / C**0.5 * (tangent[1] != 0)
    if way == "operator" and dtype == torch.float32 and not INTERPRETED and DEVICE == "cpu":
        assert all(torch.isnan(t).all() for t in (d, *grads))
    else:
        assert float(d) == pytest.approx(exact, rel=8 * EPS[dtype])
        for a, slope in zip((u, v), grads, strict=True):
            want = a[0] / a.abs().max() if a.any() else torch.zeros(2, dtype=dtype)
            along = slope[0] if a.any() else torch.zeros(2, dtype=dtype)
            torch.testing.assert_close(along[a[0] != 0], want[a[0] != 0], rtol=sum(tangent) * 8 * EPS[dtype], atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("angle", [0.0, 1.5, math.pi])
@pytest.mark.parametrize(
    ("p", "q"),
    [
        (60.0, 20.0),
        (44.0, 43.5),
        (44.0, 45.5),
        (60.0, 30.0),
        (100.0, 100.0),
        (350.0, 340.0),
        (356.0, 356.0),
        (800.0, 1.0),
    ],
)
def test_a_matrix_of_distances_is_right_or_nan(p, q, angle, dtype):
    """Of a point whose square does not fit, as from radius 45 on in float32, a GPU took the time for that of the origin."""
    u = torch.tensor([[p, 0.0]], dtype=dtype)
    v = q * torch.tensor([[math.cos(angle), math.sin(angle) * (angle == 1.5)]], dtype=dtype)
    leaves = [t.to(DEVICE).requires_grad_() for t in (u, v)]
    d = hk.pairwise_distance(*leaves, input="tangent")
    grads = [g.cpu() for g in torch.autograd.grad(d.sum(), leaves)]
    at = [t.double().requires_grad_() for t in (u, v)]
    want = ROW_WISE["distance"].portable(*at, torch.tensor(1.0, dtype=torch.float64), True)
    slopes = torch.autograd.grad(want.sum(), at)
    fits = p + q < 88 or (max(p, q) < 354 and (dtype == torch.float64 or (DEVICE == "cpu" and not INTERPRETED)))
    if fits or not torch.isnan(d):
        assert float(d) == pytest.approx(float(want), rel=2e-5 if dtype == torch.float32 else 1e-12)
    for got, slope in zip(grads, slopes, strict=True):
        if fits or not torch.isnan(got).any():
            assert (got - slope).norm() <= (p + q) * 8 * EPS[dtype] + documented(32) * (dtype == torch.float32)
