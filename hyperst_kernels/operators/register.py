"""How operators are registered: schema, fake, kernels per device, autograd. One pattern for all.

Kernels are plain functions on tensors, registered per device with the dispatcher, so that torch.compile and torch.export
see one opaque operator; the dispatcher, not our code, chooses between them. Where an operator has a kernel, its
differentiation is an Autograd-key kernel around a ``torch.autograd.Function``: unlike the higher-level registration
helpers this makes forward-mode AD and unimplemented double backward RAISE instead of returning zeros. Where a device has no kernel
of its own, the reference mathematics is registered under the device's Autograd key too, and is traced and differentiated
like any other PyTorch code.

Transforms of torch.func reach an operator from outside: its Autograd kernel runs at the level of one gradient (`differentiated`),
and below a vmap it runs once for each sample (`_one_by_one`). Operators of rows are left out: the reference takes their place,
which maps and differentiates like any other PyTorch code, as often as one likes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch._ops import OpOverloadPacket
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from hyperst_kernels._precision import full_float32, is_full_float32

_LIBRARY = torch.library.Library("hyperst_kernels", "DEF")
ops = torch.ops.hyperst_kernels

# Triton's interpreter runs the device kernels on CPU tensors: for tests, in a process of their own.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON = (("CUDA", "CPU") if INTERPRETED else ("CUDA",)) if importlib.util.find_spec("triton") else ()
PORTABLE = tuple(key for key in ("CPU", "CUDA", "XPU", "MPS") if key not in TRITON)


def on_triton(x: Tensor) -> bool:
    """Whether operators of this tensor run Triton's kernels."""
    return x.device.type == "cuda" or INTERPRETED


_use_reference = False  # a plain global: torch.compile guards on it


def reference_in_use() -> bool:
    """Whether this is inside a block of `use_reference`."""
    return _use_reference


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


def transformed() -> bool:
    """Whether this is inside a transform of torch.func."""
    return torch._C._are_functorch_transforms_active()


def differentiated(function: type[torch.autograd.Function]) -> Callable:
    """``function.apply`` as an Autograd kernel."""

    def apply(*args):
        if not transformed():
            return function.apply(*args)
        # torch.func has already chosen the level, which is what its own ``apply`` would do again, and cannot do here
        with enable_single_level_autograd_function():
            return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]

    return apply


@contextlib.contextmanager
def below_autograd() -> Iterator[None]:
    """Call an operator from the ``forward`` of its own differentiation.

    There gradients are switched off, for this level; torch.func may want them at the levels outside it, such as that of
    grad(grad(f)), which would miss what this operator adds to the second derivative, or that it has none.
    """
    with torch._C._AutoDispatchBelowAutograd(), torch.enable_grad() if transformed() else contextlib.nullcontext():
        yield


def _one_by_one(operator: OpOverloadPacket) -> Callable:
    """The rule for torch.func.vmap: an operator for each sample, and their results stacked."""

    def mapped(info, in_dims, *args):
        flat, structure = tree_flatten(args)
        dims = tree_leaves(in_dims)
        if info.batch_size == 0:
            raise ValueError(f"torch.func.vmap of {operator.__name__} needs at least one sample, got none")

        def sample(i: int):
            own = [x if dim is None else x.select(dim, i) for x, dim in zip(flat, dims, strict=True)]
            return operator(*tree_unflatten(own, structure))

        results = [sample(i) for i in range(info.batch_size)]
        stacked = tree_map(lambda *each: torch.stack(each), *results)
        return stacked, tree_map(lambda _: 0, stacked)

    return mapped


def define(schema: str, fake: Callable, kernels: dict[str, Callable]) -> OpOverloadPacket:
    """Register an operator with a kernel per device, and return it. Its autograd kernels follow: `differentiate`.

    ``fake`` computes shapes from ``x.shape``: ``len(x)`` would make a symbolic batch size a constant, and every batch size
    a compilation of its own.
    """
    name = schema.split("(")[0]
    _LIBRARY.define(schema)
    for key, kernel in kernels.items():
        _LIBRARY.impl(name, kernel, key)
    operator = getattr(ops, name)
    torch.library.register_fake(f"hyperst_kernels::{name}", fake, lib=_LIBRARY)
    torch.library.register_vmap(f"hyperst_kernels::{name}", _one_by_one(operator), lib=_LIBRARY)
    return operator


def differentiate(operator: OpOverloadPacket, autograd: dict[str, Callable]) -> None:
    """Give an operator an autograd kernel per device, or one for all under the key ""."""
    for key, function in autograd.items():
        _LIBRARY.impl(operator.__name__, function, f"Autograd{key}")


def in_full_precision(kernel: Callable) -> Callable:
    """Products inside a kernel go through the dispatcher again, which must not round them."""

    @functools.wraps(kernel)
    def called(first: Tensor | Sequence[Tensor], *rest):
        device = (first if isinstance(first, Tensor) else first[0]).device
        if not torch.is_autocast_enabled(device.type) and is_full_float32():
            return kernel(first, *rest)
        with full_precision(device):
            return kernel(first, *rest)

    return called


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Neither autocast nor a global setting rounds products."""
    with torch.autocast(device.type, enabled=False), full_float32():
        yield


def no_second_derivative(name: str, remedy: str) -> NotImplementedError:
    """What is raised where a function's gradient is differentiated."""
    return NotImplementedError(f"{name} has no second derivative: {remedy}")


def raising(backward: OpOverloadPacket, name: str, remedy: str) -> Callable:
    """Return the autograd kernel of a backward operator, of the function ``name``, whose own derivative does not exist."""

    class NotTwice(torch.autograd.Function):
        """Autograd sees tensors that are arguments or results themselves, and not those in a list of them."""

        @staticmethod
        def forward(ctx, args, structure, *tensors):
            with below_autograd():
                flat, found = tree_flatten(backward(*args))
            structure.append(found)
            return tuple(flat)

        @staticmethod
        def jvp(ctx, *tangents):
            raise forward_mode(name)

        @staticmethod
        def backward(ctx, *grads):
            raise no_second_derivative(name, remedy)

    def called(*args):
        structure: list = []
        flat = differentiated(NotTwice)(args, structure, *(t for t in tree_leaves(args) if isinstance(t, Tensor)))
        return tree_unflatten(list(flat), structure[0])

    return called


def once(backward: OpOverloadPacket, *args):
    """Call a backward operator from a backward pass: past its autograd kernel, where no second derivative is asked for."""
    if torch.is_grad_enabled() or transformed():
        return backward(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return backward(*args)


def forward_mode(name: str) -> NotImplementedError:
    """What is raised for a derivative in forward mode."""
    return NotImplementedError(
        f"{name} has no derivative in forward mode AD: take torch.func.jacrev in place of jacfwd and jvp, and "
        "jacrev(jacrev(f)) in place of hessian (of losses and matrices inside hyperst_kernels.use_reference())"
    )


def in_reverse(name: str, compute: Callable, *args):
    """Call ``compute``; where something in it has no derivative in forward mode, say of which function that is a part."""
    if torch.compiler.is_compiling():
        return compute(*args)
    try:
        return compute(*args)
    except NotImplementedError as error:
        if "forward mode AD" not in str(error):
            raise
        raise forward_mode(name) from error
