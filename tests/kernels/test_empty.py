"""Matrices without rows or without columns: results of the right shape, and gradients of zeros."""

from __future__ import annotations

import contextlib

import pytest
import torch

import hyperst_kernels as hk
from tests.kernels.backends import DEVICE
from tests.kernels.public import CALLS

PATHS = {"kernels": contextlib.nullcontext, "reference": hk.use_reference}


def empty_matrix(function, n: int, m: int, input: str, dtype: torch.dtype) -> None:
    """The shape and dtype of the result, and of the gradients, which are 0."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, y = (torch.ones(k, 4, dtype=dtype, device=DEVICE, requires_grad=True) for k in (n, m))
    c = torch.tensor(0.7, dtype=wide, device=DEVICE, requires_grad=True)
    out = function(x, y, c, input=input)
    assert (out.shape, out.dtype) == ((n, m), dtype)
    for grad, leaf in zip(torch.autograd.grad(out.sum(), (x, y, c)), (x, y, c), strict=True):
        assert (grad.shape, grad.dtype) == (leaf.shape, leaf.dtype)
        assert not grad.any()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("input", ["tangent", "lorentz"])
@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("function", [hk.pairwise_distance, hk.similarity])
def test_an_empty_matrix_has_its_shape_and_gradients(function, n, m, input, dtype, path):
    with PATHS[path]():
        empty_matrix(function, n, m, input, dtype)


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("function", [hk.pairwise_distance, hk.similarity])
def test_so_it_has_when_compiled(function, n, m):
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    empty_matrix(compiled, n, m, "tangent", torch.float32)


@pytest.mark.parametrize("geometry", ["euclidean", "cosine"])
@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0)])
def test_so_has_a_similarity_of_another_geometry(geometry, n, m):
    x, y = (torch.ones(k, 4, requires_grad=True) for k in (n, m))
    out = hk.similarity(x, y, geometry=geometry)
    assert out.shape == (n, m)
    assert not any(grad.any() for grad in torch.autograd.grad(out.sum(), (x, y)))


# a mean over no rows is refused, and so is the centroid of no points
REFUSED = (
    "contrastive",
    "hierarchical",
    "Hierarchical",
    "HyperbolicContrastiveLoss",
    "entailment",
    "Entailment",
    "centroid",
)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", CALLS)
def test_no_rows_give_no_rows_or_an_error(name, path):
    """Every public callable, of one or several matrices with no rows."""
    call = CALLS[name]._replace(more=0)
    inputs = [x.detach().to(DEVICE).requires_grad_() for x in call.inputs(0)]
    with PATHS[path]():
        if name.startswith(REFUSED) and not name.endswith("similarity"):
            with pytest.raises(ValueError, match=r"at least one|1 <= n <= m"):
                call.function(*inputs)
            return
        out = call.function(*inputs)
        assert out.numel() == 0
        for grad in torch.autograd.grad(out.sum(), inputs, allow_unused=True):
            assert grad is None or not grad.any()


@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith(REFUSED)])
def test_no_rows_compile(name):
    call = CALLS[name]._replace(more=0)
    torch._dynamo.reset()
    inputs = [x.to(DEVICE) for x in call.inputs(0)]
    assert torch.compile(call.function, backend="aot_eager")(*inputs).numel() == 0
