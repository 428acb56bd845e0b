"""Checks of the public layer: every error names the argument, what came, and what is needed."""

from __future__ import annotations

import ctypes
import math
import numbers
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch._C import _functorch

from hyperst_kernels.cpu.native import bindings
from hyperst_kernels.reference.pair import norm

_FLOATING = {torch.float32, torch.float64, torch.bfloat16, torch.float16}
# float64 holds the product of two points of this rapidity; a CPU takes products there that float32 does not hold
_LARGEST_RAPIDITY = 354.0


def seen(x: Tensor) -> bool:
    """Whether the numbers can be looked at: not where that would stop a device, nor in torch.compile or torch.func.vmap."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_batchedtensor(x):
            return False
        x = _functorch.get_unwrapped(x)
    return True


def whole(name: str, x: Tensor) -> None:
    """No DTensor: its shards would go through a kernel as if they were all there is."""
    if hasattr(x, "full_tensor"):
        raise TypeError(
            f"{name} must be a plain tensor, got a DTensor: pass {name}.to_local() where each row stands for itself, and "
            f"{name}.full_tensor() where all rows are needed (a loss, a matrix of distances, a scalar)"
        )


def features(name: str, x: Tensor, *, matrix: bool = False) -> None:
    """A floating tensor of shape (..., d), or (n, d)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    whole(name, x)
    if x.dtype not in _FLOATING:  # float8 has no arithmetic of its own
        raise TypeError(f"{name} must be a floating tensor (float32, float64, bfloat16 or float16), got {x.dtype}")
    if x.ndim < 1 or (matrix and x.ndim != 2):
        raise ValueError(f"{name} must have shape {'(n, d)' if matrix else '(..., d)'}, got {tuple(x.shape)}")
    if x.shape[-1] == 0:
        raise ValueError(f"{name} must have at least one feature, got shape {tuple(x.shape)}")


def finite(name: str, x: Tensor) -> None:
    """No NaN or inf, where they can be `seen`."""
    if not seen(x):
        return
    if math.isfinite(float(x.detach().sum())):  # one NaN or inf would show in the sum
        return
    bad = ~torch.isfinite(x)
    if bad.any():
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(f"{name} must be finite, got {int(bad.sum())} NaN or inf values, the first at index {where}")


def positive(name: str, value: float | Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A float or one-element tensor > 0, as a 0-d tensor on the device of ``like``, in ``dtype`` or its dtype."""
    dtype = like.dtype if dtype is None else dtype
    value = tensor_or_number(value)
    positive_number(name, value, dtype)
    if isinstance(value, Tensor):
        reachable(name, value, like.device)
        moved = value.reshape(()).to(device=like.device, dtype=dtype)
        return moved if seen(value) else _or_nan(moved)
    return torch.full((), float(value), dtype=dtype, device=like.device)


def positive_each(name: str, value: float | Tensor, n: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """What `positive` takes, as a 0-d tensor, or a tensor (n,) of such numbers."""
    value = tensor_or_number(value)
    if not isinstance(value, Tensor) or value.numel() == 1:
        return positive(name, value, like, dtype)
    whole(name, value)
    reachable(name, value, like.device)
    if value.shape != (n,):
        got = tuple(value.shape)
        raise ValueError(
            f"{name} must be a number, a 0-d tensor, or of shape ({n},), one for each query, got shape {got}"
        )
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got {value.dtype}")
    if not seen(value):
        return _or_nan(value.to(device=like.device, dtype=dtype))
    smallest, largest = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    bad = ~((value.detach() >= smallest) & (value.detach() <= largest))
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"{name} must lie between {smallest:.3g} and {largest:.3g} in {dtype}, got {float(value.detach()[first]):.6g} at index "
            f"{first}"
        )
    return value.to(device=like.device, dtype=dtype)


def positive_factors(name: str, value: float | Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor (k,) of numbers > 0, one for each factor of the features (n, d) that it is beside, as `positive` gives one."""
    value = tensor_or_number(value)
    d = like.shape[1]
    if not isinstance(value, Tensor) or value.ndim != 1 or len(value) == 0 or d % len(value):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__}"
        raise ValueError(
            f"{name} must be a tensor of shape (k,) for a product of k spaces, where k divides d = {d}, got {got}"
        )
    return positive_each(name, value, len(value), like, dtype).reshape(-1)


def _or_nan(value: Tensor) -> Tensor:
    """Numbers above 0, and NaN in place of others, where they cannot be `seen`."""
    return torch.where(value > 0, value, torch.nan)


def finite_number(name: str, value: float | Tensor, dtype: torch.dtype = torch.float32) -> None:
    """A float or one-element tensor that ``dtype`` holds, where it can be `seen`."""
    real_number(name, value)
    if isinstance(value, Tensor) and not seen(value):
        return
    number = float(value.detach() if isinstance(value, Tensor) else value)
    if not abs(number) <= torch.finfo(dtype).max:
        raise ValueError(f"{name} must be a finite number of {dtype}, got {number:.6g}")


