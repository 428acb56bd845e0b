"""Far from the origin: rays, rows whose squares do not fit, and what several operators are asserted of there."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch.nn import functional as F

from benchmarks import oracle
from benchmarks.cases import ROW_WISE
from tests.kernels.backends import device, documented

C = 0.75  # which float32 holds exactly
EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
DTYPES = [torch.float32, pytest.param(torch.float64, marks=pytest.mark.any_arithmetic)]  # float64 has one
KINDS = ["one feature", "axis", "oblique"]


def compute(name, backend):
    return ROW_WISE[name].portable if backend == "portable" else ROW_WISE[name].operator


def call(backend, name, *vectors, flags=(), grad=None):
    """Value, and the gradients of the vectors if the value's is given, on the CPU."""
    leaves = [v.to(device(backend)).clone().requires_grad_(grad is not None) for v in vectors]
    c = torch.tensor(C, dtype=vectors[0].dtype, device=device(backend))
    out = compute(name, backend)(*leaves, c, *flags)
    grads = torch.autograd.grad(out, leaves, grad.to(out)) if grad is not None else []
    return [t.detach().cpu() for t in (out, *grads)]


def ray(kind, dtype):
    """Some direction: exactly representable on an axis, or not."""
    if kind == "one feature":
        return torch.ones(1, dtype=dtype)
    if kind == "axis":
        return torch.tensor([0.0, -1.0, 0.0], dtype=dtype)
    return F.normalize(torch.tensor([0.3, -0.7, 0.5, 0.1], dtype=dtype), dim=0)


def slope_of(function, at, i, grad, c=C, step="1e-35"):
    """Gradient by vector i of the inner product of grad with the function's value."""

    def value(z):
        return oracle.dot(oracle.vector(grad), function(*at[:i], z, *at[i + 1 :], mpmath.mpf(c)))

    return oracle.gradient(value, at[i], step)


def slope_by_curvature(backend, name, x, c, flags=()):
    """Gradient by c of the first number of the value."""
    leaf = torch.tensor(c, dtype=x.dtype, device=device(backend), requires_grad=True)
    value = compute(name, backend)(x.to(leaf.device), leaf, *flags).flatten()[0]
    return float(torch.autograd.grad(value, leaf)[0])


def numbers_of_a_row_may_be_far_apart(backend, name, vectors, flags=()):
    """Assert value and slopes of rows whose numbers are 1e-34 of one another, or whose product is no number."""
    rows = [torch.tensor([v]) for v in vectors]
    with torch.no_grad():
        shape = call("portable", name, *(r.double() for r in rows), flags=flags)[0].shape
    found = call(backend, name, *rows, flags=flags, grad=torch.ones(shape))
    exact = call("portable", name, *(r.double() for r in rows), flags=flags, grad=torch.ones(shape))
    length = max(float(r.norm()) for r in rows) if flags == (True,) else 45.0
    for i, (got, want) in enumerate(zip(found, exact, strict=True)):
        # number by number; the slopes of an angle along and across a ray have no size of their own
        known = (32 + 8 * length) * EPS[torch.float32] + documented(32, backend)
        size = want.abs().max() if name == "exterior_angle" else want.abs()
        assert ((got - want).abs() <= known * size + 1e-37).all(), (i, got, want)


SIZES = [1e20, 1e25, 1e35]


