"""Importing timm and open_clip where torchvision is of another build than PyTorch."""

from __future__ import annotations

import importlib.util
import re

import torch

__all__ = ["prepare_torchvision"]

_declared: list[torch.library.Library] = []


def prepare_torchvision() -> None:
    """Import torchvision, so that what needs its Python part only can be imported after it; do nothing without it.

    Beside another build of PyTorch (a CUDA torchvision with a CPU PyTorch, say) its compiled operators do not load, and its
    import stops at the first operator it wants to describe. Declaring the schemas it misses lets the import pass; calling
    such an operator would still fail, and neither a vision transformer nor a loss does.

    Raises:
        ImportError: torchvision cannot be imported for another reason.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    for _ in range(20):
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise ImportError(f"torchvision cannot be imported: {error}") from error
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{missing[1]}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _declared.append(library)  # operators live as long as the library object does
        else:
            return
    raise ImportError("torchvision does not fit the installed PyTorch; install matching versions")
