"""The device that a run predicts on."""

from __future__ import annotations

import torch

from hyperst.freed_memory import keep_freed_memory

__all__ = ["choose_device"]


def choose_device(name: str | None = None) -> torch.device:
    """Return the device of a name, or the GPU if there is one; a tensor was made there, so it can be used.

    Where that is the CPU, the process keeps freed memory from then on, see :func:`hyperst.freed_memory.keep_freed_memory`.

    Raises:
        ValueError: no such device, or none that this PyTorch can use.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        usable = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise ValueError(
            f"device {name!r} (--device) cannot be used here: {_reason(name)}; choose {' or '.join(usable)}, or leave --device out"
        ) from error
    if device.type == "cpu":
        keep_freed_memory()
    return device


def _reason(name: str) -> str:
    """Why a device cannot be used; PyTorch's own texts list kinds of devices, or are about tensors."""
    kind, _, number = name.partition(":")
    if kind != "cuda":
        return "there is no such device, or this PyTorch does not compute on it"
    if torch.version.cuda is None and torch.version.hip is None:
        return "this PyTorch is built without GPUs"
    if not torch.cuda.is_available():
        return "no GPU is found (nvidia-smi tells whether the driver runs)"
    return f"there is no GPU of number {number}" if number else "the GPU refuses"
