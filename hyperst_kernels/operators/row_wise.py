"""Operators of rows: matrices (n d) of one dtype in, and scalars as 0-d tensors of the geometry's dtype.

Each is declared once, by its reference, its kernels for a GPU, and machine code for the CPU where that pays, and is called like
the function that it is. How operators are registered is told in ``register``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._ops import OpOverloadPacket

from hyperst_kernels._checks import geometry_dtype
from hyperst_kernels.cpu.distance import usable
from hyperst_kernels.operators.register import (
    PORTABLE,
    TRITON,
    below_autograd,
    define,
    differentiate,
    differentiated,
    in_reverse,
    once,
    raising,
    reference_in_use,
    transformed,
)

# Devices of the machine code in ``cpu``; in Triton's interpreter the CPU has the kernels of a GPU.
NATIVE = tuple(key for key in ("CPU",) if key not in TRITON)
Kernels = tuple[Callable, Callable]  # forward and backward


@dataclass(frozen=True)
class RowWise:
    """An operator of rows: called with vectors (..., d) of one shape and dtype, it returns (..., d), (..., d+1) or (...).

    ``operator`` and ``backward`` are the dispatcher's, for matrices (n d); ``portable`` is the reference on any device, and ``gpu``
    imports the Triton kernels.
    """

    name: str
    portable: Callable
    operator: OpOverloadPacket
    backward: OpOverloadPacket
    gpu: Callable[[], Kernels]

    def __call__(self, *args) -> Tensor:
        vectors = [t for t in args if isinstance(t, Tensor) and t.ndim > 0]
        leading, d = vectors[0].shape[:-1], vectors[0].shape[-1]
        flat = [t.reshape(-1, d) if isinstance(t, Tensor) and t.ndim > 0 else t for t in args]
        compute = self.portable if reference_in_use() or transformed() else self.operator
        out = in_reverse(self.name, compute, *flat)
        return out.reshape((*leading, *out.shape[1:]))


def row_wise(
    schema: str,
    *,
    reference: Callable,
    gpu: Callable[[], Kernels],
    cpu: Kernels | None = None,
    shape: Callable[[Tensor], Sequence[int]],
) -> RowWise:
    """Register an operator and its backward, and return the function that calls them.

    ``schema`` is "name(vectors, then scalars, then flags)"; ``shape`` gives that of the result from the first vector.
    ``gpu`` returns Triton kernels, and imports Triton when one of them is first called.
    """
    name, arguments = schema.rstrip(")").split("(")
    n_tensors = arguments.count("Tensor")
    portable = _portable(reference)

    class Differentiated(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            ctx.save_for_backward(*args[:n_tensors])
            ctx.flags = args[n_tensors:]
            with below_autograd():
                return operator(*args)

        @staticmethod
        def backward(ctx, grad):
            tensors = ctx.saved_tensors
            if torch.is_grad_enabled():  # a second derivative is wanted: that of the reference
                grads = reference_gradients(portable, grad, tensors, ctx.flags)
            else:
                grads = once(backward, grad, *tensors, *ctx.flags)
            return (*grads, *(None,) * len(ctx.flags))

    kernels = {
        **dict.fromkeys(PORTABLE, portable),
        **dict.fromkeys(TRITON, where_rows_fit(lambda *args: gpu()[0](*args), portable)),
    }
    autograd = {
        **dict.fromkeys(PORTABLE, portable),
        **dict.fromkeys(TRITON, where_rows_fit(differentiated(Differentiated), portable)),
    }
    backwards: dict[str, Callable] = dict.fromkeys(TRITON, lambda *args: gpu()[1](*args))
    if cpu is not None:
        kernels |= dict.fromkeys(NATIVE, where_native(cpu[0], portable))
        autograd |= dict.fromkeys(NATIVE, where_native(differentiated(Differentiated), portable))
        backwards |= dict.fromkeys(NATIVE, cpu[1])
    operator = define(f"{schema} -> Tensor", lambda first, *rest: first.new_empty(shape(first)), kernels)
    backward = define(
        f"{name}_backward(Tensor grad, {arguments}) -> ({', '.join(['Tensor'] * n_tensors)})",
        lambda grad, *args: tuple(t.new_empty(t.shape) for t in args[:n_tensors]),
        backwards,
    )
    differentiate(operator, autograd)
    refusing = raising(backward, name, "call backward with create_graph=True on the operator itself")
    differentiate(backward, dict.fromkeys(backwards, refusing))
    return RowWise(name, portable, operator, backward, gpu)


def _portable(reference: Callable) -> Callable:
    """The reference in the geometry's precision, returned in the dtype of the vectors."""

    def compute(first: Tensor, *rest):
        dtype = geometry_dtype(first)
        wide = [t.to(dtype) if isinstance(t, Tensor) else t for t in rest]
        return reference(first.to(dtype), *wide).to(first.dtype)

    return compute


def where_rows_fit(kernel: Callable, portable: Callable) -> Callable:
    """The Triton kernel, or the reference for rows too long for it."""

    @functools.wraps(kernel)
    def compute(first, *rest):
        from hyperst_kernels.gpu import launch

        vector = first if isinstance(first, Tensor) else first[0]
        return (kernel if launch.fits(vector.shape[-1], vector.dtype) else portable)(first, *rest)

    return compute


def where_native(machine: Callable, portable: Callable) -> Callable:
    """Machine code where the package was built with it, for float32 and half precision; else the reference."""

    @functools.wraps(machine)
    def compute(first, *rest):
        vector = first if isinstance(first, Tensor) else first[0]
        return (machine if usable(vector) else portable)(first, *rest)

    return compute


def reference_gradients(portable: Callable, grad: Tensor, tensors: Sequence[Tensor], flags: Sequence) -> list:
    """Return differentiable gradients, None where none is needed."""
    wanted = [t for t in tensors if t.requires_grad]
    found = iter(torch.autograd.grad(portable(*tensors, *flags), wanted, grad, create_graph=True))
    return [next(found) if t.requires_grad else None for t in tensors]


def same_shape(x: Tensor) -> Sequence[int]:
    """(n d): a vector for each row."""
    return x.shape


def a_number_each(x: Tensor) -> Sequence[int]:
    """(n): a number for each row."""
    return x.shape[:1]


def input_name(tangent: bool) -> str:
    """The public argument ``input`` for the operators' flag."""
    return "tangent" if tangent else "lorentz"
