"""Contrastive losses of one rank's rows, where each pair of a query and a key of all ranks is visited once, by the query's rank.

The sum of its row, and the gradient of the query, are then complete; those of columns and keys are added over ranks by a scheme.
That is half the work, and about half of what travels, of rows and columns that each rank visits for itself. Gradients of
features are those of the sum over ranks of their losses; of curvature, logit scales and factors every rank gets those of the mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hyperst_kernels.cpu.online_softmax import wide
from hyperst_kernels.operators import contrastive_sums
from hyperst_kernels.operators.contrastive import ONCE, of_moderate_size
from hyperst_kernels.operators.contrastive_sums import Flags
from hyperst_kernels.operators.register import no_second_derivative
from hyperst_kernels.reference.contrastive import Pairing, Slopes, softplus
from hyperst_kernels.schemes import Block, Features, Scheme, joined


class Terms(NamedTuple):
    """Which features each term pairs, terms that share a logit scale, ids of the own queries (n), and flags."""

    pairings: Sequence[Pairing]
    groups: Sequence[Sequence[int]]
    query_ids: Tensor | None
    flags: Flags
    keep: int  # bytes of products that a term may keep

    @property
    def symmetric(self) -> bool:
        """Whether columns have losses in any."""
        return any(p.symmetric for p in self.pairings)


@torch.compiler.disable(reason="collectives and kernels of several blocks take turns: leave out fullgraph=True")
def losses(
    vectors: Sequence[Tensor],
    factors: Tensor | None,
    c: Tensor,
    scales: Sequence[Tensor],
    terms: Terms,
    scheme: Scheme,
) -> tuple[Tensor, Tensor]:
    """Losses of the own queries and of the first n own keys (t n), 0 for the keys of terms that are not symmetric.

    ``scales`` (), one of each group; ``factors`` (f) of the features or None.
    """
    given = (vectors, factors, c, scales, terms.flags.geometry)
    vectors, factors, scales = of_moderate_size(*given, shared=scheme.ranks.least)
    return _Losses.apply(scheme, terms, factors, c, *scales, *vectors)


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scheme: Scheme, terms: Terms, factors, c, *tensors):
        ctx.scheme, ctx.terms, ctx.number = scheme, terms, len(tensors)
        sums, saved = Rectangle(terms, factors, c, tensors).sums(scheme)
        ctx.save_for_backward(factors, c, *tensors, *sums, *saved)
        return sums.losses(c.dtype)

    @staticmethod
    def backward(ctx, *grads):
        factors, c, *rest = ctx.saved_tensors
        tensors, kept = rest[: ctx.number], rest[ctx.number :]
        with torch.no_grad():
            own, number = Rectangle(ctx.terms, factors, c, tensors), len(Sums._fields)
            gradients, numbers = own.gradients(ctx.scheme, Sums(*kept[:number]), grads, iter(kept[number:]))
            dc, d_scales, d_factors = numbers.to(c.dtype).split([1, len(own.scales), len(own.vectors)])
        found = [None if factors is None else d_factors, dc[0], *d_scales, *gradients]
        return None, None, *without_derivative(found, [*grads, factors, c, *tensors])


def without_derivative(gradients: Sequence[Tensor | None], given: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients whose own gradient by what they were made of is an error, where autograd may ask for it."""
    if not torch.is_grad_enabled():
        return list(gradients)
    tensors = [x for x in gradients if x is not None]
    found = iter(_NotTwice.apply(len(tensors), *tensors, *(x for x in given if x is not None)))
    return [None if x is None else next(found) for x in gradients]


class _NotTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, number: int, *tensors):
        return tuple(x.view_as(x) for x in tensors[:number])

    @staticmethod
    def backward(ctx, *grads):
        raise no_second_derivative("contrastive_loss", ONCE)


