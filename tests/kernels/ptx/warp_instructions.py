"""Barriers, and what the 32 threads of a warp do together: shuffles, reductions, matrix products."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.kernels.ptx.arithmetic import TYPES, bf16_value, bits_of, to_f32
from tests.kernels.ptx.memory import WARP
from tests.kernels.ptx.program import Instruction, Program, PtxError, members_of

BUILDERS: dict[str, Callable[[Program, Instruction], Callable]] = {}
_LANE = np.arange(WARP)


def _barrier(p: Program, instruction: Instruction) -> Callable:
    if instruction.operands != ["0"]:
        raise PtxError("the barrier of all threads is covered")
    return lambda machine: machine.meet()


def _warp_barrier(p: Program, instruction: Instruction) -> Callable:
    return lambda machine: machine.meet_warp()


def _shuffle(p: Program, instruction: Instruction) -> Callable:
    """Each thread reads a register of another: whose number differs in given bits (bfly), or of a given one (idx)."""
    target, source, by, segments, members = instruction.operands
    if segments != "31" or members != "-1":
        raise PtxError("shuffles over whole warps are covered")
    out, value, by = p.register(target), p.register(source), p.register(by)
    butterfly = ".bfly." in instruction.opcode

    def shuffle(machine):
        machine.need_whole_warps()
        number = machine.full(by).astype(np.int64) & 31
        other = machine.lane ^ number if butterfly else number
        machine.put(out, machine.full(value)[machine.warp * WARP + other])

    return shuffle


def _reduce(p: Program, instruction: Instruction) -> Callable:
    target, source = p.register(instruction.operands[0]), p.register(instruction.operands[1])

    def reduce(machine):
        machine.need_whole_warps()
        largest = machine.full(source).view(np.int32).reshape(-1, WARP).max(axis=1)
        machine.put(target, bits_of(np.repeat(largest, WARP)))

    return reduce


def _load_matrices(p: Program, instruction: Instruction) -> Callable:
    """Matrices of 8 x 8 numbers of 16 bits; threads 8 k to 8 k + 7 hold the addresses of the rows of the k-th.

    Thread i gets numbers 2 (i mod 4) and the next of row i // 4; transposed, of column i // 4.
    """
    transposed, outs = ".trans." in instruction.opcode, [p.register(o) for o in members_of(instruction.operands[0])]
    base, offset = p.address(instruction.operands[1])
    p.granule["shared"] = 2

    def load(machine):
        machine.need_whole_warps()
        rows, shared = machine.full(base).astype(np.int64) + offset, machine.memory("shared")
        if (rows % 16).any():
            raise PtxError("rows of ldmatrix that do not begin at multiples of 16 bytes")
        group, within = machine.lane // 4, machine.lane % 4
        for k, out in enumerate(outs):
            first = machine.warp * WARP + 8 * k
            if transposed:
                low, high = (
                    shared.load(machine, rows[first + 2 * within + i] + 2 * group, machine.thread, 2)[0] for i in (0, 1)
                )
                machine.put(out, low | (high.astype(np.uint32) << np.uint32(16)))
            else:
                machine.put(out, shared.load(machine, rows[first + group] + 4 * within, machine.thread, 4)[0])

    return load


def _elements(bits: np.ndarray, kind: str) -> np.ndarray:
    """The numbers that registers of an operand hold, as float64: warps, numbers of a register, threads of a warp."""
    if kind == "f64":
        return bits.view(np.float64).reshape(-1, 1, WARP)
    if kind == "tf32":  # float32 without its last 13 bits
        return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64).reshape(-1, 1, WARP)
    halves = np.stack([bits & np.uint32(0xFFFF), bits >> np.uint32(16)]).astype(np.uint16)
    values = bf16_value(halves) if kind == "bf16" else halves.view(np.float16)
    return values.astype(np.float64).reshape(2, -1, WARP).transpose(1, 0, 2)


def _multiply(p: Program, instruction: Instruction) -> Callable:
    """d = a b + c, each spread over the registers of a warp; its sums are exact but for one rounding."""
    _, _, _, shape, _, _, out_kind, kind, *_ = instruction.opcode.split(".")
    rows, n, k = SHAPES[shape]
    packed = 2 if kind in ("bf16", "f16") else 1
    halves = rows // 8
    group, t = _LANE >> 2, _LANE & 3
    d, a, b, c = ([p.register(o) for o in members_of(operand)] for operand in instruction.operands)
    # register r of a holds rows group + 8 (r mod halves), and ``packed`` columns from these on; of b, such rows
    at_a = [(group + 8 * (r % halves), packed * (t + 4 * (r // halves))) for r in range(len(a))]
    at_b = [packed * (t + 4 * r) for r in range(len(b))]
    if [len(a) * packed, len(b) * packed, len(c), len(d)] != [rows * k // WARP, k * n // WARP] + [rows * n // WARP] * 2:
        raise PtxError("so many registers are not covered")
    mode = "rz" if p.worst else "rn"

    def multiply(machine):
        machine.need_whole_warps()
        warps = machine.n // WARP
        left, right = np.empty((warps, rows, k)), np.empty((warps, k, n))
        for register, (row, column) in zip(a, at_a, strict=True):
            values = _elements(machine.full(register), kind)
            for i in range(packed):
                left[:, row, column + i] = values[:, i]
        for register, row in zip(b, at_b, strict=True):
            values = _elements(machine.full(register), kind)
            for i in range(packed):
                right[:, row + i, group] = values[:, i]
        product = left @ right
        sums = []
        for r, register in enumerate(c):
            own = product[:, group + 8 * (r // 2), 2 * t + r % 2].reshape(-1)
            own = own + machine.full(register).view(TYPES[out_kind]).astype(np.float64)
            sums.append(to_f32(own, mode) if out_kind == "f32" else own)
        for register, own in zip(d, sums, strict=True):
            machine.put(register, bits_of(np.ascontiguousarray(own)))

    return multiply


SHAPES = {"m16n8k16": (16, 8, 16), "m16n8k8": (16, 8, 8), "m8n8k4": (8, 8, 4)}
for _shape, _kind, _out in (
    ("m16n8k16", "bf16", "f32"),
    ("m16n8k16", "f16", "f32"),
    ("m16n8k8", "tf32", "f32"),
    ("m8n8k4", "f64", "f64"),
):
    BUILDERS[f"mma.sync.aligned.{_shape}.row.col.{_out}.{_kind}.{_kind}.{_out}"] = _multiply
for _mode in ("x1", "x4", "x4.trans"):
    BUILDERS[f"ldmatrix.sync.aligned.m8n8.{_mode}.shared.b16"] = _load_matrices
BUILDERS |= {
    "bar.sync": _barrier,
    "bar.warp.sync": _warp_barrier,
    "shfl.sync.bfly.b32": _shuffle,
    "shfl.sync.idx.b32": _shuffle,
    "redux.sync.max.s32": _reduce,
}