def plain_number(name: str, value: object) -> None:
    """A finite number that is no tensor: it has no gradient."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a float, got {type(value).__name__}")
    finite_number(name, float(value))


def tensor_or_number(value: float | Tensor) -> float | Tensor:
    """NumPy's arrays as tensors, which its scalars are, too, under torch.compile; anything else as it is."""
    return torch.as_tensor(value) if isinstance(value, np.ndarray) else value


def positive_number(name: str, value: float | Tensor, dtype: torch.dtype = torch.float32) -> None:
    """A float or one-element tensor that ``dtype`` holds as a number > 0, in all its digits, where it can be `seen`."""
    value = tensor_or_number(value)
    real_number(name, value)
    if isinstance(value, Tensor):
        if not seen(value):
            return
        value = value.detach()
    value = float(value)
    if not 0 < value < float("inf"):
        # many notations give the curvature itself
        own = f": the curvature of the space is -c, so pass c = {-value:g}" if name in ("c", "curvature") else ""
        raise ValueError(f"{name} must be positive and finite, got {value}{own if -float('inf') < value < 0 else ''}")
    smallest, largest = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    if not smallest <= value <= largest:
        raise ValueError(f"{name} must lie between {smallest:.3g} and {largest:.3g} in {dtype}, got {value}")


def real_number(name: str, value: float | Tensor) -> None:
    """A float or a tensor of one real number."""
    value = tensor_or_number(value)
    if isinstance(value, Tensor):
        whole(name, value)
        if value.numel() != 1:
            raise ValueError(f"{name} must be a number or a 0-d tensor, got shape {tuple(value.shape)}")
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{name} must be a real number, got {value.dtype}")
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):  # NumPy's scalars are real numbers too
        raise TypeError(f"{name} must be a float or a 0-d tensor, got {type(value).__name__}")


def count(name: str, value: object) -> None:
    """An integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def fraction(name: str, value: object) -> None:
    """A number from 0 to below 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number from 0 to below 1, got {type(value).__name__}")
    if not 0 <= float(value) < 1:
        raise ValueError(f"{name} must be a number from 0 to below 1, got {value}")


def fraction_each(name: str, value: float | Tensor, n: int) -> float | Tensor:
    """What `fraction` takes, or a tensor () or (n,) of such numbers. Where they cannot be `seen`, others become NaN."""
    value = tensor_or_number(value)
    if not isinstance(value, Tensor):
        fraction(name, value)
        return value
    _real(name, value)
    if value.shape not in ((), (n,)):
        raise ValueError(
            f"{name} must be a number or of shape ({n},), one for each query, got shape {tuple(value.shape)}"
        )
    if value.requires_grad:
        raise ValueError(f"{name} has no gradient: pass {name}.detach()")
    fits = (value >= 0) & (value < 1)
    if not seen(value):
        return torch.where(fits, value, torch.nan)
    if not fits.all():
        first = tuple((~fits).nonzero()[0].tolist())
        at = f" at index {first[0]}" if first else ""
        raise ValueError(f"{name} must hold numbers from 0 to below 1, got {float(value[first]):.6g}{at}")
    return value


def reachable(name: str, x: Tensor, device: torch.device) -> None:
    """A tensor that can be moved to the device: one on "meta" has no numbers."""
    if x.device.type == "meta" != device.type:
        raise ValueError(f"{name} must hold numbers, got a tensor on device meta beside one on {device}")


def one_device(named: Mapping[str, Tensor]) -> None:
    """Tensors that lie on the same device: a kernel gets their addresses."""
    if len({x.device for x in named.values()}) > 1:
        places = ", ".join(f"{name} on {x.device}" for name, x in named.items())
        raise ValueError(f"tensors must be on one device, got {places}")


def sample_weights(name: str, w: Tensor, n: int) -> Tensor:
    """Real weights (n,), finite and >= 0; see `_not_negative`."""
    _real(name, w)
    if w.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), one for each sample, got {tuple(w.shape)}")
    return _not_negative(name, w)


def weights(name: str, w: Tensor, shape: Sequence[int]) -> Tensor:
    """Weights of points, finite and >= 0, one for each of the last dimension of ``shape``; see `_not_negative`."""
    _real(name, w)
    fits = 1 <= w.ndim <= len(shape) and w.shape[-1] == shape[-1]
    if not fits or any(a not in (1, b) for a, b in zip(reversed(w.shape), reversed(shape), strict=False)):
        raise ValueError(f"{name} must have shape {tuple(shape)}, or one that broadcasts to it, got {tuple(w.shape)}")
    return _not_negative(name, w)


