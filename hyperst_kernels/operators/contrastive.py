"""The operator of the contrastive loss over several pairings of features, for all of them at once.

Features have one floating dtype and one d, everything else is of the geometry's dtype. ``pairings`` are those of the
reference, three integers each; ``factors`` multiply the features, one each. ``kept`` is what the backward pass of the same
device can use again, in whatever form it likes; ``keep`` is how many bytes of it a term may keep, 0 where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hyperst_kernels.cpu import contrastive as cpu_contrastive
from hyperst_kernels.cpu import memory, small_batch
from hyperst_kernels.cpu.online_softmax import wide
from hyperst_kernels.operators.register import (
    PORTABLE,
    TRITON,
    below_autograd,
    define,
    differentiate,
    differentiated,
    in_full_precision,
    in_reverse,
    on_triton,
    once,
    raising,
    reference_in_use,
)
from hyperst_kernels.reference import contrastive as contrastive_reference
from hyperst_kernels.reference.contrastive import Pairing
from hyperst_kernels.reference.flat import common_scale, of_size_one, times


def _unflattened(pairings: Sequence[int]) -> list[Pairing]:
    return [Pairing(x, y, bool(symmetric)) for x, y, symmetric in zip(*[iter(pairings)] * 3, strict=True)]


def scaled(features: Sequence[Tensor], factors: Tensor | None, c: Tensor) -> list[Tensor]:
    """What the loss is computed of, in the geometry's dtype."""
    wide = [x.to(c.dtype) for x in features]
    return wide if factors is None else [x * factor for x, factor in zip(wide, factors, strict=True)]


def _same_ids(exclude_ids: Tensor | None) -> cpu_contrastive.Ids:
    """Row i has the id of its positive, the key i."""
    return None if exclude_ids is None else (exclude_ids, exclude_ids)


def _portable_contrastive(
    features, factors, c, logit_scale, exclude_ids, pairings, geometry, tangent, precision, atomic, keep
):
    vectors, pairings = scaled(features, factors, c), _unflattened(pairings)
    if small_batch.fits(vectors, pairings, geometry):
        kept = c.new_empty(cpu_contrastive.kept_shape(features, pairings, c, keep))
        found = small_batch.forward(vectors, c, logit_scale, exclude_ids, pairings, tangent, kept)
        if found is not None:
            return *found, kept
    flags = (pairings, geometry, tangent, keep)
    *negatives, kept = cpu_contrastive.forward(vectors, c, logit_scale, _same_ids(exclude_ids), *flags)
    return (*(loss.to(c.dtype) for loss in cpu_contrastive.losses(*negatives)), *negatives, kept)


def _portable_contrastive_backward(
    grad_rows,
    grad_columns,
    features,
    factors,
    c,
    logit_scale,
    exclude_ids,
    rows,
    columns,
    positives,
    kept,
    pairings,
    geometry,
    tangent,
    precision,
    atomic,
):
    vectors, pairings, found = scaled(features, factors, c), _unflattened(pairings), None
    if kept.numel() > 0 and small_batch.fits(vectors, pairings, geometry):
        grads, logits = (grad_rows, grad_columns), (rows, columns, positives)
        found = small_batch.backward(*grads, vectors, c, logit_scale, pairings, tangent, logits, kept)
    if found is None:
        upstream = cpu_contrastive.of_losses(grad_rows, grad_columns, rows, columns, positives)
        given = (vectors, c, logit_scale, _same_ids(exclude_ids), kept, pairings, geometry, tangent)
        found = cpu_contrastive.backward(upstream, *given)
    gradients, dc, ds = found
    gradients, d_factors = _by_factors(gradients, vectors, factors, c)
    return [g.to(x.dtype) for g, x in zip(gradients, features, strict=True)], d_factors, dc, ds


