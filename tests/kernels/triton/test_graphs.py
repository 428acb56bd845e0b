"""A step of the loss in a CUDA graph. Without a device tests/benchmarks/test_guard.py holds that no pass waits for a number."""

from __future__ import annotations

import pytest
import torch

from hyperst_kernels import contrastive_loss
from tests.kernels.triton import DEVICE, INTERPRETED


@pytest.mark.skipif(INTERPRETED, reason="a graph is captured on a device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_captured_step_is_the_step(dtype):
    """Captured with one batch and replayed with another: the same bits as without a graph."""
    made = torch.Generator().manual_seed(0)
    views = [torch.randn(2, 300, 64, generator=made).to(DEVICE, dtype) for _ in range(2)]
    c, scale = (torch.tensor(v, device=DEVICE, requires_grad=True) for v in (0.8, 10.0))
    queries, keys = (view.clone().requires_grad_() for view in views[0])

    def step():
        loss = contrastive_loss(queries, keys, c, scale)
        return loss, *torch.autograd.grad(loss, (queries, keys, c, scale))

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # kernels are compiled and loaded before anything is captured
        step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        queries.copy_(views[1][0]), keys.copy_(views[1][1])
    graph.replay()
    replayed = [x.detach().clone() for x in captured]
    for got, want in zip(replayed, step(), strict=True):
        assert torch.equal(got, want)
