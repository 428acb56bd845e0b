"""Operators of inner products and distances of rows, and of the matrix of all distances."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from hyperst_kernels._checks import geometry_dtype
from hyperst_kernels.cpu import distance as cpu
from hyperst_kernels.cpu import distance_matrix as cpu_matrix
from hyperst_kernels.operators.register import (
    PORTABLE,
    TRITON,
    below_autograd,
    define,
    differentiate,
    differentiated,
    in_full_precision,
    in_reverse,
    once,
    raising,
    reference_in_use,
)
from hyperst_kernels.operators.row_wise import a_number_each, input_name, row_wise
from hyperst_kernels.reference import distance as reference


@functools.cache
def _gpu():
    """Return the module of the Triton kernels, imported when one of them is first called."""
    from hyperst_kernels.gpu import distance

    return distance


@functools.cache
def _gpu_matrix():
    """Return the functions of the matrix with Triton kernels, imported when one of them is first called."""
    from hyperst_kernels.gpu import distance_matrix, distance_matrix_backward

    return distance_matrix.pairwise_distance, distance_matrix_backward.pairwise_distance_backward


inner = row_wise(
    "inner(Tensor x, Tensor y, Tensor c)",
    reference=reference.inner,
    gpu=lambda: (_gpu().inner, _gpu().inner_backward),
    shape=a_number_each,
)
distance = row_wise(
    "distance(Tensor x, Tensor y, Tensor c, bool tangent)",
    reference=lambda x, y, c, tangent: reference.distance(x, y, c, input_name(tangent)),
    gpu=lambda: (_gpu().distance, _gpu().distance_backward),
    cpu=(cpu.distance, cpu.distance_backward),
    shape=a_number_each,
)
distance0 = row_wise(
    "distance0(Tensor x, Tensor c, bool tangent)",
    reference=lambda x, c, tangent: reference.distance0(x, c, input_name(tangent)),
    gpu=lambda: (_gpu().distance0, _gpu().distance0_backward),
    shape=a_number_each,
)


class _PairwiseDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, c, *flags):
        with below_autograd():
            out = matrix(x, y, c, *flags)
        ctx.flags = flags
        ctx.save_for_backward(x, y, c, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        return (*once(matrix_backward, grad, *ctx.saved_tensors, *ctx.flags), *(None,) * len(ctx.flags))


matrix = define(
    "pairwise_distance(Tensor x, Tensor y, Tensor c, bool tangent, str precision) -> Tensor",
    lambda x, y, c, *flags: c.new_empty(x.shape[0], y.shape[0]),
    {
        **dict.fromkeys(TRITON, lambda *args: _gpu_matrix()[0](*args)),
        **dict.fromkeys(PORTABLE, in_full_precision(cpu_matrix.pairwise_distance)),
    },
)
matrix_backward = define(
    "pairwise_distance_backward(Tensor grad, Tensor x, Tensor y, Tensor c, Tensor distance, bool tangent, str precision)"
    " -> (Tensor, Tensor, Tensor)",
    lambda grad, x, y, c, *rest: (x.new_empty(x.shape), y.new_empty(y.shape), c.new_empty(())),
    {
        **dict.fromkeys(TRITON, in_full_precision(lambda *args: _gpu_matrix()[1](*args))),
        **dict.fromkeys(PORTABLE, in_full_precision(cpu_matrix.pairwise_distance_backward)),
    },
)
differentiate(matrix, {"": differentiated(_PairwiseDistance)})
_SMALL = "compute it under hyperst_kernels.use_reference(), where the matrix is small"
differentiate(matrix_backward, {"": raising(matrix_backward, "pairwise_distance", _SMALL)})


def pairwise_distance(x: Tensor, y: Tensor, c: Tensor, tangent: bool, precision: str) -> Tensor:
    """(n d), (m d) -> (n m) in the geometry's dtype."""
    if reference_in_use():
        dtype = geometry_dtype(x)
        given = (x.to(dtype), y.to(dtype), c, input_name(tangent))
        return in_reverse("pairwise_distance", reference.pairwise_distance, *given)
    return in_reverse("pairwise_distance", matrix, x, y, c, tangent, precision)