def portable_gradients(
    upstream,
    features,
    factors,
    c,
    logit_scale,
    ids,
    kept,
    pairings,
    geometry,
    tangent,
    precision,
    atomic,
    unrounded=False,
):
    """What the backward operators return, from an ``UpstreamOf`` of `hyperst_kernels.cpu.contrastive`.

    ``unrounded``: gradients of features in c's dtype.
    """
    vectors = scaled(features, factors, c)
    given = (vectors, c, logit_scale, ids, kept, pairings, geometry, tangent)
    gradients, dc, ds = cpu_contrastive.backward(upstream, *given)
    gradients, d_factors = _by_factors(gradients, vectors, factors, c)
    if not unrounded:
        gradients = [g.to(x.dtype) for g, x in zip(gradients, features, strict=True)]
    return gradients, d_factors, dc, ds


def _by_factors(gradients, vectors, factors, c):
    """Gradients of features and factors from those of the ``vectors`` that these make."""
    if factors is None:
        return gradients, c.new_zeros(0)
    along = [torch.linalg.vecdot(u, g).sum(dtype=torch.float64) for u, g in zip(vectors, gradients, strict=True)]
    gradients = [g.mul_(factor) for g, factor in zip(gradients, factors, strict=True)]
    return gradients, (torch.stack(along) / factors).to(c.dtype)


def _triton_contrastive(features, factors, c, logit_scale, exclude_ids, pairings, *flags):
    from hyperst_kernels.gpu import contrastive

    # flags of tiles are small enough to be kept in any case
    given = (features, factors, c, logit_scale, _same_ids(exclude_ids), _unflattened(pairings), *flags[:-2])
    *negatives, kept = contrastive.forward(*given)
    return (*(loss.to(c.dtype) for loss in cpu_contrastive.losses(*negatives)), *negatives, kept)


def _triton_contrastive_backward(
    grad_rows,
    grad_columns,
    features,
    factors,
    c,
    logit_scale,
    exclude_ids,
    rows,
    columns,
    positives,
    kept,
    pairings,
    *flags,
):
    from hyperst_kernels.gpu import contrastive

    pairings = _unflattened(pairings)
    slopes = contrastive.of_losses(grad_rows, grad_columns, rows, columns, positives, features, pairings)
    given = (slopes, features, factors, c, logit_scale, _same_ids(exclude_ids), kept, pairings)
    return contrastive.backward(*given, *flags)


def _contrastive_fake(
    features, factors, c, logit_scale, exclude_ids, pairings, geometry, tangent, precision, atomic, keep
):
    pairings = _unflattened(pairings)
    n = max(features[p.queries].shape[0] for p in pairings)
    if on_triton(c):
        from hyperst_kernels.gpu.contrastive import flags_shape

        kept = c.new_empty(flags_shape(features, pairings, geometry), dtype=torch.int8)
    else:
        kept = c.new_empty(cpu_contrastive.kept_shape(features, pairings, c, keep))
    losses = (c.new_empty(len(pairings), n) for _ in range(2))
    logits = (c.new_empty(len(pairings), n, dtype=wide(c)) for _ in range(3))
    return (*losses, *logits, kept)


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, factors, c, logit_scale, exclude_ids, flags, *features):
        with below_autograd():
            outputs = _forward(features, factors, c, logit_scale, exclude_ids, *flags)
        ctx.flags, ctx.factors = flags[:-1], factors is not None
        ctx.save_for_backward(factors, c, logit_scale, exclude_ids, *outputs[2:], *features)
        ctx.mark_non_differentiable(*outputs[2:])
        ctx.set_materialize_grads(False)  # zeros for ``kept`` would be as large as it
        return outputs

    @staticmethod
    def backward(ctx, *grads):
        factors, c, logit_scale, exclude_ids, *rest = ctx.saved_tensors
        outputs, features = rest[:4], rest[4:]
        upstream = (
            c.new_zeros(negatives.shape) if grad is None else grad.contiguous()
            for grad, negatives in zip(grads, outputs[:2], strict=False)
        )
        given = (*upstream, features, factors, c, logit_scale, exclude_ids, *outputs, *ctx.flags)
        gradients, d_factors, dc, ds = once(_backward, *given)
        return (d_factors if ctx.factors else None, dc, ds, None, None, *gradients)


