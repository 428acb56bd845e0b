"""InfoNCE over geodesic distances in tiles, without the chain of n x m intermediates.

The matrix is visited in tiles that stay in cache. Positives never enter the tiles: they are computed row by row from
exact differences, and the log-sum-exp runs over negatives only. Negatives so close that the matrix product has lost
their digits (duplicates in a batch, say) are recomputed from differences too; where there are many of them, or where
points are so far out that float32 cannot hold their products, the whole pass is repeated in float64. The products
themselves are kept for the backward pass while they are small; beyond that they are computed again, and extra memory is
O((n + m) d).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hyperst_kernels._precision import LARGEST_LOGIT
from hyperst_kernels.cpu import memory
from hyperst_kernels.cpu.geometry import geometry_of
from hyperst_kernels.cpu.native import bindings
from hyperst_kernels.cpu.online_softmax import NativeOnlineSoftmax, OnlineSoftmax, PortableOnlineSoftmax, Upstream, wide
from hyperst_kernels.cpu.tiles import NEAR_WIDENED, NeedsFloat64, Tiles
from hyperst_kernels.reference.contrastive import Pairing, Slopes, softplus

Ids = tuple[Tensor, Tensor] | None  # of rows (n) and columns (m): pairs of one id take no part


def kept_shape(features: Sequence[Tensor], pairings: Sequence[Pairing], like: Tensor, keep: int) -> tuple[int, ...]:
    """Shape of the products that the forward pass hands to the backward pass: (t n m), or (t 0 0) for nothing.

    ``keep`` is how many bytes of them a term may keep.
    """
    n, m = (max(features[number].shape[0] for number in side) for side in list(zip(*pairings, strict=True))[:2])
    kept = like.device.type == "cpu" and like.dtype == torch.float32 and 4 * n * m <= keep
    return (len(pairings), n, m) if kept else (len(pairings), 0, 0)


def forward(
    features: Sequence[Tensor],
    c: Tensor,
    logit_scale: Tensor,
    ids: Ids,
    pairings: Sequence[Pairing],
    geometry: str,
    tangent: bool,
    keep: int,
    all_columns: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """LSE over negatives of each row and each of the first n columns, positives (t n), and products (`kept_shape`).

    Sums and positives are logits in `wide` precision. What does not exist is -inf in the sums and 0 among the positives:
    columns without a loss, rows beyond a pairing's own. ``all_columns``: the sums of all m.
    """
    n, m = (max(len(features[number]) for number in side) for side in list(zip(*pairings, strict=True))[:2])
    rows, columns = (
        c.new_full((len(pairings), length), -torch.inf, dtype=wide(c)) for length in (n, m if all_columns else n)
    )
    positives = c.new_zeros(len(pairings), n, dtype=wide(c))
    kept = memory.borrow(kept_shape(features, pairings, c, keep), c)
    for t, pairing in enumerate(pairings):
        x, y = features[pairing.queries], features[pairing.keys]
        found = _forward(x, y, c, logit_scale, ids, geometry, tangent, pairing.symmetric, kept[t, : len(x), : len(y)])
        for out, values in zip((rows, columns, positives), found, strict=True):
            out[t, : len(values)] = values[: out.shape[1]]
    return rows, columns, positives, kept


def _forward(queries, keys, c, logit_scale, ids, geometry, tangent, symmetric, kept):
    """The same of one pairing: (n), (m) or (0), (n). Fills ``kept`` with the products, if it is not empty."""
    given = (queries, keys, c, logit_scale, ids, geometry, tangent, symmetric)
    try:
        return _Pass(*given).log_sum_exps(kept)
    except NeedsFloat64:
        kept.fill_(torch.nan)  # the backward pass takes float64 too
        return _widened(*given).log_sum_exps(kept[:0, :0])


def backward(
    upstream_of: UpstreamOf,
    features: Sequence[Tensor],
    c: Tensor,
    logit_scale: Tensor,
    ids: Ids,
    kept: Tensor,
    pairings: Sequence[Pairing],
    geometry: str,
    tangent: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gradients of the features, c () and logit_scale (): see `of_losses` and `of_sums`."""
    gradients: dict[int, Tensor] = {}
    d_scale = along = 0.0
    for t, pairing in enumerate(pairings):
        x, y = features[pairing.queries], features[pairing.keys]
        given = (x, y, c, logit_scale, ids, geometry, tangent, pairing.symmetric)
        dx, dy, *found = _backward(given, kept[t, : len(x), : len(y)], functools.partial(upstream_of, t))
        d_scale, along = d_scale + found[0], along + found[1]
        for number, grad in ((pairing.queries, dx), (pairing.keys, dy)):
            gradients[number] = gradients[number].add_(grad) if number in gradients else grad
    # d is homogeneous of degree 1 in the features and 1/sqrt(c)
    dc = (along - float(logit_scale) * d_scale) / (2 * float(c)) if geometry == "lorentz" else 0.0
    return [gradients[number] for number in range(len(features))], c.new_tensor(dc), c.new_tensor(d_scale)


