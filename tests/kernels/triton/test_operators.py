"""What holds for every kernel alike: derivatives, dtypes, layouts, compilation, determinism."""

from __future__ import annotations

import pytest
import torch

import hyperst_kernels as hk
from benchmarks.cases import CASES, ROW_WISE, C
from hyperst_kernels.gpu import launch
from hyperst_kernels.operators import register
from hyperst_kernels.operators.register import ops
from tests.kernels import test_func
from tests.kernels.test_compile import export, same_at_other_sizes
from tests.kernels.triton import DEVICE, INTERPRETED

ALL = sorted(CASES)
ONE_EACH = sorted({case.operator: name for name, case in CASES.items()}.values())


def inputs_of(name, n=5, d=3, dtype=torch.float64, largest=1.5, seed=1):
    return [x.to(DEVICE) for x in CASES[name].inputs(n, d, seed, largest, dtype)]


def call(name, *inputs):
    return ROW_WISE[CASES[name].operator].operator(*inputs, *CASES[name].flags)


def generic(name, n=4, d=3):
    """Inputs away from kinks, where a numerical derivative means something."""
    g = torch.Generator().manual_seed(3)
    inputs = inputs_of(name, n, d)
    vectors = [0.3 * torch.randn(n, d, generator=g, dtype=torch.float64).to(DEVICE) for x in inputs if x.ndim == 2]
    return [*vectors, *(x for x in inputs if x.ndim == 0)]


def hinge_arguments(dtype=torch.float64, n=4, d=3, scale=0.6):
    g = torch.Generator().manual_seed(5)
    vectors = [(scale * torch.randn(n, d, generator=g, dtype=torch.float64)).to(dtype).to(DEVICE) for _ in range(3)]
    c = torch.tensor(C, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=DEVICE)
    return [vectors[0], vectors[1]], [vectors[1], vectors[2]], c, [0.7, 1.2], 0.1, True


@pytest.mark.any_arithmetic
@pytest.mark.parametrize("name", ALL)
def test_gradcheck_in_float64(name):
    leaves = [x.clone().requires_grad_() for x in generic(name)]
    assert torch.autograd.gradcheck(lambda *a: call(name, *a), leaves, nondet_tol=0)


@pytest.mark.any_arithmetic
def test_gradcheck_of_the_hinges():
    parents, children, c, *flags = hinge_arguments()
    leaves = [t.requires_grad_() for t in (*parents, children[1], c)]

    def hinges(x0, x1, y1, c):
        return ops.entailment_hinges([x0, x1], [x1, y1], c, *flags)

    assert torch.autograd.gradcheck(hinges, leaves)
    assert (hinges(*leaves) > 0).any()


