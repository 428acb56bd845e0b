"""The curvature that a module holds: a number, a tensor, or what computes it anew at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from hyperst_kernels import _checks

Curvature = float | Tensor | nn.Module | Callable[[], Tensor]


def check(curvature: float | Tensor) -> None:
    """A number or a tensor of one, c > 0; a negative one, as in notations that give the curvature itself, is told its c."""
    _checks.positive_number("curvature", curvature)


def hold(module: nn.Module, curvature: Curvature) -> None:
    """Set ``module.curvature``: a parameter or module is registered as such, any other tensor as a buffer.

    A number or tensor is checked; one that a module or a function computes is, where it is used. So are DTensors, which
    are whole inside the forward pass of a sharded module.
    """
    if not (callable(curvature) or hasattr(curvature, "full_tensor")):
        check(curvature)
    if isinstance(curvature, Tensor) and not isinstance(curvature, nn.Parameter):
        module.register_buffer("curvature", curvature)
    else:
        module.curvature = curvature  # type: ignore[assignment]


def current(curvature: Curvature) -> float | Tensor:
    """c of this step: what has a ``curvature`` is asked for it, what can be called is called."""
    if isinstance(curvature, nn.Module) and hasattr(curvature, "curvature"):
        return cast(Tensor, curvature.curvature)
    return cast("float | Tensor", curvature() if callable(curvature) else curvature)


def describe(curvature: Curvature) -> str:
    """What to print of it: a number, or where it comes from."""
    if isinstance(curvature, nn.Module):
        return type(curvature).__name__
    if isinstance(curvature, Tensor):
        if hasattr(curvature, "full_tensor") or curvature.device.type == "meta":
            return "sharded" if curvature.device.type != "meta" else "on meta"
        learnt = ", learnt" if isinstance(curvature, nn.Parameter) and curvature.requires_grad else ""
        return f"{float(curvature.detach()):.6g}{learnt}"
    return "computed at every step" if callable(curvature) else f"{curvature:.6g}"
