"""What to make of a tile of products z: running log-sum-exps in the forward pass, dL/dz in the backward pass.

z = +inf marks a key that is no negative of its row. There is one form in PyTorch calls, for any dtype and device, and
one in machine code.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hyperst_kernels._constants import GEOMETRIES
from hyperst_kernels.cpu import tiles
from hyperst_kernels.cpu.geometry import Geometry
from hyperst_kernels.cpu.native import bindings

# Measured on two cores: products want larger tiles than a sequence of PyTorch calls (`tiles`), and the native functions
# keep what they need again in the first-level cache.
NATIVE_ROWS, NATIVE_COLUMNS = 512, 4096


class Upstream(NamedTuple):
    """Log-sum-exp with the positive, and gradient of the loss, of each row (n) and, unless None, each column (m).

    The log-sum-exps are in `wide` precision: float32 has no digits left behind the point of a large logit.
    """

    row_lse: Tensor
    row_grad: Tensor
    column_lse: Tensor | None
    column_grad: Tensor | None


class Relative(NamedTuple):
    """`relative_to_nearest` of an `Upstream`: of each row (n) and, unless None, each column (m)."""

    row_origin: Tensor
    row_grad: Tensor
    column_origin: Tensor | None
    column_grad: Tensor | None

    @classmethod
    def of(cls, upstream: Upstream, scale: float) -> Relative:
        of_rows = relative_to_nearest(upstream.row_lse, upstream.row_grad, scale)
        if upstream.column_lse is None or upstream.column_grad is None:
            return cls(*of_rows, None, None)
        return cls(*of_rows, *relative_to_nearest(upstream.column_lse, upstream.column_grad, scale))


def wide(like: Tensor) -> torch.dtype:
    """float64, or the dtype of a tensor whose device has none."""
    return like.dtype if like.device.type == "mps" else torch.float64


def relative_to_nearest(lse: Tensor, grad: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """A distance d0 and a factor f of each log-sum-exp, such that grad exp(-scale d - lse) = f exp(-scale (d - d0)).

    d0 is rounded to the dtype of ``grad``, and f makes up for it.
    """
    origin = (lse / -scale).to(grad.dtype)
    origin = torch.where(origin.isinf(), torch.zeros_like(origin), origin)  # of a column without a loss
    return origin, grad * torch.exp(-scale * origin.to(lse.dtype) - lse).to(grad.dtype)


class OnlineSoftmax(Protocol):
    """One pass over the tiles; ``shape`` is that of the tiles it is quickest on."""

    shape: tuple[int, int]

    def minima(self, z: Tensor) -> Tensor:
        """Smallest z of each row: (r w) -> (r)."""

    def add(self, rows: slice, columns: slice, z: Tensor) -> None:
        """Take a tile (r w), which stays as it is, into the sums."""

    def log_sum_exps(self) -> tuple[Tensor, Tensor]:
        """Over what was added, for each row (n) and each column (m, or 0 if columns have no loss)."""

    def relative(self, upstream: Upstream) -> Relative:
        """Return what `weigh` takes."""

    def weigh(self, rows: slice, columns: slice, z: Tensor, relative: Relative, out: Tensor) -> float:
        """out (r w) = dL/dz, in place of z or not; returns the sum of dL/dlogit times distance."""


class PortableOnlineSoftmax:
    """In PyTorch calls on preallocated buffers of a tile's size."""

    def __init__(self, geometry: Geometry, like: Tensor, n: int, m: int, scale: float, symmetric: bool):
        self.geometry, self.scale = geometry, scale
        self.shape = (tiles.TILE_ROWS, tiles.TILE_COLUMNS)
        self.rows = _RunningLogSumExp(like, n, scale)
        self.columns = _RunningLogSumExp(like, m if symmetric else 0, scale)
        self.symmetric = symmetric
        self.one = like.new_ones(())
        self.buffers = like.new_empty(5, min(self.shape[0], n) * min(self.shape[1], m))

    def _buffers(self, z: Tensor) -> list[Tensor]:
        return [b[: z.numel()].view(z.shape) for b in self.buffers]

    def minima(self, z: Tensor) -> Tensor:
        return z.amin(1)

    def _distances(self, z: Tensor, distance: Tensor, slope: Tensor | None, work: tuple[Tensor, Tensor]) -> Tensor:
        """Fill distance, with inf where a key is no negative, and slope; returns where that is."""
        far = z == torch.inf
        torch.where(far, self.one, z, out=work[0])
        self.geometry.distance(work[0], distance, slope, work[1])
        distance.masked_fill_(far, torch.inf)
        return far

    def add(self, rows: slice, columns: slice, z: Tensor) -> None:
        distance, *work = self._buffers(z)[:3]
        self._distances(z, distance, None, (work[0], work[1]))
        self.rows.add(rows, distance, 1, work[0])
        if self.symmetric:
            self.columns.add(columns, distance, 0, work[0])

    def log_sum_exps(self) -> tuple[Tensor, Tensor]:
        return self.rows.value(), self.columns.value()

    def relative(self, upstream: Upstream) -> Relative:
        return Relative.of(upstream, self.scale)

    def weigh(self, rows: slice, columns: slice, z: Tensor, relative: Relative, out: Tensor) -> float:
        distance, slope, powers, work, grad_logit = self._buffers(z)
        far = self._distances(z, distance, slope, (powers, work))
        # dL/dlogit = softmax over the row, times its upstream gradient, plus the same for the column
        origin, grad = relative.row_origin[rows], relative.row_grad[rows]
        torch.sub(distance, origin[:, None], out=grad_logit).mul_(-self.scale).exp_().mul_(grad[:, None])
        if relative.column_origin is not None and relative.column_grad is not None:
            origin, grad = relative.column_origin[columns], relative.column_grad[columns]
            grad_logit.add_(torch.sub(distance, origin, out=powers).mul_(-self.scale).exp_().mul_(grad))
        torch.div(grad_logit, slope, out=out).mul_(-self.scale)
        distance.masked_fill_(far, 0)
        return float(torch.dot(grad_logit.reshape(-1), distance.reshape(-1)))


