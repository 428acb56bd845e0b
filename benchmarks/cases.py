"""Every row-wise operator with inputs from the nasty regions, for the tests that run over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hyperst_kernels.operators import contrastive, distance, entailment
from hyperst_kernels.operators import maps as mapping
from hyperst_kernels.reference import maps
from hyperst_kernels.reference.contrastive import Pairing
from hyperst_kernels.reference.distance import inner

C = 0.8
ROW_WISE = {
    operator.name: operator
    for operator in (
        *(
            mapping.exp_map0,
            mapping.log_map0,
            mapping.exp_map,
            mapping.log_map,
            mapping.parallel_transport,
            mapping.lift,
        ),
        *(mapping.lorentz_to_poincare, mapping.poincare_to_lorentz),
        *(distance.inner, distance.distance, distance.distance0, entailment.half_aperture, entailment.exterior_angle),
    )
}


class Case(NamedTuple):
    """``ROW_WISE[operator](*vectors, *scalars, c, *flags)``. ``vectors`` makes vectors (n d), float64, for c = 1, from a seed."""

    operator: str
    vectors: Callable[[int, int, int, float], list[Tensor]]
    scalars: tuple[float, ...] = ()
    flags: tuple = ()
    # the largest radius that float32 tests go to, and what beside a relative error is allowed
    largest: float = 60.0
    absolute: float = 0.0
    # the size, for each row, of terms that cancel in the value, and in the slope by each vector; all for c = 1
    terms: Callable[..., Tensor] = lambda *vectors: torch.zeros(())
    slopes: Callable[..., list[Tensor]] = lambda *vectors: [torch.zeros(())] * len(vectors)
    # relative error of a gradient at this largest radius
    gradient: Callable[[float], float] = lambda largest: 1e-5
    # powers of length that the value has: lengths scale with 1 / sqrt(c)
    degree: int = 0

    def inputs(self, n: int, d: int, seed: int, largest: float, dtype: torch.dtype, c: float = C) -> list[Tensor]:
        """Vectors and scalars, c last; scalars have the dtype of the geometry."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        vectors = [(v / c**0.5).to(dtype) for v in self.vectors(n, d, seed, min(largest, self.largest))]
        return [*vectors, *(torch.tensor(s, dtype=wide) for s in (*self.scalars, c))]

    def cancelling(self, vectors: list[Tensor], c: float) -> tuple[Tensor, list[Tensor]]:
        """``terms`` and ``slopes`` at vectors for this c."""
        units = [v * c**0.5 for v in vectors]
        slopes = [s * c ** ((1 - self.degree) / 2) for s in self.slopes(*units)]
        return self.terms(*units) / c ** (self.degree / 2), slopes


def tangents(n: int, d: int, seed: int, largest: float) -> list[Tensor]:
    """Pairs of radius 1e-6 to ``largest``, row by row: generic, near, equal, opposite, one or both at the origin; on one ray
    by a power of two or a rounded factor; on axes, the same or others."""
    g = torch.Generator().manual_seed(seed)
    a, b = (F.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=1) for _ in range(2))
    low, high = torch.log(torch.tensor([1e-6, largest], dtype=torch.float64))
    r, s = (torch.exp(low + (high - low) * torch.rand(n, 1, generator=g, dtype=torch.float64)) for _ in range(2))
    u, v = r * a, s * b
    near = u + r * 10 ** (-1 - 4 * torch.rand(n, 1, generator=g, dtype=torch.float64)) * b
    doubled = u * 2.0 ** torch.randint(-4, 1, (n, 1), generator=g)
    axes = (F.one_hot(torch.randint(0, min(d, 3), (n,), generator=g), d) for _ in range(2))
    on_axis, on_other = (z * axis for z, axis in zip((r, -s), axes, strict=True))
    starts = [u, u, u, u, u, torch.zeros_like(u), u, u, on_axis, on_axis]
    ends = [v, near, u, -u, torch.zeros_like(u), v, doubled, s * a, on_axis * s / r, on_other]
    kind = torch.randint(0, len(ends), (n,), generator=g)
    return [torch.stack(z)[kind, torch.arange(n)] for z in (starts, ends)]


def points(n: int, d: int, seed: int, largest: float) -> list[Tensor]:
    return [maps.exp_map0(u, torch.ones((), dtype=torch.float64)) for u in tangents(n, d, seed, largest)]


def radial(n: int, seed: int, v: Tensor, x: Tensor, most: float) -> Tensor:
    """v, in a third of the rows along the ray of x, up to ``most`` times as long as x, in either sense."""
    g = torch.Generator().manual_seed(seed + 2)
    factor = (
        most * 2.0 ** torch.randint(-6, 1, (n, 1), generator=g) * (2 * torch.randint(0, 2, (n, 1), generator=g) - 1)
    )
    return torch.where(torch.rand(n, 1, generator=g) < 1 / 3, factor * x.float().double(), v)


def point_and_tangent(n: int, d: int, seed: int, largest: float) -> list[Tensor]:
    """A point, and a tangent vector at it whose exponential map float32 can hold."""
    x, _ = points(n, d, seed, largest)
    v, _ = tangents(n, d, seed + 1, min(largest, 40.0))
    return [x, radial(n, seed, v, x, 2.0 ** math.floor(math.log2(largest)))]


def points_and_tangent(n: int, d: int, seed: int, largest: float) -> list[Tensor]:
    x, y = points(n, d, seed, largest)
    return [x, y, radial(n, seed, tangents(n, d, seed + 1, largest)[0], x, 1.0)]


