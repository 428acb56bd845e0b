"""Blocks of the matrix of all pairs: where they begin and end, and the distances of a geometry in one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hyperst_kernels._constants import PRODUCTS
from hyperst_kernels.blocked import angle, flat, product
from hyperst_kernels.operators import distance

# Rows and columns: a block and what is made of it stay in the cache of a CPU; a GPU wants work for all its processors, and
# PyTorch calls make twenty matrices of one block.
SIDE = {"cpu": (256, 2048)}
OTHERWISE = (4096, 4096)


def blocks(
    n: int, m: int, device: torch.device, otherwise: tuple[int, int] = OTHERWISE
) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the blocks of a matrix (n m), row by row of blocks."""
    height, width = SIDE.get(device.type, otherwise)
    for i in range(0, n, height):
        for j in range(0, m, width):
            yield slice(i, min(i + height, n)), slice(j, min(j + width, m))


class Geometry(NamedTuple):
    """How far rows of a block are apart: "lorentz", "euclidean", "cosine" (1 - cosine of unit vectors or 0), "angle", or one of
    the `PRODUCTS`, with a curvature of each factor."""

    name: str
    tangent: bool
    precision: str

    def values(self, queries: Tensor, keys: Tensor, c: Tensor) -> Tensor:
        """Distances, or exterior angles at the queries: (r d), (w d) -> (r w)."""
        if self.name == "lorentz":
            return distance.matrix(queries, keys, c, self.tangent, self.precision)
        if self.name == "angle":
            return angle.values(queries, keys, c, self.tangent)
        if self.name in PRODUCTS:
            return product.values(queries, keys, c, self.tangent, self.precision, self.name)
        if self.name == "cosine":
            return flat.cosine(queries, keys)
        return flat.euclidean(queries, keys)

    def gradients(
        self, grad: Tensor, queries: Tensor, keys: Tensor, c: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries (r d), keys (w d) and c () from that of ``values``."""
        if self.name == "lorentz":
            return distance.matrix_backward(grad, queries, keys, c, values, self.tangent, self.precision)
        if self.name == "angle":
            return angle.gradients(grad, queries, keys, c, self.tangent)
        if self.name in PRODUCTS:
            return product.gradients(grad, queries, keys, c, values, self.tangent, self.precision, self.name)
        if self.name == "cosine":
            return -grad @ keys, -grad.T @ queries, torch.zeros_like(c)
        return *flat.euclidean_gradients(grad, queries, keys, values), torch.zeros_like(c)


Fill = Callable[[slice, slice, Tensor, Tensor], object]  # (rows, columns, distances, out) puts a gradient into out


class AllPairs(Protocol):
    """Distances of all pairs, a block at a time."""

    def blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, columns and distances (r w) of each block, in one piece; the next one may overwrite it."""

    def gradients(self, fill: Fill) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries (n d), keys (m d) and c (), from those of distances, which ``fill`` puts into place."""


class BlockedPairs(NamedTuple):
    """`AllPairs` of any geometry on any device."""

    queries: Tensor
    keys: Tensor
    c: Tensor
    geometry: Geometry

    def blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        for rows, columns in blocks(len(self.queries), len(self.keys), self.queries.device):
            yield rows, columns, self.geometry.values(self.queries[rows], self.keys[columns], self.c).contiguous()

    def gradients(self, fill: Fill) -> tuple[Tensor, Tensor, Tensor]:
        d_queries, d_keys = torch.zeros_like(self.queries), torch.zeros_like(self.keys)
        dc = torch.zeros_like(self.c, dtype=torch.float64)
        for rows, columns, values in self.blocks():
            grad = torch.empty_like(values)
            fill(rows, columns, values, grad)
            found = self.geometry.gradients(grad, self.queries[rows], self.keys[columns], self.c, values)
            d_queries[rows] += found[0]
            d_keys[columns] += found[1]
            dc = dc + found[2].double()
        return d_queries, d_keys, dc
