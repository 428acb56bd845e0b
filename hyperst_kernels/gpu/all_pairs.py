"""Distances of all pairs of a loss on a GPU, a block at a time, from library products of operands that are prepared once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from hyperst_kernels.blocked.blocks import Fill, blocks
from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.distance_matrix import CANCELLED, Operand, _distances, repair, row_stats
from hyperst_kernels.gpu.distance_matrix_backward import MatrixGradient
from hyperst_kernels.gpu.exact_pairs import Vectors
from hyperst_kernels.gpu.split_products import parts_of, parts_of_weights, product

SIDE = (8192, 8192)  # rows and columns of a block: three matrices of its size are in memory
TILE = 64  # rows and columns whose distances a program puts in the place of products


class LorentzPairs:
    """`hyperst_kernels.blocked.blocks.AllPairs` in the Lorentz model.

    In every precision but "ieee" a float32 product is three products of bf16 halves, for "bf16" one, in one library call.
    """

    def __init__(self, queries: Tensor, keys: Tensor, c: Tensor, tangent: bool, precision: str):
        self.c, self.tangent, self.precision = c, tangent, precision
        self.queries, self.keys = launch.unit_stride(queries), launch.unit_stride(keys)
        self.stats = [row_stats(x, c, tangent, precision) for x in (self.queries, self.keys)]
        self.left, self.right = self.queries, self.keys
        if parts_of_weights(c.dtype, precision):
            (high, low), (other, rest) = (parts_of(x, torch.bfloat16, 2) for x in (self.queries, self.keys))
            self.left, self.right = high, other
            if precision != "bf16":
                self.left, self.right = torch.cat([high, low, high], 1), torch.cat([other, other, rest], 1)

    def blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        c = self.c
        for rows, columns in blocks(len(self.queries), len(self.keys), c.device, SIDE):
            with launch.on_device_of(c):
                out = product(self.left[rows], self.right[columns].T)
                (norm_x, scale_x, a), (norm_y, scale_y, b) = (
                    [number[some] for number in stats] for stats, some in zip(self.stats, (rows, columns), strict=True)
                )
                (n, m), d, x, y = out.shape, self.queries.shape[1], self.queries[rows], self.keys[columns]
                tiles = (triton.cdiv(n, TILE), triton.cdiv(m, TILE))
                cancelled = torch.empty(tiles, dtype=torch.int8, device=c.device)
                _distances[(tiles[0] * tiles[1],)](
                    Operand(x, x.stride(0), n, scale_x, a), Operand(y, y.stride(0), m, scale_y, b), c, out, cancelled,
                    CANCELLED[c.dtype], DTYPE=launch.triton_dtype(c.dtype), TILE=TILE, **launch.OPTIONS,
                )  # fmt: skip
                vectors = Vectors(x, x.stride(0), n, norm_x), Vectors(y, y.stride(0), m, norm_y)
                repair(*vectors, c, out, cancelled, d, self.tangent, (TILE, TILE))
            yield rows, columns, out

    def gradients(self, fill: Fill) -> tuple[Tensor, Tensor, Tensor]:
        with launch.on_device_of(self.c):
            gradient = MatrixGradient(self.queries, self.keys, self.c, self.tangent, self.precision)
        for rows, columns, values in self.blocks():
            grad = torch.empty_like(values)
            fill(rows, columns, values, grad)
            with launch.on_device_of(self.c):
                gradient.add(rows, columns, values, grad)
        with launch.on_device_of(self.c):
            return gradient.finish()
