"""Memory lent to products: lent again when it is free, and only then."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from torch import Tensor

import hyperst_kernels as hk
from hyperst_kernels.cpu import memory, small_batch

LIKE = torch.empty(0)


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch):
    monkeypatch.setattr(small_batch, "SMALL", 0)  # small batches borrow nothing
    memory.release_cpu_memory()
    yield
    memory.release_cpu_memory()


def views() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 8, generator=generator, requires_grad=True), torch.randn(40, 8, generator=generator)


def test_lends_again_what_came_back():
    first = memory.borrow((3, 50, 20), LIKE)
    where = first.data_ptr()
    part = first[1, 3:]
    del first
    assert memory.borrow((1, 2, 3), LIKE).data_ptr() != where  # a view holds on to it
    del part
    smaller = memory.borrow((2, 10, 10), LIKE)
    assert smaller.data_ptr() == where
    assert smaller.shape == (2, 10, 10)
    assert smaller.is_contiguous()


def test_holds_the_larger_and_no_more_than_its_bound(monkeypatch):
    small, large = memory.borrow((1, 10, 10), LIKE), memory.borrow((1, 20, 20), LIKE)
    where = large.data_ptr()
    del large, small
    assert memory.borrow((1, 20, 20), LIKE).data_ptr() == where
    monkeypatch.setattr(memory, "kept_bytes", 4 * 400 - 1)
    memory.release_cpu_memory()
    beyond = memory.borrow((1, 20, 20), LIKE)
    del beyond
    assert not memory._spare


def test_nothing_is_borrowed_for_nothing():
    empty = memory.borrow((2, 0, 0), torch.empty(3, dtype=torch.float64))
    assert (empty.shape, empty.dtype) == ((2, 0, 0), torch.float64)


@pytest.mark.parametrize("retain", [False, True])
def test_steps_take_turns(retain):
    """What one backward pass gave back serves the next forward pass; with retain_graph it is not given back."""
    image, text = views()
    before = torch.autograd.grad(hk.contrastive_loss(image, text), image)[0]
    (held,) = memory._spare
    loss = hk.contrastive_loss(image, text)
    assert not memory._spare
    first = torch.autograd.grad(loss, image, retain_graph=retain)[0]
    assert [buffer.data_ptr() for buffer in memory._spare] == ([] if retain else [held.data_ptr()])
    other = hk.contrastive_loss(3 * image, text)
    again = torch.autograd.grad(loss, image)[0] if retain else first
    assert torch.equal(before, first)
    assert torch.equal(before, again)
    assert torch.isfinite(torch.autograd.grad(other, image)[0]).all()


def test_graphs_alive_at_once_do_not_share():
    image, text = views()
    scales = (1.0, 2.0, 0.5)
    alone = [torch.autograd.grad(hk.contrastive_loss(s * image, text), image)[0] for s in scales]
    losses = [hk.contrastive_loss(s * image, text) for s in scales]
    for loss, want in zip(losses, alone, strict=True):
        assert torch.equal(torch.autograd.grad(loss, image)[0], want)


def test_threads_do_not_share():
    image, text = views()
    want = torch.autograd.grad(hk.contrastive_loss(image, text), image)[0]
    wrong = []

    def train() -> None:
        leaf = image.detach().requires_grad_()
        for _ in range(20):
            got = torch.autograd.grad(hk.contrastive_loss(leaf, text), leaf)[0]
            if not torch.equal(got, want):
                wrong.append(got)

    threads = [threading.Thread(target=train) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not wrong
    assert len(memory._spare) == 1


def test_a_limit_holds_and_says_what_was_before():
    """Also for compiled code: products above it are not kept, and the gradients are the same."""
    image, text = views()
    compiled = torch.compile(lambda x, y: hk.contrastive_loss(x, y), backend="aot_eager", fullgraph=True)
    want = torch.autograd.grad(hk.contrastive_loss(image, text), image)[0]
    assert memory._spare
    before = hk.limit_cpu_memory(4 * 40 * 40 - 1)
    try:
        assert not memory._spare
        for loss in (hk.contrastive_loss, compiled):
            torch.testing.assert_close(torch.autograd.grad(loss(image, text), image)[0], want)
            assert not memory._spare
        assert hk.limit_cpu_memory(before) == 4 * 40 * 40 - 1
        for loss in (hk.contrastive_loss, compiled):
            torch.testing.assert_close(torch.autograd.grad(loss(image, text), image)[0], want)
            assert memory._spare
            hk.release_cpu_memory()
            assert not memory._spare
    finally:
        hk.limit_cpu_memory(before)
    assert before == 256 << 20


@pytest.mark.parametrize(
    ("limit", "error", "words"),
    [
        (-1, ValueError, "limit_bytes must be 0 or more, got -1"),
        (1e6, TypeError, "limit_bytes must be an integer, got float"),
        (True, TypeError, "limit_bytes must be an integer, got bool"),
    ],
)
def test_a_limit_is_a_number_of_bytes(limit, error, words):
    with pytest.raises(error, match=words):
        hk.limit_cpu_memory(limit)
