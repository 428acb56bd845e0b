"""Every public callable under torch.compile and torch.export: one compilation serves every batch size."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import hyperst_kernels as hk
from tests.kernels.backends import DEVICE
from tests.kernels.public import CALLS, Called, uncalled

SIZES = (5, 7, 2, 11, 3, 8, 4, 13, 6, 17, 9, 12)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


def test_every_public_callable_is_called():
    assert not uncalled()


@pytest.mark.parametrize("name", CALLS)
def test_one_compilation_serves_every_batch_size(name):
    """The first is of the first size, the second of all: value and gradients of twelve sizes are those without compiling."""
    call = CALLS[name]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call.function, fullgraph=True, backend=counter)
    for n in SIZES:
        inputs = call.inputs(n)
        got, want = (f(*inputs) for f in (compiled, call.function))
        torch.testing.assert_close(got, want)
        grads = (torch.autograd.grad(out.sum(), inputs, allow_unused=True) for out in (got, want))
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 2


def export(name: str, device: str = "cpu"):
    call = CALLS[name]
    inputs = tuple(x.detach().to(device) for x in call.inputs(5))
    n = torch.export.Dim("n", min=2)
    rows = [{0: n + call.more if i == 1 and call.more else n} for i in range(call.count)]
    return torch.export.export(Called(call.function), inputs, dynamic_shapes=((*rows, None),))


def same_at_other_sizes(exported, name: str, device: str = "cpu") -> None:
    for size in (2, 12):
        given = [x.detach().to(device) for x in CALLS[name].inputs(size)]
        want = CALLS[name].function(*given).detach()
        torch.testing.assert_close(exported.module()(*given), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CALLS)
def test_exports_with_a_dynamic_batch(name):
    same_at_other_sizes(export(name), name)


@pytest.mark.triton
@pytest.mark.any_arithmetic
@pytest.mark.parametrize(
    "name", ["distance-tangent", "entailment_loss-tangent", "similarity-tangent", "contrastive_loss-tangent"]
)
def test_kernels_export_with_a_dynamic_batch(name):
    same_at_other_sizes(export(name, DEVICE), name, DEVICE)


@pytest.mark.parametrize("name", ["hierarchical_contrastive_loss", "entailment_loss-tangent", "similarity-lorentz"])
def test_the_reference_exports_with_a_dynamic_batch(name):
    with hk.use_reference():
        exported = export(name)
    same_at_other_sizes(exported, name)
