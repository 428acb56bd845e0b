"""How operators are registered: schema, fake, kernels per device, autograd. One pattern for all.

Kernels are plain functions on tensors, registered per device with the dispatcher, so that torch.compile and torch.export
see one opaque operator; the dispatcher, not our code, chooses between them. Where an operator has a kernel, its
differentiation is an Autograd-key kernel around a ``torch.autograd.Function``: unlike the higher-level registration
helpers this makes forward-mode AD and unimplemented double backward RAISE instead of returning zeros. Where a device has no kernel
of its own, the reference mathematics is registered under the device's Autograd key too, and is traced and differentiated
like any other PyTorch code.

Row-wise operators take matrices (n d) of one dtype and scalars as 0-d tensors of the geometry's dtype.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from hyperst_kernels._checks import geometry_dtype
from hyperst_kernels.cpu import contrastive as cpu_contrastive
from hyperst_kernels.cpu import distance as cpu_distance
from hyperst_kernels.reference import contrastive as contrastive_reference
from hyperst_kernels.reference import distance as distance_reference
from hyperst_kernels.reference import entailment as entailment_reference
from hyperst_kernels.reference import maps as maps_reference
from hyperst_kernels.reference.contrastive import Pairing

_LIBRARY = torch.library.Library("hyperst_kernels", "DEF")
ops = torch.ops.hyperst_kernels

# Triton's interpreter runs the device kernels on CPU tensors: for tests, in a process of their own.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_TRITON = (("CUDA", "CPU") if _INTERPRETED else ("CUDA",)) if importlib.util.find_spec("triton") else ()
_PORTABLE = tuple(key for key in ("CPU", "CUDA", "XPU", "MPS") if key not in _TRITON)

_use_reference = False  # a plain global: torch.compile guards on it


@contextlib.contextmanager
def use_reference() -> Iterator[None]:
    """Compute with the plain-PyTorch reference inside the block: for debugging, and as an oracle for gradients.

    It holds every pair difference in memory (n m d numbers) and differentiates twice. The switch is process-wide.

    >>> from hyperst_kernels import contrastive_loss
    >>> with use_reference():
    ...     loss = contrastive_loss(torch.eye(3), torch.eye(3))
    """
    global _use_reference
    before, _use_reference = _use_reference, True
    try:
        yield
    finally:
        _use_reference = before


def _define(schema: str, fake: Callable, kernels: dict[str, Callable], autograd: dict[str, Callable]) -> None:
    """An operator with a kernel per device and an autograd kernel per device (or one for all, under the key "")."""
    name = schema.split("(")[0]
    _LIBRARY.define(schema)
    for key, kernel in kernels.items():
        _LIBRARY.impl(name, kernel, key)
    for key, function in autograd.items():
        _LIBRARY.impl(name, function, f"Autograd{key}")
    torch.library.register_fake(f"hyperst_kernels::{name}", fake, lib=_LIBRARY)


def _in_full_precision(kernel: Callable) -> Callable:
    """Products inside a kernel go through the dispatcher again: autocast must not round them."""

    @functools.wraps(kernel)
    def called(first: Tensor | Sequence[Tensor], *rest):
        device = (first if isinstance(first, Tensor) else first[0]).device
        with torch.autocast(device.type, enabled=False):
            return kernel(first, *rest)

    return called


def _raising(name: str, remedy: str) -> Callable:
    """Autograd kernel of a backward operator whose own derivative does not exist."""

    class NotTwice(torch.autograd.Function):
        """Autograd sees tensors that are arguments or results themselves, and not those in a list of them."""

        @staticmethod
        def forward(ctx, args, structure, *tensors):
            with torch._C._AutoDispatchBelowAutograd():
                flat, found = tree_flatten(getattr(ops, f"{name}_backward")(*args))
            structure.append(found)
            return tuple(flat)

        @staticmethod
        def backward(ctx, *grads):
            raise NotImplementedError(f"{name} has no second derivative: {remedy}")

    def called(*args):
        structure: list = []
        flat = NotTwice.apply(args, structure, *(t for t in tree_leaves(args) if isinstance(t, Tensor)))
        return tree_unflatten(list(flat), structure[0])

    return called


# ------------------------------------------------------------------------------------------------- row-wise operators


def _triton_kernel(module: str, name: str) -> Callable:
    """The function in ``hyperst_kernels.gpu``, imported when it is first called."""

    @functools.wraps(_triton_kernel)
    def launch(*args):
        return getattr(importlib.import_module(f"hyperst_kernels.gpu.{module}"), name)(*args)

    return launch


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


def _row_wise(module: str, arguments: str, reference: Callable, shape: Callable[[Tensor], Sequence[int]]) -> None:
    """Define an operator and its backward: Triton kernels ``gpu.module.name`` and ``name_backward``, or the reference.

    ``arguments`` is "name(schema)", vectors first, then scalars, then flags; ``shape`` gives that of the result.
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
            with torch._C._AutoDispatchBelowAutograd():
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

    forward, backward = _triton_kernel(module, name), _triton_kernel(module, f"{name}_backward")
    _define(
        f"{arguments} -> Tensor",
        lambda first, *rest: first.new_empty(shape(first)),
        {**dict.fromkeys(_TRITON, _where_rows_fit(forward, portable)), **dict.fromkeys(_PORTABLE, portable)},
        {**dict.fromkeys(_TRITON, _where_rows_fit(RowWise.apply, portable)), **dict.fromkeys(_PORTABLE, portable)},
    )
    _define(
        f"{name}_backward(Tensor grad, {schema}) -> ({', '.join(['Tensor'] * n_tensors)})",
        fake_backward,
        dict.fromkeys(_TRITON, backward),
        dict.fromkeys(_TRITON, _raising(name, "call backward with create_graph=True on the operator itself")),
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
    "maps", "exp_map0(Tensor v, Tensor scale, Tensor c)", lambda v, s, c: maps_reference.exp_map0(s * v, c), _same
)
_row_wise("maps", "log_map0(Tensor x, Tensor c)", maps_reference.log_map0, _same)
_row_wise("maps", "exp_map(Tensor x, Tensor v, Tensor c)", maps_reference.exp_map, _same)
_row_wise("maps", f"log_map({_VECTORS})", maps_reference.log_map, _same)
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
)


