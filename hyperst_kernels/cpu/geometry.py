"""What the blocked loss needs to know of a geometry: one matrix product per tile, and what to make of it.

Every geometry writes its dissimilarity as d = f(z) with z_ij = left_i . right_j, so that a tile is one product and its
gradient two more. ``scale`` bounds the terms that cancel in z: where z is tiny beside it, digits are lost, and the
caller recomputes those entries from differences (``exact``).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hyperst_kernels.reference.contrastive import dissimilarity
from hyperst_kernels.reference.distance import distance_gradients
from hyperst_kernels.reference.scalars import kappa, sinhc


class Geometry(Protocol):
    """n queries, m keys, d features; operands have k columns."""

    def left(self, features: Tensor) -> Tensor:
        """(n d) -> (n k)."""

    def right(self, features: Tensor) -> Tensor:
        """(m d) -> (m k)."""

    def left_gradient(self, features: Tensor, grad: Tensor) -> Tensor:
        """Gradient of the features (n d) from that of their left operand (n k)."""

    def right_gradient(self, features: Tensor, grad: Tensor) -> Tensor:
        """Gradient of the features (m d) from that of their right operand (m k)."""

    def scale(self, left: Tensor, right: Tensor) -> Tensor:
        """Size of the terms that cancel in z: (n k), (m k) -> (n m)."""

    def distance(self, z: Tensor, out: Tensor, slope: Tensor | None, work: Tensor) -> None:
        """out = f(z) and, where given, slope = 1 / f'(z), without allocating; z and work are overwritten."""

    def exact(self, x: Tensor, y: Tensor) -> Tensor:
        """Dissimilarity of matching rows from differences: (r d), (r d) -> (r)."""

    def exact_gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Its gradients: (r d), (r d)."""


class Lorentz:
    """z = H = sinh^2(sqrt(c) d / 2) = (a b + a + b - X.Y) / 2, with X = sqrt(c) x and a = sqrt(1 + |X|^2) - 1."""

    def __init__(self, c: Tensor, tangent: bool):
        self.c, self.tangent = c, tangent
        self.unit = float(c) ** -0.5

    def _points(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """X (n d) on the unit hyperboloid and a (n 1), a from the ROUNDED X so that the two agree."""
        X = self.c.sqrt() * features
        if self.tangent:
            X = X * sinhc((X * X).sum(-1, keepdim=True))
        square = (X * X).sum(-1, keepdim=True)
        return X, square / (1 + torch.sqrt(1 + square))

    def left(self, features: Tensor) -> Tensor:
        X, a = self._points(features)
        return torch.cat([-X / 2, a / 2, torch.full_like(a, 0.5)], 1)

    def right(self, features: Tensor) -> Tensor:
        Y, b = self._points(features)
        return torch.cat([Y, b + 1, b], 1)

    def left_gradient(self, features: Tensor, grad: Tensor) -> Tensor:
        X, a = self._points(features)
        return self._to_features(features, (X * (grad[:, -2:-1] / (a + 1)) - grad[:, :-2]) / 2)

    def right_gradient(self, features: Tensor, grad: Tensor) -> Tensor:
        Y, b = self._points(features)
        return self._to_features(features, grad[:, :-2] + Y * ((grad[:, -2:-1] + grad[:, -1:]) / (b + 1)))

    def _to_features(self, features: Tensor, grad: Tensor) -> Tensor:
        if self.tangent:
            square = self.c * (features * features).sum(-1, keepdim=True)
            radial = self.c * kappa(square) * (features * grad).sum(-1, keepdim=True)
            grad = sinhc(square) * grad + radial * features
        return self.c.sqrt() * grad

    def scale(self, left: Tensor, right: Tensor) -> Tensor:
        return left[:, -2:-1] * right[:, -2] + right[:, -1] / 2

    def distance(self, z: Tensor, out: Tensor, slope: Tensor | None, work: Tensor) -> None:
        # asinh(sqrt z) = log1p(sqrt z + z / (1 + sqrt(1 + z))), accurate for the smallest z
        torch.sqrt(z, out=work)
        torch.add(z, 1, out=out).sqrt_()
        if slope is not None:
            torch.mul(work, out, out=slope).div_(self.unit)
        z.div_(out.add_(1)).add_(work)
        torch.log1p(z, out=out).mul_(2 * self.unit)

    def exact(self, x: Tensor, y: Tensor) -> Tensor:
        return dissimilarity(x, y, self.c, "tangent" if self.tangent else "lorentz", "lorentz", pairwise=False)

    def exact_gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return distance_gradients(x, y, self.c, self.tangent)[:2]


class Euclidean:
    """z = d^2 = |x|^2 + |y|^2 - 2 x.y."""

    def left(self, features: Tensor) -> Tensor:
        square = (features * features).sum(-1, keepdim=True)
        return torch.cat([-2 * features, square, torch.ones_like(square)], 1)

    def right(self, features: Tensor) -> Tensor:
        square = (features * features).sum(-1, keepdim=True)
        return torch.cat([features, torch.ones_like(square), square], 1)

    def left_gradient(self, features: Tensor, grad: Tensor) -> Tensor:
        return 2 * (features * grad[:, -2:-1] - grad[:, :-2])

    def right_gradient(self, features: Tensor, grad: Tensor) -> Tensor:
        return grad[:, :-2] + 2 * features * grad[:, -1:]

    def scale(self, left: Tensor, right: Tensor) -> Tensor:
        return left[:, -2:-1] + right[:, -1]

    def distance(self, z: Tensor, out: Tensor, slope: Tensor | None, work: Tensor) -> None:
        torch.sqrt(z, out=out)
        if slope is not None:
            torch.mul(out, 2, out=slope)

    def exact(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x - y, dim=-1)

    def exact_gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        w = x - y
        norm = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
        unit = w / torch.where(norm == 0, torch.ones_like(norm), norm)
        return unit, -unit


class Cosine:
    """z = d = 1 - cos(x, y): logits are the cosine similarity times the logit scale, less a constant."""

    def left(self, features: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(features, dim=-1)
        return torch.cat([-unit, torch.ones_like(unit[:, :1])], 1)

    def right(self, features: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(features, dim=-1)
        return torch.cat([unit, torch.ones_like(unit[:, :1])], 1)

    def left_gradient(self, features: Tensor, grad: Tensor) -> Tensor:
        return -self._to_features(features, grad[:, :-1])

    def right_gradient(self, features: Tensor, grad: Tensor) -> Tensor:
        return self._to_features(features, grad[:, :-1])

    def scale(self, left: Tensor, right: Tensor) -> Tensor:
        # z is used as it is: an absolute error of one rounding needs no repair
        return torch.zeros_like(left[:, :1]) * right[:, -1]

    def _to_features(self, features: Tensor, grad: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True).clamp(min=1e-12)
        unit = features / norm
        return (grad - unit * (unit * grad).sum(-1, keepdim=True)) / norm

    def distance(self, z: Tensor, out: Tensor, slope: Tensor | None, work: Tensor) -> None:
        out.copy_(z)
        if slope is not None:
            slope.fill_(1)

    def exact(self, x: Tensor, y: Tensor) -> Tensor:
        return dissimilarity(x, y, x.new_ones(()), "tangent", "cosine", pairwise=False)

    def exact_gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        unit_x, unit_y = (torch.nn.functional.normalize(t, dim=-1) for t in (x, y))
        return self._to_features(x, -unit_y), self._to_features(y, -unit_x)


def geometry_of(name: str, c: Tensor, tangent: bool) -> Geometry:
    """The geometry called ``name``: "lorentz", "euclidean" or "cosine"."""
    if name == "lorentz":
        return Lorentz(c, tangent)
    return Euclidean() if name == "euclidean" else Cosine()