class _RunningLogSumExp:
    """Log-sum-exp of -scale times the distances of rows (or columns) that arrive a tile at a time, in fixed order.

    Kept as the smallest distance and the sum of exp(-scale (distance - smallest)).
    """

    def __init__(self, like: Tensor, length: int, scale: float):
        self.scale = scale
        self.least = like.new_full((length,), torch.inf)
        self.sum = like.new_zeros(length)

    def add(self, where: slice, distances: Tensor, dim: int, work: Tensor) -> None:
        old = self.least[where]
        new = torch.minimum(old, distances.amin(dim))
        # a row with nothing in its sum yet has the minimum inf, which must not be subtracted from itself
        origin = torch.where(new == torch.inf, torch.zeros_like(new), new)
        torch.sub(distances, origin.unsqueeze(dim), out=work).mul_(-self.scale).exp_()
        self.sum[where] = self.sum[where] * torch.exp(-self.scale * (old - origin)) + work.sum(dim)
        self.least[where] = new

    def value(self) -> Tensor:
        total, least = (t.to(wide(t)) for t in (self.sum, self.least))
        return torch.log(total) - self.scale * least


class NativeOnlineSoftmax:
    """In machine code, float32 on the CPU. Sums are kept as (least distance, sum of 2^(exponent (distance - least)))."""

    def __init__(self, geometry: Geometry, like: Tensor, n: int, m: int, scale: float, symmetric: bool):
        # d = distance * what the kernel calls distance, dd/dz = slope * what it calls slope
        self.kind, (self.distance, self.slope) = GEOMETRIES.index(geometry.name), geometry.native_units
        self.scale, self.symmetric = scale, symmetric
        self.exponent = float(
            torch.tensor(-scale * self.distance / math.log(2), dtype=torch.float32)
        )  # as it is passed
        self.shape = (tiles.for_threads(NATIVE_ROWS), NATIVE_COLUMNS)
        self.rows, self.columns = _no_sums(like, n), _no_sums(like, m if symmetric else 0)
        height, width = min(n, self.shape[0]), min(m, self.shape[1])
        strips, chunks = bindings.blocks(height, width)
        self.work = like.new_empty(2 * (chunks * height + symmetric * strips * width))
        self.partial = like.new_empty(strips * chunks, dtype=torch.float64)

    def _tile(self, z: Tensor) -> tuple:
        return self.kind, z, z.stride(0), *z.shape, self.exponent

    def minima(self, z: Tensor) -> Tensor:
        smallest = z.new_empty(len(z))
        bindings.call("minima", z, z.stride(0), *z.shape, smallest)
        return smallest

    def add(self, rows: slice, columns: slice, z: Tensor) -> None:
        of_columns = [t[columns] for t in self.columns] if self.symmetric else [None, None]
        bindings.call("sums", *self._tile(z), *(t[rows] for t in self.rows), *of_columns, self.work)

    def log_sum_exps(self) -> tuple[Tensor, Tensor]:
        rows, columns = (
            (self.exponent * least.double() + torch.log2(total.double())) * math.log(2)
            for least, total in (self.rows, self.columns)
        )
        return rows, columns

    def relative(self, upstream: Upstream) -> Relative:
        return Relative.of(upstream, -self.exponent * math.log(2))  # of what the kernel calls distance

    def weigh(self, rows: slice, columns: slice, z: Tensor, relative: Relative, out: Tensor) -> float:
        of_rows, of_columns = relative[:2], [t if t is None else t[columns] for t in relative[2:]]
        pointers = (*(t[rows] for t in of_rows), *of_columns, out, out.stride(0), self.partial)
        bindings.call("weigh", *self._tile(z), -self.scale * self.slope, *pointers)
        return self.distance * float(self.partial[: math.prod(bindings.blocks(*z.shape))].sum())


def _no_sums(like: Tensor, length: int) -> tuple[Tensor, Tensor]:
    return like.new_full((length,), torch.inf), like.new_zeros(length)