def _backward(
    given: tuple, kept: Tensor, upstream_of: Callable[[_Pass], TermSlopes]
) -> tuple[Tensor, Tensor, float, float]:
    """Gradients of one pairing's queries x, keys y and logit scale; <x, dL/dx> + <y, dL/dy>."""
    try:
        if kept.numel() > 0 and bool(kept[0, 0].isnan()):
            raise NeedsFloat64
        one = _Pass(*given)
        dx, dy, ds = one.gradients(kept, *upstream_of(one))
    except NeedsFloat64:
        one = _widened(*given)
        dx, dy, ds = one.gradients(kept[:0, :0], *upstream_of(one))
    dtype = given[0].dtype
    return dx.to(dtype), dy.to(dtype), ds, one.homogeneity(dx, dy)


def of_losses(
    grad_rows: Tensor,
    grad_columns: Tensor,
    row_negatives: Tensor,
    column_negatives: Tensor,
    positives: Tensor,
) -> UpstreamOf:
    """From gradients of the losses of rows and columns, and what `forward` gave, all (t n)."""

    def upstream(t: int, one: _Pass) -> TermSlopes:
        grads, logits = ([x[t, : one.n] for x in of] for of in ((grad_rows, grad_columns), saved))
        if one.widened and _exceed(logits, LARGEST_LOGIT[torch.float32] / 2):
            # those given may be of distances in float32
            logits = [x[: one.n] for x in one.log_sum_exps(one.left[:0, :0])]
        return one.of_losses(*(x.to(one.queries.dtype) for x in grads), *logits)

    saved = (row_negatives, column_negatives, positives)
    return upstream


def of_sums(slopes: Slopes) -> UpstreamOf:
    """From sums that others have completed."""

    def upstream(t: int, one: _Pass) -> TermSlopes:
        n, m, dtype = one.n, one.m, one.queries.dtype
        found = Upstream(one.within(slopes.row_lse[t, :n]), slopes.row_grad[t, :n].to(dtype), None, None)
        if one.symmetric:
            lse, grad = one.within(slopes.column_lse[t, :m]), slopes.column_grad[t, :m].to(dtype)
            found = found._replace(column_lse=lse, column_grad=grad)
        return found, slopes.diagonal[t, :n], slopes.shares[t, :n].to(dtype)

    return upstream


def _exceed(logits: Sequence[Tensor], limit: float) -> bool:
    return any(bool(((t.abs() > limit) & t.isfinite()).any()) for t in logits)


