"""How kernels are launched: block sizes from a table, grids from shapes, the right device.

The table is ``launch_table.json``: architecture -> kind of kernel -> "D bucket:dtype" -> settings. Where compilers differ,
"cuda:90, triton 3.7" holds from that version of Triton on. Nothing is tuned at the first call: ``hyperst-kernels tune``
measures again on the GPU at hand and writes a table of the user's own, which is read before the shipped one: at
$HYPERST_LAUNCH_TABLE, or ~/.config/hyperst_kernels/launch_table.json.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels._checks import geometry_dtype

P = ParamSpec("P")
T = TypeVar("T")

_SHIPPED = Path(__file__).with_name("launch_table.json")
LARGEST_ROW = 16384  # numbers in a row that one program can hold, if it does little with them
LARGEST_STRIDE = 1 << 22  # from row to row: kernels count within a tile, of 256 rows at most, in 32 bits
# What a compiler may fuse is the same whatever a version of Triton takes for granted.
OPTIONS = {"enable_fp_fusion": True}
INTERPRETED_PRODUCTS: tuple[str, ...] = ("ieee",)  # precisions that the interpreter has


def fits(d: int, dtype: torch.dtype) -> bool:
    """Whether every row-wise kernel holds rows of d numbers in registers, without spilling on sm_90."""
    return d <= (2048 if dtype == torch.float64 else 4096)


def user_table_path() -> Path:
    """Where ``hyperst-kernels tune`` writes and launches look first."""
    named = os.environ.get("HYPERST_LAUNCH_TABLE")
    return Path(named) if named else Path.home() / ".config" / "hyperst_kernels" / "launch_table.json"


@functools.cache
def _tables() -> list[dict]:
    paths = [path for path in (user_table_path(), _SHIPPED) if path.is_file()]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def forget_tables() -> None:
    """Read the tables again at the next launch."""
    _tables.cache_clear()
    _settings.cache_clear()


def architecture() -> str:
    """The active target: "cuda:90", "hip:gfx942", or "interpreter"."""
    if triton.knobs.runtime.interpret:
        return "interpreter"
    target = triton.runtime.driver.active.get_current_target()
    return f"{target.backend}:{target.arch}"


@functools.cache
def _settings(where: str, kind: str, bucket: int, dtype: str) -> dict[str, int]:
    for table in _tables():
        for place in (*_of_versions(table, where), where, where.split(":")[0], "any"):
            for key in (f"{bucket}:{dtype}", f"{bucket}"):
                found = table.get(place, {}).get(kind, {}).get(key)
                if found is not None:
                    return found
    return {}


def _of_versions(table: dict, where: str) -> list[str]:
    """Parts of the table for this architecture and a version of Triton that this one has reached, the latest first."""
    named = [place for place in table if place.startswith(f"{where}, triton ")]
    since = {place: _version(place.rsplit(" ", 1)[1]) for place in named}
    return sorted((p for p in named if since[p] <= _version(triton.__version__)), key=since.__getitem__, reverse=True)


def _version(text: str) -> tuple[int, ...]:
    """Major and minor version."""
    return tuple(int(part) for part in text.split(".")[:2])


def bucket(d: int) -> int:
    """The width that rows of d numbers share settings with."""
    return max(16, triton.next_power_of_2(d))


def row_width(d: int) -> int:
    """Features of the tile that holds whole rows; exactly one for one, whose direction is its sign."""
    return bucket(d) if d > 1 else 1


def lookup(kind: str, d: int, dtype: torch.dtype) -> dict[str, int]:
    """Block sizes and warps of the kernels of ``kind`` for rows of d numbers; empty where they do not serve."""
    if kind in _forced:
        return _forced[kind]
    return _settings(architecture(), kind, bucket(d), str(dtype).removeprefix("torch."))


def settings(kind: str, d: int, dtype: torch.dtype) -> dict[str, int]:
    """Those of a kind that serves every d and dtype."""
    found = lookup(kind, d, dtype)
    if not found:
        raise KeyError(f"no launch settings for {kind}, D = {d}, {dtype} on {architecture()}")
    return found


_forced: dict[str, dict[str, int]] = {}


@contextlib.contextmanager
def forced(kind: str, values: dict[str, int]) -> Iterator[None]:
    """Launch the kernels of ``kind`` with these settings inside the block: to measure them."""
    _forced[kind] = values
    try:
        yield
    finally:
        del _forced[kind]


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """In which the kernel computes: float64 for float64, else float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def operand_dtype(dtype: torch.dtype) -> tl.dtype:
    """In which tiles of a matrix enter a product: their own, but for the interpreter, which cannot multiply halves."""
    if architecture() == "interpreter":
        return triton_dtype(dtype)
    return getattr(tl, str(dtype).removeprefix("torch."))