def squares_need_not_fit(backend, name, count, size, flags=()):
    """Assert value and slopes of a function of so many vectors, the first of them of this size."""
    x = torch.tensor([[0.6, -0.8, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, -0.7]]) * size
    near = torch.tensor([[0.1, 0.2, -0.3], [0.0, 0.7, 0.0], [2.0, 0.0, 1.0]])
    v = torch.tensor([[0.3, 0.1, 0.2], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    vectors = [x, near, v][:count]
    exact = call("portable", name, *(t.double() for t in vectors), flags=flags)[0]
    grad = torch.ones_like(exact)
    wants = call("portable", name, *(t.double() for t in vectors), flags=flags, grad=grad)
    gots = call(backend, name, *vectors, flags=flags, grad=grad.float())
    # logarithms of 46 to 81 cancel in a slope of log_map, as many roundings in D; slopes of the angle have e^(p-2D), of
    # which each logarithm errs by as many times 2^-22
    tolerance = (1e-3 if name == "log_map" else 1e-5) + documented(3 * 82, backend)
    for got, want in zip(gots, wants, strict=True):
        got, want = got.double().reshape(3, -1), want.reshape(3, -1)
        assert ((got - want).norm(dim=1) <= tolerance * want.norm(dim=1) + 1e-37).all()


APART = ["right angle", "opposite", "near"]


def products_of_two_need_not_fit(backend, name, flags, first, second, c, apart):
    """H = sinh p sinh q is too large for float32 from p + q = 90 on, its root from 177 on; the results are not."""
    x = torch.tensor([[first, 0.0]])
    y = second * torch.tensor([{"right angle": [0.0, 1.0], "opposite": [-1.0, 0.25], "near": [1.0, 1e-5]}[apart]])

    def run(backend, dtype):
        vectors = [z.to(device(backend), dtype).requires_grad_() for z in (x, y)]
        leaves = [*vectors, torch.tensor(c, dtype=dtype, device=device(backend), requires_grad=True)]
        out = compute(name, backend)(*leaves, *flags)
        return [t.detach().cpu().double() for t in (out, *torch.autograd.grad(out.sum(), leaves))]

    wants, gots = run("portable", torch.float64), run(backend, torch.float32)
    # e^(p+q-D) is taken of sums up to 700; logarithms of 90 cancel in a slope of log_map
    tolerance = (700 if flags == (True,) else 200) * 8 * EPS[torch.float32] + documented(2 * 82, backend)
    # by homogeneity the slope by c is what is left of these terms, each over 2c
    terms = wants[0].norm() + sum((z * dz).sum().abs() for z, dz in zip((x, y), wants[1:3], strict=True))
    for i, (got, want) in enumerate(zip(gots, wants, strict=True)):
        size = terms / (2 * c) if i == 3 else want.norm()
        assert (got - want).norm() <= tolerance * size + 1e-37, i


def the_radius_has_a_slope_by_the_curvature(backend, name, size, c, dtype, flags=()):
    """(tanh p - p) / (2 c sqrt c), a third of p^3: the rounding of p was what was seen of it near the origin."""
    c = float(torch.tensor(c, dtype=dtype))
    x = torch.tensor([[size, 0.0]], dtype=dtype)
    p = mpmath.asinh(mpmath.sqrt(c) * float(x[0, 0]))
    want = float((mpmath.tanh(p) - p) / (2 * c * mpmath.sqrt(c)))
    # p / (p - tanh p) where the series of the difference ends is 20 in float32 and 1200 in float64
    tolerance = {torch.float32: 128, torch.float64: 4096}[dtype] * EPS[dtype] + documented(64, backend) * (
        dtype == torch.float32
    )
    assert math.isclose(slope_by_curvature(backend, name, x, c, flags), want, rel_tol=tolerance)


RADII = [(1e-3, 1.0), (1e-4, 1.0), (0.11, 1.0), (1e3, 1e-6), (1e-7, 1e4), (5.0, 1.0)]  # and curvatures


# radius of the first of two vectors on one ray, and the other's share of it
ON_ONE_RAY = [(1e-3, 0.5), (5.0, 0.5), (19.0, 0.5), (25.0, 0.5), (40.0, 0.5), (60.0, 0.875), (60.0, 63 / 64)]


def on_one_ray(kind, tangent, dtype, radius, share):
    """Two vectors, and the slopes of their distance by each: 1 away from the other."""
    mantissa, exponent = math.frexp(radius if tangent else math.sinh(radius))
    # of few digits, so that y is on the ray of x: 10 and 8 here, 6 in a share
    x = (2.0**10 * ray(kind, dtype)).round() * round(mantissa * 2**8) * 2.0 ** (exponent - 18)
    slopes = []
    for sense, z in ((1, x), (-1, share * x)):
        norm = z.double().norm()
        slopes.append(sense * z.double() / norm / (1 if tangent else torch.sqrt(1 + C * norm**2)))
    return x, share * x, slopes


BESIDE_AN_AXIS = [(39.0, 1e-7), (40.0, 4e-15), (60.0, 6e-19), (60.0, 6e-22), (64.0, 6e-25)]


def beside_an_axis(y):
    """Directions 2.6e-9 to 1e-26 apart, far below eps, of vectors on an axis but for one number."""
    return torch.tensor([y[0] + (y[0] == 39), 0.0]), torch.tensor(y)


def assert_angle_is_seen(x, y, d, grads, backend):
    """Assert that the distance of two such vectors and its slopes are right."""
    at = [oracle.vector(t) for t in (x, y)]
    want = float(oracle.tangent_distance(*at, mpmath.mpf(C)))
    # sinh of a rounded radius
    assert abs(float(d) - want) <= (1e-6 + float(x[0]) * EPS[x.dtype] + documented(4, backend)) * want
    for i, got in enumerate(grads):
        slope = oracle.gradient(lambda z, i=i: oracle.tangent_distance(*at[:i], z, *at[i + 1 :], mpmath.mpf(C)), at[i])
        assert oracle.error(got[0], slope) <= 2e-5 + documented(64, backend)  # 80 eps of e^(p+q-D)