class _Pass(Tiles):
    """One sweep over the tiles of -logit_scale * d(query, key)."""

    def __init__(
        self,
        queries: Tensor,
        keys: Tensor,
        c: Tensor,
        logit_scale: Tensor,
        ids: Ids,
        geometry: str,
        tangent: bool,
        symmetric: bool,
        near: float | None = None,
    ):
        self.scale = float(logit_scale)
        self.ids, self.symmetric, self.widened = ids, symmetric, near is not None
        shared = geometry_of(geometry, c, tangent)
        kind = NativeOnlineSoftmax if bindings.usable(queries) else PortableOnlineSoftmax
        self.softmax: OnlineSoftmax = kind(shared, queries, len(queries), len(keys), self.scale, symmetric)
        super().__init__(shared, queries, keys, near, self.softmax.shape)

    def _leave_out(self, rows: slice, columns: slice, z: Tensor) -> None:
        """Move the positives and the excluded keys of a tile to infinity."""
        if rows.start < columns.stop and columns.start < rows.stop:
            z.diagonal(rows.start - columns.start).fill_(torch.inf)
        if self.ids is not None:
            of_rows, of_columns = self.ids
            z.masked_fill_(of_rows[rows][:, None] == of_columns[columns], torch.inf)

    def log_sum_exps(self, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of rows (n) and columns (m, or 0), positives (n). ``kept`` is filled with the products if it is not empty."""
        keep = kept.numel() > 0
        if keep:
            torch.mm(self.left, self.right.T, out=kept)
        for rows, columns, buffers in self.visit(0 if keep else 1):
            z = kept[rows, columns] if keep else self._product(rows, columns, buffers[0])
            self._leave_out(rows, columns, z)
            near = self.cancelled(rows, columns, z, self.softmax.minima(z))
            if near is not None:
                z[near] = self.geometry.product(self.exact(rows, columns, near))
            self.softmax.add(rows, columns, z)
        row_negatives, column_negatives = self.softmax.log_sum_exps()
        positives = self._positive_distances()
        logits = row_negatives, column_negatives, -self.scale * positives.to(wide(positives))
        if positives.dtype == torch.float32 and _exceed(logits, LARGEST_LOGIT[torch.float32]):
            raise NeedsFloat64
        return logits

    def _product(self, rows: slice, columns: slice, out: Tensor) -> Tensor:
        return torch.mm(self.left[rows], self.right[columns].T, out=out)

    def _positive_distances(self) -> Tensor:
        chunks = [self.geometry.exact(self.queries[some], self.keys[some]) for some in self.chunks(self.n)]
        return torch.cat(chunks)

    def gradients(
        self, kept: Tensor, upstream: Upstream, positives: Tensor, shares: Tensor
    ) -> tuple[Tensor, Tensor, float]:
        """Of queries (n d), keys (m d) and the logit scale; ``kept`` are the products of the forward pass, or empty.

        ``positives`` (n) are logits, ``shares`` (n) minus their slopes.
        """
        keep = kept.numel() > 0
        d_left = self.left.new_empty(self.shape[0], self.left.shape[1])
        d_right, d_queries, d_keys = (
            bindings.large(t.new_empty(t.shape)) for t in (self.right, self.queries, self.keys)
        )
        d_queries.zero_()
        d_keys.zero_()
        d_scale, relative = 0.0, self.softmax.relative(upstream)
        for rows, columns, (weights,) in self.visit(1):
            z = kept[rows, columns] if keep else self._product(rows, columns, weights)
            if not keep:
                self._leave_out(rows, columns, z)
            near = self.cancelled(rows, columns, z, self.softmax.minima(z))
            if near is not None:
                d_scale -= self._near_gradients(rows, columns, near, upstream, d_queries, d_keys)
                z = weights.copy_(z)
                z[near] = torch.inf
            d_scale -= self.softmax.weigh(rows, columns, z, relative, weights)
            grad = d_left[: len(weights)]
            torch.addmm(grad, weights, self.right[columns], beta=float(columns.start > 0), out=grad)
            d_right[columns].addmm_(weights.T, self.left[rows], beta=float(rows.start > 0))
            if columns.stop == self.m:
                self.left[rows] = grad  # these rows are done with: their gradient takes their place
        self.geometry.add_left_gradient(self.queries, self.terms(self.left), d_queries)
        self.geometry.add_right_gradient(self.keys, self.terms(d_right), d_keys)

        for some in self.chunks(self.n):
            pairs = self.queries[some], self.keys[some], d_queries[some], d_keys[some]
            self.geometry.add_exact_gradients(self.scale * shares[some], *pairs)
        d_scale -= float(torch.dot(shares.double(), positives.double())) / self.scale
        return d_queries, d_keys, d_scale

    def of_losses(
        self,
        grad_rows: Tensor,
        grad_columns: Tensor,
        row_negatives: Tensor,
        column_negatives: Tensor,
        positives: Tensor,
    ) -> TermSlopes:
        """From gradients of losses (n), sums over negatives and positives (n)."""
        of_rows = self.within(torch.logaddexp(row_negatives, positives)), grad_rows
        shares = grad_rows * torch.sigmoid(row_negatives - positives).to(grad_rows)
        if not self.symmetric:
            return Upstream(*of_rows, None, None), positives, shares
        # keys beyond n have no positive and no loss
        column_lse, column_grad = positives.new_full((self.m,), torch.inf), grad_columns.new_zeros(self.m)
        column_lse[: self.n] = self.within(torch.logaddexp(column_negatives, positives))
        column_grad[: self.n] = grad_columns
        shares = shares + grad_columns * torch.sigmoid(column_negatives - positives).to(grad_columns)
        return Upstream(*of_rows, column_lse, column_grad), positives, shares

    def within(self, lse: Tensor) -> Tensor:
        """Log-sum-exps (n), if the dtype holds their logits; in float64 NaN for those that it does not."""
        limit = LARGEST_LOGIT[self.queries.dtype]
        if self.queries.dtype == torch.float64:
            return lse.masked_fill(lse.abs() > limit, torch.nan)
        # less than the limit of the forward pass: a logit from float64 rounds to the other side of it
        if _exceed([lse], limit * (1 - 2.0**-16)):
            raise NeedsFloat64
        return lse

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
        logits = -self.scale * distance.to(wide(distance))
        grad_logit = torch.exp(logits - upstream.row_lse[rows][i]).to(distance) * upstream.row_grad[rows][i]
        if upstream.column_lse is not None and upstream.column_grad is not None:
            grad_logit += (
                torch.exp(logits - upstream.column_lse[columns][j]).to(distance) * upstream.column_grad[columns][j]
            )
        self.add_exact_gradients(rows, columns, near, -self.scale * grad_logit, d_queries, d_keys)
        return float(torch.dot(grad_logit, distance))


def _widened(
    queries: Tensor,
    keys: Tensor,
    c: Tensor,
    logit_scale: Tensor,
    ids: Ids,
    geometry: str,
    tangent: bool,
    symmetric: bool,
) -> _Pass:
    """The same pass in float64."""
    wide = (queries.double(), keys.double(), c.double(), logit_scale.double())
    return _Pass(*wide, ids, geometry, tangent, symmetric, NEAR_WIDENED)


TermSlopes = tuple[Upstream, Tensor, Tensor]  # of one term, the last two of its pairs (i, i)
UpstreamOf = Callable[[int, _Pass], TermSlopes]


def losses(row_negatives: Tensor, column_negatives: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """softplus(LSE over negatives - positive): the loss of each row and of each column, 0 where there is none."""
    return softplus(row_negatives - positives), softplus(column_negatives - positives)