def _real(name: str, w: Tensor) -> None:
    if not isinstance(w, Tensor) or not (w.dtype in _FLOATING or is_integer(w) or w.dtype == torch.bool):
        got = w.dtype if isinstance(w, Tensor) else type(w).__name__
        raise TypeError(f"{name} must be a real torch.Tensor, got {got}")
    whole(name, w)


def is_integer(x: Tensor) -> bool:
    """Whether the tensor is of integers, which bool is not."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def _not_negative(name: str, w: Tensor) -> Tensor:
    """Weights that are finite and >= 0. Where they cannot be `seen`, those below 0 become NaN."""
    if not seen(w):
        return torch.where(w < 0, torch.nan, w)
    bad = ~(torch.isfinite(w) & (w >= 0))
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        at = first[0] if len(first) == 1 else first
        raise ValueError(f"{name} must be finite and 0 or more, got {float(w.detach()[first]):.6g} at index {at}")
    return w


def choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """One of the words that are understood."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def radius(name: str, v: Tensor, c: Tensor) -> None:
    """Tangent vectors whose points can be multiplied with one another, in units in which c is 1."""
    largest = _largest_rapidity(v, c)
    if largest > _LARGEST_RAPIDITY:
        raise ValueError(
            f"{name} reaches sqrt(c)|v| = {largest:.3g}, where products of points overflow (limit {_LARGEST_RAPIDITY:g}): "
            "scale the vectors down"
        )


def representable(name: str, v: Tensor, c: Tensor) -> None:
    """Tangent vectors whose points, of length sinh(sqrt(c) |v|) / sqrt(c), fit into their dtype."""
    if not (seen(v) and seen(c)):
        return
    largest, k = _largest_rapidity(v, c), float(c.detach()) ** 0.5
    # on the way there, e^(sqrt(c) |v|) has to fit into the dtype of the geometry
    limit = min(math.asinh(0.99 * k * torch.finfo(v.dtype).max), math.log(0.99 * torch.finfo(c.dtype).max))
    if largest > limit:
        wider = "" if v.dtype == torch.float64 else " or use float64"
        raise ValueError(
            f"{name} reaches sqrt(c)|v| = {largest:.3g}, whose point overflows {v.dtype} (limit {limit:.3g} at c = "
            f"{k * k:.3g}): scale the vectors down{wider}"
        )


def _largest_rapidity(v: Tensor, c: Tensor) -> float:
    """sqrt(c)|v| at its largest; 0 where looking would stop the device."""
    if not (seen(v) and seen(c)) or v.numel() == 0:
        return 0.0
    if v.ndim == 2 and bindings.usable(v) and not _functorch.is_functorch_wrapped_tensor(v):
        square, rows = (ctypes.c_double * 1)(), bindings.rows(v)
        bindings.call("largest_square", rows, rows.stride(0), *rows.shape, square)
        return math.sqrt(square[0] * float(c.detach()))
    return float(norm(v.detach().to(c.dtype)).max() * c.detach().sqrt())


def geometry_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any input is, else float32: geometry is never computed in half precision."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def prepare(c: float | Tensor, **named: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Check and broadcast vectors (..., d): c in the geometry's dtype, and the vectors in their common dtype."""
    checked: list[Tensor] = []
    for name, x in named.items():
        if not any(x is other for other in checked):
            features(name, x)
            finite(name, x)
            checked.append(x)
    one_device(named)
    tensors = list(named.values())
    try:
        if any(x.shape != tensors[0].shape for x in tensors):
            tensors = list(torch.broadcast_tensors(*tensors))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in named.items())
        raise ValueError(f"shapes must broadcast to one another, got {shapes}") from None
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return positive("c", c, tensors[0], geometry_dtype(*tensors)), [x.to(dtype) for x in tensors]


def matrices(**named: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices (N, d) and (M, d), checked, in their common dtype."""
    for name, points in named.items():
        features(name, points, matrix=True)
        finite(name, points)
    one_device(named)
    (one, x), (other, y) = named.items()
    if x.shape[1] != y.shape[1]:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"{one} and {other} must have the same number of features, got {shapes}")
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def inside_ball(name: str, p: Tensor, c: Tensor) -> None:
    """Points of the open Poincare ball."""
    if not (seen(p) and seen(c)) or p.numel() == 0:
        return
    largest = float(norm(p.detach().to(c.dtype)).max() * c.detach().sqrt())
    if largest >= 1:
        # 1 - tanh(p/2) = 2 e^-p; of a point and its norm seven roundings may add up, of half an eps each
        ends = math.log(2 / 3.5 / torch.finfo(p.dtype).eps)
        raise ValueError(
            f"{name} must lie inside the Poincare ball, sqrt(c)|p| < 1, got {largest:.6g}; in {p.dtype} points of radius "
            f"{ends:.3g} and more may round to its rim: leave those on the hyperboloid or use a wider dtype"
        )
