"""Triton's interpreter with the float32 arithmetic of a GPU, chosen by the environment variable HYPERST_TEST_ARITHMETIC.

The interpreter rounds a product before it adds, and takes exact roots and powers. A GPU does neither. Nor does it cut off
the digits of a float32 number that becomes a bf16 one: in no mode are they cut off. Each mode includes the ones before it:

plain        what the interpreter does by itself
fused        ``tl.fma`` rounds once
contracted   a product that meets a sum or a difference is not rounded first, as LLVM fuses ``x * y + z`` unless told not to
approximate  quotients, roots and powers of two err by what the PTX manual documents for the instructions that Triton takes:
             div.full 2 ulp, sqrt.approx 2^-23, rsqrt.approx 2^-22.9 and ex2.approx 2^-22 of the value, lg2.approx 2^-22,
             outside of (1/2, 2) of the value. Whether it errs up, down or not depends on its arguments. And a product of
             float32 matrices in precision "bf16x3" is the three products of bf16 halves that a GPU takes
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter
from triton._C.libtriton import ir

from hyperst_kernels.gpu import launch

MODES = ("plain", "fused", "contracted", "approximate")
CHOSEN = os.environ.get("HYPERST_TEST_ARITHMETIC", "plain")
_Builder = interpreter.InterpreterBuilder
_originals: dict[str, Callable] = {}
EXACT, HALVES = "ieee", "bf16x3"  # precisions of products


def install() -> None:
    """Make the interpreter of this process ready for tests: any NumPy, no time lost, and the arithmetic of `CHOSEN`."""
    accept_any_numpy()
    look_once()
    round_to_bf16()
    use(CHOSEN)


def use(mode: str, seed: int = 0) -> None:
    """Switch the interpreter of this process to a mode of `MODES`; "plain" takes everything back.

    ``seed`` chooses which arguments the approximate instructions err at.
    """
    if mode not in MODES:
        raise ValueError(f"HYPERST_TEST_ARITHMETIC: expected one of {', '.join(MODES)}, got {mode!r}")
    for name, original in _originals.items():
        setattr(_Builder, name, original)
    _originals.clear()
    _let_products_be(EXACT)
    if mode == "plain":
        return
    _replace("create_fma", _fused)
    if mode == "fused":
        return
    _replace("create_fmul", _with_its_exact_product)
    for name in ("create_expand_dims", "create_broadcast", "create_reshape", "create_trans"):
        _replace(name, _moving_its_exact_product)
    _replace("create_fadd", lambda original: _contracted(original, 1.0))
    _replace("create_fsub", lambda original: _contracted(original, -1.0))
    if mode == "approximate":
        _approximate(seed)
        _let_products_be(EXACT, HALVES)
        _replace("create_dot", _of_halves)


def accept_any_numpy() -> None:
    """Let NumPy 2.4 and later make an index of the interpreter's integers, which are arrays of one: Triton 3.6 does not."""
    original = interpreter._patch_lang_tensor

    def patch(tensor, *scope):
        original(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    interpreter._patch_lang_tensor = patch


def look_once() -> None:
    """Let the interpreter replace the functions of Triton's language once in each launch.

    It goes through whole modules at every call of a device function too, where nothing is left to replace: a third of the time.
    """
    original, restore = interpreter._patch_lang, interpreter._LangPatchScope.restore
    replaced: set[int] = set()

    def patch(fn):
        module = id(fn.__globals__)
        if module in replaced:
            return interpreter._LangPatchScope()
        replaced.add(module)
        return original(fn)

    def forget(scope):
        replaced.clear()
        restore(scope)

    interpreter._patch_lang, interpreter._LangPatchScope.restore = patch, forget


def round_to_bf16() -> None:
    """Let float32 numbers that become bf16 ones go to the nearest: the interpreter cuts digits off."""
    original = _Builder.create_fp_trunc

    def create_fp_trunc(self, x, dtype):
        if (x.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
            return original(self, x, dtype)
        rounded = torch.from_numpy(np.array(x.data)).bfloat16()
        return interpreter.TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)

    _Builder.create_fp_trunc = create_fp_trunc


def _replace(name: str, make: Callable[[Callable], Callable]) -> None:
    """Put ``make(original)`` in the place of a method of the interpreter; float64 and the rest still go the original way."""
    original = _originals.setdefault(name, getattr(_Builder, name))
    changed = make(original)

    def create(self, first, *rest):
        if first.data.dtype != np.float32:
            return original(self, first, *rest)
        with np.errstate(all="ignore"):
            return changed(self, first, *rest)

    setattr(_Builder, name, create)


def _handle(exact: np.ndarray, like: interpreter.TensorHandle) -> interpreter.TensorHandle:
    """Float64 numbers rounded to the float32 of another tensor."""
    return interpreter.TensorHandle(np.asarray(exact, dtype=np.float32), like.dtype.scalar)


def _fused(original: Callable) -> Callable:
    # float64 holds the product of two float32 numbers exactly
    return lambda self, x, y, z: _handle(x.data.astype(np.float64) * y.data + z.data, x)


def _with_its_exact_product(original: Callable) -> Callable:
    def create_fmul(self, x, y):
        out = original(self, x, y)
        out.exact_product = x.data.astype(np.float64) * y.data
        return out

    return create_fmul


def _moving_its_exact_product(original: Callable) -> Callable:
    """Of what only moves numbers between registers."""

    def create(self, x, *rest):
        out = original(self, x, *rest)
        if hasattr(x, "exact_product"):
            exact = interpreter.TensorHandle(x.exact_product, tl.float64)
            out.exact_product = original(self, exact, *rest).data
        return out

    return create


def _contracted(original: Callable, sign: float) -> Callable:
    def create(self, x, y):
        first, second = getattr(x, "exact_product", None), getattr(y, "exact_product", None)
        if first is not None:  # of two products, the second is rounded
            return _handle(first + sign * y.data.astype(np.float64), x)
        if second is not None:
            return _handle(x.data.astype(np.float64) + sign * second, x)
        return original(self, x, y)

    return create


def _let_products_be(*precisions: str) -> None:
    """Precisions that kernels in the interpreter may ask of a product, the others being taken for "ieee"."""
    launch.INTERPRETED_PRODUCTS = precisions
    builder, also = interpreter.interpreter_builder, interpreter.InterpreterOptions().allowed_dot_input_precisions
    builder.options = dataclasses.replace(builder.options, allowed_dot_input_precisions=(*also, *precisions))


def _of_halves(original: Callable) -> Callable:
    def halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        high = torch.from_numpy(x).bfloat16().float()
        low = (torch.from_numpy(x) - high).bfloat16()
        return high.double().numpy(), low.double().numpy()

    def create_dot(self, x, y, sums, precision, *rest):
        if precision != ir.INPUT_PRECISION.BF16x3:
            return original(self, x, y, sums, precision, *rest)
        (x_high, x_low), (y_high, y_low) = halves(x.data), halves(y.data)
        return _handle(x_high @ y_high + (x_high @ y_low + x_low @ y_high) + sums.data, sums)

    return create_dot


def _approximate(seed: int) -> None:
    def sign(*arguments: np.ndarray) -> np.ndarray:
        """-1, 0 or 1: by the bits of the arguments, since an instruction errs alike wherever it meets the same number."""
        mixed = np.uint32(seed)
        for x in arguments:
            mixed = (mixed ^ x.view(np.uint32)) * np.uint32(2654435761)
        return (mixed >> np.uint32(16)) % np.uint32(3) - 1.0

    def relative(exactly: Callable[..., np.ndarray], error: float) -> Callable:
        def make(original: Callable) -> Callable:
            def create(self, *handles):
                exact = exactly(*(h.data.astype(np.float64) for h in handles))
                return _handle(exact * (1 + error * sign(*(h.data for h in handles))), handles[0])

            return create

        return make

    def quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return x / y

    def log2(original: Callable) -> Callable:
        def create_log2(self, x):
            exact = np.log2(x.data.astype(np.float64))
            around_one, error = (x.data > 0.5) & (x.data < 2), 2.0**-22 * sign(x.data)
            return _handle(np.where(around_one, exact + error * (x.data != 1), exact * (1 + error)), x)

        return create_log2

    _replace("create_fdiv", relative(quotient, 2.0**-22))
    _replace("create_sqrt", relative(np.sqrt, 2.0**-23))
    _replace("create_rsqrt", relative(lambda x: 1 / np.sqrt(x), 2.0**-22.9))
    _replace("create_exp2", relative(np.exp2, 2.0**-22))
    _replace("create_log2", log2)