@pytest.mark.any_arithmetic
@pytest.mark.parametrize("name", ONE_EACH)
def test_second_derivatives_are_those_of_the_reference(name):
    case = CASES[name]
    leaves = [x.clone().requires_grad_() for x in generic(name)]

    def squared_slope(compute):
        value = compute(*leaves, *case.flags)
        first = torch.autograd.grad((value**2).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), leaves, materialize_grads=True)

    ours = squared_slope(ROW_WISE[case.operator].operator)
    for got, want in zip(ours, squared_slope(ROW_WISE[case.operator].portable), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.any_arithmetic
@pytest.mark.parametrize("name", ONE_EACH)
def test_forward_mode_raises(name):
    first, *rest = generic(name)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jvp(lambda x: call(name, x, *rest), (first,), (torch.ones_like(first),))


@pytest.mark.any_arithmetic
@pytest.mark.parametrize("name", ONE_EACH)
def test_opcheck(name):
    case = CASES[name]
    inputs = [x.requires_grad_() for x in inputs_of(name, dtype=torch.float32)]
    torch.library.opcheck(ROW_WISE[case.operator].operator.default, (*inputs, *case.flags))
    detached = [x.detach() for x in inputs]
    grad = torch.ones_like(call(name, *detached))
    torch.library.opcheck(ROW_WISE[case.operator].backward.default, (grad, *detached, *case.flags))


@pytest.mark.any_arithmetic
def test_opcheck_of_hinges_and_pairs():
    parents, children, c, *flags = hinge_arguments(torch.float32)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(ops.entailment_hinges.default, (parents, children, c, *flags), test_utils=tests)
    x, y = parents[0].requires_grad_(), children[1].requires_grad_()
    torch.library.opcheck(ops.pairwise_distance.default, (x, y, c, True, "bf16x3"))


@pytest.mark.any_arithmetic
@pytest.mark.parametrize("name", ONE_EACH)
def test_compiled_without_a_graph_break(name):
    torch._dynamo.reset()  # its limit of recompilations counts the lambda of all parameters as one
    inputs = inputs_of(name, dtype=torch.float32)
    compiled = torch.compile(lambda *a: call(name, *a).sum(), fullgraph=True, backend="aot_eager", dynamic=False)
    leaves, others = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    compiled(*leaves).backward()
    call(name, *others).sum().backward()
    for got, want in zip(leaves, others, strict=True):
        assert torch.equal(got.grad, want.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_computed_in_float32(name, dtype):
    case = CASES[name]
    halves = inputs_of(name, 7, 33, dtype, largest=2.0)
    wide = [x.float() if x.ndim == 2 else x for x in halves]
    value = call(name, *halves)
    assert value.dtype == dtype
    # the interpreter cuts bits off where the device rounds
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(value.float(), call(name, *wide), rtol=eps, atol=eps * torch.finfo(dtype).tiny)
    grad = torch.ones_like(value)
    grads = ROW_WISE[case.operator].backward(grad, *halves, *case.flags)
    exact = ROW_WISE[case.operator].backward(grad.float(), *wide, *case.flags)
    for got, want, x in zip(grads, exact, halves, strict=True):
        assert got.dtype == x.dtype
        inside = want.abs() < torch.finfo(x.dtype).max  # slopes at the origin's rim may not fit into float16
        smallest = torch.finfo(x.dtype).smallest_normal
        torch.testing.assert_close(got.float()[inside], want[inside], rtol=2 * eps, atol=smallest)


@pytest.mark.parametrize("name", ALL)
def test_blocks_tails_and_row_strides(name, monkeypatch):
    """11 rows in blocks of 4, of a wider matrix; and one row seen by all."""
    case = CASES[name]
    inputs = inputs_of(name, 11, 5, largest=3.0)
    want = call(name, *inputs)
    grad = torch.linspace(-1, 1, want.numel(), dtype=torch.float64, device=DEVICE).reshape(want.shape)
    want_grads = ROW_WISE[case.operator].backward(grad, *inputs, *case.flags)
    monkeypatch.setattr(launch, "interpreted_rows", lambda n, block_d: 4)
    for layout in (lambda x: torch.cat([x, x], 1)[:, : x.shape[1]], lambda x: x.T.contiguous().T, lambda x: x):
        laid = [layout(x) if x.ndim == 2 else x for x in inputs]
        assert torch.equal(call(name, *laid), want)
        upstream = layout(grad) if grad.ndim == 2 else grad
        grads = ROW_WISE[case.operator].backward(upstream, *laid, *case.flags)
        for got, other in zip(grads, want_grads, strict=True):
            torch.testing.assert_close(got, other, rtol=1e-14, atol=0)  # sums over rows are blocked differently
    # a stride of 0 is a multiple of 16: a kernel of its own, which may sum in another order
    seen_by_all = call(name, *(x[:1].expand(11, -1) if x.ndim == 2 else x for x in inputs))
    assert torch.equal(seen_by_all, seen_by_all[:1].expand(want.shape))
    torch.testing.assert_close(seen_by_all[0], want[0], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_the_same_bits_twice_and_nothing_for_no_rows(name):
    inputs = inputs_of(name, 9, 17, torch.float32, largest=5.0)
    results = [call(name, *inputs) for _ in range(2)]
    assert torch.equal(*results)
    grad = torch.ones_like(results[0])
    backward = ROW_WISE[CASES[name].operator].backward
    for a, b in zip(*(backward(grad, *inputs, *CASES[name].flags) for _ in range(2)), strict=True):
        assert torch.equal(a, b)
    none = [x[:0] if x.ndim == 2 else x for x in inputs]
    assert call(name, *none).shape == results[0][:0].shape
    assert all(not g.any() for g in backward(grad[:0], *none, *CASES[name].flags))


@pytest.mark.parametrize("name", ALL)
def test_nan_is_not_hidden(name):
    """One row of NaN: that row's results are NaN, the other's are not."""
    inputs = inputs_of(name, 2, 4, torch.float32, seed=2)
    clean = call(name, *inputs)
    assert torch.isfinite(clean).all()
    for i, x in enumerate(inputs):
        if x.ndim == 2:
            dirty = [t.clone() for t in inputs]
            dirty[i][1] = torch.nan
            value = call(name, *dirty)
            assert value[1].isnan().any()
            assert torch.equal(value[0], clean[0])


def test_public_functions_reach_the_kernels_under_autocast_and_broadcasting():
    g = torch.Generator().manual_seed(0)
    x, y = (0.4 * torch.randn(shape, generator=g).to(DEVICE) for shape in ((3, 1, 6), (4, 6)))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        d = hk.distance(x, y, C, input="tangent")
    assert (d.dtype, d.shape) == (torch.float32, (3, 4))
    want = hk.reference.distance.distance(
        *torch.broadcast_tensors(x.double(), y.double()), torch.tensor(C).double(), "tangent"
    )
    torch.testing.assert_close(d.double(), want.to(d.device), rtol=1e-6, atol=0)


def test_hinges_match_one_relation_at_a_time():
    parents, children, c, etas, K, tangent = hinge_arguments(torch.float32, n=9, d=33)
    together = ops.entailment_hinges(parents, children, c, etas, K, tangent)
    for row, x, y, eta in zip(together, parents, children, etas, strict=True):
        angle = ops.exterior_angle(x, y, c, tangent)
        alone = torch.relu(angle - eta * ops.half_aperture(x, c, K, tangent))
        torch.testing.assert_close(row, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["log_map0", "distance-tangent", "hinges"])
def test_rows_too_long_for_a_kernel_are_computed_all_the_same(name, monkeypatch):
    def value_and_gradients():
        if name == "hinges":
            parents, children, c, *flags = hinge_arguments(torch.float32)
            leaves = [t.requires_grad_() for t in (*parents, children[1], c)]
            value = ops.entailment_hinges(parents, children, c, *flags)
        else:
            leaves = [x.requires_grad_() for x in inputs_of(name, 3, 40, torch.float32)]
            value = call(name, *leaves)
        return [value, *torch.autograd.grad(value.sum(), leaves)]

    with_kernels = value_and_gradients()
    monkeypatch.setattr(launch, "fits", lambda d, dtype: False)
    monkeypatch.setattr(launch, "over_rows", None)  # no kernel is launched
    for got, want in zip(value_and_gradients(), with_kernels, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.any_arithmetic
def test_rows_too_long_for_a_product_say_so():
    x, c = torch.zeros(1, launch.LARGEST_ROW + 1, device=DEVICE), torch.tensor(1.0, device=DEVICE)
    with pytest.raises(ValueError, match="16384"):
        ops.pairwise_distance(x, x, c, True, "ieee")


def test_this_process_runs_kernels():
    assert launch.architecture() == "interpreter" if INTERPRETED else launch.architecture() != "interpreter"
    assert "CPU" in register.TRITON if INTERPRETED else "CUDA" in register.TRITON


@pytest.mark.any_arithmetic
@pytest.mark.parametrize(
    "name", ["distance-tangent", "entailment_loss-tangent", "similarity-tangent", "contrastive_loss-tangent"]
)
def test_exports_with_a_dynamic_batch(name):
    same_at_other_sizes(export(name, DEVICE), name, DEVICE)


@pytest.mark.any_arithmetic
@pytest.mark.parametrize("name", ["distance-tangent", "pairwise_distance-tangent", "contrastive_loss-tangent"])
def test_maps_over_samples(name):
    test_func.test_vmap(name)
