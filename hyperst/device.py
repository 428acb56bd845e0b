"""The device that a run predicts on."""

from __future__ import annotations

import torch

__all__ = ["choose_device"]


def choose_device(name: str | None = None) -> torch.device:
    """Return the device of a name, or the GPU if there is one; a tensor was made there, so it can be used.

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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"device {name!r} (--device) cannot be used here ({reason}); choose {' or '.join(usable)}, or leave --device out"
        ) from error
    return device
