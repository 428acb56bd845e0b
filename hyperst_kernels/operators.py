"""The operators of rows and of pairs of rows: matrices (n d) of one dtype, and scalars as 0-d tensors of the geometry's dtype.

How they are registered is told in ``registration``; that of the contrastive loss is in ``loss_operator``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from hyperst_kernels._checks import geometry_dtype
from hyperst_kernels.cpu import distance as cpu_distance
from hyperst_kernels.cpu import maps, pairs
from hyperst_kernels.reference import distance as distance_reference
from hyperst_kernels.reference import entailment as entailment_reference
from hyperst_kernels.reference import maps as maps_reference
from hyperst_kernels.registration import (
    PORTABLE,
    TRITON,
    below_autograd,
    define,
    differentiated,
    in_full_precision,
    in_reverse,
    ops,
    raising,
    reference_in_use,
    transformed,
    triton_kernel,
)

# ------------------------------------------------------------------------------------------------- row-wise operators


def _where_rows_fit(kernel: Callable, portable: Callable) -> Callable:
    """The kernel, or the reference for rows too long for it."""

    @functools.wraps(kernel)
    def compute(first, *rest):
        from hyperst_kernels.gpu import launch

        vector = first if isinstance(first, Tensor) else first[0]
        return (kernel if launch.fits(vector.shape[-1], vector.dtype) else portable)(first, *rest)

    return compute


def _portable(reference: Callable) -> Callable:
    """The reference in the geometry's precision, returned in the dtype of the vectors."""

    def compute(first: Tensor, *rest):
        dtype = geometry_dtype(first)
        wide = [t.to(dtype) if isinstance(t, Tensor) else t for t in rest]
        return reference(first.to(dtype), *wide).to(first.dtype)

    return compute


# Devices of the functions in `cpu.maps` and `cpu.pairs`; in Triton's interpreter the CPU has the kernels of a GPU.
NATIVE = tuple(key for key in ("CPU",) if key not in TRITON)


def _where_native(machine: Callable, portable: Callable) -> Callable:
    """Machine code where the package was built with it, for float32 and half precision; else the reference."""

    @functools.wraps(machine)
    def compute(first, *rest):
        vector = first if isinstance(first, Tensor) else first[0]
        return (machine if pairs.usable(vector) else portable)(first, *rest)

    return compute


