"""What to make of a tile of products z: running log-sum-exps in the forward pass, dL/dz in the backward pass.

z = +inf marks a key that is no negative of its row. There is one epilogue in PyTorch calls, for any dtype and device, and
one in machine code.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hyperst_kernels.cpu import native, tiles
from hyperst_kernels.cpu.geometry import Euclidean, Geometry, Lorentz

# Measured on two cores: products want larger tiles than a sequence of PyTorch calls (`tiles`), and the native functions
# keep what they need again in the first-level cache.
NATIVE_ROWS, NATIVE_COLUMNS = 512, 4096
CHUNK = 256  # columns of a tile that a thread takes at a time: that of native.cpp


class Upstream(NamedTuple):
    """Log-sum-exp with the positive, and gradient of the loss, of each row (n) and, unless None, each column (m)."""

    row_lse: Tensor
    row_grad: Tensor
    column_lse: Tensor | None
    column_grad: Tensor | None


class Epilogue(Protocol):
    """One pass over the tiles; ``shape`` is that of the tiles it is quickest on."""

    shape: tuple[int, int]

    def minima(self, z: Tensor) -> Tensor:
        """Smallest z of each row: (r w) -> (r)."""

    def add(self, rows: slice, columns: slice, z: Tensor) -> None:
        """Take a tile (r w), which stays as it is, into the sums."""

    def log_sum_exps(self) -> tuple[Tensor, Tensor]:
        """Over what was added, for each row (n) and each column (m, or 0 if columns have no loss)."""

    def weigh(self, rows: slice, columns: slice, z: Tensor, upstream: Upstream, out: Tensor) -> float:
        """out (r w) = dL/dz, in place of z or not; returns the sum of dL/dlogit times distance."""


class PortableEpilogue:
    """In PyTorch calls on preallocated buffers of a tile's size."""

    def __init__(self, geometry: Geometry, like: Tensor, n: int, m: int, scale: float, symmetric: bool):
        self.geometry, self.scale = geometry, scale
        self.shape = (tiles.TILE_ROWS, tiles.TILE_COLUMNS)
        self.rows = _RunningLogSumExp(like, n)
        self.columns = _RunningLogSumExp(like, m if symmetric else 0)
        self.symmetric = symmetric
        self.one = like.new_ones(())
        self.buffers = like.new_empty(5, min(self.shape[0], n) * min(self.shape[1], m))

    def _buffers(self, z: Tensor) -> list[Tensor]:
        return [b[: z.numel()].view(z.shape) for b in self.buffers]

    def minima(self, z: Tensor) -> Tensor:
        return z.amin(1)

    def _logits(self, z: Tensor, distance: Tensor, slope: Tensor | None, logits: Tensor, work: Tensor) -> None:
        far = z == torch.inf
        torch.where(far, self.one, z, out=logits)
        self.geometry.distance(logits, distance, slope, work)
        torch.mul(distance, -self.scale, out=logits).masked_fill_(far, -torch.inf)

    def add(self, rows: slice, columns: slice, z: Tensor) -> None:
        distance, logits, work, *_ = self._buffers(z)
        self._logits(z, distance, None, logits, work)
        self.rows.add(rows, logits, 1, work)
        if self.symmetric:
            self.columns.add(columns, logits, 0, work)

    def log_sum_exps(self) -> tuple[Tensor, Tensor]:
        return self.rows.value(), self.columns.value()

    def weigh(self, rows: slice, columns: slice, z: Tensor, upstream: Upstream, out: Tensor) -> float:
        distance, slope, logits, work, pull = self._buffers(z)
        self._logits(z, distance, slope, logits, work)
        # dL/dlogit = softmax over the row, times its upstream gradient, plus the same for the column
        torch.sub(logits, upstream.row_lse[rows, None], out=pull).exp_().mul_(upstream.row_grad[rows, None])
        if upstream.column_lse is not None and upstream.column_grad is not None:
            pull.add_(logits.sub_(upstream.column_lse[columns]).exp_().mul_(upstream.column_grad[columns]))
        torch.div(pull, slope, out=out).mul_(-self.scale)
        return float(torch.dot(pull.reshape(-1), distance.reshape(-1)))


