"""InfoNCE over geodesic distances in tiles, without the chain of n x m intermediates.

The matrix is visited in tiles that stay in cache. Positives never enter the tiles: they are computed row by row from
exact differences, and the log-sum-exp runs over negatives only. Negatives so close that the matrix product has lost
their digits (duplicates in a batch, say) are recomputed from differences too; where there are many of them, the whole
pass is repeated in float64. The products themselves are kept for the backward pass while they are small; beyond that
they are computed again, and extra memory is O((n + m) d).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels.cpu import native
from hyperst_kernels.cpu.epilogue import Epilogue, NativeEpilogue, PortableEpilogue, Upstream
from hyperst_kernels.cpu.geometry import geometry_of
from hyperst_kernels.cpu.tiles import NEAR_WIDENED, Tiles, TooManyNear
from hyperst_kernels.reference.contrastive import softplus

# Up to this size the n x m products stay in memory from the forward to the backward pass, which saves one product in
# four: a batch of 8192.
KEPT_BYTES = 256 << 20


def kept_shape(n: int, m: int, like: Tensor, keep: bool) -> tuple[int, int]:
    """Shape of the products that the forward pass hands to the backward pass: (n, m), or (0, 0) for nothing."""
    kept = keep and like.device.type == "cpu" and like.dtype == torch.float32 and 4 * n * m <= KEPT_BYTES
    return (n, m) if kept else (0, 0)


def forward(
    queries: Tensor,
    keys: Tensor,
    c: Tensor,
    logit_scale: Tensor,
    exclude_ids: Tensor | None,
    geometry: str,
    tangent: bool,
    symmetric: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """LSE over negatives of each row (n) and each of the first n columns (n, or 0 if not symmetric), positives (n).

    Last come the products, of shape `kept_shape`.
    """
    kept = native.large(queries.new_empty(kept_shape(len(queries), len(keys), queries, keep)))
    try:
        one = _Pass(queries, keys, c, logit_scale, exclude_ids, geometry, tangent, symmetric)
        return *one.log_sum_exps(kept), kept
    except TooManyNear:
        wide = _widened(queries, keys, c, logit_scale, exclude_ids, geometry, tangent, symmetric)
        rows, columns, positives = (t.to(queries.dtype) for t in wide.log_sum_exps(kept[:0, :0]))
        # products of 0 are all near: the backward pass will come to the same conclusion
        return rows, columns, positives, kept.zero_()


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
    kept: Tensor,
    geometry: str,
    tangent: bool,
    symmetric: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries (n d), keys (m d), c () and logit_scale () from those of the row and column losses."""
    saved = (grad_rows, grad_columns, row_negatives, column_negatives, positives)
    try:
        return _Pass(queries, keys, c, logit_scale, exclude_ids, geometry, tangent, symmetric).gradients(kept, *saved)
    except TooManyNear:
        wide = _widened(queries, keys, c, logit_scale, exclude_ids, geometry, tangent, symmetric)
        none = kept.new_empty(0, 0)
        dq, dk, dc, ds = (t.to(queries.dtype) for t in wide.gradients(none, *(t.double() for t in saved)))
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
        self.c, self.scale = c, float(logit_scale)
        self.ids, self.symmetric = exclude_ids, symmetric
        self.lorentz = geometry == "lorentz"
        shared = geometry_of(geometry, c, tangent)
        kind = NativeEpilogue if native.usable(queries) else PortableEpilogue
        self.epilogue: Epilogue = kind(shared, queries, len(queries), len(keys), self.scale, symmetric)
        super().__init__(shared, queries, keys, near, self.epilogue.shape)

    def _leave_out(self, rows: slice, columns: slice, z: Tensor) -> None:
        """Move the positives and the excluded keys of a tile to infinity."""
        if rows.start < columns.stop and columns.start < rows.stop:
            z.diagonal(rows.start - columns.start).fill_(torch.inf)
        if self.ids is not None:
            z.masked_fill_(self.ids[rows][:, None] == self.ids[columns], torch.inf)

    def log_sum_exps(self, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``kept`` is filled with the products if it is not empty."""
        keep = len(kept) > 0
        if keep:
            torch.mm(self.left, self.right.T, out=kept)
        for rows, columns, buffers in self.visit(0 if keep else 1):
            z = kept[rows, columns] if keep else self._product(rows, columns, buffers[0])
            self._leave_out(rows, columns, z)
            near = self.cancelled(rows, columns, z, self.epilogue.minima(z))
            if near is not None:
                z[near] = self.geometry.product(self.exact(rows, columns, near))
            self.epilogue.add(rows, columns, z)
        row_negatives, column_negatives = self.epilogue.log_sum_exps()
        return row_negatives, column_negatives[: self.n], -self.scale * self._positive_distances()

    def _product(self, rows: slice, columns: slice, out: Tensor) -> Tensor:
        return torch.mm(self.left[rows], self.right[columns].T, out=out)

    def _positive_distances(self) -> Tensor:
        chunks = [self.geometry.exact(self.queries[some], self.keys[some]) for some in self.chunks(self.n)]
        return torch.cat(chunks)

    def gradients(
        self,
        kept: Tensor,
        grad_rows: Tensor,
        grad_columns: Tensor,
        row_negatives: Tensor,
        column_negatives: Tensor,
        positives: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``kept`` are the products of the forward pass, or empty."""
        upstream = self._upstream(grad_rows, grad_columns, row_negatives, column_negatives, positives)
        keep = len(kept) > 0
        d_left, d_right = self.left.new_empty(self.shape[0], self.left.shape[1]), torch.zeros_like(self.right)
        d_queries, d_keys = torch.zeros_like(self.queries), torch.zeros_like(self.keys)
        d_scale = 0.0
        for rows, columns, (weights,) in self.visit(1):
            z = kept[rows, columns] if keep else self._product(rows, columns, weights)
            if not keep:
                self._leave_out(rows, columns, z)
            near = self.cancelled(rows, columns, z, self.epilogue.minima(z))
            if near is not None:
                d_scale -= self._near_gradients(rows, columns, near, upstream, d_queries, d_keys)
                z = weights.copy_(z)
                z[near] = torch.inf
            d_scale -= self.epilogue.weigh(rows, columns, z, upstream, weights)
            grad = d_left[: len(weights)]
            torch.addmm(grad, weights, self.right[columns], beta=float(columns.start > 0), out=grad)
            d_right[columns].addmm_(weights.T, self.left[rows])
            if columns.stop == self.m:
                self.left[rows] = grad  # these rows are done with: their gradient takes their place
        self.geometry.add_left_gradient(self.queries, self.terms(self.left), d_queries)
        self.geometry.add_right_gradient(self.keys, self.terms(d_right), d_keys)

        pull = grad_rows * torch.sigmoid(row_negatives - positives)
        if self.symmetric:
            pull = pull + grad_columns * torch.sigmoid(column_negatives - positives)
        for some in self.chunks(self.n):
            dx, dy = self.geometry.exact_gradient(self.queries[some], self.keys[some])
            weight = (self.scale * pull[some])[:, None]
            d_queries[some].addcmul_(weight, dx)
            d_keys[some].addcmul_(weight, dy)
        d_scale -= float(torch.dot(pull.double(), positives.double())) / self.scale
        return d_queries, d_keys, self._curvature_gradient(d_queries, d_keys, d_scale), self.c.new_tensor(d_scale)

    def _upstream(
        self,
        grad_rows: Tensor,
        grad_columns: Tensor,
        row_negatives: Tensor,
        column_negatives: Tensor,
        positives: Tensor,
    ) -> Upstream:
        row_lse = torch.logaddexp(row_negatives, positives)
        if not self.symmetric:
            return Upstream(row_lse, grad_rows, None, None)
        # keys beyond n have no positive and no loss
        column_lse, column_grad = positives.new_full((self.m,), torch.inf), positives.new_zeros(self.m)
        column_lse[: self.n], column_grad[: self.n] = torch.logaddexp(column_negatives, positives), grad_columns
        return Upstream(row_lse, grad_rows, column_lse, column_grad)

    def _near_gradients(
        self,
        rows: slice,
        columns: slice,
        near: tuple[Tensor, Tensor],
        upstream: Upstream,
        d_queries: Tensor,
        d_keys: Tensor,
    ) -> float:
        """Add the gradients of the repaired entries of a tile; returns their sum of dL/dlogit times distance."""
        i, j = near
        distance = self.exact(rows, columns, near)
        logits = -self.scale * distance
        pull = torch.exp(logits - upstream.row_lse[rows][i]) * upstream.row_grad[rows][i]
        if upstream.column_lse is not None and upstream.column_grad is not None:
            pull += torch.exp(logits - upstream.column_lse[columns][j]) * upstream.column_grad[columns][j]
        self.add_exact_gradients(rows, columns, near, -self.scale * pull, d_queries, d_keys)
        return float(torch.dot(pull, distance))

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


def losses(row_negatives: Tensor, column_negatives: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """softplus(LSE over negatives - positive): the loss of each row and of each column."""
    columns = softplus(column_negatives - positives) if len(column_negatives) else column_negatives
    return softplus(row_negatives - positives), columns