def geodesic_terms(x: Tensor, v: Tensor) -> Tensor:
    """p + t: what is left of a radius that is walked back. t of a radial vector far out is 0 but for rounding."""
    p, product = torch.asinh(x.norm(dim=1)), (x * v).sum(1)
    return p + torch.sqrt((v.norm(dim=1) ** 2 - product**2 / (1 + x.norm(dim=1) ** 2)).clamp(min=0))


def transported_slopes(x: Tensor, y: Tensor, v: Tensor) -> list[Tensor]:
    """For one of the points next to the origin, radial slopes by it are its own radius times what they are made of."""
    p, q = (torch.asinh(z.norm(dim=1)) for z in (x, y))
    T, size = 1 - inner(x, y, torch.ones_like(p[0])), v.norm(dim=1)
    by_p = size * p.cosh().pow(-2) * q.cosh() * (p.sinh() + q.sinh()) / T
    by_q = size / p.cosh() * (p.sinh() + q.sinh() * (p - q).cosh()) / T
    return [by_p / p.cosh(), by_q / q.cosh(), torch.zeros_like(p)]


def poincare_slope(x: Tensor) -> list[Tensor]:
    """1 / (1 + cosh p), which the slope along x falls below by another such factor."""
    return [1 / (1 + torch.sqrt(1 + x.norm(dim=1) ** 2))]


def ball_terms(p: Tensor) -> Tensor:
    """|x| / (1 - |p|): what the rounding of |p| becomes near the rim of the ball."""
    r = p.norm(dim=1)
    return 2 * r / ((1 - r) ** 2 * (1 + r))


def aperture_slope(tangent: bool, x: Tensor) -> list[Tensor]:
    """The slope -2K / (X sqrt(X^2 - 4K^2)), unbounded at X = 2K, times what the rounding of X becomes beside X - 2K."""
    p = x.norm(dim=1)
    X, growth = (torch.sinh(p), torch.cosh(p)) if tangent else (p, 1)
    outside = X > 0.2
    X = torch.where(outside, X, 1)
    slope = growth * 0.2 / (X * torch.sqrt(X**2 - 0.04)) * X / (X - 0.2)
    return [torch.where(outside, slope, 0)]


def angle_slopes(x: Tensor, y: Tensor) -> list[Tensor]:
    """1 / |x|: what turning a vector changes; moving it along its ray may change nothing."""
    return [1 / torch.where(n == 0, 1, n) for n in (x.norm(dim=1), y.norm(dim=1))]


def in_ball(n: int, d: int, seed: int, largest: float) -> list[Tensor]:
    return [maps.lorentz_to_poincare(points(n, d, seed, largest)[0], torch.ones(()))]


def first(make: Callable) -> Callable:
    return lambda *args: make(*args)[:1]


CASES = {
    "exp_map0": Case("exp_map0", first(tangents), (0.7,), degree=1),
    "log_map0": Case("log_map0", first(points), degree=1),
    "exp_map": Case("exp_map", point_and_tangent, largest=20.0, terms=geodesic_terms, degree=1),
    # D / sinh D carries D roundings, and D such terms cancel in a radial gradient; D <= 2 radius
    "log_map": Case(
        "log_map", points, largest=40.0, gradient=lambda largest: max(1e-5, 2.0**-21 * (1 + 2 * largest) ** 2), degree=1
    ),
    "parallel_transport": Case(
        "parallel_transport", points_and_tangent, largest=20.0, slopes=transported_slopes, degree=1
    ),
    # the slopes of time and space, which may cancel
    "lift": Case("lift", first(points), slopes=lambda x: [torch.ones(len(x))], degree=1),
    "lorentz_to_poincare": Case("lorentz_to_poincare", first(points), slopes=poincare_slope, degree=1),
    "poincare_to_lorentz": Case("poincare_to_lorentz", in_ball, largest=4.0, terms=ball_terms, degree=1),
    "inner": Case("inner", points, largest=40.0, degree=2),
    "distance-tangent": Case("distance", tangents, flags=(True,), degree=1),
    "distance-lorentz": Case("distance", points, flags=(False,), degree=1),
    "distance0-tangent": Case("distance0", first(tangents), flags=(True,), degree=1),
    "distance0-lorentz": Case("distance0", first(points), flags=(False,), degree=1),
    "half_aperture-tangent": Case(
        "half_aperture", first(tangents), flags=(0.1, True), slopes=partial(aperture_slope, True)
    ),
    "half_aperture-lorentz": Case(
        "half_aperture", first(points), flags=(0.1, False), slopes=partial(aperture_slope, False)
    ),
    "exterior_angle-tangent": Case("exterior_angle", tangents, flags=(True,), absolute=1e-5, slopes=angle_slopes),
    "exterior_angle-lorentz": Case("exterior_angle", points, flags=(False,), absolute=1e-5, slopes=angle_slopes),
}


def contrastive_terms(
    queries: Tensor,
    keys: Tensor,
    c: Tensor,
    logit_scale: Tensor,
    input: str = "tangent",
    geometry: str = "lorentz",
    directions: str = "both",
    exclude_ids: Tensor | None = None,
    precision: str = "bf16x3",
    atomic: bool = False,
) -> tuple[Tensor, Tensor]:
    """The operator of the loss for one pair of features, with the results of ``reference.contrastive.contrastive_terms``."""
    pairing = Pairing(0, 1, directions == "both")
    options = ([pairing], input, geometry, exclude_ids, precision, atomic)
    rows, columns = contrastive.contrastive_terms([queries, keys], None, c, logit_scale, *options)
    return rows[0], columns[0, : len(queries) * pairing.symmetric]