class _RunningLogSumExp:
    """Log-sum-exp of rows (or columns) that arrive a tile at a time, in fixed order."""

    def __init__(self, like: Tensor, length: int):
        self.maximum = like.new_full((length,), -torch.inf)
        self.sum = like.new_zeros(length)

    def add(self, where: slice, logits: Tensor, dim: int, work: Tensor) -> None:
        old = self.maximum[where]
        new = torch.maximum(old, logits.amax(dim))
        # a row with nothing in its sum yet has the maximum -inf, which must not be subtracted from itself
        reference = torch.where(new == -torch.inf, torch.zeros_like(new), new)
        torch.sub(logits, reference.unsqueeze(dim), out=work).exp_()
        self.sum[where] = self.sum[where] * torch.exp(old - reference) + work.sum(dim)
        self.maximum[where] = new

    def value(self) -> Tensor:
        return self.maximum + torch.log(self.sum)


class NativeEpilogue:
    """In machine code, float32 on the CPU. Sums are kept in base 2, as (maximum, sum of 2^(logit - maximum))."""

    def __init__(self, geometry: Geometry, like: Tensor, n: int, m: int, scale: float, symmetric: bool):
        # d = distance * what the kernel calls distance, dd/dz = slope * what it calls slope
        if isinstance(geometry, Lorentz):
            self.kind, self.distance, self.slope = 0, 2 * geometry.unit, geometry.unit
        else:
            self.kind, self.distance, self.slope = (1, 1.0, 0.5) if isinstance(geometry, Euclidean) else (2, 1.0, 1.0)
        self.scale, self.symmetric = scale, symmetric
        self.shape = (NATIVE_ROWS, NATIVE_COLUMNS)
        self.rows, self.columns = _no_sums(like, n), _no_sums(like, m if symmetric else 0)
        chunks = _chunks(min(m, NATIVE_COLUMNS))
        self.work = like.new_empty(2 * chunks * min(n, NATIVE_ROWS))
        self.partial = like.new_empty(chunks, dtype=torch.float64)

    def _tile(self, z: Tensor) -> tuple:
        return self.kind, z, z.stride(0), *z.shape, -self.scale * self.distance / math.log(2)

    def minima(self, z: Tensor) -> Tensor:
        smallest = z.new_empty(len(z))
        native.call("minima", z, z.stride(0), *z.shape, smallest)
        return smallest

    def add(self, rows: slice, columns: slice, z: Tensor) -> None:
        of_columns = [t[columns] for t in self.columns] if self.symmetric else [None, None]
        native.call("sums", *self._tile(z), *(t[rows] for t in self.rows), *of_columns, self.work)

    def log_sum_exps(self) -> tuple[Tensor, Tensor]:
        rows, columns = ((maximum + torch.log2(total)) * math.log(2) for maximum, total in (self.rows, self.columns))
        return rows, columns

    def weigh(self, rows: slice, columns: slice, z: Tensor, upstream: Upstream, out: Tensor) -> float:
        lse, grad = upstream.row_lse[rows] / math.log(2), upstream.row_grad[rows]
        column_lse = column_grad = None
        if upstream.column_lse is not None and upstream.column_grad is not None:
            column_lse, column_grad = upstream.column_lse[columns] / math.log(2), upstream.column_grad[columns]
        pointers = (lse, grad, column_lse, column_grad, out, out.stride(0), self.partial)
        native.call("weigh", *self._tile(z), -self.scale * self.slope, *pointers)
        return self.distance * float(self.partial[: _chunks(z.shape[1])].sum())


def _chunks(columns: int) -> int:
    return math.ceil(columns / CHUNK)


def _no_sums(like: Tensor, length: int) -> tuple[Tensor, Tensor]:
    return like.new_full((length,), -torch.inf), like.new_zeros(length)
