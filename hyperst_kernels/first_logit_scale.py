"""A look at the first logit scale that a module gets: CLIP's parameter of that name is the logarithm of what losses take."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from hyperst_kernels import _checks

# where CLIP and SigLIP start log(inverse temperature), as they are often written out
_STARTS = {"log(1/0.07)": math.log(1 / 0.07), "log(10)": math.log(10)}
_DIGITS = 1e-3


class FirstLogitScale:
    """Warn once, at the first call, of a logit scale that is where a logarithm of one starts."""

    def __init__(self) -> None:
        self.waiting = True

    def __call__(self, logit_scale: float | Tensor) -> None:
        if torch.compiler.is_compiling() or not self.waiting:
            return
        self.waiting = False
        if isinstance(logit_scale, Tensor) and not _readable(logit_scale):
            return
        try:
            value = float(logit_scale.detach() if isinstance(logit_scale, Tensor) else logit_scale)
        except (TypeError, ValueError):  # what the loss says it cannot take
            return
        for name, start in _STARTS.items():
            if abs(value - start) < _DIGITS:
                warnings.warn(
                    f"logit_scale is {value:.4g}, which is {name}, where the logarithm of an inverse temperature often starts: the "
                    "loss takes the inverse temperature itself, logit_scale.exp()",
                    stacklevel=5,  # past forward and torch's two calls of it
                )


def _readable(x: Tensor) -> bool:
    """Whether its number can be looked at. On a GPU that waits for the device, once."""
    if x.numel() != 1 or hasattr(x, "full_tensor"):
        return False
    on_gpu = x.device.type == "cuda" and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    return _checks.seen(x) or (on_gpu and not torch.cuda.is_current_stream_capturing())
