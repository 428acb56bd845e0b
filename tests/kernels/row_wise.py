"""What holds for every row-wise operator alike: numbers, derivatives, dtypes, layouts, compilation, determinism.

The file of a family of operators has it tested of each, on every backend that has code for it, by a class that names them::

    class TestOperators(RowWise):
        operators = ("exp_map0", "log_map0")

Inputs come from `benchmarks.cases`.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from benchmarks.cases import CASES, ROW_WISE
from tests.kernels import examples
from tests.kernels.backends import BACKENDS, INTERPRETED, device
from tests.kernels.float32 import compare_with_the_reference, has_native, implementation


def inputs_of(name, backend, n=5, d=3, dtype=None, largest=1.5, seed=1):
    """Of a case, in float64, or what machine code has in its place."""
    dtype = dtype or (torch.float32 if backend == "native" else torch.float64)
    return [x.to(device(backend)) for x in CASES[name].inputs(n, d, seed, largest, dtype)]


def generic(name, backend, n=4, d=3):
    """Inputs away from kinks, where a numerical derivative means something."""
    g = torch.Generator().manual_seed(3)
    inputs = inputs_of(name, backend, n, d)
    vectors = [0.3 * torch.randn(n, d, generator=g, dtype=torch.float64).to(x) for x in inputs if x.ndim == 2]
    return [*vectors, *(x for x in inputs if x.ndim == 0)]


def rows_apart(tangent, radius, apart):
    """Rows at one radius and so far from their partners, some at the origin; with their float64."""
    generator = torch.Generator().manual_seed(1)
    x, noise = (F.normalize(torch.randn(40, 7, generator=generator), dim=-1) for _ in range(2))
    y = x + apart * noise
    y[0], x[1], y[1], x[2] = 0, 0, 0, 0
    if not tangent:
        radius = float(torch.tensor(radius).sinh())
    inputs = radius * x, radius * y, torch.tensor(0.7)
    return inputs, [t.double() for t in inputs]


def vectors_and_curvature():
    """Two matrices and c, in float64, for gradcheck."""
    g = torch.Generator().manual_seed(1)
    x, y = (torch.randn(4, 3, dtype=torch.float64, generator=g, requires_grad=True) for _ in range(2))
    return x, y, torch.tensor(0.7, dtype=torch.float64, requires_grad=True)


def call(name, backend, *inputs):
    return implementation(CASES[name].operator, backend)(*inputs, *CASES[name].flags)


def value_and_gradients(name, backend, inputs, grad=None):
    """Also of all inputs, for an upstream gradient of ones or ``grad``."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    value = call(name, backend, *leaves)
    grad = torch.ones_like(value) if grad is None else grad
    return value.detach(), torch.autograd.grad(value, leaves, grad, materialize_grads=True)


def on(*backends, once=False):
    """The backends of a test, where it is not all; ``once``: one case of each operator is enough."""

    def mark(test):
        test.backends, test.once = backends, once
        return test

    return mark


