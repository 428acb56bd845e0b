"""InfoNCE over geodesic distances without the n x m matrix: blocked, and recomputed in the backward pass.

The matrix is visited in tiles that stay in cache, in preallocated buffers. Positives never enter the tiles: they are
computed row by row from exact differences, and the log-sum-exp runs over negatives only. Negatives so close that the
matrix product has lost their digits (duplicates in a batch, say) are recomputed from differences too; where there are
many of them, the whole pass is repeated in float64. Extra memory is O((n + m) d).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels.cpu.geometry import geometry_of
from hyperst_kernels.cpu.tiles import NEAR_WIDENED, Tiles, TooManyNear
from hyperst_kernels.reference.contrastive import softplus


def forward(
    queries: Tensor,
    keys: Tensor,
    c: Tensor,
    logit_scale: Tensor,
    exclude_ids: Tensor | None,
    geometry: str,
    tangent: bool,
    symmetric: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """LSE over negatives of each row (n) and each of the first n columns (n, or 0 if not symmetric), positives (n)."""
    try:
        return _Pass(queries, keys, c, logit_scale, exclude_ids, geometry, tangent, symmetric).log_sum_exps()
    except TooManyNear:
        wide = _widened(queries, keys, c, logit_scale, exclude_ids, geometry, tangent, symmetric)
        rows, columns, positives = (t.to(queries.dtype) for t in wide.log_sum_exps())
        return rows, columns, positives


def backward(
    grad_rows: Tensor,
    grad_columns: Tensor,
    queries: Tensor,
    keys: Tensor,
    c: Tensor,
    logit_scale: Tensor,
    exclude_ids: Tensor | None,
    row_negatives: Tensor,
    column_negatives: Tensor,
    positives: Tensor,
    geometry: str,
    tangent: bool,
    symmetric: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries (n d), keys (m d), c () and logit_scale () from those of the row and column losses."""
    saved = (grad_rows, grad_columns, row_negatives, column_negatives, positives)
    try:
        return _Pass(queries, keys, c, logit_scale, exclude_ids, geometry, tangent, symmetric).gradients(*saved)
    except TooManyNear:
        wide = _widened(queries, keys, c, logit_scale, exclude_ids, geometry, tangent, symmetric)
        dq, dk, dc, ds = (t.to(queries.dtype) for t in wide.gradients(*(t.double() for t in saved)))
        return dq, dk, dc, ds