class Sums(NamedTuple):
    """LSE over negatives of rows, and of columns, and logits of positives (t n), float64; -inf where there is nothing."""

    rows: Tensor
    columns: Tensor
    positives: Tensor

    def losses(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Of rows and columns (t n)."""
        return tuple(softplus(negatives - self.positives).to(dtype) for negatives in self[:2])  # type: ignore[return-value]


class _Softmax(NamedTuple):
    """Of rows or columns (t n): log-sum-exps, float64, and gradients of the losses."""

    lse: Tensor
    grad: Tensor

    @classmethod
    def of(cls, negatives: Tensor, positives: Tensor, grad: Tensor) -> tuple[_Softmax, Tensor]:
        """It, and minus the slopes of the positives (t n)."""
        # a column without negatives has no slopes; without a loss either, it has no log-sum-exp
        lse = torch.where(negatives == -torch.inf, 0, torch.logaddexp(negatives, positives))
        return cls(lse, grad), grad * torch.sigmoid(negatives - positives).to(grad)


class Rectangle:
    """The own queries, and the keys that they meet block by block.

    Features by number, and a logit scale of each group of terms.
    """

    def __init__(self, terms: Terms, factors: Tensor | None, c: Tensor, tensors: Sequence[Tensor]):
        self.terms, self.factors, self.c = terms, factors, c
        self.scales, self.vectors = tensors[: len(terms.groups)], tensors[len(terms.groups) :]
        self.keys: Features = {k: self.vectors[k] for k in sorted({p.keys for p in terms.pairings})}
        self.n = len(self.vectors[terms.pairings[0].queries])

    def sums(self, scheme: Scheme) -> tuple[Sums, list[Tensor]]:
        """Sums of the own queries and of the first n own keys, and what `gradients` is given again."""
        rows = self.c.new_full((len(self.terms.pairings), self.n), -torch.inf, dtype=wide(self.c))
        merged, positives, saved = scheme.columns(torch.logaddexp), rows, []
        for block in scheme.blocks(self.keys):
            columns = rows.new_full((len(rows), block.width), -torch.inf)
            for some in self._chunks(block):
                part, of_columns, diagonal, kept = self._sums_of(block, some)
                rows[:, some] = torch.logaddexp(rows[:, some], part)
                columns = torch.logaddexp(columns, of_columns)
                positives = diagonal if block.own else positives
                saved += [diagonal, *kept]
            if self.terms.symmetric:
                merged.add(columns)
        columns = merged.own()[:, : self.n].contiguous() if self.terms.symmetric else torch.full_like(rows, -torch.inf)
        return Sums(rows, columns, positives), saved

    def _chunks(self, block: Block) -> list[slice]:
        """Rows that meet a block at once: all, or no more than others' keys, each having one on the diagonal."""
        step = self.n if block.own else min(block.width, self.n)
        return [slice(k, min(k + step, self.n)) for k in range(0, self.n, step)] if step else []

    def _sums_of(self, block: Block, some: slice) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """LSE over negatives of some rows (t r) and of columns (t w), logits of the diagonal (t r), and what is kept.

        The diagonal of the own keys are positives. That of others are negatives, or -inf where ids exclude them.
        """
        number, height = len(self.terms.pairings), some.stop - some.start
        rows, columns, diagonal = (
            self.c.new_empty(number, length, dtype=wide(self.c)) for length in (height, block.width, height)
        )
        saved, ids = [], self._ids(block, some)
        for group, scale in zip(self.terms.groups, self.scales, strict=True):
            features, factors, pairings, _ = self._operands(block, some, group)
            given = (features, factors, self.c, scale, ids, pairings, self.terms.flags, self.terms.keep)
            rows[group], columns[group], diagonal[group], kept = contrastive_sums.forward(*given)
            saved.append(kept)
        if block.own:
            return rows, columns, diagonal, saved
        if ids is not None:
            diagonal.masked_fill_(ids[0] == ids[1][:height], -torch.inf)
        for t, pairing in enumerate(self.terms.pairings):
            if pairing.symmetric:
                columns[t, :height] = torch.logaddexp(columns[t, :height], diagonal[t])
        return torch.logaddexp(rows, diagonal), columns, diagonal, saved

    def gradients(
        self, scheme: Scheme, sums: Sums, grads: Sequence[Tensor], saved: Iterator[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Gradients of the features; of c, scales and factors, their mean over ranks.

        ``grads`` (t n) are those of the losses of rows and columns; ``sums`` and ``saved`` are what `sums` gave.
        """
        rows, by_row = _Softmax.of(sums.rows, sums.positives, grads[0])
        columns, by_column = _Softmax.of(sums.columns, sums.positives, grads[1])
        precise = torch.promote_types(self.vectors[0].dtype, torch.float32)
        found = [torch.zeros_like(x, dtype=precise) for x in self.vectors]
        numbers = self.c.new_zeros(1 + len(self.scales) + len(found), dtype=wide(self.c))
        returned, stats = scheme.gradients(), None
        if self.terms.symmetric:  # keys beyond the queries have no loss
            more = next(iter(self.keys.values())).shape[0] - self.n
            stats = torch.stack([F.pad(x.to(rows.lse), (0, more)) for x in columns])
        for block, of_keys in scheme.blocks_again(self.keys, stats):
            if of_keys is None:
                of_keys = rows.lse.new_zeros(2, len(rows.lse), block.width)
            of_block = _Softmax(of_keys[0], of_keys[1].to(rows.grad))
            back = {k: torch.zeros_like(x, dtype=precise) for k, x in block.keys.items()}
            for some in self._chunks(block):
                diagonal, kept = next(saved), [next(saved) for _ in self.scales]
                mine = _Softmax(*(x[:, some] for x in rows))
                slopes = by_row + by_column if block.own else _shares_of_negatives(mine, of_block, diagonal)
                # an excluded pair has no share, but a finite logit
                finite = torch.where(diagonal == -torch.inf, 0, diagonal)
                given = Slopes(*mine, *of_block, finite, slopes)
                self._add_gradients(block, some, given, kept, [x[some] for x in found], back, numbers)
            returned.add(joined(back))
        parts = returned.own().split([x.shape[1] for x in self.keys.values()], 1)
        for k, part in zip(self.keys, parts, strict=True):
            found[k] += part
        return [x.to(y.dtype) for x, y in zip(found, self.vectors, strict=True)], scheme.ranks.mean(numbers)

    def _add_gradients(
        self,
        block: Block,
        some: slice,
        slopes: Slopes,
        kept: Sequence[Tensor],
        queries: Sequence[Tensor],
        keys: Features,
        numbers: Tensor,
    ) -> None:
        """Add what some rows and a block of keys give each other to gradients of both, and of c, scales and factors."""
        ids = self._ids(block, some)
        for g, (group, scale) in enumerate(zip(self.terms.groups, self.scales, strict=True)):
            features, factors, pairings, sides = self._operands(block, some, group)
            given = (factors, self.c, scale, ids, kept[g], pairings, self.terms.flags)
            of_group = Slopes(*(x[group] for x in slopes))
            gradients, d_factors, dc, ds = contrastive_sums.backward(features, of_group, *given)
            for (of_query, k), gradient in zip(sides, gradients, strict=True):
                into = queries[k] if of_query else keys[k]
                into += gradient
            numbers[0] += dc
            numbers[1 + g] += ds
            if self.factors is not None:
                for (_, k), gradient in zip(sides, d_factors, strict=True):
                    numbers[1 + len(self.scales) + k] += gradient

    def _operands(self, block: Block, some: slice, group: Sequence[int]):
        """Features of some rows and of a block, their factors and pairings; of each, whether it is of queries, and its number."""
        pairings = [self.terms.pairings[t] for t in group]
        sides = [(True, k) for k in sorted({p.queries for p in pairings})]
        sides += [(False, k) for k in sorted({p.keys for p in pairings})]
        place = {side: number for number, side in enumerate(sides)}
        features = [self.vectors[k][some] if of_query else block.keys[k] for of_query, k in sides]
        factors = None if self.factors is None else self.factors[[k for _, k in sides]]
        own = [Pairing(place[True, p.queries], place[False, p.keys], p.symmetric) for p in pairings]
        return features, factors, own, sides

    def _ids(self, block: Block, some: slice) -> tuple[Tensor, Tensor] | None:
        ids = self.terms.query_ids
        return None if ids is None else (ids[some], block.given[0])


def _shares_of_negatives(rows: _Softmax, columns: _Softmax, diagonal: Tensor) -> Tensor:
    """Minus dL/dlogit of the pairs of a diagonal (t r)."""
    height = diagonal.shape[1]
    by_row = rows.grad * torch.exp(diagonal - rows.lse).to(rows.grad)
    return -by_row - columns.grad[:, :height] * torch.exp(diagonal - columns.lse[:, :height]).to(rows.grad)