class RowWise:
    operators: ClassVar[tuple[str, ...]]
    # draws of surveys that were over tolerance once: case, n, d, seed, largest, c
    found: ClassVar[tuple[tuple, ...]] = ()

    def pytest_generate_tests(self, metafunc):
        backends = getattr(metafunc.function, "backends", BACKENDS)
        cases = [(name,) for name, case in CASES.items() if case.operator in self.operators]
        if getattr(metafunc.function, "once", False):
            cases = list({CASES[name].operator: (name,) for (name,) in cases}.values())
        drawn = ["n", "d", "seed", "largest", "c"] if "seed" in metafunc.fixturenames else []
        rows = [
            (name, backend, *draw)
            for name, *draw in (self.found if drawn else cases)
            for backend in backends
            if backend != "native" or has_native(CASES[name].operator)
        ]
        metafunc.parametrize(["name", "backend", *drawn], rows)

    def test_float32_and_its_gradient(self, name, backend):
        @settings(max_examples=examples(10 if INTERPRETED else 40))
        @given(
            n=st.integers(1, 40),
            d=st.sampled_from([1, 2, 3, 16, 33, 100, 513, 2048]),
            seed=st.integers(0, 2**31),
            largest=st.sampled_from([1.0, 5.0, 40.0, 60.0]),
            c=st.sampled_from([1e-6, 0.03, 0.8, 40.0, 1e4]),
        )
        # an exterior angle between near points, its sine below 4 eps
        @example(n=37, d=2, seed=1777353758, largest=1.0, c=0.8)
        @example(n=27, d=2, seed=228338175, largest=1.0, c=0.8)  # an angle of pi less 1e-3
        # a half-aperture whose slope by |x| is below the least number
        @example(n=1, d=3, seed=2209, largest=60.0, c=1e-6)
        # carried from beside the origin to a point at a right angle
        @example(n=25, d=16, seed=45520, largest=40.0, c=1e-6)
        def right(n, d, seed, largest, c):
            compare_with_the_reference(name, backend, n, d, seed, largest, c)

        right()

    def test_draws_that_were_over_tolerance(self, name, backend, n, d, seed, largest, c):
        compare_with_the_reference(name, backend, n, d, seed, largest, c)

    @on("portable", "triton")  # machine code has no float64
    @pytest.mark.any_arithmetic
    def test_gradcheck_in_float64(self, name, backend):
        leaves = [x.clone().requires_grad_() for x in generic(name, backend)]
        assert torch.autograd.gradcheck(lambda *a: call(name, backend, *a), leaves, nondet_tol=0)

    @on("native", "triton", once=True)
    @pytest.mark.any_arithmetic
    def test_second_derivatives_are_those_of_the_reference(self, name, backend):
        case = CASES[name]
        leaves = [x.clone().requires_grad_() for x in generic(name, backend)]

        def squared_slope(compute):
            value = compute(*leaves, *case.flags)
            first = torch.autograd.grad((value**2).sum(), leaves, create_graph=True)
            return torch.autograd.grad(sum((g**2).sum() for g in first), leaves, materialize_grads=True)

        ours = squared_slope(ROW_WISE[case.operator].operator)
        for got, want in zip(ours, squared_slope(ROW_WISE[case.operator].portable), strict=True):
            if backend == "native":  # a rounding of the value is multiplied by its second derivative
                eps = torch.finfo(torch.float32).eps
                torch.testing.assert_close(got, want, rtol=64 * eps, atol=64 * eps * float(want.abs().max()))
            else:
                torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)

    @on("native", "triton", once=True)  # the reference has one
    @pytest.mark.any_arithmetic
    def test_forward_mode_raises(self, name, backend):
        first, *rest = generic(name, backend)
        with pytest.raises((RuntimeError, NotImplementedError)):
            torch.func.jvp(lambda x: call(name, backend, x, *rest), (first,), (torch.ones_like(first),))

    @on("native", "triton", once=True)
    @pytest.mark.any_arithmetic
    def test_opcheck(self, name, backend):
        """Schema, fake, autograd and compilation, by PyTorch's own check."""
        operator, flags = ROW_WISE[CASES[name].operator], CASES[name].flags
        inputs = [x.requires_grad_() for x in inputs_of(name, backend, dtype=torch.float32)]
        torch.library.opcheck(operator.operator.default, (*inputs, *flags))
        detached = [x.detach() for x in inputs]
        grad = torch.ones_like(call(name, backend, *detached))
        torch.library.opcheck(operator.backward.default, (grad, *detached, *flags))

    @on("triton", once=True)  # on a CPU see test_compile.py
    @pytest.mark.any_arithmetic
    def test_compiled_without_a_graph_break(self, name, backend):
        torch._dynamo.reset()  # its limit of recompilations counts the lambda of all parameters as one
        inputs = inputs_of(name, backend, dtype=torch.float32)
        compiled = torch.compile(
            lambda *a: call(name, backend, *a).sum(), fullgraph=True, backend="aot_eager", dynamic=False
        )
        leaves, others = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
        compiled(*leaves).backward()
        call(name, backend, *others).sum().backward()
        for got, want in zip(leaves, others, strict=True):
            assert torch.equal(got.grad, want.grad)

    @pytest.mark.any_arithmetic
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, name, backend, dtype):
        """Also of rows in a wider matrix."""
        halves = inputs_of(name, backend, 7, 33, dtype, largest=2.0)
        wide = [x.float() if x.ndim == 2 else x for x in halves]
        halves = [torch.cat([x, x], 1)[:, :33] if x.ndim == 2 else x for x in halves]
        value, grads = value_and_gradients(name, backend, halves)
        exact, slopes = value_and_gradients(name, backend, wide)
        assert value.dtype == dtype
        # the interpreter cuts bits off where the device rounds
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(value.float(), exact, rtol=eps, atol=eps * torch.finfo(dtype).tiny)
        for got, want, x in zip(grads, slopes, halves, strict=True):
            assert got.dtype == x.dtype
            inside = want.abs() < torch.finfo(x.dtype).max  # slopes at the origin's rim may not fit into float16
            smallest = torch.finfo(x.dtype).smallest_normal
            torch.testing.assert_close(got.float()[inside], want[inside], rtol=2 * eps, atol=smallest)

    @on("native", "triton")
    @pytest.mark.any_arithmetic
    def test_blocks_tails_and_row_strides(self, name, backend, monkeypatch):
        """11 rows in blocks of 4, of a wider matrix; and one row seen by all."""
        inputs = inputs_of(name, backend, 11, 5, largest=3.0)
        few_ulp = 45 * torch.finfo(inputs[0].dtype).eps
        want = call(name, backend, *inputs)
        grad = torch.linspace(-1, 1, want.numel()).to(want).reshape(want.shape)
        _, slopes = value_and_gradients(name, backend, inputs, grad)
        if backend == "triton":
            monkeypatch.setattr("hyperst_kernels.gpu.launch.interpreted_rows", lambda n, block_d: 4)
        for layout in (lambda x: torch.cat([x, x], 1)[:, : x.shape[1]], lambda x: x.T.contiguous().T, lambda x: x):
            laid = [layout(x) if x.ndim == 2 else x for x in inputs]
            value, grads = value_and_gradients(name, backend, laid, layout(grad) if grad.ndim == 2 else grad)
            assert torch.equal(value, want)
            for got, other in zip(grads, slopes, strict=True):
                torch.testing.assert_close(got, other, rtol=few_ulp, atol=0)  # sums over rows are blocked differently
        # a stride of 0 is a multiple of 16: a kernel of its own, which may sum in another order
        seen_by_all = call(name, backend, *(x[:1].expand(11, -1) if x.ndim == 2 else x for x in inputs))
        assert torch.equal(seen_by_all, seen_by_all[:1].expand(want.shape))
        torch.testing.assert_close(seen_by_all[0], want[0], rtol=few_ulp, atol=0)

    @pytest.mark.any_arithmetic
    def test_the_same_bits_twice_and_nothing_for_no_rows(self, name, backend):
        inputs = inputs_of(name, backend, 9, 17, torch.float32, largest=5.0)
        (value, grads), again = (value_and_gradients(name, backend, inputs) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip((value, *grads), (again[0], *again[1]), strict=True))
        none, slopes = value_and_gradients(name, backend, [x[:0] if x.ndim == 2 else x for x in inputs])
        assert none.shape == value[:0].shape
        assert all(not g.any() for g in slopes)

    @pytest.mark.any_arithmetic
    def test_nan_is_not_hidden(self, name, backend):
        """One row of NaN: that row's results are NaN, and its gradients where those of the reference are; the other's are not."""
        inputs = inputs_of(name, backend, 2, 4, torch.float32, seed=2)
        clean, slopes = value_and_gradients(name, backend, inputs)
        assert torch.isfinite(clean).all()
        for i, x in enumerate(inputs):
            if x.ndim == 2:
                dirty = [t.clone() for t in inputs]
                dirty[i][1] = torch.nan
                value, grads = value_and_gradients(name, backend, dirty)
                leaves = [t.double().cpu().requires_grad_() for t in dirty]
                exact = ROW_WISE[CASES[name].operator].portable(*leaves, *CASES[name].flags)
                exact = torch.autograd.grad(exact.sum(), leaves, materialize_grads=True)
                assert value[1].isnan().any()
                assert torch.equal(value[0], clean[0])
                for got, want, known in zip(grads, slopes, exact, strict=True):
                    if got.ndim == 2:
                        assert got[1].isnan().any() or not known[1].isnan().any()
                        assert torch.equal(got[0], want[0])

    @on("triton", once=True)
    @pytest.mark.any_arithmetic
    def test_rows_too_long_for_a_kernel_are_computed_all_the_same(self, name, backend, monkeypatch):
        inputs = inputs_of(name, backend, 3, 40, torch.float32)
        value, grads = value_and_gradients(name, backend, inputs)
        monkeypatch.setattr("hyperst_kernels.gpu.launch.fits", lambda d, dtype: False)
        monkeypatch.setattr("hyperst_kernels.gpu.launch.over_rows", None)  # no kernel is launched
        other, others = value_and_gradients(name, backend, inputs)
        for got, want in zip((other, *others), (value, *grads), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