class _Pass(Tiles):
    """One sweep over the tiles of -logit_scale * d(query, key)."""

    def __init__(
        self,
        queries: Tensor,
        keys: Tensor,
        c: Tensor,
        logit_scale: Tensor,
        exclude_ids: Tensor | None,
        geometry: str,
        tangent: bool,
        symmetric: bool,
        near: float | None = None,
    ):
        super().__init__(geometry_of(geometry, c, tangent), queries, keys, near)
        self.c, self.scale = c, float(logit_scale)
        self.ids, self.symmetric = exclude_ids, symmetric
        self.lorentz = geometry == "lorentz"

    def _leave_out(self, tile: Tensor, rows: slice, columns: slice, value: float) -> None:
        """Write value over the positives and the excluded keys of a tile."""
        if self._on_diagonal(rows, columns):
            tile.diagonal(rows.start - columns.start).fill_(value)
        if self.ids is not None:
            tile.masked_fill_(self.ids[rows][:, None] == self.ids[columns], value)

    @staticmethod
    def _on_diagonal(rows: slice, columns: slice) -> bool:
        return rows.start < columns.stop and columns.start < rows.stop

    def log_sum_exps(self) -> tuple[Tensor, Tensor, Tensor]:
        rows_lse = _RunningLogSumExp(self.queries, self.n)
        columns_lse = _RunningLogSumExp(self.queries, self.n if self.symmetric else 0)
        for rows, columns, (z, logits, work) in self.visit(3):
            self.distances(rows, columns, z, logits, None, work)
            logits.mul_(-self.scale)
            self._leave_out(logits, rows, columns, -torch.inf)
            rows_lse.add(rows, logits, 1, work)
            if self.symmetric and columns.start < self.n:
                with_positive = slice(columns.start, min(columns.stop, self.n))
                width = with_positive.stop - with_positive.start
                columns_lse.add(with_positive, logits[:, :width], 0, work[:, :width])
        return rows_lse.value(), columns_lse.value(), -self.scale * self._positive_distances()

    def _positive_distances(self) -> Tensor:
        chunks = [self.geometry.exact(self.queries[some], self.keys[some]) for some in self.chunks(self.n)]
        return torch.cat(chunks)

    def gradients(
        self,
        grad_rows: Tensor,
        grad_columns: Tensor,
        row_negatives: Tensor,
        column_negatives: Tensor,
        positives: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        row_lse = torch.logaddexp(row_negatives, positives)[:, None]
        column_lse = torch.logaddexp(column_negatives, positives) if self.symmetric else column_negatives
        d_left, d_right = torch.zeros_like(self.left), torch.zeros_like(self.right)
        d_queries, d_keys = torch.zeros_like(self.queries), torch.zeros_like(self.keys)
        d_scale = 0.0
        for rows, columns, (z, distance, slope, logits, weights) in self.visit(5):
            near = self.distances(rows, columns, z, distance, slope, logits)
            torch.mul(distance, -self.scale, out=logits)
            self._leave_out(logits, rows, columns, -torch.inf)
            # dL/dl = softmax over the row, times its upstream gradient, plus the same for the column
            torch.sub(logits, row_lse[rows], out=weights).exp_().mul_(grad_rows[rows, None])
            if self.symmetric and columns.start < self.n:
                with_positive = slice(columns.start, min(columns.stop, self.n))
                width = with_positive.stop - with_positive.start
                share = logits[:, :width].sub_(column_lse[with_positive]).exp_().mul_(grad_columns[with_positive])
                weights[:, :width].add_(share)
            d_scale -= float(torch.dot(weights.reshape(-1), distance.reshape(-1)))
            weights.mul_(-self.scale)
            self.add_gradients(rows, columns, near, weights, d_queries, d_keys)
            if near is not None:
                slope[near] = torch.inf
            if self._on_diagonal(rows, columns):
                slope.diagonal(rows.start - columns.start).fill_(torch.inf)
            weights.div_(slope)
            d_left[rows].addmm_(weights, self.right[columns])
            d_right[columns].addmm_(weights.T, self.left[rows])
        self.add_operand_gradients(d_left, d_right, d_queries, d_keys)

        pull = grad_rows * torch.sigmoid(row_negatives - positives)
        if self.symmetric:
            pull = pull + grad_columns * torch.sigmoid(column_negatives - positives)
        for some in self.chunks(self.n):
            dx, dy = self.geometry.exact_gradient(self.queries[some], self.keys[some])
            weight = (self.scale * pull[some])[:, None]
            d_queries[some] += weight * dx
            d_keys[some] += weight * dy
        d_scale -= float(torch.dot(pull.double(), positives.double())) / self.scale
        return d_queries, d_keys, self._curvature_gradient(d_queries, d_keys, d_scale), self.c.new_tensor(d_scale)

    def _curvature_gradient(self, d_queries: Tensor, d_keys: Tensor, d_scale: float) -> Tensor:
        """(<q, dL/dq> + <k, dL/dk> - s dL/ds) / 2c: d is homogeneous in the features and 1/sqrt(c)."""
        if not self.lorentz:
            return torch.zeros_like(self.c)
        along = self.homogeneity(d_queries, d_keys)
        return self.c.new_tensor((along - self.scale * d_scale) / (2 * float(self.c)))


def _widened(
    queries: Tensor,
    keys: Tensor,
    c: Tensor,
    logit_scale: Tensor,
    exclude_ids: Tensor | None,
    geometry: str,
    tangent: bool,
    symmetric: bool,
) -> _Pass:
    """The same pass in float64."""
    wide = (queries.double(), keys.double(), c.double(), logit_scale.double())
    return _Pass(*wide, exclude_ids, geometry, tangent, symmetric, NEAR_WIDENED)


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


def losses(row_negatives: Tensor, column_negatives: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """softplus(LSE over negatives - positive): the loss of each row and of each column."""
    columns = softplus(column_negatives - positives) if len(column_negatives) else column_negatives
    return softplus(row_negatives - positives), columns