def row_wise(name: str, *args) -> Tensor:
    """Call a row-wise operator on vectors (..., d) of one shape and dtype: (..., d), (..., d+1) or (...)."""
    vectors = [t for t in args if isinstance(t, Tensor) and t.ndim > 0]
    leading, d = vectors[0].shape[:-1], vectors[0].shape[-1]
    flat = [t.reshape(-1, d) if isinstance(t, Tensor) and t.ndim > 0 else t for t in args]
    out = (_REFERENCES[name] if _use_reference else getattr(ops, name))(*flat)
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
        with torch._C._AutoDispatchBelowAutograd():
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
_define(
    f"entailment_hinges({_HINGES}) -> Tensor",
    lambda parents, *rest: parents[0].new_empty(len(parents), len(parents[0])),
    {
        **dict.fromkeys(_TRITON, _where_rows_fit(_triton_kernel("entailment", "entailment_hinges"), _reference_hinges)),
        **dict.fromkeys(_PORTABLE, _reference_hinges),
    },
    {
        **dict.fromkeys(
            _TRITON,
            _where_rows_fit(
                lambda parents, children, c, *flags: _Hinges.apply(c, *flags, *parents, *children), _reference_hinges
            ),
        ),
        **dict.fromkeys(_PORTABLE, _reference_hinges),
    },
)
_define(
    f"entailment_hinges_backward(Tensor grad, {_HINGES}) -> (Tensor[], Tensor[], Tensor)",
    lambda grad, parents, children, c, *flags: (
        [t.new_empty(t.shape) for t in parents],
        [t.new_empty(t.shape) for t in children],
        c.new_empty(()),
    ),
    dict.fromkeys(_TRITON, _triton_kernel("entailment", "entailment_hinges_backward")),
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
    compute = _reference_hinges if _use_reference else ops.entailment_hinges
    return compute(x, y, c, list(etas), min_radius, tangent).reshape((len(etas), *leading))


# --------------------------------------------------------------------------------------------------------- all pairs


class _PairwiseDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, c, *flags):
        with torch._C._AutoDispatchBelowAutograd():
            out = ops.pairwise_distance(x, y, c, *flags)
        ctx.flags = flags
        ctx.save_for_backward(x, y, c, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        return (*ops.pairwise_distance_backward(grad, *ctx.saved_tensors, *ctx.flags), *(None,) * len(ctx.flags))


_PAIRS = "bool tangent, str precision"
_define(
    f"pairwise_distance({_VECTORS}, {_PAIRS}) -> Tensor",
    lambda x, y, c, *flags: c.new_empty(len(x), len(y)),
    {
        **dict.fromkeys(_TRITON, _triton_kernel("pairwise", "pairwise_distance")),
        **dict.fromkeys(_PORTABLE, _in_full_precision(cpu_distance.pairwise_distance)),
    },
    {"": _PairwiseDistance.apply},
)
_define(
    f"pairwise_distance_backward(Tensor grad, {_VECTORS}, Tensor distance, {_PAIRS}) -> (Tensor, Tensor, Tensor)",
    lambda grad, x, y, c, *rest: (x.new_empty(x.shape), y.new_empty(y.shape), c.new_empty(())),
    {
        **dict.fromkeys(_TRITON, _in_full_precision(_triton_kernel("pairwise", "pairwise_distance_backward"))),
        **dict.fromkeys(_PORTABLE, _in_full_precision(cpu_distance.pairwise_distance_backward)),
    },
    {"": _raising("pairwise_distance", "compute it under hyperst_kernels.use_reference(), where the matrix is small")},
)


def pairwise_distance(x: Tensor, y: Tensor, c: Tensor, tangent: bool, precision: str) -> Tensor:
    """(n d), (m d) -> (n m) in the geometry's dtype."""
    if _use_reference:
        dtype = geometry_dtype(x)
        return distance_reference.pairwise_distance(x.to(dtype), y.to(dtype), c, _input(tangent))
    return ops.pairwise_distance(x, y, c, tangent, precision)


# ------------------------------------------------------------------------------------------------------- contrastive
#
# Features have one floating dtype and one d, everything else is of the geometry's dtype. ``pairings`` are those of the
# reference, three integers each; ``factors`` multiply the features, one each. ``kept`` is what the backward pass of the same
# device can use again, in whatever form it likes; ``keep`` tells whether there will be one.


def _unflattened(pairings: Sequence[int]) -> list[Pairing]:
    return [Pairing(x, y, bool(symmetric)) for x, y, symmetric in zip(*[iter(pairings)] * 3, strict=True)]


def _scaled(features: Sequence[Tensor], factors: Tensor | None, c: Tensor) -> list[Tensor]:
    """What the loss is computed of, in the geometry's dtype."""
    wide = [x.to(c.dtype) for x in features]
    return wide if factors is None else [x * factor for x, factor in zip(wide, factors, strict=True)]


def _portable_contrastive(
    features, factors, c, logit_scale, exclude_ids, pairings, geometry, tangent, precision, atomic, keep
):
    flags = (_unflattened(pairings), geometry, tangent, keep)
    *negatives, kept = cpu_contrastive.forward(_scaled(features, factors, c), c, logit_scale, exclude_ids, *flags)
    return (*cpu_contrastive.losses(*negatives), *negatives, kept)


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
    *flags,
):
    scaled = _scaled(features, factors, c)
    saved = (rows, columns, positives, kept, _unflattened(pairings))
    gradients, dc, ds = cpu_contrastive.backward(
        grad_rows, grad_columns, scaled, c, logit_scale, exclude_ids, *saved, *flags[:2]
    )
    d_factors = c.new_zeros(0)
    if factors is not None:
        along = [torch.linalg.vecdot(u, g).sum(dtype=torch.float64) for u, g in zip(scaled, gradients, strict=True)]
        d_factors = (torch.stack(along) / factors).to(c.dtype)
        gradients = [g.mul_(factor) for g, factor in zip(gradients, factors, strict=True)]
    return [g.to(x.dtype) for g, x in zip(gradients, features, strict=True)], d_factors, dc, ds


