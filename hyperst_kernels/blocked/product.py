"""Distances in a product of hyperbolic spaces: features (n d) are cut into k factors of d / k, each with a curvature of its own.

The distance is the sum of those of the factors, or the root of the sum of their squares, which is the geodesic one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels._constants import PRODUCTS
from hyperst_kernels.operators import distance


def factors(x: Tensor, c: Tensor) -> list[Tensor]:
    """Features (n d) of each curvature (k): k of (n d/k), in one piece."""
    return [part.contiguous() for part in x.chunk(len(c), 1)]


def combined(distances: list[Tensor], name: str, out: Tensor) -> Tensor:
    """Put the distance of a product into ``out``, from those of its factors."""
    out.copy_(distances[0])
    for more in distances[1:]:
        # squares might vanish
        out.add_(more) if name == PRODUCTS[0] else torch.hypot(out, more, out=out)
    return out


def shared(grad: Tensor, whole: Tensor, name: str) -> Tensor:
    """What is the same in the gradients by the distances of all factors; overwrites that by the distances of the product."""
    return grad if name == PRODUCTS[0] else grad.div_(whole).masked_fill_(whole == 0, 0)  # 0 where points coincide


def slope(shared: Tensor, own: Tensor, name: str, out: Tensor) -> Tensor:
    """Put the gradient by the distances of a factor into ``out``."""
    return out.copy_(shared) if name == PRODUCTS[0] else torch.mul(shared, own, out=out)


def values(queries: Tensor, keys: Tensor, c: Tensor, tangent: bool, precision: str, name: str) -> Tensor:
    """Distances of a block: (r d), (w d), (k) -> (r w)."""
    return combined(_of_factors(queries, keys, c, tangent, precision), name, c.new_empty(len(queries), len(keys)))


def _of_factors(queries: Tensor, keys: Tensor, c: Tensor, tangent: bool, precision: str) -> list[Tensor]:
    parts = zip(factors(queries, c), factors(keys, c), c, strict=True)
    return [distance.matrix(*part, tangent, precision) for part in parts]


def gradients(
    grad: Tensor, queries: Tensor, keys: Tensor, c: Tensor, whole: Tensor, tangent: bool, precision: str, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries (r d), keys (w d) and c (k) from that of `values`, which are ``whole``."""
    own = _of_factors(queries, keys, c, tangent, precision)
    alike, found = shared(grad.clone(), whole, name), []
    for x, y, some, apart in zip(factors(queries, c), factors(keys, c), c, own, strict=True):
        by_distance = slope(alike, apart, name, torch.empty_like(whole))
        found.append(distance.matrix_backward(by_distance, x, y, some, apart, tangent, precision))
    dx, dy, dc = zip(*found, strict=True)
    return torch.cat(dx, 1), torch.cat(dy, 1), torch.stack(dc)
