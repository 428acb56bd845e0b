"""Memory for the products that wait for the backward pass.

Memory new to a process is cleared page by page when it is first touched: up to a tenth of a training step, measured on a
batch of 4096. So what a backward pass has done with is kept for the next forward pass.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from hyperst_kernels.cpu import native

# Up to this size the n x m products of a pairing stay in memory from the forward to the backward pass, which saves one
# product in four: a batch of 8192. No more than this is held between steps.
KEPT_BYTES = 256 << 20

_spare: list[Tensor] = []  # one buffer at most
_lock = threading.RLock()  # a loan can end, by garbage collection, where the same thread holds the lock


def borrow(shape: Sequence[int], like: Tensor) -> Tensor:
    """A float32 tensor with any content, or an empty one of the kind of ``like``.

    Its memory is lent again when the last tensor that shares it is gone.
    """
    numbers = math.prod(shape)
    if numbers == 0:
        return like.new_empty(shape)
    with _lock:
        buffer = _spare.pop() if _spare else None
    if buffer is None or buffer.numel() < numbers:
        buffer = native.large(torch.empty(numbers, dtype=torch.float32, device="cpu"))
    # the storage of the tensor below owns this array and nothing else does, so that its end is the end of the loan
    lent = buffer.numpy()
    weakref.finalize(lent, _give_back, buffer).atexit = False
    return torch.from_numpy(lent)[:numbers].view(*shape)


def _give_back(buffer: Tensor) -> None:
    if buffer.numel() * buffer.element_size() > KEPT_BYTES:
        return
    with _lock:
        other = _spare.pop() if _spare else buffer
        _spare[:] = [max(buffer, other, key=Tensor.numel)]


def release() -> None:
    """Return what is held between steps to the system."""
    with _lock:
        _spare.clear()
