"""The Lorentz loss of all terms on a small float32 batch: native calls for everything but the products (`native/terms.h`).

`contrastive` visits tiles of terms of any size, with some 80 PyTorch calls for each; on a batch of 128 these took half of the
time. Here a batch is one tile. What needs differences in place of products, or float64, is left to `contrastive`: None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hyperst_kernels._constants import SMALL
from hyperst_kernels._precision import LARGEST_LOGIT
from hyperst_kernels.cpu.native import bindings
from hyperst_kernels.cpu.tiles import NEAR
from hyperst_kernels.reference.contrastive import Pairing


class Losses(NamedTuple):
    """Losses of rows and columns, log-sum-exps over their negatives, and positives, each (t n)."""

    rows: Tensor
    columns: Tensor
    row_negatives: Tensor
    column_negatives: Tensor
    positives: Tensor


class _Batch:
    """Operands of all terms, and the arguments that the native functions share."""

    def __init__(
        self, features: Sequence[Tensor], c: Tensor, logit_scale: Tensor, pairings: Sequence[Pairing], tangent: bool
    ):
        self.features, self.pairings = [bindings.rows(x) for x in features], pairings
        self.n, self.m = features[pairings[0].queries].shape[0], features[pairings[0].keys].shape[0]
        self.d = features[0].shape[1]
        self.root, self.scale, self.tangent = float(c) ** 0.5, float(logit_scale), tangent
        self.width = -(-(self.d + 2) // 8) * 8
        sides = sorted({(p.queries, True) for p in pairings} | {(p.keys, False) for p in pairings})
        memory = features[0].new_empty(len(sides), max(self.n, self.m), self.width).unbind()
        self.operands = dict(zip(sides, memory, strict=True))
        operands = bindings.table(*((*side, operand.data_ptr()) for side, operand in self.operands.items()))
        given = (self.d, self.width, self.root, tangent)
        bindings.call("operands", bindings.features(self.features), operands, len(sides), *given)

    def left(self, pairing: Pairing) -> Tensor:
        return self.operands[pairing.queries, True][: self.n]

    def right(self, pairing: Pairing) -> Tensor:
        return self.operands[pairing.keys, False][: self.m]

    def call(
        self,
        name: str,
        products: Tensor,
        more: tuple,
        slopes: Sequence[Sequence[Tensor]] = (),
        gradients: Sequence[Tensor] = (),
    ) -> None:
        """Call a function of terms with its arguments and ``more``; ``slopes`` are those of left and right operands."""
        first, step = products.data_ptr(), 4 * self.n * self.m
        addresses = [[x.data_ptr() for x in of_side] for of_side in slopes] or [[0] * len(self.pairings)] * 2
        terms = bindings.table(
            *(
                (
                    *p,
                    self.operands[p[0], True].data_ptr(),
                    self.operands[p[1], False].data_ptr(),
                    first + t * step,
                    left,
                    right,
                )
                for t, (p, left, right) in enumerate(zip(self.pairings, *addresses, strict=True))
            )
        )
        exponent = -self.scale * 2 / self.root / math.log(2)
        limits = NEAR[torch.float32], LARGEST_LOGIT[torch.float32]
        sizes = len(self.pairings), self.d, self.width, 1 / self.root, self.scale, exponent
        features = bindings.features(self.features, gradients)
        bindings.call(name, features, terms, *sizes, *limits, self.tangent, *more)


def fits(features: Sequence[Tensor], pairings: Sequence[Pairing], geometry: str) -> bool:
    """Whether the terms of a batch are computed here: of one shape, and small."""
    if geometry != "lorentz" or not bindings.usable(features[0]):
        return False
    shapes = {(features[p.queries].shape[0], features[p.keys].shape[0]) for p in pairings}
    return len(shapes) == 1 and 0 < max(next(iter(shapes))) <= SMALL


def forward(
    features: Sequence[Tensor],
    c: Tensor,
    logit_scale: Tensor,
    exclude_ids: Tensor | None,
    pairings: Sequence[Pairing],
    tangent: bool,
    kept: Tensor,
) -> Losses | None:
    """Losses of terms that `fits`; ``kept`` (t n m) is filled with products, if it is not empty."""
    batch = _Batch(features, c, logit_scale, pairings, tangent)
    t, n = len(pairings), batch.n
    products = kept if kept.numel() > 0 else c.new_empty(t, n, batch.m)
    for pairing, out in zip(pairings, products, strict=True):
        torch.mm(batch.left(pairing), batch.right(pairing).T, out=out)
    # outputs of an operator share no memory
    losses = Losses(*(c.new_empty(t, n, dtype=dtype) for dtype in (c.dtype,) * 2 + (torch.float64,) * 3))
    left_out = bindings.table([0])
    ids = 0 if exclude_ids is None else exclude_ids.to(torch.int64).contiguous()
    batch.call("term_losses", products, (ids, *losses, n, left_out))
    return None if left_out[0] else losses


def backward(
    grad_rows: Tensor,
    grad_columns: Tensor,
    features: Sequence[Tensor],
    c: Tensor,
    logit_scale: Tensor,
    pairings: Sequence[Pairing],
    tangent: bool,
    logits: Sequence[Tensor],
    kept: Tensor,
) -> tuple[list[Tensor], Tensor, Tensor] | None:
    """Gradients of features, c and logit scale from those of the losses, the logits of `Losses` and the products."""
    batch = _Batch(features, c, logit_scale, pairings, tangent)
    t, n = len(pairings), batch.n
    weights, shares, by_scale = c.new_empty(kept.shape), c.new_empty(t, n), c.new_empty(t, dtype=torch.float64)
    left_out = bindings.table([0])
    grads = grad_rows.contiguous(), grad_columns.contiguous()
    given = (*grads, *logits, n, weights, n * batch.m, shares, by_scale, left_out)
    batch.call("term_weights", kept, given)
    if left_out[0]:
        return None
    of_left = [torch.mm(w, batch.right(p)) for w, p in zip(weights, pairings, strict=True)]
    of_right = [torch.mm(w.T, batch.left(p)) for w, p in zip(weights, pairings, strict=True)]
    gradients = [c.new_empty(x.shape) for x in features]
    along = c.new_empty(max(n, batch.m), dtype=torch.float64)
    more = (len(features), shares, n, along, max(n, batch.m))
    batch.call("term_slopes", kept, more, (of_left, of_right), gradients)
    d_scale = float(by_scale.sum())
    # d is homogeneous of degree 1 in the features and 1/sqrt(c)
    dc = (float(along.sum()) - batch.scale * d_scale) / (2 * float(c))
    return gradients, c.new_tensor(dc), c.new_tensor(d_scale)
