"""The operator of blockwise losses of all pairs: what the fused operator of ``contrastive`` has no kernels for.

One code serves every device; in it run the kernels of the matrix of distances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hyperst_kernels._constants import PRODUCTS
from hyperst_kernels.blocked import pair_loss as blocked
from hyperst_kernels.blocked.blocks import Geometry
from hyperst_kernels.operators.contrastive import ONCE
from hyperst_kernels.operators.distance import distance
from hyperst_kernels.operators.entailment import exterior_angle
from hyperst_kernels.operators.register import (
    PORTABLE,
    TRITON,
    below_autograd,
    define,
    differentiate,
    differentiated,
    in_full_precision,
    in_reverse,
    raising,
    reference_in_use,
)
from hyperst_kernels.operators.row_wise import input_name
from hyperst_kernels.reference import pair_loss as reference
from hyperst_kernels.reference.contrastive import dissimilarity
from hyperst_kernels.reference.flat import common_scale, unit


def _inputs(
    queries,
    keys,
    c,
    logit_scale,
    logit_bias,
    query_ids,
    key_ids,
    exclude_ids,
    debias,
    limits,
    loss,
    geometry,
    tangent,
    symmetric,
    precision,
    label_smoothing,
) -> blocked.Inputs:
    n, m = len(queries), len(keys)
    ids = None if query_ids is None else (query_ids, key_ids)
    excluded = None if exclude_ids is None else (exclude_ids[:n], exclude_ids)
    # a key is the positive of the query beside it; those beyond have no loss
    of_both = None if limits is None else (limits, F.pad(limits, (0, max(m - n, 0))))
    flags = (loss, Geometry(geometry, tangent, precision), symmetric, label_smoothing)
    return blocked.Inputs(queries, keys, c, logit_scale, logit_bias, ids, excluded, of_both, debias, *flags)


def _fake(*given):
    queries, keys, c, loss, symmetric = *given[:3], given[_TENSORS], given[-3]
    n, m = queries.shape[0], keys.shape[0] if symmetric and loss == "softmax" else 0
    stats = (0,) if loss == "sigmoid" else (blocked.stats_needed(given[-1], given[_TENSORS - 2]), n + m)
    return c.new_empty(n), c.new_empty(m), c.new_empty(stats, dtype=torch.float64)


_TENSORS = 10  # arguments that are tensors or None, before the flags


class _PairLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *given):
        with below_autograd():
            rows, columns, stats = _forward(*given)
        ctx.flags = given[_TENSORS:]
        ctx.save_for_backward(*given[:_TENSORS], stats)
        ctx.mark_non_differentiable(stats)
        return rows, columns, stats

    @staticmethod
    def backward(ctx, grad_rows, grad_columns, _):
        *tensors, stats = ctx.saved_tensors
        found = _backward(grad_rows, grad_columns, stats, *tensors, *ctx.flags)
        *of_others, of_bias = found
        without_bias = tensors[len(of_others)] is None
        # ids, limits, flags and what debiases have none
        return (*of_others, None if without_bias else of_bias, *(None,) * (_TENSORS - len(found) + len(ctx.flags)))


_GIVEN = (
    "Tensor queries, Tensor keys, Tensor c, Tensor logit_scale, Tensor? logit_bias, Tensor? query_ids, Tensor? key_ids, "
    "Tensor? exclude_ids, Tensor? debias, Tensor? limits, str loss, str geometry, bool tangent, bool symmetric, str precision, "
    "float label_smoothing"
)
_EVERYWHERE = (*TRITON, *PORTABLE)
_forward = define(
    f"pair_loss_forward({_GIVEN}) -> (Tensor, Tensor, Tensor)",
    _fake,
    dict.fromkeys(_EVERYWHERE, in_full_precision(lambda *given: blocked.forward(_inputs(*given)))),
)
_backward = define(
    f"pair_loss_backward(Tensor grad_rows, Tensor grad_columns, Tensor stats, {_GIVEN})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    lambda grad_rows, grad_columns, stats, queries, keys, c, logit_scale, *rest: (
        *(t.new_empty(t.shape) for t in (queries, keys, c, logit_scale)),
        c.new_empty(()),
    ),
    dict.fromkeys(
        _EVERYWHERE,
        in_full_precision(
            lambda grad_rows, grad_columns, stats, *given: tuple(
                blocked.backward(_inputs(*given), grad_rows, grad_columns, stats)
            )
        ),
    ),
)
differentiate(_forward, {"": differentiated(_PairLoss)})
differentiate(_backward, {"": raising(_backward, "contrastive_loss", ONCE)})


def pair_losses(
    queries: Tensor,
    keys: Tensor,
    c: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    exclude_ids: Tensor | None,
    debias: Tensor | None,
    loss: str,
    geometry: str,
    tangent: bool,
    symmetric: bool,
    precision: str,
    label_smoothing: float = 0.0,
    margin: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The operator behind ``reference.pair_loss.pair_losses``, with its arguments; features are of the geometry's dtype."""
    ids = (query_ids, key_ids, exclude_ids, debias)
    limits = None if margin is None else limits_of(queries, keys, c, margin, geometry, tangent)
    if reference_in_use():
        given = (queries, keys, c, logit_scale, logit_bias, *ids, limits)
        options = (loss, geometry, input_name(tangent), symmetric, label_smoothing)
        return in_reverse("contrastive_loss", reference.pair_losses, *given, *options)
    (queries, keys), (logit_scale,), limits = of_moderate_size([queries, keys], [logit_scale], limits, geometry)
    tensors = (queries, keys, c, logit_scale, logit_bias, *ids, limits)
    flags = (loss, geometry, tangent, symmetric, precision, label_smoothing)
    return in_reverse("contrastive_loss", _forward, *tensors, *flags)[:2]


def of_moderate_size(
    vectors: Sequence[Tensor],
    logit_scales: Sequence[Tensor],
    limits: Tensor | None,
    geometry: str,
    shared: Callable[[Tensor], Tensor] = lambda unit: unit,
) -> tuple[Sequence[Tensor], Sequence[Tensor], Tensor | None]:
    """What blocks take in place of features, scales and limits; ``shared`` makes a power of two that of all ranks."""
    if geometry == "euclidean":
        # distances are of degree 1: where vectors are of size 1, no square overflows or vanishes
        size = shared(common_scale(*vectors))
        vectors, logit_scales = [x * size for x in vectors], [scale / size for scale in logit_scales]
        limits = None if limits is None else limits * size.detach()
    elif geometry == "cosine":
        vectors = [unit(x) for x in vectors]
    return vectors, logit_scales, limits


def limits_of(queries: Tensor, keys: Tensor, c: Tensor, margin: float, geometry: str, tangent: bool) -> Tensor:
    """Distances below which keys are no negatives, a margin before the positive, without a gradient: (n d), (m d) -> (n)."""
    given = queries.detach(), keys[: queries.shape[0]].detach(), c.detach()
    if geometry in PRODUCTS:
        parts = zip(*(x.chunk(len(c), 1) for x in given[:2]), c.detach(), strict=True)
        found = reference.combined([distance(*part, tangent) for part in parts], geometry)
    elif geometry in ("lorentz", "angle"):
        found = (distance if geometry == "lorentz" else exterior_angle)(*given, tangent)
    else:
        found = dissimilarity(*given, input_name(tangent), geometry, pairwise=False)
    return found - margin
