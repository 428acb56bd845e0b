"""Counts of the loss's compiled kernels and of its launches, taken without a GPU and kept in ``counts.json``.

A tile is what one turn of a kernel's loop over keys works on. Counted is the loop that nearly all tiles go through, as compiled;
a loop over features inside it as often as it is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from hyperst_kernels.gpu import launch
from tests.kernels import ahead_of_time as aot
from tests.kernels.launches import Launches, of_loss

PATH = Path(__file__).with_name("counts.json")
DIMS, BATCHES = (128, 384, 512), (4096, 32768, 65536)  # of launches
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
KERNELS = ("_log_sum_exps", "_grad_points", "_weights")  # those that visit all pairs
_POWERS = ("MUFU.EX2", "v_exp_f32")
_SPECIAL = re.compile(r"MUFU|v_(exp|log|rsq|rcp|sqrt)_f32")
_PRODUCT = re.compile(r"HGMMA|HMMA|UTC\w*MMA|v_mfma")


class Tile(NamedTuple):
    """Of a kernel: rows and columns of a tile, features in one turn of the inner loop, warps, and what each warp does per tile."""

    rows: int
    columns: int
    inner: int
    warps: int
    instructions: int
    special: int


class Counted(NamedTuple):
    """Tiles of the forward and of the backward pass, which goes ``by_rows`` or by blocks, and launches of both by batch."""

    forward: Tile
    backward: Tile
    by_rows: bool
    launches: dict[int, tuple[Launches, Launches]]

    def launched(self, n: int) -> tuple[Launches, Launches]:
        """Of a batch that was counted; of larger ones, by blocks of pairs, as many more as there are more of these."""
        largest = max(self.launches)
        forward, backward = self.launches[min(n, largest)]
        more = 1 if self.by_rows else max(1, n // largest) ** 2
        return forward, Launches(*(more * launches for launches in backward))


def read() -> dict[str, dict[str, Counted]]:
    """By target and "D dtype"."""
    return {
        target: {
            key: Counted(
                Tile(*entry["forward"]),
                Tile(*entry["backward"]),
                entry["by_rows"],
                {
                    int(n): (Launches(*forward), Launches(*backward))
                    for n, (forward, backward) in entry["launches"].items()
                },
            )
            for key, entry in entries.items()
        }
        for target, entries in json.loads(PATH.read_text(encoding="utf-8")).items()
    }


def write(tell: Callable[[str], object] = print) -> None:
    """Compile and count everything anew: minutes on one core, less where Triton has it in its cache."""
    found: dict[str, dict[str, dict]] = {}
    for target in aot.TARGETS:
        for dim in DIMS:
            for name in DTYPES:
                found.setdefault(target, {})[f"{dim} {name}"] = counted(target, dim, name)._asdict()
                tell(f"{target}: {dim} {name}")
    PATH.write_text(_text(found), encoding="utf-8")


def _text(found: dict[str, dict[str, dict]]) -> str:
    """JSON, a line for each entry."""
    targets = []
    for target, entries in found.items():
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in entries.items())
        targets.append(f" {json.dumps(target)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(targets) + "\n}\n"


def counted(target: str, dim: int, name: str, batches: Sequence[int] = BATCHES) -> Counted:
    """Of one architecture, number of features and dtype."""
    dtype = DTYPES[name]
    with aot.compiling_for(target):
        table = launch.settings("contrastive", dim, dtype)
        by_rows = launch.lookup("contrastive backward", dim, dtype)
    kernels = compiled(target, dim, dtype)
    forward = _tile(kernels["_log_sum_exps"], table, dim)
    if by_rows:
        backward = _tile(kernels["_grad_points"], {**by_rows, "inner": launch.bucket(dim)}, dim)
    else:
        backward = _tile(kernels["_weights"], table, dim)
    return Counted(forward, backward, bool(by_rows), {n: of_loss(target, n, dim, dtype) for n in batches})


def compiled(target: str, dim: int, dtype: torch.dtype) -> dict[str, CompiledKernel]:
    """`KERNELS` as they are launched for a batch of 4096; the first of each name."""
    found: dict[str, CompiledKernel] = {}
    with aot.compiling_for(target):
        compile_only = JITFunction.run

        def some(self, *arguments, **options):
            if self.__name__ in KERNELS and self.__name__ not in found:
                found[self.__name__] = compile_only(self, *arguments, **options)

        JITFunction.run = some  # compiling_for puts back what was there before it
        aot.loss(dim, dtype)
    return found


def _tile(kernel: CompiledKernel, table: dict[str, int], dim: int) -> Tile:
    opcodes, loops = aot.control_flow(kernel)
    turns = -(-dim // table["inner"])
    products = [loop for loop in loops if any(map(_PRODUCT.match, opcodes[slice(*loop)]))]
    over_keys = [loop for loop in loops if any(op.startswith(_POWERS) for op in opcodes[slice(*loop)])]
    if kernel.metadata.name == "_weights":  # a program is a tile; the last of its two ways is that of most tiles
        before, (first, last) = sorted(products, key=lambda loop: loop[1] - loop[0])[:2]
        if before[0] > first:
            before, (first, last) = (first, last), before
        body = opcodes[: before[0]] + opcodes[first:]
    else:
        start, end = min(over_keys, key=lambda loop: loop[1] - loop[0])
        first, last = max((loop for loop in products if start < loop[0] and loop[1] < end), default=(0, 0))
        body = opcodes[start:end]
    body = body + opcodes[first:last] * (turns - 1)
    # on AMD's, scalar instructions are started beside those of the vector unit, and products have a unit of their own
    vector = [op for op in body if not op.startswith(("s_", "v_mfma"))]
    special = sum(bool(_SPECIAL.match(op)) for op in body)
    return Tile(table["rows"], table["columns"], table["inner"], table["warps"], len(vector), special)
