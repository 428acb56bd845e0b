"""How operators are registered: schema, fake, kernels per device, autograd. One pattern for all.

Kernels are plain functions on tensors, registered per device with the dispatcher, so that torch.compile and torch.export
see one opaque operator; the dispatcher, not our code, chooses between them. Where an operator has a kernel, its
differentiation is an Autograd-key kernel around a ``torch.autograd.Function``: unlike the higher-level registration
helpers this makes forward-mode AD and unimplemented double backward RAISE instead of returning zeros. Where a device has no kernel
of its own, the reference mathematics is registered under the device's Autograd key too, and is traced and differentiated
like any other PyTorch code.
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

from hyperst_kernels._precision import full_float32

_LIBRARY = torch.library.Library("hyperst_kernels", "DEF")
ops = torch.ops.hyperst_kernels

# Triton's interpreter runs the device kernels on CPU tensors: for tests, in a process of their own.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON = (("CUDA", "CPU") if INTERPRETED else ("CUDA",)) if importlib.util.find_spec("triton") else ()
PORTABLE = tuple(key for key in ("CPU", "CUDA", "XPU", "MPS") if key not in TRITON)

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


def define(schema: str, fake: Callable, kernels: dict[str, Callable], autograd: dict[str, Callable]) -> None:
    """An operator with a kernel per device and an autograd kernel per device (or one for all, under the key "").

    ``fake`` computes shapes from ``x.shape``: ``len(x)`` would make a symbolic batch size a constant, and every batch size
    a compilation of its own.
    """
    name = schema.split("(")[0]
    _LIBRARY.define(schema)
    for key, kernel in kernels.items():
        _LIBRARY.impl(name, kernel, key)
    for key, function in autograd.items():
        _LIBRARY.impl(name, function, f"Autograd{key}")
    torch.library.register_fake(f"hyperst_kernels::{name}", fake, lib=_LIBRARY)


def in_full_precision(kernel: Callable) -> Callable:
    """Products inside a kernel go through the dispatcher again: neither autocast nor a global setting must round them."""

    @functools.wraps(kernel)
    def called(first: Tensor | Sequence[Tensor], *rest):
        device = (first if isinstance(first, Tensor) else first[0]).device
        with torch.autocast(device.type, enabled=False), full_float32():
            return kernel(first, *rest)

    return called


def raising(name: str, remedy: str) -> Callable:
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


def triton_kernel(module: str, name: str) -> Callable:
    """The function in ``hyperst_kernels.gpu``, imported when it is first called."""

    @functools.wraps(triton_kernel)
    def launch(*args):
        return getattr(importlib.import_module(f"hyperst_kernels.gpu.{module}"), name)(*args)

    return launch