_GIVEN = "Tensor[] features, Tensor? factors, Tensor c, Tensor logit_scale, Tensor? exclude_ids"
_FLAGS = "int[] pairings, str geometry, bool tangent, str precision, bool atomic"
_forward = define(
    f"contrastive_forward({_GIVEN}, {_FLAGS}, int keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _contrastive_fake,
    {
        **dict.fromkeys(TRITON, in_full_precision(_triton_contrastive)),
        **dict.fromkeys(PORTABLE, in_full_precision(_portable_contrastive)),
    },
)
_backward = define(
    f"contrastive_backward(Tensor grad_rows, Tensor grad_columns, {_GIVEN}, Tensor row_negatives,"
    f" Tensor column_negatives, Tensor positives, Tensor kept, {_FLAGS}) -> (Tensor[], Tensor, Tensor, Tensor)",
    lambda grad_rows, grad_columns, features, factors, c, *rest: (
        [x.new_empty(x.shape) for x in features],
        c.new_empty(0 if factors is None else len(features)),
        c.new_empty(()),
        c.new_empty(()),
    ),
    {
        **dict.fromkeys(TRITON, in_full_precision(_triton_contrastive_backward)),
        **dict.fromkeys(PORTABLE, in_full_precision(_portable_contrastive_backward)),
    },
)
differentiate(_forward, {"": lambda features, *given: differentiated(_Contrastive)(*given[:4], given[4:], *features)})
ONCE = (
    "call backward without create_graph=True, or compute the loss under hyperst_kernels.use_reference() where the batch is "
    "small"
)
differentiate(_backward, {"": raising(_backward, "contrastive_loss", ONCE)})


def of_moderate_size(
    features: Sequence[Tensor],
    factors: Tensor | None,
    c: Tensor,
    logit_scales: Sequence[Tensor],
    geometry: str,
    shared: Callable[[Tensor], Tensor] = lambda unit: unit,
) -> tuple[Sequence[Tensor], Tensor | None, Sequence[Tensor]]:
    """What the kernels take in place of features, factors and logit scales; ``shared`` makes a power of two that of all ranks."""
    if geometry == "euclidean":
        # distances are of degree 1 in features and factors: where these are of size 1, no square overflows or vanishes
        unit = shared(common_scale(*features))
        features, logit_scales = [times(x, unit) for x in features], [scale / unit for scale in logit_scales]
        if factors is not None:
            unit = shared(common_scale(factors))
            factors, logit_scales = factors * unit, [scale / unit for scale in logit_scales]
    elif geometry == "cosine" and on_triton(c):
        features = [of_size_one(x) for x in features]  # its kernels sum squares as they come
    return features, factors, logit_scales


def contrastive_terms(
    features: Sequence[Tensor],
    factors: Tensor | None,
    c: Tensor,
    logit_scale: Tensor,
    pairings: Sequence[Pairing],
    input: str,
    geometry: str,
    exclude_ids: Tensor | None,
    precision: str = "bf16x3",
    atomic: bool = False,
) -> tuple[Tensor, Tensor]:
    """The operator behind ``reference.contrastive.hierarchy_terms``, with the same arguments and results."""
    features, factors, (logit_scale,) = of_moderate_size(features, factors, c, [logit_scale], geometry)
    if reference_in_use():
        features = [x.to(c.dtype) for x in features]
        given = (features, factors, c, logit_scale, pairings, input, geometry, exclude_ids)
        return in_reverse("contrastive_loss", contrastive_reference.hierarchy_terms, *given)
    differentiable = any(t is not None and t.requires_grad for t in (*features, factors, c, logit_scale))
    keep = memory.kept_bytes if torch.is_grad_enabled() and differentiable else 0
    flat = [int(number) for pairing in pairings for number in pairing]
    flags = (flat, geometry, input == "tangent", precision, atomic, keep)
    tensors = (features, factors, c, logit_scale, exclude_ids)
    return in_reverse("contrastive_loss", _forward, *tensors, *flags)[:2]
