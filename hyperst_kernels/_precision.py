"""The precision of library products, whatever a user has set for other code of the process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

# Of a logit of 2^30, the rounding of its distance in float32 leaves a factor of up to e^64 open, which float32 still holds;
# of one of 2^42 in float64, the rounding of the logit a relative 5e-4. Weights of larger ones are not a number.
LARGEST_LOGIT = {torch.float32: 2.0**30, torch.float64: 2.0**42}

_BACKENDS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]


def is_full_float32() -> bool:
    """Whether products of float32 numbers are products of float32 numbers now; "none" is the setting of all backends."""
    inherited = torch.backends.fp32_precision  # type: ignore[attr-defined]
    exact = ("ieee", "none") if inherited in ("ieee", "none") else ("ieee",)
    return all(backend.fp32_precision in exact for backend in _BACKENDS)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Multiply float32 matrices in float32 inside the block: ``torch.set_float32_matmul_precision`` may say tf32 or bf16."""
    if is_full_float32():
        yield
        return
    precisions = [backend.fp32_precision for backend in _BACKENDS]
    try:
        together = torch.get_float32_matmul_precision()
    except RuntimeError:  # backend by backend only
        together = None
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if together is not None:
            torch.set_float32_matmul_precision(together)
        for backend, precision in zip(_BACKENDS, precisions, strict=True):
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision
