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

from hyperst_kernels.cpu.native import bindings

# A batch of 8192. A plain global: torch.compile guards on it.
kept_bytes = 256 << 20

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
        buffer = bindings.large(torch.empty(numbers, dtype=torch.float32, device="cpu"))
    # the storage of the tensor below owns this array and nothing else does, so that its end is the end of the loan
    lent = buffer.numpy()
    weakref.finalize(lent, _give_back, buffer).atexit = False
    return torch.from_numpy(lent)[:numbers].view(*shape)


def _give_back(buffer: Tensor) -> None:
    if buffer.nbytes > kept_bytes:
        return
    with _lock:
        other = _spare.pop() if _spare else buffer
        _spare[:] = [max(buffer, other, key=Tensor.numel)]


def limit_cpu_memory(limit_bytes: int) -> int:
    """Set how many bytes of products a term of a contrastive loss may keep on a CPU, and return what was set before.

    The n x m products of float32 features stay in memory from the forward to the backward pass where they fit: 4 n m bytes
    for each term of the loss. That saves the backward pass one product in four. Larger ones are computed again, tile by tile.
    Between steps no more than this is held. The limit is that of the process; it is 256 MiB at first, and 0 keeps nothing.
    It has no effect on a GPU, whose kernels keep no products.

    Raises TypeError / ValueError unless ``limit_bytes`` is an integer >= 0.

    >>> before = limit_cpu_memory(0)
    >>> before
    268435456
    >>> limit_cpu_memory(before)
    0
    """
    global kept_bytes
    if isinstance(limit_bytes, bool) or not isinstance(limit_bytes, int):
        raise TypeError(f"limit_bytes must be an integer, got {type(limit_bytes).__name__}")
    if limit_bytes < 0:
        raise ValueError(f"limit_bytes must be 0 or more, got {limit_bytes}")
    before, kept_bytes = kept_bytes, limit_bytes
    with _lock:
        _spare[:] = [buffer for buffer in _spare if buffer.nbytes <= limit_bytes]
    return before


def release_cpu_memory() -> None:
    """Return to the system what contrastive losses hold on a CPU between steps, see `limit_cpu_memory`.

    >>> release_cpu_memory()
    """
    with _lock:
        _spare.clear()
