"""Compiles, without a GPU, the kernels that the library's own launch code would launch, and reads what they need.

``python -m tests.kernels.ahead_of_time`` compiles the checked variants and rewrites the table of this version of Triton, in
``resources``; ``--every`` compiles every shipped configuration for sm_90 instead, and reports spills.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks.cases import CASES, ROW_WISE
from hyperst_kernels.blocked.pairs import Pairs, PowerSums, Weights
from hyperst_kernels.gpu import (
    all_pairs,
    angle_pairs,
    contrastive,
    distance_matrix,
    distance_matrix_backward,
    entailment,
    launch,
    pair_loss,
)
from hyperst_kernels.gpu.contrastive import inputs
from hyperst_kernels.reference.contrastive import Pairing, Slopes

VERSION = ".".join(triton.__version__.split(".")[:2])
TABLE = Path(__file__).with_name("resources") / f"triton-{VERSION}.json"
TARGETS = {"sm_80": ("cuda", 80), "sm_90": ("cuda", 90), "sm_100": ("cuda", 100), "gfx942": ("hip", "gfx942")}
SHARED_LIMIT = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}  # bytes per block
GROWTH = 1.05  # of the number of instructions over the table's
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class _NoDevice:
    """In place of Triton's driver: answers what compilation asks of a device."""

    def __init__(self, name: str) -> None:
        backend, architecture = TARGETS[name]
        self.target, self.name = GPUTarget(backend, architecture, 64 if backend == "hip" else 32), name
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return self.name

    def get_current_stream(self, device: object = None) -> int:
        return 0

    def get_device_properties(self, device: object) -> dict[str, int]:
        limits = {"max_shared_mem": SHARED_LIMIT[self.name], "max_num_regs": 65536}
        return {**limits, "multiprocessor_count": 132, "warpSize": self.target.warp_size}

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[list[CompiledKernel]]:
    """Every launch inside the block compiles for the target and runs nothing; the kernels land in the list."""
    compiled: list[CompiledKernel] = []
    run, before = JITFunction.run, getattr(driver, "_active", None)

    def compile_only(self, *args, grid, warmup, **options):
        compiled.append(run(self, *args, grid=grid, warmup=True, **options))
        return compiled[-1]

    driver.set_active(_NoDevice(name))
    launch.forget_tables()
    JITFunction.run = compile_only
    try:
        yield compiled
    finally:
        JITFunction.run, driver._active = run, before
        launch.forget_tables()


def needs(kernel: CompiledKernel) -> dict[str, int]:
    """Registers, spills, shared memory in bytes, instructions, those of them on tensor cores, and (CUDA) those in a loop.

    The loop is the shortest that takes exponentials: what most tiles of the loss go through, once per tile.
    """
    if "cubin" in kernel.asm:
        return _cuda(kernel)
    text = kernel.asm["amdgcn"]
    field = {name: int(re.search(rf"\.{name}:\s+(\d+)", text)[1]) for name in ("vgpr_count", "vgpr_spill_count")}
    return {
        "registers": field["vgpr_count"],
        "spills": field["vgpr_spill_count"],
        "shared": kernel.metadata.shared,
        "instructions": len(re.findall(r"^\s+[sv]_\w+|^\s+(?:global|ds|buffer|flat)_\w+", text, re.M)),
        "tensor": len(re.findall(r"v_mfma", text)),
    }


