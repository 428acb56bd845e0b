"""What the product of float32 rows leaves open where it is three products of bf16 halves, "bf16x3", as a GPU takes it.

A half is 2^-8 off, what is left of it after the second half 2^-16, and the product of the two second halves is left out:
up to three times 2^-16 |x_k y_k| in each feature, of any sign. The interpreter does so in "approximate" arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor

from hyperst_kernels.reference import contrastive, maps
from hyperst_kernels.reference.distance import pairwise_distance

WORST = 3 * 2.0**-16


def distance_from_halves(near: float, signs: Tensor, x: Tensor, y: Tensor, c: Tensor, input: str) -> Tensor:
    """Distances in float64 whose cosh is off by half of the worst, with these signs (n m); nearer pairs than ``near`` are exact.

    Half, because tests take twice what such a change does. ``near`` is the least z = cosh - 1 that a kernel takes from a
    product, as a share of what the product is subtracted from.
    """
    exact = pairwise_distance(x, y, c, input)
    points = [maps.exp_map0(v, c) if input == "tangent" else v for v in (x.detach(), y.detach())]
    products = c.detach() * (points[0].abs() @ points[1].abs().T)
    squares = [c.detach() * v.square().sum(1) for v in points]
    a, b = (square / (1 + (1 + square).sqrt()) for square in squares)
    z = 2 * torch.sinh(c.sqrt() * exact / 2) ** 2
    far = z > near * (a[:, None] + b + a[:, None] * b)
    moved = torch.where(far, z + WORST / 2 * signs * products, 1)
    return torch.where(far, torch.log1p(moved + (moved * (moved + 2)).sqrt()) / c.sqrt(), exact)


def random_signs(n: int, m: int) -> Tensor:
    return torch.randint(0, 2, (n, m), generator=torch.Generator().manual_seed(0)).double() * 2 - 1


def moved_losses(compute: Callable[[], list[Tensor]], near: float) -> list[list[Tensor]]:
    """What ``compute`` makes of the reference's losses over such distances: all larger, and some larger and some smaller."""
    found = []
    for signs in (torch.ones, random_signs):

        def pairwise(x: Tensor, y: Tensor, c: Tensor, input: str) -> Tensor:
            return distance_from_halves(near, signs(len(x), len(y)), x, y, c, input)  # noqa: B023

        with mock.patch.object(contrastive, "pairwise_distance", pairwise):
            found.append(compute())
    return found