def _triton_contrastive(features, factors, c, logit_scale, exclude_ids, pairings, *flags):
    from hyperst_kernels.gpu import contrastive

    # flags of tiles are small enough to be kept in any case
    given = (features, factors, c, logit_scale, exclude_ids, _unflattened(pairings), *flags[:-2])
    *negatives, kept = contrastive.forward(*given)
    return (*cpu_contrastive.losses(*negatives), *negatives, kept)


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

    given = (grad_rows, grad_columns, features, factors, c, logit_scale, exclude_ids)
    return contrastive.backward(*given, rows, columns, positives, kept, _unflattened(pairings), *flags)


def _contrastive_fake(
    features, factors, c, logit_scale, exclude_ids, pairings, geometry, tangent, precision, atomic, keep
):
    pairings = _unflattened(pairings)
    n = max(features[p.queries].shape[0] for p in pairings)
    if c.device.type == "cuda" or _INTERPRETED:
        from hyperst_kernels.gpu.contrastive import flags_shape

        kept = c.new_empty(flags_shape(features, pairings, geometry), dtype=torch.int8)
    else:
        kept = c.new_empty(cpu_contrastive.kept_shape(features, pairings, c, keep))
    return (*(c.new_empty(len(pairings), n) for _ in range(5)), kept)


