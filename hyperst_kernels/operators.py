"""How an operator is registered: schema, fake, CPU and CUDA kernels, autograd. One pattern for all.

The kernels are plain functions on tensors, registered per device with the dispatcher, so that torch.compile and
torch.export see one opaque operator. Differentiation is an Autograd-key kernel around a ``torch.autograd.Function``.
Unlike the higher-level registration helpers it makes forward-mode AD and double backward RAISE where they are not
implemented, instead of returning zeros.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from hyperst_kernels.cpu import contrastive as cpu_contrastive

_LIBRARY = torch.library.Library("hyperst_kernels", "DEF")
ops = torch.ops.hyperst_kernels


def _define(schema: str, kernel: Callable, fake: Callable, autograd: Callable) -> None:
    name = schema.split("(")[0]
    _LIBRARY.define(schema)

    @functools.wraps(kernel)
    def in_full_precision(*args):
        # products inside a kernel go through the dispatcher again: autocast must not round them
        with torch.autocast(args[0].device.type, enabled=False):
            return kernel(*args)

    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, in_full_precision, key)
    torch.library.register_fake(f"hyperst_kernels::{name}", fake, lib=_LIBRARY)
    _LIBRARY.impl(name, autograd, "Autograd")


def _forward_kernel(queries, keys, c, logit_scale, exclude_ids, geometry, tangent, symmetric):
    negatives = cpu_contrastive.forward(queries, keys, c, logit_scale, exclude_ids, geometry, tangent, symmetric)
    return (*cpu_contrastive.losses(*negatives), *negatives)


def _forward_fake(queries, keys, c, logit_scale, exclude_ids, geometry, tangent, symmetric):
    n = queries.shape[0]
    columns = n if symmetric else 0
    return tuple(queries.new_empty(size) for size in (n, columns, n, columns, n))


def _backward_fake(grad_rows, grad_columns, queries, keys, c, logit_scale, *rest):
    return tuple(torch.empty_like(t) for t in (queries, keys, c, logit_scale))


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, keys, c, logit_scale, exclude_ids, *flags):
        with torch._C._AutoDispatchBelowAutograd():
            outputs = ops.contrastive_forward(queries, keys, c, logit_scale, exclude_ids, *flags)
        ctx.flags = flags
        ctx.save_for_backward(queries, keys, c, logit_scale, exclude_ids, *outputs[2:])
        ctx.mark_non_differentiable(*outputs[2:])
        return outputs

    @staticmethod
    def backward(ctx, grad_rows, grad_columns, *_):
        grads = ops.contrastive_backward(
            grad_rows.contiguous(), grad_columns.contiguous(), *ctx.saved_tensors, *ctx.flags
        )
        return (*grads, *(None,) * (1 + len(ctx.flags)))


class _ContrastiveBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *args):
        with torch._C._AutoDispatchBelowAutograd():
            return ops.contrastive_backward(*args)

    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError(
            "contrastive_loss has no second derivative: call backward without create_graph=True, or compute the loss "
            "under hyperst_kernels.use_reference() where the batch is small"
        )


_FLAGS = "str geometry, bool tangent, bool symmetric"
_define(
    f"contrastive_forward(Tensor queries, Tensor keys, Tensor c, Tensor logit_scale, Tensor? exclude_ids, {_FLAGS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward_kernel,
    _forward_fake,
    _Contrastive.apply,
)
_define(
    "contrastive_backward(Tensor grad_rows, Tensor grad_columns, Tensor queries, Tensor keys, Tensor c,"
    " Tensor logit_scale, Tensor? exclude_ids, Tensor row_negatives, Tensor column_negatives, Tensor positives,"
    f" {_FLAGS}) -> (Tensor, Tensor, Tensor, Tensor)",
    cpu_contrastive.backward,
    _backward_fake,
    _ContrastiveBackward.apply,
)


def contrastive_terms(
    queries: Tensor,
    keys: Tensor,
    c: Tensor,
    logit_scale: Tensor,
    input: str,
    geometry: str,
    directions: str,
    exclude_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The blocked operator behind ``reference.contrastive.contrastive_terms``, with the same arguments and results."""
    flags = (geometry, input == "tangent", directions == "both")
    return ops.contrastive_forward(queries, keys, c, logit_scale, exclude_ids, *flags)[:2]
