"""Functions in machine code (`library.cpp`), several times as fast as the same in a sequence of PyTorch calls.

The library is built with the package where there is a C++ compiler, and loaded with ctypes. It knows float32 on the CPU;
whoever calls it has PyTorch code for everything else.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hyperst_kernels._constants import CHUNK, INSTRUCTION_SETS, SIGNATURES, STRIP

MAPS = ("exp_map0", "log_map0", "exp_map", "log_map")

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
_FLOAT, _DOUBLE = ctypes.c_float, ctypes.c_double
_TILE = (_INT, _POINTER, _LONG, _LONG, _LONG, _FLOAT)
_FEATURES = (_POINTER, _LONG, _LONG, _LONG, _DOUBLE, _INT, _INT)
_ROWS = (_POINTER, _LONG, _POINTER, _LONG, _LONG, _LONG, _DOUBLE, _INT)
_MAP = (_POINTER, _LONG, _POINTER, _LONG, _LONG, _LONG, _DOUBLE, _DOUBLE)
_SLOPES = (_POINTER, _POINTER, _LONG, _POINTER, _LONG, _POINTER, _INT)
_BLOCK = (_POINTER, _LONG, _LONG, _LONG, _POINTER, _LONG, *(_POINTER,) * 6)
_BATCH = (_POINTER, _POINTER, _LONG, _LONG, _LONG, _DOUBLE, _DOUBLE, _FLOAT, _FLOAT, _DOUBLE, _INT)
_COSINES = (_POINTER, _LONG, _LONG, _LONG, _POINTER, _LONG, _POINTER, _LONG, _FLOAT)
_SIGNATURES = {
    "hyperst_minima": (_POINTER, _LONG, _LONG, _LONG, _POINTER, _INT),
    "hyperst_sums": (*_TILE, *(_POINTER,) * 5, _INT),
    "hyperst_weigh": (*_TILE, _FLOAT, *(_POINTER,) * 5, _LONG, _POINTER, _INT),
    "hyperst_distances": (_POINTER, _LONG, _FLOAT, _POINTER, _FLOAT, _POINTER, _INT),
    "hyperst_weights": (*(_POINTER, _LONG) * 2, _LONG, _LONG, _FLOAT, *(_POINTER,) * 3, _INT),
    "hyperst_operand": (*_FEATURES, _POINTER, _LONG, _INT),
    "hyperst_operand_slopes": (*_FEATURES, _POINTER, _LONG, _POINTER, _LONG, _INT),
    "hyperst_distance": (*_ROWS, _POINTER, _INT),
    "hyperst_distance_slopes": (*_ROWS, *_SLOPES),
    "hyperst_operands": (_POINTER, _POINTER, _LONG, _LONG, _LONG, _DOUBLE, _INT, _INT),
    "hyperst_term_losses": (*_BATCH, *(_POINTER,) * 6, _LONG, _POINTER, _INT),
    "hyperst_term_weights": (*_BATCH, *(_POINTER,) * 5, _LONG, _POINTER, _LONG, *(_POINTER,) * 3, _INT),
    "hyperst_term_slopes": (*_BATCH, _LONG, _POINTER, _LONG, _POINTER, _LONG, _INT),
    "hyperst_largest_square": (_POINTER, _LONG, _LONG, _LONG, _POINTER, _INT),
    "hyperst_hinges": (_POINTER, _POINTER, *(_LONG,) * 3, _DOUBLE, _INT, _POINTER, _DOUBLE, _POINTER, _INT),
    "hyperst_hinges_slopes": (
        *(_POINTER, _LONG, _POINTER, *(_LONG,) * 3, _DOUBLE, _INT, _POINTER, _DOUBLE, _POINTER, _POINTER, _INT),
    ),
    **dict.fromkeys([f"hyperst_{name}" for name in MAPS], (*_MAP, _POINTER, _INT)),
    **dict.fromkeys([f"hyperst_{name}_slopes" for name in MAPS], (*_MAP, *(_POINTER,) * 4, _INT)),
    "hyperst_add_powers": (*_BLOCK, _POINTER, _LONG, _POINTER, _LONG, _INT, _INT),
    "hyperst_add_sigmoid": (*_BLOCK, _DOUBLE, _POINTER, _INT),
    "hyperst_softmax_gradients": (*_BLOCK, *(_POINTER,) * 14, _LONG, _INT),
    "hyperst_sigmoid_gradients": (*_BLOCK, _DOUBLE, *(_POINTER,) * 3, _LONG, _INT),
    "hyperst_angles": (*_COSINES, _POINTER, _LONG, _POINTER, _INT),
    "hyperst_angle_slopes": (*_COSINES, _POINTER, _LONG, _POINTER, _LONG, *(_POINTER,) * 3, _INT),
    "hyperst_large": (_POINTER, _LONG, _INT),
    "hyperst_exp2": (_POINTER, _POINTER, _LONG),
    "hyperst_log1p": (_POINTER, _POINTER, _LONG),
    "hyperst_atan2": (_POINTER, _POINTER, _POINTER, _LONG),
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None where they were not built."""
    spec = importlib.util.find_spec("hyperst_kernels.cpu.native._library")
    if spec is None or spec.origin is None:
        return None
    try:
        loaded = ctypes.CDLL(spec.origin)
        if loaded.hyperst_signatures() != SIGNATURES:
            raise OSError("it was built from other sources, install the package again")
    except (OSError, AttributeError) as error:
        warnings.warn(f"{spec.origin} does not load, PyTorch calls take its place: {error}", stacklevel=2)
        return None
    for name, arguments in _SIGNATURES.items():
        getattr(loaded, name).argtypes = arguments
        getattr(loaded, name).restype = None
    loaded.hyperst_instruction_set(_number(os.environ.get("HYPERST_INSTRUCTION_SET", INSTRUCTION_SETS[-1])))
    return loaded