class _Contrastive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, factors, c, logit_scale, exclude_ids, flags, *features):
        with torch._C._AutoDispatchBelowAutograd():
            outputs = ops.contrastive_forward(features, factors, c, logit_scale, exclude_ids, *flags)
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
            negatives.new_zeros(negatives.shape) if grad is None else grad.contiguous()
            for grad, negatives in zip(grads, outputs[:2], strict=False)
        )
        gradients, d_factors, dc, ds = ops.contrastive_backward(
            *upstream, features, factors, c, logit_scale, exclude_ids, *outputs, *ctx.flags
        )
        return (d_factors if ctx.factors else None, dc, ds, None, None, *gradients)


_GIVEN = "Tensor[] features, Tensor? factors, Tensor c, Tensor logit_scale, Tensor? exclude_ids"
_FLAGS = "int[] pairings, str geometry, bool tangent, str precision, bool atomic"
_define(
    f"contrastive_forward({_GIVEN}, {_FLAGS}, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _contrastive_fake,
    {
        **dict.fromkeys(_TRITON, _in_full_precision(_triton_contrastive)),
        **dict.fromkeys(_PORTABLE, _in_full_precision(_portable_contrastive)),
    },
    {"": lambda features, *given: _Contrastive.apply(*given[:4], given[4:], *features)},
)
_define(
    f"contrastive_backward(Tensor grad_rows, Tensor grad_columns, {_GIVEN}, Tensor row_negatives,"
    f" Tensor column_negatives, Tensor positives, Tensor kept, {_FLAGS}) -> (Tensor[], Tensor, Tensor, Tensor)",
    lambda grad_rows, grad_columns, features, factors, c, *rest: (
        [x.new_empty(x.shape) for x in features],
        c.new_empty(0 if factors is None else len(features)),
        c.new_empty(()),
        c.new_empty(()),
    ),
    {
        **dict.fromkeys(_TRITON, _in_full_precision(_triton_contrastive_backward)),
        **dict.fromkeys(_PORTABLE, _in_full_precision(_portable_contrastive_backward)),
    },
    {
        "": _raising(
            "contrastive",
            "call backward without create_graph=True, or compute the loss under hyperst_kernels.use_reference() "
            "where the batch is small",
        )
    },
)


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
    if _use_reference:
        features = [x.to(c.dtype) for x in features]
        return contrastive_reference.hierarchy_terms(
            features, factors, c, logit_scale, pairings, input, geometry, exclude_ids
        )
    keep = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (*features, factors, c, logit_scale)
    )
    flat = [int(number) for pairing in pairings for number in pairing]
    flags = (flat, geometry, input == "tangent", precision, atomic, keep)
    return ops.contrastive_forward(features, factors, c, logit_scale, exclude_ids, *flags)[:2]
