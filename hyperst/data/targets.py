"""What is predicted: expression on one of two documented scales, computed from raw counts.

- ``log2``:        log2(1 + count). The paper's; follows a spot's total count as much as its biology.
- ``log1p_cp10k``: ln(1 + 10000 * count / library), library = total count of the spot over ALL measured genes.
"""

from __future__ import annotations

from typing import Literal, TypeVar, get_args

import numpy as np
import torch

__all__ = ["TARGETS", "Target", "transform"]

Target = Literal["log1p_cp10k", "log2"]
TARGETS: tuple[str, ...] = get_args(Target)

_Array = TypeVar("_Array", np.ndarray, torch.Tensor)


def transform(counts: _Array, library_size: _Array | None, target: Target) -> _Array:
    """Raw counts on the target scale. A spot without any count (library 0) gives zeros on both scales.

    Args:
        counts: (... gene) raw (or mean raw) counts, >= 0, numpy or torch; the result has the same kind and a floating
            dtype of the same width (integers become float32).
        library_size: (...) total count per spot over all genes; only used (and then needed) by "log1p_cp10k".
        target: "log1p_cp10k" or "log2".

    Raises:
        ValueError: unknown target, or the library size is missing.

    >>> transform(np.array([[0.0, 1.0, 3.0]]), None, "log2")
    array([[0., 1., 2.]])
    """
    if target not in TARGETS:
        raise ValueError(f"target: got {target!r}, need one of {', '.join(TARGETS)}")
    if isinstance(counts, torch.Tensor):
        counts = counts if counts.is_floating_point() else counts.float()
    elif not np.issubdtype(counts.dtype, np.floating):
        counts = counts.astype(np.float32)
    if target == "log2":
        return torch.log2(1 + counts) if isinstance(counts, torch.Tensor) else np.log2(1 + counts)
    if library_size is None:
        raise ValueError("library_size: target 'log1p_cp10k' needs the total count of each spot; got None")
    if isinstance(counts, torch.Tensor):
        total = torch.as_tensor(library_size).to(counts)[..., None]
        return torch.log1p(1e4 * counts / torch.where(total > 0, total, torch.ones_like(total)))
    scale = np.asarray(library_size).astype(counts.dtype)[..., None]
    return np.log1p(counts.dtype.type(1e4) * counts / np.where(scale > 0, scale, counts.dtype.type(1)))
