"""Errors in float32 over the regions where hyperbolic geometry is hardest.

Distances and their gradients against 100-digit arithmetic, over radius and separation; the contrastive loss and its gradient
against float64, over logit scale and separation of the positive pairs. Separation is |u - v| / |u| of tangent vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import mpmath
import torch
from torch import Tensor

from benchmarks import contrastive, distance, oracle, peers
from benchmarks.measure import describe, error, errors
from benchmarks.problem import OURS, Problem, Step
from benchmarks.results import Row

RADII = (1e-3, 1e-2, 0.1, 1.0, 3.0, 5.0, 10.0, 20.0)
SEPARATIONS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
SCALES = (5.0, 14.0, 30.0, 60.0, 100.0)
PAIR_SEPARATIONS = (1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0)
MATRIX = ", matrix"  # suffix of a provider: its matrix of all distances, of which the pairs are the diagonal
OTHERS = (peers.GEOOPT, peers.GEOOPT_BALL, peers.HYPLL, peers.HYPERBOLIX)
N, D = 12, 4
LOSS_N, LOSS_D = 128, 32
DISTANCE, LOSS = "distance accuracy", "loss accuracy"


def exact_distance(u: Tensor, v: Tensor) -> tuple[float, list[float]]:
    """Geodesic distance of the points that tangent vectors u, v (d) reach, c = 1, and its gradient by u."""
    with mpmath.workdps(100):
        child = oracle.exp_map0(oracle.vector(v), mpmath.mpf(1))
        parent = oracle.vector(u)
        step = mpmath.mpf(10) ** -30 * oracle.norm(parent)

        def at(k: int, moved: mpmath.mpf) -> mpmath.mpf:
            point = [x + moved * (k == i) for i, x in enumerate(parent)]
            return oracle.distance(oracle.exp_map0(point, mpmath.mpf(1)), child, mpmath.mpf(1))

        slopes = [(at(k, step) - at(k, -step)) / (2 * step) for k in range(len(parent))]
        return float(at(0, mpmath.mpf(0))), [float(slope) for slope in slopes]


def diagonal(problem: Problem, provider: str) -> Step:
    """The distances of matching rows out of the matrix of all."""
    function = problem.factories[provider]()
    return Step(lambda u, v: function(u, v).diagonal(), problem.inputs)


def distance_errors(radii: tuple[float, ...] = RADII, separations: tuple[float, ...] = SEPARATIONS) -> Iterator[Row]:
    """Worst error of a cell of radius x separation, and how many of its pairs are not finite, for every library."""
    for radius in radii:
        for separation in separations:
            rows = distance.setup("distance", N, D, radius=radius, separation=separation)
            rows.factories[peers.HYPERBOLIX] = peers.hyperbolix_distance
            matrix = distance.setup("pairwise_distance", N, D, radius=radius, separation=separation)
            truth = [exact_distance(u, v) for u, v in zip(*rows.inputs, strict=True)]
            value, slope = (torch.tensor(part, dtype=torch.float64) for part in zip(*truth, strict=True))
            upstream = torch.rand(N, generator=torch.Generator().manual_seed(1)).double()  # that of `Step`
            want = value[:, None], slope * upstream[:, None]
            steps: dict[str, Callable[[], Step]] = {
                OURS: partial(rows.step, OURS),
                OURS + MATRIX: partial(diagonal, matrix, OURS),
                peers.EAGER: partial(rows.step, peers.EAGER),
                peers.EAGER + MATRIX: partial(diagonal, matrix, peers.EAGER),
                **{name: partial(rows.step, name) for name in OTHERS},
            }
            about: dict[str, Any] = {"n": N, "d": D, "dtype": "float32", "operation": DISTANCE}
            about["setting"] = f"radius={radius:g} separation={separation:g}"
            for name, make in steps.items():
                yield from _cell(make, want, {**about, "provider": name})


def _cell(make: Callable[[], Step], want: tuple[Tensor, Tensor], about: dict) -> Iterator[Row]:
    try:
        step = make()
    except ImportError as missing:
        yield Row(**about, metric="error value", note=describe(missing))
        return
    value = step.forward().detach()[:, None]
    gradient = step.backward()[0]
    assert gradient is not None
    for metric, ours, exact in zip(("value", "gradient"), (value, gradient), want, strict=True):
        worst, bad = error(ours, exact)
        yield Row.of([worst], **about, metric=f"error {metric}")
        yield Row.of([bad], **about, metric=f"not finite {metric}")


def loss_errors(scales: tuple[float, ...] = SCALES, separations: tuple[float, ...] = PAIR_SEPARATIONS) -> Iterator[Row]:
    """The same for the contrastive loss, ours and the textbook's, over logit scale x separation of the positives."""
    for scale in scales:
        for separation in separations:
            problem = contrastive.setup("contrastive_loss", LOSS_N, LOSS_D, separation=separation, logit_scale=scale)
            about: dict[str, Any] = {"operation": LOSS, "n": LOSS_N, "d": LOSS_D, "dtype": "float32"}
            about["setting"] = f"scale={scale:g} separation={separation:g}"
            yield from errors(problem, about, (OURS, peers.EAGER))