def _tool(kernel: CompiledKernel, name: str, option: str) -> str:
    """What one of the tools in Triton says of a kernel's machine code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(kernel.asm["cubin"])
        return subprocess.run([_TOOLS / name, option, path], capture_output=True, text=True, check=True).stdout


def _cuda(kernel: CompiledKernel) -> dict[str, int]:
    registers = int(re.search(r"REG:(\d+)", _tool(kernel, "cuobjdump", "--dump-resource-usage"))[1])
    opcodes, loops = control_flow(kernel)
    taking_powers = [end - start for start, end in loops if "MUFU.EX2" in opcodes[start:end]]
    return {
        "registers": registers,
        "spills": sum(op.startswith(("STL", "LDL")) for op in opcodes),
        "shared": kernel.metadata.shared,
        "instructions": len(opcodes),
        "tensor": sum(op.startswith(("HGMMA", "HMMA", "IMMA", "DMMA", "UTC")) and "MMA" in op for op in opcodes),
        "loop": min(taking_powers, default=0),
    }


# a label, and an instruction with what follows its opcode
_SASS = re.compile(r"(\.L_x_\d+):"), re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)")
_GCN = re.compile(r"(\.LBB\w+):"), re.compile(r"\t((?:[sv]|global|ds|buffer|flat)_\w+)(.*)")


def control_flow(kernel: CompiledKernel) -> tuple[list[str], list[tuple[int, int]]]:
    """Opcodes in order, and the first and last of each loop: of what a branch backwards repeats."""
    cuda = "cubin" in kernel.asm
    text = _tool(kernel, "nvdisasm", "-c") if cuda else kernel.asm["amdgcn"]
    label, instruction = _SASS if cuda else _GCN
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in text.splitlines():
        if named := label.match(line):
            labels[named[1]] = len(opcodes)
        elif found := instruction.match(line):
            opcodes.append(found[1])
            target = re.search(r"(\.L\w+)", found[2]) if found[1].startswith(("BRA", "s_cbranch", "s_branch")) else None
            if target and target[1] in labels:
                loops.append((labels[target[1]], len(opcodes)))
    return opcodes, loops


# ------------------------------------------------------------------------------------------------------- variants


def _scalar(dtype: torch.dtype) -> torch.Tensor:
    return torch.ones((), dtype=torch.float64 if dtype == torch.float64 else torch.float32)


def row_wise(d: int, dtype: torch.dtype, n: int = 64) -> None:
    """Every row-wise kernel, forward and backward, tangent and point form."""
    x, c = torch.zeros(n, d, dtype=dtype), _scalar(dtype)
    for case in {(case.operator, case.flags): case for case in CASES.values()}.values():
        forward, backward = ROW_WISE[case.operator].gpu()
        given = [x] * len(case.vectors(1, 1, 0, 1.0)) + [c] * (1 + len(case.scalars))
        backward(torch.zeros_like(forward(*given, *case.flags)), *given, *case.flags)
    hinges = ([x] * 4, [x] * 4, c, [0.7, 0.7, 1.2, 1.2], 0.1, True)
    (
        entailment.entailment_hinges(*hinges),
        entailment.entailment_hinges_backward(torch.zeros(4, n, dtype=dtype), *hinges),
    )


def pairs(d: int, dtype: torch.dtype, precision: str, backward: bool = False, n: int = 256) -> None:
    """The matrix of distances, and its gradient."""
    x, c = torch.zeros(n, d, dtype=dtype), _scalar(dtype)
    matrix = distance_matrix.pairwise_distance(x, x, c, True, precision)
    if backward:
        distance_matrix_backward.pairwise_distance_backward(matrix, x, x, c, matrix, True, precision)


def blocks_of_pairs(dtype: torch.dtype, n: int = 256) -> None:
    """Blocks of distances and angles, and what they add to losses of all pairs, with ids of positives and without."""
    given = torch.zeros(n, 64, dtype=dtype), torch.zeros(n, 64, dtype=dtype), _scalar(dtype)
    for tangent in (True, False):
        for matrix in (all_pairs.LorentzPairs, angle_pairs.AnglePairs):
            matrix(*given, tangent, "bf16x3").gradients(lambda rows, columns, values, out: out.zero_())
    values, each, ids = torch.zeros(n, n, dtype=dtype), torch.zeros(n, dtype=dtype), torch.zeros(n, dtype=torch.int64)
    wide = torch.zeros(len(PowerSums._fields), n, dtype=torch.float64)
    weights = Weights(wide[0], wide[1], each, each, each)
    for block in (Pairs(each, positives=(ids, ids)), Pairs(each, exclude_ids=(ids, ids))):
        pair_loss.add_powers(values, block, wide[:-2], wide[:-2])
        pair_loss.add_sigmoid(values, block, _scalar(dtype), wide[0])
        pair_loss.softmax_gradients(values, block, weights, weights, values, wide)
        pair_loss.sigmoid_gradients(values, block, _scalar(dtype), each, values, wide)


def targets_of_pairs(dtype: torch.dtype, n: int = 256) -> None:
    """What blocks of distances add to softmax losses with smoothed targets: by ids, and with pairs left out by ids and limits."""
    values, each, ids = torch.zeros(n, n, dtype=dtype), torch.zeros(n, dtype=dtype), torch.zeros(n, dtype=torch.int64)
    wide = torch.zeros(len(PowerSums._fields), n, dtype=torch.float64)
    for block in (Pairs(each, positives=(ids, ids)), Pairs(each, exclude_ids=(ids, ids), limits=(each, each))):
        pair_loss.add_powers(values, block, wide, wide)
        pair_loss.softmax_gradients(values, block, *[Weights(wide[0], wide[1], *[each] * 4)] * 2, values, wide)


PAIR = (Pairing(0, 1, True),)
HIERARCHY = (Pairing(0, 1, True), Pairing(2, 1, False), Pairing(3, 0, False))  # as HyperST's


def loss(d: int, dtype: torch.dtype, atomic: bool = False, pairings: Sequence[Pairing] = PAIR, n: int = 4096) -> None:
    """The contrastive loss and its gradient."""
    c = _scalar(dtype)
    x = [torch.zeros(n, d, dtype=dtype) for _ in range(2 if pairings == PAIR else 4)]
    given, flags = (x, None, c, c, None), (pairings, "lorentz", True, "bf16x3")
    found = contrastive.forward(*given, *flags)
    grad = torch.empty_like(found[0], dtype=c.dtype)
    *logits, kept = found
    slopes = contrastive.of_losses(grad, grad, *logits, x, pairings)
    contrastive.backward(slopes, *given, kept, *flags, atomic)


def centred_loss(d: int, dtype: torch.dtype) -> None:
    """That of a large batch, some of which may have collapsed."""
    with mock.patch.object(inputs, "CENTRED_FROM", 0):
        loss(d, dtype)


def of_ranks(d: int, dtype: torch.dtype, with_ids: bool) -> None:
    """What the loss is made of where other ranks have keys of it, and ids are those of two sides."""
    n, c = 4096, _scalar(dtype)
    ids = (torch.zeros(n, dtype=torch.int64),) * 2 if with_ids else None
    x = [torch.zeros(n, d, dtype=dtype) for _ in range(2)]
    given, flags = (x, None, c, c, ids), (PAIR, "lorentz", True, "bf16x3")
    rows, columns, diagonal, kept = contrastive.forward(*given, *flags, all_columns=True)
    grad = torch.empty_like(rows, dtype=c.dtype)
    contrastive.backward(Slopes(rows, grad, columns, grad, diagonal, grad), *given, kept, *flags, False)


def variants(target: str) -> dict[str, Callable[[], None]]:
    """What is compiled for a target, by name."""
    single, half, double = torch.float32, torch.bfloat16, torch.float64

    def one_of_each() -> None:
        """One row, one key, one feature: integers that the compiler turns into constants."""
        row_wise(1, single, n=1), pairs(1, single, "bf16x3", backward=True, n=1), loss(1, single, n=1)

    chosen = {
        "rows 512 float32": lambda: row_wise(512, single),
        "pairs 512 float32 bf16x3": lambda: pairs(512, single, "bf16x3", backward=True),
        "pairs 512 bfloat16": lambda: pairs(512, half, "bf16x3"),
        "loss 128 bfloat16": lambda: loss(128, half),
        "loss 512 float32": lambda: loss(512, single),
        "loss 128 bfloat16 centred": lambda: centred_loss(128, half),
        "loss 128 bfloat16 hierarchy": lambda: loss(128, half, pairings=HIERARCHY),
        "blocks of pairs float32": lambda: blocks_of_pairs(single),
        "targets of pairs float32": lambda: targets_of_pairs(single),
        "one of each": one_of_each,
    }
    if target == "sm_90":
        chosen |= {
            "rows 16 bfloat16": lambda: row_wise(16, half),
            "rows 2048 float32": lambda: row_wise(2048, single),
            "pairs 512 float32 ieee": lambda: pairs(512, single, "ieee"),
            "pairs 512 float64": lambda: pairs(512, double, "ieee", backward=True),
            "blocks of pairs float64": lambda: blocks_of_pairs(double),
            "loss of ranks 128 bfloat16": lambda: of_ranks(128, half, False),
            "loss of ranks 512 float32": lambda: of_ranks(512, single, True),
            "targets of pairs float64": lambda: targets_of_pairs(double),
            "loss 512 float32 hierarchy": lambda: loss(512, single, pairings=HIERARCHY),
            "loss 512 bfloat16": lambda: loss(512, half),
            "loss 1024 bfloat16": lambda: loss(1024, half),
            "loss 32 bfloat16 atomic": lambda: loss(32, half, atomic=True),
            "loss 128 float64": lambda: loss(128, double),
            "loss 16 bfloat16": lambda: loss(16, half),
            "one of each, bfloat16": lambda: loss(1, half, n=1),
        }
    return chosen


def every_configuration() -> dict[str, Callable[[], None]]:
    """Every D bucket and dtype that the launch table has settings for."""
    everything: dict[str, Callable[[], None]] = {}
    for d in (2**k for k in range(4, 15)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            if not launch.fits(d, dtype):
                continue
            everything[f"rows {d} {dtype}"] = lambda d=d, dtype=dtype: row_wise(d, dtype)
            everything[f"loss {d} {dtype}"] = lambda d=d, dtype=dtype: loss(d, dtype)
            if d <= 512:  # the product loops over blocks of at most 64 features: from there on the kernels are the same
                for precision in ("bf16x3", "ieee", "tf32", "bf16") if dtype == torch.float32 else ("ieee",):
                    everything[f"pairs {d} {dtype} {precision}"] = lambda d=d, dtype=dtype, precision=precision: pairs(
                        d, dtype, precision, backward=precision == "ieee"
                    )
    return everything


def compile_variant(target: str, build: Callable[[], None]) -> dict[str, dict[str, int]]:
    """What each kernel of a variant needs; the largest where several launches share a name."""
    with compiling_for(target) as compiled:
        build()
    found: dict[str, dict[str, int]] = {}
    for kernel in compiled:
        name, need = kernel.metadata.name.strip("_"), needs(kernel)
        found[name] = {key: max(value, found.get(name, need)[key]) for key, value in need.items()}
    return found


def complaints(target: str, found: dict[str, dict[str, int]], known: dict[str, dict[str, int]] | None) -> list[str]:
    """What is wrong with the kernels of a variant, against the limits and, where this version of Triton has one, the table."""
    said = []
    for name, need in found.items():
        before = need if known is None else known.get(name)
        if before is None:
            said.append(f"{name} is not in the table: run python -m tests.kernels.ahead_of_time")
            continue
        allowed = 0 if target == "sm_90" else before["spills"]
        if need["spills"] > allowed:
            said.append(f"{name} spills {need['spills']} times, {allowed} allowed")
        if need["shared"] > SHARED_LIMIT[target]:
            said.append(f"{name} needs {need['shared']} bytes of shared memory of {SHARED_LIMIT[target]}")
        for what in ("instructions", "loop"):
            if need.get(what, 0) > GROWTH * before.get(what, 0):
                said.append(f"{name} grew from {before[what]} to {need[what]} in {what}")
        if before["tensor"] and not need["tensor"]:
            said.append(f"{name} no longer uses the tensor cores")
    return said


def known_resources() -> dict[str, dict[str, dict[str, dict[str, int]]]] | None:
    """The table of this version of Triton: target, variant, kernel; None where it has none."""
    return json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else None


def main() -> None:
    if "--every" in sys.argv:
        for name, build in every_configuration().items():
            for kernel, need in compile_variant("sm_90", build).items():
                if need["spills"] or need["shared"] > SHARED_LIMIT["sm_90"]:
                    print(f"{name}: {kernel} {need}", flush=True)
        return
    TABLE.parent.mkdir(exist_ok=True)
    table = {t: {name: compile_variant(t, build) for name, build in variants(t).items()} for t in TARGETS}
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
