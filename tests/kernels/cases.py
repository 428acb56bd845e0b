"""Every row-wise operator with inputs from the nasty regions, for the tests that run over all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hyperst_kernels import loss_operator
from hyperst_kernels.reference import maps
from hyperst_kernels.reference.contrastive import Pairing

C = 0.8


class Case(NamedTuple):
    """``operator(*vectors, *scalars, *flags)``; ``vectors`` makes its vectors (n d), float64, from a seed."""

    operator: str
    vectors: Callable[[int, int, int, float], list[Tensor]]
    scalars: tuple[float, ...] = (C,)
    flags: tuple = ()
    # the largest radius that float32 tests go to, and what beside a relative error is allowed
    largest: float = 40.0
    absolute: float = 0.0
    # the size, for each row, of terms that cancel in the value, and in the slope by each vector
    terms: Callable[..., Tensor] = lambda *vectors: torch.zeros(())
    slopes: Callable[..., list[Tensor]] = lambda *vectors: [torch.zeros(())] * len(vectors)
    # relative error of a gradient at this largest radius
    gradient: Callable[[float], float] = lambda largest: 1e-5

    def inputs(self, n: int, d: int, seed: int, largest: float, dtype: torch.dtype) -> list[Tensor]:
        """Vectors and scalars; scalars have the dtype of the geometry."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        vectors = [v.to(dtype) for v in self.vectors(n, d, seed, min(largest, self.largest))]
        return [*vectors, *(torch.tensor(s, dtype=wide) for s in self.scalars)]


def tangents(n: int, d: int, seed: int, largest: float) -> list[Tensor]:
    """Pairs of radius 1e-6 to ``largest``, row by row: generic, near, coincident, antipodal, one or both at the origin."""
    g = torch.Generator().manual_seed(seed)
    a, b = (F.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=1) for _ in range(2))
    low, high = torch.log(torch.tensor([1e-6, largest], dtype=torch.float64))
    r, s = (torch.exp(low + (high - low) * torch.rand(n, 1, generator=g, dtype=torch.float64)) for _ in range(2))
    u, v = r * a, s * b
    near = u + r * 10 ** (-1 - 4 * torch.rand(n, 1, generator=g, dtype=torch.float64)) * b
    kinds = [v, near, u, -u, torch.zeros_like(u), v]
    kind = torch.randint(0, len(kinds), (n,), generator=g)
    v = torch.stack(kinds)[kind, torch.arange(n)]
    u = torch.where((kind == 5)[:, None], torch.zeros_like(u), u)
    return [u, v]


def points(n: int, d: int, seed: int, largest: float) -> list[Tensor]:
    c = torch.tensor(C, dtype=torch.float64)
    return [maps.exp_map0(u / C**0.5, c) for u in tangents(n, d, seed, largest)]


def point_and_tangent(n: int, d: int, seed: int, largest: float) -> list[Tensor]:
    """A point, and a tangent vector at it whose exponential map float32 can hold."""
    x, _ = points(n, d, seed, largest)
    v, _ = tangents(n, d, seed + 1, min(largest, 40.0))
    return [x, v]


def points_and_tangent(n: int, d: int, seed: int, largest: float) -> list[Tensor]:
    return [*points(n, d, seed, largest), tangents(n, d, seed + 1, largest)[0]]


def transported_terms(x: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """|v| (1 + |x| |y|): what v and the turn to y may cancel to."""
    return v.norm(dim=1) * (1 + x.norm(dim=1) * y.norm(dim=1))


def transported_slopes(x: Tensor, y: Tensor, v: Tensor) -> list[Tensor]:
    return [1 + transported_terms(x, y, v)] * 3


def poincare_slope(x: Tensor) -> list[Tensor]:
    """1 / (1 + cosh p), which the slope along x falls below by another such factor."""
    return [1 / (1 + torch.sqrt(1 + C * x.norm(dim=1) ** 2))]


def ball_terms(p: Tensor) -> Tensor:
    """|x| / (1 - sqrt(c) |p|): what the rounding of |p| becomes near the rim of the ball."""
    r = C**0.5 * p.norm(dim=1)
    return 2 * p.norm(dim=1) / ((1 - r) ** 2 * (1 + r))


def aperture_slope(tangent: bool, x: Tensor) -> list[Tensor]:
    """The slope -2K / (X sqrt(X^2 - 4K^2)), unbounded at X = 2K, times what the rounding of X becomes beside X - 2K."""
    p = C**0.5 * x.norm(dim=1)
    X, growth = (torch.sinh(p), torch.cosh(p)) if tangent else (p, 1)
    outside = X > 0.2
    X = torch.where(outside, X, 1)
    slope = C**0.5 * growth * 0.2 / (X * torch.sqrt(X**2 - 0.04)) * X / (X - 0.2)
    return [torch.where(outside, slope, 0)]


def angle_slopes(x: Tensor, y: Tensor) -> list[Tensor]:
    """1 / |x|: what turning a vector changes; moving it along its ray may change nothing."""
    return [1 / torch.where(n == 0, 1, n) for n in (x.norm(dim=1), y.norm(dim=1))]


def in_ball(n: int, d: int, seed: int, largest: float) -> list[Tensor]:
    u, _ = tangents(n, d, seed, largest)
    return [maps.lorentz_to_poincare(maps.exp_map0(u / C**0.5, torch.tensor(C)), torch.tensor(C))]


def first(make: Callable) -> Callable:
    return lambda *args: make(*args)[:1]


CASES = {
    "exp_map0": Case("exp_map0", first(tangents), (0.7, C)),
    "log_map0": Case("log_map0", first(points)),
    "exp_map": Case("exp_map", point_and_tangent, largest=20.0),
    # D / sinh D carries D roundings, and D such terms cancel in a radial gradient; D <= 2 radius
    "log_map": Case("log_map", points, gradient=lambda largest: max(1e-5, 2.0**-21 * (1 + 2 * largest) ** 2)),
    "parallel_transport": Case(
        "parallel_transport", points_and_tangent, largest=2.0, terms=transported_terms, slopes=transported_slopes
    ),
    "lift": Case("lift", first(points)),
    "lorentz_to_poincare": Case("lorentz_to_poincare", first(points), slopes=poincare_slope),
    "poincare_to_lorentz": Case("poincare_to_lorentz", in_ball, largest=4.0, terms=ball_terms),
    "inner": Case("inner", points),
    "distance-tangent": Case("distance", tangents, flags=(True,)),
    "distance-lorentz": Case("distance", points, flags=(False,)),
    "distance0-tangent": Case("distance0", first(tangents), flags=(True,)),
    "distance0-lorentz": Case("distance0", first(points), flags=(False,)),
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
    rows, columns = loss_operator.contrastive_terms([queries, keys], None, c, logit_scale, *options)
    return rows[0], columns[0, : len(queries) * pairing.symmetric]