def product_precision(dtype: torch.dtype, precision: str) -> str:
    """What ``tl.dot`` is told: only float32 has a choice, and the interpreter that of INTERPRETED_PRODUCTS."""
    if dtype != torch.float32 or precision == "bf16":
        return "ieee"
    return "ieee" if architecture() == "interpreter" and precision not in INTERPRETED_PRODUCTS else precision


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager:
    """Launches go to the current device, and the table is read for it: make it the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def on_own_device(function: Callable[P, T]) -> Callable[P, T]:
    """Call a function with the device of its first argument that is a tensor, or a sequence of tensors, current."""

    @functools.wraps(function)
    def called(*arguments: P.args, **options: P.kwargs) -> T:
        first = next(
            a[0] if isinstance(a, (list, tuple)) else a for a in arguments if isinstance(a, (Tensor, list, tuple))
        )
        with on_device_of(first):
            return function(*arguments, **options)

    return called


def unit_stride(x: Tensor) -> Tensor:
    """(n d) whose rows are contiguous; rows may lie anywhere near, also on top of each other (broadcast)."""
    fits = (x.stride(-1) == 1 or x.shape[-1] == 1) and x.stride(0) <= LARGEST_STRIDE
    return x if fits else x.contiguous()


class RowBlock(NamedTuple):
    """What a kernel that owns blocks of whole rows knows when it is compiled: in what it computes, and the size of a block."""

    DTYPE: tl.dtype
    BLOCK_ROWS: int
    BLOCK_D: int


def over_rows(kernel: triton.JITFunction, kind: str, like: Tensor | Sequence[Tensor], *arguments, **constants) -> None:
    """Launch a kernel whose programs own blocks of whole rows of ``like`` (n d), or of each of several such matrices.

    The kernel takes ``arguments``, then n (for several: a tuple), d, and a `RowBlock` named ROWS beside ``constants``.
    The second axis of the grid is that of the matrices.
    """
    several = [like] if isinstance(like, Tensor) else like
    lengths, d = tuple(len(x) for x in several), several[0].shape[1]
    longest, first = max(lengths), several[0]
    if longest == 0:
        return
    if d > LARGEST_ROW:
        raise ValueError(f"rows of at most {LARGEST_ROW} features fit a GPU kernel, got {d}")
    block_d = row_width(d)
    with on_device_of(first):
        table = settings(kind, d, first.dtype)
        rows = interpreted_rows(longest, block_d) if architecture() == "interpreter" else table["rows"]
        kernel[(triton.cdiv(longest, rows), len(several))](
            *arguments,
            longest if isinstance(like, Tensor) else lengths,
            d,
            ROWS=RowBlock(triton_dtype(first.dtype), rows, block_d),
            num_warps=table["warps"],
            **OPTIONS,
            **constants,
        )


def interpreted_rows(n: int, block_d: int) -> int:
    """The interpreter pays per program, not per number: large blocks."""
    return max(1, min(triton.next_power_of_2(n), (1 << 16) // block_d))


def scalars_like(x: Tensor, n: int) -> Tensor:
    """(n) in the dtype of the geometry: one partial sum per row."""
    return x.new_empty(n, dtype=geometry_dtype(x))
