"""The contrastive kernels as several processes need them: what one block of keys adds to the sums of rows and of columns.

Neither is an operator: torch.compile does not trace losses of several processes. Features, factors, pairings and flags are those
of `hyperst_kernels.operators.contrastive`. Row i and key i of a block, its diagonal, are in no sum: they may be positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from hyperst_kernels.cpu import contrastive as cpu_contrastive
from hyperst_kernels.operators.contrastive import portable_gradients, scaled
from hyperst_kernels.operators.register import in_full_precision, on_triton
from hyperst_kernels.reference.contrastive import Pairing, Slopes

Ids = tuple[Tensor, Tensor] | None


class Flags(NamedTuple):
    """What all blocks have in common."""

    geometry: str
    tangent: bool
    precision: str
    atomic: bool


@in_full_precision
def forward(
    features: Sequence[Tensor],
    factors: Tensor | None,
    c: Tensor,
    logit_scale: Tensor,
    ids: Ids,
    pairings: Sequence[Pairing],
    flags: Flags,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """LSE of rows (t n) and of columns (t m), logits of the diagonal (t n), all float64; and what `backward` can use again."""
    if on_triton(c):
        from hyperst_kernels.gpu import contrastive

        return contrastive.forward(features, factors, c, logit_scale, ids, pairings, *flags[:3], all_columns=True)
    given = (scaled(features, factors, c), c, logit_scale, ids, pairings, *flags[:2])
    return cpu_contrastive.forward(*given, keep, all_columns=True)


@in_full_precision
def backward(
    features: Sequence[Tensor],
    slopes: Slopes,
    factors: Tensor | None,
    c: Tensor,
    logit_scale: Tensor,
    ids: Ids,
    kept: Tensor,
    pairings: Sequence[Pairing],
    flags: Flags,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Gradients of the features and factors (f, or 0), c () and logit_scale (), all in c's dtype: they are to be added up."""
    if on_triton(c):
        from hyperst_kernels.gpu import contrastive

        return contrastive.backward(
            slopes, features, factors, c, logit_scale, ids, kept, pairings, *flags, unrounded=True
        )
    upstream = cpu_contrastive.of_sums(slopes)
    return portable_gradients(upstream, features, factors, c, logit_scale, ids, kept, pairings, *flags, unrounded=True)
