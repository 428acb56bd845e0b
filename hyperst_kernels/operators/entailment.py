"""Operators of entailment cones: apertures, angles, and the hinges of several relations at once."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from hyperst_kernels._checks import geometry_dtype
from hyperst_kernels.cpu import entailment as cpu
from hyperst_kernels.operators.register import (
    PORTABLE,
    TRITON,
    below_autograd,
    define,
    differentiate,
    differentiated,
    in_reverse,
    once,
    reference_in_use,
    transformed,
)
from hyperst_kernels.operators.row_wise import (
    NATIVE,
    a_number_each,
    input_name,
    reference_gradients,
    row_wise,
    where_native,
    where_rows_fit,
)
from hyperst_kernels.reference import entailment as reference


@functools.cache
def _gpu():
    """Return the module of the Triton kernels, imported when one of them is first called."""
    from hyperst_kernels.gpu import entailment

    return entailment


half_aperture = row_wise(
    "half_aperture(Tensor x, Tensor c, float min_radius, bool tangent)",
    reference=lambda x, c, K, tangent: reference.half_aperture(x, c, K, input_name(tangent)),
    gpu=lambda: (_gpu().half_aperture, _gpu().half_aperture_backward),
    shape=a_number_each,
)
exterior_angle = row_wise(
    "exterior_angle(Tensor x, Tensor y, Tensor c, bool tangent)",
    reference=lambda x, y, c, tangent: reference.exterior_angle(x, y, c, input_name(tangent)),
    gpu=lambda: (_gpu().exterior_angle, _gpu().exterior_angle_backward),
    cpu=(cpu.exterior_angle, cpu.exterior_angle_backward),
    shape=a_number_each,
)


def reference_hinges(parents, children, c, etas, min_radius, tangent):
    """Hinges of r relations by the reference: (r n)."""
    dtype = geometry_dtype(parents[0])
    rows = [
        reference.entailment_loss(x.to(dtype), y.to(dtype), c, eta, min_radius, input_name(tangent))
        for x, y, eta in zip(parents, children, etas, strict=True)
    ]
    return torch.stack(rows).to(parents[0].dtype)


class _DifferentiatedHinges(torch.autograd.Function):
    @staticmethod
    def forward(ctx, c, etas, min_radius, tangent, *vectors):
        ctx.flags = (etas, min_radius, tangent)
        ctx.save_for_backward(c, *vectors)
        with below_autograd():
            return _hinges(vectors[: len(etas)], vectors[len(etas) :], c, etas, min_radius, tangent)

    @staticmethod
    def backward(ctx, grad):
        c, *vectors = ctx.saved_tensors
        r = len(ctx.flags[0])
        if torch.is_grad_enabled():

            def portable(c, *vectors):
                return reference_hinges(vectors[:r], vectors[r:], c, *ctx.flags)

            dc, *grads = reference_gradients(portable, grad, (c, *vectors), ())
        else:
            parents, children, dc = once(_hinges_backward, grad, vectors[:r], vectors[r:], c, *ctx.flags)
            grads = [*parents, *children]
        return (dc, None, None, None, *grads)


_HINGES = "Tensor[] parents, Tensor[] children, Tensor c, float[] etas, float min_radius, bool tangent"


def _differentiated_hinges(parents, children, c, *flags):
    return differentiated(_DifferentiatedHinges)(c, *flags, *parents, *children)


_hinges = define(
    f"entailment_hinges({_HINGES}) -> Tensor",
    lambda parents, *rest: parents[0].new_empty(len(parents), parents[0].shape[0]),
    {
        **dict.fromkeys(PORTABLE, reference_hinges),
        **dict.fromkeys(TRITON, where_rows_fit(lambda *args: _gpu().entailment_hinges(*args), reference_hinges)),
        **dict.fromkeys(NATIVE, where_native(cpu.entailment_hinges, reference_hinges)),
    },
)
_hinges_backward = define(
    f"entailment_hinges_backward(Tensor grad, {_HINGES}) -> (Tensor[], Tensor[], Tensor)",
    lambda grad, parents, children, c, *flags: (
        [t.new_empty(t.shape) for t in parents],
        [t.new_empty(t.shape) for t in children],
        c.new_empty(()),
    ),
    {
        **dict.fromkeys(TRITON, lambda *args: _gpu().entailment_hinges_backward(*args)),
        **dict.fromkeys(NATIVE, cpu.entailment_hinges_backward),
    },
)
differentiate(
    _hinges,
    {
        **dict.fromkeys(PORTABLE, reference_hinges),
        **dict.fromkeys(TRITON, where_rows_fit(_differentiated_hinges, reference_hinges)),
        **dict.fromkeys(NATIVE, where_native(_differentiated_hinges, reference_hinges)),
    },
)


def entailment_hinges(
    parents: Sequence[Tensor],
    children: Sequence[Tensor],
    c: Tensor,
    etas: Sequence[float],
    min_radius: float,
    tangent: bool,
) -> Tensor:
    """max(0, exterior angle - eta half-aperture) of r relations between vectors (..., d) of one shape: (r, ...)."""
    leading, d = parents[0].shape[:-1], parents[0].shape[-1]
    x, y = ([t.reshape(-1, d) for t in group] for group in (parents, children))
    compute = reference_hinges if reference_in_use() or transformed() else _hinges
    hinges = in_reverse("entailment_loss", compute, x, y, c, list(etas), min_radius, tangent)
    return hinges.reshape((len(etas), *leading))
