"""`hyperst_kernels.rectangle` for the losses of all pairs that go by blocks: several positives, sigmoid, targets, angles.

What ranks add up for a column are its `PowerSums`, and what they are told of it are its `Weights`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hyperst_kernels.blocked import epilogue, pair_loss
from hyperst_kernels.blocked.blocks import Geometry
from hyperst_kernels.blocked.epilogue import Targets
from hyperst_kernels.blocked.pair_loss import Inputs
from hyperst_kernels.blocked.pairs import PowerSums, Weights, merged, nothing
from hyperst_kernels.operators.register import full_precision
from hyperst_kernels.rectangle import without_derivative
from hyperst_kernels.reference.contrastive import Pairing
from hyperst_kernels.schemes import Block, Features, Scheme, joined


class Terms(NamedTuple):
    """Which features each term pairs, and what `hyperst_kernels.blocked.pair_loss.Inputs` has of the own rows."""

    pairings: Sequence[Pairing]
    loss: str
    geometry: Geometry
    label_smoothing: float
    positives: tuple[Tensor, Tensor] | None  # ids of the own queries (n), and of the own keys (m)
    exclude_ids: Tensor | None  # of the own keys (m)
    debias: Tensor | None
    limits: Tensor | None  # (t m), of queries and keys beside each other; no matter beyond

    @property
    def symmetric(self) -> bool:
        """Whether columns have losses in any."""
        return self.loss == "softmax" and any(p.symmetric for p in self.pairings)

    @property
    def travelling(self) -> list[Tensor]:
        """What is known of each own key (m, ...)."""
        ids = self.exclude_ids if self.positives is None else self.positives[1]
        found = [ids, None if self.limits is None else self.limits.T.contiguous()]
        return [x for x in found if x is not None]


@torch.compiler.disable(reason="collectives and kernels of several blocks take turns: leave out fullgraph=True")
def losses(
    vectors: Sequence[Tensor], c: Tensor, scales: Sequence[Tensor], bias: Tensor | None, terms: Terms, scheme: Scheme
) -> tuple[Tensor, Tensor]:
    """Losses of the own queries (t n) and of the own keys (t m), 0 for the keys of terms that are not symmetric.

    ``scales`` () or (n), one of each term. Gradients are those of the sum over ranks of their losses, of c, scales () and bias
    what comes of the own queries.
    """
    return _Losses.apply(scheme, terms, c, bias, *scales, *vectors)


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scheme: Scheme, terms: Terms, c, bias, *tensors):
        ctx.scheme, ctx.terms = scheme, terms
        own = Rectangle(terms, c, bias, tensors)
        with full_precision(c.device):
            rows, columns = own.sums(scheme)
            ctx.largest = own.largest_scales(scheme)
            found = own.losses(rows, columns, ctx.largest)
        ctx.save_for_backward(c, bias, *tensors, rows, columns)
        return found

    @staticmethod
    def backward(ctx, *grads):
        c, bias, *tensors, rows, columns = ctx.saved_tensors
        with torch.no_grad(), full_precision(c.device):
            own = Rectangle(ctx.terms, c, bias, tensors)
            dc, d_bias, d_scales, d_vectors = own.gradients(ctx.scheme, rows, columns, grads, ctx.largest)
        found = [dc, None if bias is None else d_bias, *d_scales, *d_vectors]
        return None, None, *without_derivative(found, [*grads, c, bias, *tensors])


class Rectangle:
    """The own queries, and the keys that they meet block by block."""

    def __init__(self, terms: Terms, c: Tensor, bias: Tensor | None, tensors: Sequence[Tensor]):
        self.terms, self.c, self.bias = terms, c, bias
        self.scales, self.vectors = tensors[: len(terms.pairings)], tensors[len(terms.pairings) :]
        self.keys: Features = {k: self.vectors[k] for k in sorted({p.keys for p in terms.pairings})}
        self.n, self.m = (len(self.vectors[k]) for k in terms.pairings[0][:2])

    def _inputs(self, block: Block, t: int) -> Inputs:
        pairing, terms, given = self.terms.pairings[t], self.terms, list(block.given)
        ids = terms.positives, terms.exclude_ids
        return Inputs(
            queries=self.vectors[pairing.queries].to(self.c.dtype),
            keys=block.keys[pairing.keys].to(self.c.dtype),
            c=self.c,
            logit_scale=self.scales[t],
            logit_bias=self.bias,
            positives=None if ids[0] is None else (ids[0][0], given[0]),
            exclude_ids=None if ids[1] is None else (ids[1][: self.n], given[0]),
            limits=None if terms.limits is None else (terms.limits[t, : self.n], given[-1][:, t]),
            debias=terms.debias,
            loss=terms.loss,
            geometry=terms.geometry,
            symmetric=pairing.symmetric and terms.loss == "softmax",
            label_smoothing=terms.label_smoothing,
            own=block.own,
        )

    def sums(self, scheme: Scheme) -> tuple[Tensor, Tensor]:
        """`PowerSums` of the own queries (t k n), or their losses by a sigmoid (t n); those of the own keys (t k m)."""
        each, number = range(len(self.terms.pairings)), self._number
        if self.terms.loss == "sigmoid":
            rows = self.c.new_zeros(len(each), self.n, dtype=torch.float64)
            for block in scheme.blocks(self.keys):
                rows += torch.stack([pair_loss.sums(self._inputs(block, t)) for t in each])
            return rows, rows[:, :0]

        def both(one: Tensor, other: Tensor) -> Tensor:
            return merged(*(x.unflatten(0, (-1, number)) for x in (one, other))).flatten(0, 1)

        rows = torch.stack([nothing(number, self.n, self.c) for _ in each])
        columns = scheme.columns(both)
        for block in scheme.blocks(self.keys):
            found = [pair_loss.sums(self._inputs(block, t)) for t in each]
            rows = merged(rows, torch.stack([x[:, : self.n] for x in found]))
            if self.terms.symmetric:
                none = nothing(number, block.width, self.c)
                of_columns = zip(found, self.terms.pairings, strict=True)
                columns.add(torch.cat([x[:, self.n :] if p.symmetric else none for x, p in of_columns]))
        if not self.terms.symmetric:
            return rows, torch.stack([nothing(number, self.m, self.c) for _ in each])
        return rows, columns.own().unflatten(0, (-1, number)).contiguous()

    @property
    def _number(self) -> int:
        return pair_loss.stats_needed(self.terms.label_smoothing, self.terms.debias)

    def largest_scales(self, scheme: Scheme) -> Tensor | None:
        """The largest logit scale of any rank's queries (t), which bounds the costs of a column, where that matters."""
        if self.terms.debias is None or all(scale.ndim == 0 for scale in self.scales):
            return None
        return -scheme.ranks.least(-torch.stack([scale.amax() for scale in self.scales]))

    def _targets(self, t: int, largest: Tensor | None) -> tuple[Targets, Targets]:
        """Those of the own queries, and of the own keys."""
        terms, scale = self.terms, self.scales[t]
        most = scale.amax() if largest is None else largest[t]
        given = (terms.label_smoothing, terms.geometry.name, scale, most, terms.debias)
        smoothing, debias, farthest = pair_loss.targets(*given, self.n, self.m)
        rows, columns = (
            Targets(smoothing, None if debias is None else debias[some], farthest[some])
            for some in (slice(0, self.n), slice(self.n, None))
        )
        return rows, columns

    def losses(self, rows: Tensor, columns: Tensor, largest: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of the own queries (t n) and keys (t m), from what `sums` and `largest_scales` gave."""
        if self.terms.loss == "sigmoid":
            return rows.to(self.c.dtype), self.c.new_zeros(len(rows), self.m)
        targets = [self._targets(t, largest) for t in range(len(rows))]
        of_rows, of_columns = (
            torch.stack([epilogue.losses(PowerSums(*x), its[side]) for x, its in zip(sums, targets, strict=True)])
            for side, sums in enumerate((rows, columns))
        )
        return of_rows.to(self.c.dtype), of_columns.to(self.c.dtype)

    def gradients(
        self, scheme: Scheme, rows: Tensor, columns: Tensor, grads: Sequence[Tensor], largest: Tensor | None
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Gradients of c, bias, scales and features, from those of the losses of queries and keys (t n), (t m)."""
        each, softmax = range(len(self.terms.pairings)), self.terms.loss == "softmax"
        weights: list[list[Weights]] = [[], []]
        if softmax:
            for t in each:
                for side, (sums, its) in enumerate(zip((rows, columns), self._targets(t, largest), strict=True)):
                    weights[side].append(epilogue.weights(PowerSums(*sums[t]), its, grads[side][t]))
        stats = None
        if self.terms.symmetric:
            stats = torch.stack([torch.stack([x for x in of if x is not None]) for of in weights[1]])
        precise = torch.promote_types(self.vectors[0].dtype, torch.float32)
        found = [torch.zeros_like(x, dtype=precise) for x in self.vectors]
        numbers = self.c.new_zeros(2, dtype=torch.float64)  # of c and the bias
        d_scales = [torch.zeros_like(scale, dtype=torch.float64) for scale in self.scales]
        returned = scheme.gradients()
        for block, of_keys in scheme.blocks_again(self.keys, stats):
            back = {k: torch.zeros_like(x, dtype=precise) for k, x in block.keys.items()}
            for t, pairing in enumerate(self.terms.pairings):
                both = None
                if softmax:
                    both = weights[0][t], Weights(*of_keys[t]) if of_keys is not None and pairing.symmetric else None
                gradients = pair_loss.gradients(self._inputs(block, t), grads[0][t], both)
                found[pairing.queries] += gradients.queries
                back[pairing.keys] += gradients.keys
                numbers += torch.stack([gradients.c.double(), gradients.logit_bias])
                d_scales[t] += gradients.logit_scale
            returned.add(joined(back))
        parts = returned.own().split([x.shape[1] for x in self.keys.values()], 1)
        for k, part in zip(self.keys, parts, strict=True):
            found[k] += part
        numbers = numbers.to(self.c.dtype)
        scales = [x.to(self.c.dtype) for x in d_scales]
        return numbers[0], numbers[1], scales, [x.to(y.dtype) for x, y in zip(found, self.vectors, strict=True)]