def _row_wise(
    module: str,
    arguments: str,
    reference: Callable,
    shape: Callable[[Tensor], Sequence[int]],
    native: ModuleType | None = None,
) -> None:
    """Define an operator and its backward: Triton kernels ``gpu.module.name`` and ``name_backward``, or the reference.

    ``arguments`` is "name(schema)", vectors first, then scalars, then flags; ``shape`` gives that of the result. ``native``
    has functions ``name`` and ``name_backward`` too, for the CPU.
    """
    name, schema = arguments.rstrip(")").split("(")
    n_tensors = schema.count("Tensor")
    portable = _portable(reference)
    _REFERENCES[name] = portable

    class RowWise(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            ctx.save_for_backward(*args[:n_tensors])
            ctx.flags = args[n_tensors:]
            with below_autograd():
                return getattr(ops, name)(*args)

        @staticmethod
        def backward(ctx, grad):
            tensors = ctx.saved_tensors
            if torch.is_grad_enabled():  # a second derivative is wanted: that of the reference
                grads = _reference_gradients(portable, grad, tensors, ctx.flags)
            else:
                grads = getattr(ops, f"{name}_backward")(grad, *tensors, *ctx.flags)
            return (*grads, *(None,) * len(ctx.flags))

    def fake_backward(grad, *args):
        return tuple(t.new_empty(t.shape) for t in args[:n_tensors])

    forward, backward = triton_kernel(module, name), triton_kernel(module, f"{name}_backward")
    kernels = {**dict.fromkeys(PORTABLE, portable), **dict.fromkeys(TRITON, _where_rows_fit(forward, portable))}
    autograd = {
        **dict.fromkeys(PORTABLE, portable),
        **dict.fromkeys(TRITON, _where_rows_fit(differentiated(RowWise), portable)),
    }
    backwards = dict.fromkeys(TRITON, backward)
    if native is not None:
        kernels |= dict.fromkeys(NATIVE, _where_native(getattr(native, name), portable))
        autograd |= dict.fromkeys(NATIVE, _where_native(differentiated(RowWise), portable))
        backwards |= dict.fromkeys(NATIVE, getattr(native, f"{name}_backward"))
    define(f"{arguments} -> Tensor", lambda first, *rest: first.new_empty(shape(first)), kernels, autograd)
    once = raising(name, "call backward with create_graph=True on the operator itself")
    define(
        f"{name}_backward(Tensor grad, {schema}) -> ({', '.join(['Tensor'] * n_tensors)})",
        fake_backward,
        backwards,
        dict.fromkeys(backwards, once),
    )


_REFERENCES: dict[str, Callable] = {}


def _reference_gradients(portable: Callable, grad: Tensor, tensors: Sequence[Tensor], flags: Sequence) -> list:
    """Differentiable gradients, None where none is needed."""
    wanted = [t for t in tensors if t.requires_grad]
    found = iter(torch.autograd.grad(portable(*tensors, *flags), wanted, grad, create_graph=True))
    return [next(found) if t.requires_grad else None for t in tensors]


def _same(x: Tensor) -> Sequence[int]:
    return x.shape


def _each(x: Tensor) -> Sequence[int]:
    return x.shape[:1]


def _input(tangent: bool) -> str:
    return "tangent" if tangent else "lorentz"


_VECTORS = "Tensor x, Tensor y, Tensor c"
_row_wise(
    "maps", "exp_map0(Tensor v, Tensor scale, Tensor c)", lambda v, s, c: maps_reference.exp_map0(s * v, c), _same, maps
)
_row_wise("maps", "log_map0(Tensor x, Tensor c)", maps_reference.log_map0, _same, maps)
_row_wise("maps", "exp_map(Tensor x, Tensor v, Tensor c)", maps_reference.exp_map, _same, maps)
_row_wise("maps", f"log_map({_VECTORS})", maps_reference.log_map, _same, maps)
_row_wise(
    "maps", "parallel_transport(Tensor x, Tensor y, Tensor v, Tensor c)", maps_reference.parallel_transport, _same
)
_row_wise("maps", "lift(Tensor x, Tensor c)", maps_reference.lift, lambda x: (x.shape[0], x.shape[1] + 1))
_row_wise("maps", "lorentz_to_poincare(Tensor x, Tensor c)", maps_reference.lorentz_to_poincare, _same)
_row_wise("maps", "poincare_to_lorentz(Tensor p, Tensor c)", maps_reference.poincare_to_lorentz, _same)
_row_wise("distance", f"inner({_VECTORS})", distance_reference.inner, _each)
_row_wise(
    "distance",
    f"distance({_VECTORS}, bool tangent)",
    lambda x, y, c, tangent: distance_reference.distance(x, y, c, _input(tangent)),
    _each,
    pairs,
)
_row_wise(
    "distance",
    "distance0(Tensor x, Tensor c, bool tangent)",
    lambda x, c, tangent: distance_reference.distance0(x, c, _input(tangent)),
    _each,
)
_row_wise(
    "entailment",
    "half_aperture(Tensor x, Tensor c, float min_radius, bool tangent)",
    lambda x, c, K, tangent: entailment_reference.half_aperture(x, c, K, _input(tangent)),
    _each,
)
_row_wise(
    "entailment",
    f"exterior_angle({_VECTORS}, bool tangent)",
    lambda x, y, c, tangent: entailment_reference.exterior_angle(x, y, c, _input(tangent)),
    _each,
    pairs,
)


def row_wise(name: str, *args) -> Tensor:
    """Call a row-wise operator on vectors (..., d) of one shape and dtype: (..., d), (..., d+1) or (...)."""
    vectors = [t for t in args if isinstance(t, Tensor) and t.ndim > 0]
    leading, d = vectors[0].shape[:-1], vectors[0].shape[-1]
    flat = [t.reshape(-1, d) if isinstance(t, Tensor) and t.ndim > 0 else t for t in args]
    compute = _REFERENCES[name] if reference_in_use() or transformed() else getattr(ops, name)
    out = in_reverse(name, compute, *flat)
    return out.reshape((*leading, *out.shape[1:]))


# ------------------------------------------------------------------------------------------------- entailment hinges


def _reference_hinges(parents, children, c, etas, min_radius, tangent):
    dtype = geometry_dtype(parents[0])
    rows = [
        entailment_reference.entailment_loss(x.to(dtype), y.to(dtype), c, eta, min_radius, _input(tangent))
        for x, y, eta in zip(parents, children, etas, strict=True)
    ]
    return torch.stack(rows).to(parents[0].dtype)


class _Hinges(torch.autograd.Function):
    @staticmethod
    def forward(ctx, c, etas, min_radius, tangent, *vectors):
        ctx.flags = (etas, min_radius, tangent)
        ctx.save_for_backward(c, *vectors)
        with below_autograd():
            return ops.entailment_hinges(vectors[: len(etas)], vectors[len(etas) :], c, etas, min_radius, tangent)

    @staticmethod
    def backward(ctx, grad):
        c, *vectors = ctx.saved_tensors
        r = len(ctx.flags[0])
        if torch.is_grad_enabled():

            def portable(c, *vectors):
                return _reference_hinges(vectors[:r], vectors[r:], c, *ctx.flags)

            dc, *grads = _reference_gradients(portable, grad, (c, *vectors), ())
        else:
            parents, children, dc = ops.entailment_hinges_backward(grad, vectors[:r], vectors[r:], c, *ctx.flags)
            grads = [*parents, *children]
        return (dc, None, None, None, *grads)


_HINGES = "Tensor[] parents, Tensor[] children, Tensor c, float[] etas, float min_radius, bool tangent"


def _differentiated_hinges(parents, children, c, *flags):
    return differentiated(_Hinges)(c, *flags, *parents, *children)


define(
    f"entailment_hinges({_HINGES}) -> Tensor",
    lambda parents, *rest: parents[0].new_empty(len(parents), parents[0].shape[0]),
    {
        **dict.fromkeys(PORTABLE, _reference_hinges),
        **dict.fromkeys(TRITON, _where_rows_fit(triton_kernel("entailment", "entailment_hinges"), _reference_hinges)),
        **dict.fromkeys(NATIVE, _where_native(pairs.entailment_hinges, _reference_hinges)),
    },
    {
        **dict.fromkeys(PORTABLE, _reference_hinges),
        **dict.fromkeys(TRITON, _where_rows_fit(_differentiated_hinges, _reference_hinges)),
        **dict.fromkeys(NATIVE, _where_native(_differentiated_hinges, _reference_hinges)),
    },
)
define(
    f"entailment_hinges_backward(Tensor grad, {_HINGES}) -> (Tensor[], Tensor[], Tensor)",
    lambda grad, parents, children, c, *flags: (
        [t.new_empty(t.shape) for t in parents],
        [t.new_empty(t.shape) for t in children],
        c.new_empty(()),
    ),
    {
        **dict.fromkeys(TRITON, triton_kernel("entailment", "entailment_hinges_backward")),
        **dict.fromkeys(NATIVE, pairs.entailment_hinges_backward),
    },
    {},
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
    compute = _reference_hinges if reference_in_use() or transformed() else ops.entailment_hinges
    hinges = in_reverse("entailment_loss", compute, x, y, c, list(etas), min_radius, tangent)
    return hinges.reshape((len(etas), *leading))


# --------------------------------------------------------------------------------------------------------- all pairs


class _PairwiseDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, c, *flags):
        with below_autograd():
            out = ops.pairwise_distance(x, y, c, *flags)
        ctx.flags = flags
        ctx.save_for_backward(x, y, c, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        return (*ops.pairwise_distance_backward(grad, *ctx.saved_tensors, *ctx.flags), *(None,) * len(ctx.flags))


_PAIRS = "bool tangent, str precision"
define(
    f"pairwise_distance({_VECTORS}, {_PAIRS}) -> Tensor",
    lambda x, y, c, *flags: c.new_empty(x.shape[0], y.shape[0]),
    {
        **dict.fromkeys(TRITON, triton_kernel("pairwise", "pairwise_distance")),
        **dict.fromkeys(PORTABLE, in_full_precision(cpu_distance.pairwise_distance)),
    },
    {"": differentiated(_PairwiseDistance)},
)
define(
    f"pairwise_distance_backward(Tensor grad, {_VECTORS}, Tensor distance, {_PAIRS}) -> (Tensor, Tensor, Tensor)",
    lambda grad, x, y, c, *rest: (x.new_empty(x.shape), y.new_empty(y.shape), c.new_empty(())),
    {
        **dict.fromkeys(TRITON, in_full_precision(triton_kernel("pairwise", "pairwise_distance_backward"))),
        **dict.fromkeys(PORTABLE, in_full_precision(cpu_distance.pairwise_distance_backward)),
    },
    {"": raising("pairwise_distance", "compute it under hyperst_kernels.use_reference(), where the matrix is small")},
)


def pairwise_distance(x: Tensor, y: Tensor, c: Tensor, tangent: bool, precision: str) -> Tensor:
    """(n d), (m d) -> (n m) in the geometry's dtype."""
    if reference_in_use():
        dtype = geometry_dtype(x)
        given = (x.to(dtype), y.to(dtype), c, _input(tangent))
        return in_reverse("pairwise_distance", distance_reference.pairwise_distance, *given)
    return in_reverse("pairwise_distance", ops.pairwise_distance, x, y, c, tangent, precision)
