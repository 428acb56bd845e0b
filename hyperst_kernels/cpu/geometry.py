"""What the blocked loss needs to know of a geometry: one matrix product per tile, and what to make of it.

Every geometry writes its dissimilarity as d = f(z) with z_ij = left_i . right_j, so that a tile is one product and its
gradient two more. ``scale`` bounds the terms that cancel in z: where z is tiny beside it, digits are lost, and the
caller recomputes those entries from differences (``exact``).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hyperst_kernels.cpu import distance as rows
from hyperst_kernels.cpu.native import bindings
from hyperst_kernels.reference.contrastive import dissimilarity
from hyperst_kernels.reference.distance import distance_gradients
from hyperst_kernels.reference.flat import length, unit
from hyperst_kernels.reference.scalars import kappa, sinhc

# Numbers in the rows that row-wise functions see at a time: temporaries of this size stay in the last-level cache.
CHUNK_NUMBERS = 1 << 19


class Geometry(Protocol):
    """n queries, m keys, d features; operands have k = d + extra columns."""

    name: str
    extra: int
    native_units: tuple[float, float]  # of the distance and of the slope, by what the machine code calls so

    def left(self, features: Tensor, out: Tensor) -> None:
        """Fill the operand of the queries: (n d) -> (n k)."""

    def right(self, features: Tensor, out: Tensor) -> None:
        """Fill the operand of the keys: (m d) -> (m k)."""

    def add_left_gradient(self, features: Tensor, grad: Tensor, out: Tensor) -> None:
        """Add the gradient of the features (n d) to out (n d), from that of their left operand (n k)."""

    def add_right_gradient(self, features: Tensor, grad: Tensor, out: Tensor) -> None:
        """Add the gradient of the features (m d) to out (m d), from that of their right operand (m k)."""

    def scale(self, left: Tensor, right: Tensor) -> Tensor:
        """Size of the terms that cancel in z: (n k), (m k) -> (n m)."""

    def distance(self, z: Tensor, out: Tensor, slope: Tensor | None, work: Tensor) -> None:
        """out = f(z) and, where given, slope = 1 / f'(z), without allocating; z and work are overwritten.

        All in one piece.
        """

    def product(self, distance: Tensor) -> Tensor:
        """z of given distances: the inverse of f."""

    def exact(self, x: Tensor, y: Tensor) -> Tensor:
        """Dissimilarity of matching rows from differences: (r d), (r d) -> (r)."""

    def add_exact_gradients(self, weights: Tensor, x: Tensor, y: Tensor, dx: Tensor, dy: Tensor) -> None:
        """Add weights (r) times its gradients to dx, dy (r d)."""


class Lorentz:
    """z = H = sinh^2(sqrt(c) d / 2) = (a b + a + b - X.Y) / 2, with X = sqrt(c) x and a = sqrt(1 + |X|^2) - 1."""

    name = "lorentz"
    extra = 2

    def __init__(self, c: Tensor, tangent: bool):
        self.c, self.tangent = c, tangent
        self.unit = float(c) ** -0.5
        self.native_units = 2 * self.unit, self.unit

    def _rows(self, features: Tensor) -> tuple:
        """Arguments of the functions in machine code."""
        features = bindings.rows(features)
        return features, features.stride(0), *features.shape, float(self.c) ** 0.5, self.tangent

    def _growth(self, square: Tensor) -> Tensor:
        """X = growth x, from |x|^2 (n 1)."""
        return self.c.sqrt() * sinhc(self.c * square) if self.tangent else self.c.sqrt().expand_as(square)

    def left(self, features: Tensor, out: Tensor) -> None:
        if bindings.usable(features):
            bindings.call("operand", *self._rows(features), True, out, out.stride(0))
            return
        half_X = torch.mul(features, -self._growth(_square(features)) / 2, out=out[:, :-2])
        out[:, -2:-1] = _excess(4 * _square(half_X)) / 2
        out[:, -1] = 0.5

    def right(self, features: Tensor, out: Tensor) -> None:
        if bindings.usable(features):
            bindings.call("operand", *self._rows(features), False, out, out.stride(0))
            return
        Y = torch.mul(features, self._growth(_square(features)), out=out[:, :-2])
        out[:, -1:] = _excess(_square(Y))
        torch.add(out[:, -1], 1, out=out[:, -2])

    def add_left_gradient(self, features: Tensor, grad: Tensor, out: Tensor) -> None:
        if bindings.usable(features):
            bindings.call("operand_slopes", *self._rows(features), True, grad, grad.stride(0), out, out.stride(0))
        else:
            self._add_gradient(features, grad[:, :-2], -0.5, grad[:, -2:-1] / 2, out)

    def add_right_gradient(self, features: Tensor, grad: Tensor, out: Tensor) -> None:
        if bindings.usable(features):
            bindings.call("operand_slopes", *self._rows(features), False, grad, grad.stride(0), out, out.stride(0))
        else:
            self._add_gradient(features, grad[:, :-2], 1, grad[:, -2:-1] + grad[:, -1:], out)

    def _add_gradient(self, features: Tensor, along: Tensor, factor: float, excess: Tensor, out: Tensor) -> None:
        """From dL/dX = factor along + excess X / (a + 1): a combination of the rows of ``along`` and of the features."""
        square = _square(features)
        growth = self._growth(square)
        of_features = excess * growth / torch.sqrt(1 + growth * growth * square)
        if self.tangent:
            # d growth / dx = c sqrt(c) kappa x, times <x, dL/dX>
            radial = factor * inner(features, along) + of_features * square
            of_features = growth * of_features + self.c * self.c.sqrt() * kappa(self.c * square) * radial
        else:
            of_features = growth * of_features
        out.addcmul_(factor * growth, along).addcmul_(of_features, features)

    def scale(self, left: Tensor, right: Tensor) -> Tensor:
        return left[:, -2:-1] * right[:, -2] + right[:, -1] / 2

    def distance(self, z: Tensor, out: Tensor, slope: Tensor | None, work: Tensor) -> None:
        if bindings.usable(z):
            bindings.call("distances", z, z.numel(), 2 * self.unit, out, 1 / self.unit, slope)
            return
        # asinh(sqrt z) = log1p(sqrt z + z / (1 + sqrt(1 + z))), accurate for the smallest z
        torch.sqrt(z, out=work)
        torch.add(z, 1, out=out).sqrt_()
        if slope is not None:
            torch.mul(work, out, out=slope).div_(self.unit)
        z.div_(out.add_(1)).add_(work)
        torch.log1p(z, out=out).mul_(2 * self.unit)

    def product(self, distance: Tensor) -> Tensor:
        return torch.sinh(distance / (2 * self.unit)) ** 2

    def weigh(self, distance: Tensor, grad: Tensor, out: Tensor) -> tuple[Tensor, float]:
        """Fill out with gradients by z from those by distances, all (n m).

        Returns the least distance of each row (n), and the sum of gradient times distance.
        """
        if not bindings.usable(distance):
            torch.div(grad, torch.sinh(distance / self.unit), out=out).mul_(2 * self.unit)
            return distance.amin(1), float(inner(grad, distance).sum(dtype=torch.float64))
        distance, grad = bindings.rows(distance), bindings.rows(grad)
        least, along = distance.new_empty(len(distance)), distance.new_empty(len(distance), dtype=torch.float64)
        places = distance, distance.stride(0), grad, grad.stride(0), *distance.shape
        bindings.call("weights", *places, self.unit, out, least, along)
        return least, float(along.sum())

    def exact(self, x: Tensor, y: Tensor) -> Tensor:
        if bindings.usable(x):
            return rows.distance(x, y, self.c, self.tangent)
        return dissimilarity(x, y, self.c, "tangent" if self.tangent else "lorentz", "lorentz", pairwise=False)

    def add_exact_gradients(self, weights: Tensor, x: Tensor, y: Tensor, dx: Tensor, dy: Tensor) -> None:
        if bindings.usable(x):
            rows.add_distance_gradients(weights, x, y, self.c, self.tangent, dx, dy)
        else:
            of_x, of_y = distance_gradients(x, y, self.c, self.tangent)[:2]
            dx.addcmul_(weights[:, None], of_x)
            dy.addcmul_(weights[:, None], of_y)


class Euclidean:
    """z = d^2 = |x|^2 + |y|^2 - 2 x.y."""

    name = "euclidean"
    extra = 2
    native_units = 1.0, 0.5

    def left(self, features: Tensor, out: Tensor) -> None:
        torch.mul(features, -2, out=out[:, :-2])
        out[:, -2:-1] = _square(features)
        out[:, -1] = 1

    def right(self, features: Tensor, out: Tensor) -> None:
        out[:, :-2] = features
        out[:, -2] = 1
        out[:, -1:] = _square(features)

    def add_left_gradient(self, features: Tensor, grad: Tensor, out: Tensor) -> None:
        out.sub_(grad[:, :-2], alpha=2).addcmul_(features, grad[:, -2:-1], value=2)

    def add_right_gradient(self, features: Tensor, grad: Tensor, out: Tensor) -> None:
        out.add_(grad[:, :-2]).addcmul_(features, grad[:, -1:], value=2)

    def scale(self, left: Tensor, right: Tensor) -> Tensor:
        return left[:, -2:-1] + right[:, -1]

    def distance(self, z: Tensor, out: Tensor, slope: Tensor | None, work: Tensor) -> None:
        torch.sqrt(z, out=out)
        if slope is not None:
            torch.mul(out, 2, out=slope)

    def product(self, distance: Tensor) -> Tensor:
        return distance**2

    def exact(self, x: Tensor, y: Tensor) -> Tensor:
        return length(x - y)[:, 0]

    def add_exact_gradients(self, weights: Tensor, x: Tensor, y: Tensor, dx: Tensor, dy: Tensor) -> None:
        w = x - y
        along = weights[:, None] * unit(w)
        dx.add_(along)
        dy.sub_(along)


class Cosine:
    """z = d = 1 - cos(x, y): logits are the cosine similarity times the logit scale, less a constant."""

    name = "cosine"
    extra = 1
    native_units = 1.0, 1.0

    def left(self, features: Tensor, out: Tensor) -> None:
        torch.neg(unit(features), out=out[:, :-1])
        out[:, -1] = 1

    def right(self, features: Tensor, out: Tensor) -> None:
        out[:, :-1] = unit(features)
        out[:, -1] = 1

    def add_left_gradient(self, features: Tensor, grad: Tensor, out: Tensor) -> None:
        self._add_gradient(features, grad[:, :-1], -1, out)

    def add_right_gradient(self, features: Tensor, grad: Tensor, out: Tensor) -> None:
        self._add_gradient(features, grad[:, :-1], 1, out)

    def _add_gradient(self, features: Tensor, grad: Tensor, sign: int, out: Tensor) -> None:
        """sign times the gradient of x from that of the unit vector x / |x|: 0 at the origin."""
        size, direction = length(features), unit(features)
        factor = torch.where(size == 0, torch.zeros_like(size), sign / size)
        out.addcmul_(factor, grad).addcmul_(-factor * inner(direction, grad), direction)

    def scale(self, left: Tensor, right: Tensor) -> Tensor:
        # z is used as it is: an absolute error of one rounding needs no repair
        return torch.zeros_like(left[:, :1]) * right[:, -1]

    def distance(self, z: Tensor, out: Tensor, slope: Tensor | None, work: Tensor) -> None:
        out.copy_(z)
        if slope is not None:
            slope.fill_(1)

    def product(self, distance: Tensor) -> Tensor:
        return distance

    def exact(self, x: Tensor, y: Tensor) -> Tensor:
        return dissimilarity(x, y, x.new_ones(()), "tangent", "cosine", pairwise=False)

    def add_exact_gradients(self, weights: Tensor, x: Tensor, y: Tensor, dx: Tensor, dy: Tensor) -> None:
        unit_x, unit_y = (weights[:, None] * unit(t) for t in (x, y))
        self._add_gradient(x, unit_y, -1, dx)
        self._add_gradient(y, unit_x, -1, dy)


def _square(vectors: Tensor) -> Tensor:
    """|x|^2: (n d) -> (n 1)."""
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True) ** 2


def inner(x: Tensor, y: Tensor) -> Tensor:
    """<x, y> of matching rows: (n d), (n d) -> (n 1). In pieces, for the products of all numbers are a temporary."""
    rows = max(1, CHUNK_NUMBERS // x.shape[1])
    return torch.cat([torch.linalg.vecdot(*some) for some in zip(x.split(rows), y.split(rows), strict=True)])[:, None]


def _excess(square: Tensor) -> Tensor:
    """sqrt(1 + |X|^2) - 1 without cancellation."""
    return square / (1 + torch.sqrt(1 + square))


def geometry_of(name: str, c: Tensor, tangent: bool) -> Geometry:
    """The geometry called ``name``: "lorentz", "euclidean" or "cosine"."""
    if name == "lorentz":
        return Lorentz(c, tangent)
    return Euclidean() if name == "euclidean" else Cosine()