def instruction_set(limit: str | None = None) -> str:
    """What the machine code, which is there, uses; with a limit, from now on the last one up to it that the processor has."""
    loaded = library()
    assert loaded is not None
    return INSTRUCTION_SETS[loaded.hyperst_instruction_set(-1 if limit is None else _number(limit))]


def _number(name: str) -> int:
    if name not in INSTRUCTION_SETS:
        raise ValueError(f"HYPERST_INSTRUCTION_SET must be one of {', '.join(INSTRUCTION_SETS)}, got {name!r}")
    return INSTRUCTION_SETS.index(name)


def usable(x: Tensor) -> bool:
    """Whether the machine code takes this tensor."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and library() is not None


def call(name: str, *arguments) -> None:
    """Call a function on as many threads as PyTorch uses; tensors are passed as pointers to their first number."""
    plain = (a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
    getattr(library(), f"hyperst_{name}")(*plain, torch.get_num_threads())


def table(*rows: Iterable[int]) -> ctypes.Array:
    """Numbers of 64 bits for a function that takes a table; whoever passes an address keeps its tensor alive."""
    numbers = [number for row in rows for number in row]
    return (ctypes.c_int64 * len(numbers))(*numbers)


def blocks(rows: int, columns: int) -> tuple[int, int]:
    """Return into how many strips of rows and chunks of columns a tile is cut."""
    return -(-rows // STRIP), -(-columns // CHUNK)


def features(vectors: Sequence[Tensor], gradients: Sequence[Tensor] = ()) -> ctypes.Array:
    """The table of features of `native/terms.h`, with gradients or without."""
    addresses = [g.data_ptr() for g in gradients] or [0] * len(vectors)
    return table(*((x.data_ptr(), x.stride(0), x.shape[0], g) for x, g in zip(vectors, addresses, strict=True)))


def large(x: Tensor) -> Tensor:
    """A tensor on fresh memory, asked to lie on large pages: the first touch of 64 MiB then takes 7 ms and not 22."""
    if usable(x):
        call("large", x, x.numel() * x.element_size())
    return x


def rows(x: Tensor) -> Tensor:
    """The matrix with its rows in one piece."""
    return x if x.stride(1) == 1 else x.contiguous()
