"""Instructions on the registers of one thread, as our kernels need them, by their full names.

``PURE`` computes one register of others; ``WORST`` has those that a GPU computes approximately, at the error that NVIDIA
documents; ``BUILDERS`` makes steps of instructions that name several registers at once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.kernels.ptx.arithmetic import (
    TYPES,
    add_f32,
    bf16_of,
    bf16_value,
    bits_type,
    divided,
    flush,
    fma_f32,
    fma_f64,
    moved,
    upper_half,
)
from tests.kernels.ptx.program import Instruction, Program, PtxError, Pure, members_of

PURE: dict[str, Pure] = {}
WORST: dict[str, Pure] = {}
BUILDERS: dict[str, Callable[[Program, Instruction], Callable]] = {}


def flushed(function: Callable) -> Callable:
    """The function in the mode ftz: subnormal arguments and results are zeros."""
    return lambda *given: flush(function(*[flush(x) for x in given]))


def same_type(name: str, function: Callable, kinds: str, operands: int) -> None:
    """Enter ``name.kind``, whose operands and result have that type."""
    for kind in kinds.split():
        PURE[f"{name}.{kind}"] = Pure(function, (kind,) * operands)


# ------------------------------------------------------------------------------------------------------ arithmetic

for _name, _function, _kinds, _count in (
    ("add", np.add, "s16 s32 s64 f32 f64", 2), ("add.rn", np.add, "f32 f64", 2),
    ("sub", np.subtract, "s32 s64 f32 f64", 2), ("sub.rn", np.subtract, "f32 f64", 2),
    ("mul", np.multiply, "f32 f64", 2), ("mul.rn", np.multiply, "f32 f64", 2), ("mul.lo", np.multiply, "s32 s64", 2),
    ("mad.lo", lambda a, b, c: a * b + c, "s32 s64", 3),
    ("div", divided, "s32 s64 u32", 2), ("div.rn", np.divide, "f32 f64", 2),
    ("neg", np.negative, "s32 s64 f32 f64", 1), ("abs", np.abs, "f32 f64", 1),
    ("min", np.minimum, "s32 s64 u32", 2), ("max", np.maximum, "s32", 2),
    ("min", np.fmin, "f32 f64", 2), ("max", np.fmax, "f32 f64", 2),  # of a number and a NaN: the number
    ("min.NaN", np.minimum, "f32", 2), ("max.NaN", np.maximum, "f32", 2),
    ("sqrt.rn", np.sqrt, "f32 f64", 1), ("fma.rn", fma_f64, "f64", 3), ("fma.rn", fma_f32, "f32", 3),
    ("fma.rn.ftz", flushed(fma_f32), "f32", 3),
    ("fma.rm.ftz", flushed(lambda a, b, c: fma_f32(a, b, c, "rm")), "f32", 3),
    ("add.rz.ftz", flushed(lambda a, b: add_f32(a, b, "rz")), "f32", 2),
    ("abs.ftz", flushed(np.abs), "f32", 1),
    ("and", np.bitwise_and, "pred b16 b32 b64", 2), ("or", np.bitwise_or, "pred b16 b32 b64", 2),
    ("xor", np.bitwise_xor, "pred b32 b64", 2), ("not", np.invert, "pred b32", 1),
):  # fmt: skip
    same_type(_name, _function, _kinds, _count)

for _kind in ("s32", "u32"):
    _wide = TYPES[_kind[0] + "64"]
    PURE[f"mul.wide.{_kind}"] = Pure(lambda a, b, to=_wide: a.astype(to) * b, (_kind, _kind))
    PURE[f"mad.wide.{_kind}"] = Pure(lambda a, b, c, to=_wide: a.astype(to) * b + c, (_kind, _kind, _kind[0] + "64"))


# -------------------------------------------------------------------------------- functions computed approximately


def approximately(opcode: str, exact: Callable, worst: Callable) -> None:
    """Enter a function of float32 numbers that flushes; ``worst`` moves the result, given it and the arguments."""
    kinds = ("f32",) * (2 if opcode.startswith("div") else 1)
    for table, error in ((PURE, lambda y, *x: y), (WORST, worst)):
        table[opcode] = Pure(lambda *x, error=error: error(exact(*x).astype(np.float32), *x), kinds)
        if ".ftz" in opcode:
            table[opcode] = Pure(flushed(table[opcode].function), kinds)


def of_wide(function: Callable) -> Callable:
    return lambda x: function(x.astype(np.float64))


def _worst_lg2(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    middle = (x > 0.5) & (x < 2)
    return np.where(x == 1, y, np.where(middle, moved(y, x, 0.0, 2.0**-22), moved(y, x, 2.0**-22)))


approximately("div.full.f32", np.divide, lambda y, a, b: moved(y, a, 2.0**-22))
approximately("sqrt.approx.ftz.f32", np.sqrt, lambda y, x: moved(y, x, 2.0**-23))
approximately("rsqrt.approx.ftz.f32", of_wide(lambda x: 1 / np.sqrt(x)), lambda y, x: moved(y, x, 2.0**-22.9))
approximately("lg2.approx.ftz.f32", of_wide(np.log2), _worst_lg2)
# powers with an integer are exact: the device's library relies on it
approximately("ex2.approx.ftz.f32", of_wide(np.exp2), lambda y, x: np.where(x == np.rint(x), y, moved(y, x, 2.0**-22)))
PURE["rcp.approx.ftz.f64"] = Pure(lambda x: upper_half(1 / upper_half(x)), ("f64",))
PURE["rsqrt.approx.f64"] = Pure(lambda x: 1 / np.sqrt(x), ("f64",))


# ----------------------------------------------------------------------------------------------- moving bits about


def shift(direction: Callable) -> Callable:
    """By at most the width of the type."""
    return lambda a, by: direction(a, np.minimum(by, np.uint32(8 * a.itemsize)).astype(a.dtype))


def bit_field(a: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Some bits of a number; of a signed one, the highest of them is the sign."""
    width = np.uint32(8 * a.itemsize)
    if (length == 0).any() or (start + length > width).any():
        raise PtxError("bits beyond the number are not covered")
    return (a << (width - length - start).astype(a.dtype)) >> (width - length).astype(a.dtype)


def permuted(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """Four of the eight bytes of b and a, chosen by three bits each; a fourth bit repeats the sign of the byte."""
    pair = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    out = np.uint32(0)
    for k in range(4):
        chosen = (selector >> np.uint32(4 * k)) & np.uint32(15)
        byte = ((pair >> ((chosen & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(255)).astype(np.uint32)
        sign = np.where(byte >= 128, np.uint32(255), np.uint32(0))
        out = out | (np.where(chosen >= 8, sign, byte) << np.uint32(8 * k))
    return out


for _kind in ("b16", "b32", "b64"):
    PURE[f"shl.{_kind}"] = Pure(shift(np.left_shift), (_kind, "b32"))
for _kind in ("s32", "s64", "u16", "u32", "u64"):
    PURE[f"shr.{_kind}"] = Pure(shift(np.right_shift), (_kind, "b32"))
for _kind in ("s32", "s64", "u32", "u64"):
    PURE[f"bfe.{_kind}"] = Pure(bit_field, (_kind, "b32", "b32"))
for _kind in ("b16", "b32", "b64", "f32", "f64"):
    PURE[f"selp.{_kind}"] = Pure(lambda a, b, chosen: np.where(chosen, a, b), (_kind, _kind, "pred"))
PURE["prmt.b32"] = Pure(permuted, ("b32", "b32", "b32"))


def _mov(p: Program, instruction: Instruction) -> Callable:
    """A copy; or one register to or from two of half its width."""
    kind, (target, source) = instruction.opcode.split(".")[1], instruction.operands
    half = {"b32": "b16", "b64": "b32"}.get(kind, kind)
    part, shift_by = bits_type(half), bits_type(kind).type(8 * bits_type(half).itemsize)
    if target.startswith("{"):
        whole, outs = p.register(source, kind), [None if o == "_" else p.register(o) for o in members_of(target)]

        def unpack(machine):
            value = machine.registers[whole]
            for out, bits in zip(outs, (value, value >> shift_by), strict=True):
                if out is not None:
                    machine.put(out, bits.astype(part))

        return unpack
    out = p.register(target)
    if source.startswith("{"):
        low, high = (p.register(o, half) for o in members_of(source))
        dtype = bits_type(kind)

        def pack(machine):
            machine.put(out, machine.registers[low].astype(dtype) | machine.registers[high].astype(dtype) << shift_by)

        return pack
    given = p.register(source, kind)
    return lambda machine: machine.put(out, machine.registers[given])


BUILDERS.update(dict.fromkeys((f"mov.{kind}" for kind in ["pred", "b16", "b32", "b64", "u16", "u32", "u64"]), _mov))


# ----------------------------------------------------------------------------------------------------- comparisons

for _name, _function in (
    ("eq", np.equal),
    ("lt", np.less),
    ("le", np.less_equal),
    ("gt", np.greater),
    ("ge", np.greater_equal),
):
    same_type(f"setp.{_name}", _function, "s32 s64 u32 u64 b16 b32 b64 f16 f32 f64", 2)
same_type("setp.ne", np.not_equal, "b16 b32 b64", 2)
# true for NaN
for _name, _opposite in (
    ("neu", np.equal),
    ("ltu", np.greater_equal),
    ("leu", np.greater),
    ("gtu", np.less_equal),
    ("geu", np.less),
):
    same_type(f"setp.{_name}", lambda a, b, opposite=_opposite: ~opposite(a, b), "f32 f64", 2)
# false for NaN
same_type("setp.ne", lambda a, b: (a < b) | (a > b), "f32 f64", 2)
same_type("setp.nan", lambda a, b: np.isnan(a) | np.isnan(b), "f32 f64", 2)
same_type("setp.num", lambda a, b: ~(np.isnan(a) | np.isnan(b)), "f32 f64", 2)


def compare_two(function: Callable) -> Callable:
    """Compare two numbers of 16 bits in each register: one predicate for the lower halves, one for the upper."""

    def build(p: Program, instruction: Instruction) -> Callable:
        outs = [p.register(o.strip()) for o in instruction.operands[0].split("|")]
        given = [p.register(o, "b32") for o in instruction.operands[1:]]

        def compare(machine):
            halves = [machine.registers[k].view(np.uint16).view(np.float16) for k in given]
            for i, out in enumerate(outs):
                machine.put(out, function(*(half[i::2] for half in halves)))

        return compare

    return build


BUILDERS |= {"setp.gt.f16x2": compare_two(np.greater), "setp.lt.f16x2": compare_two(np.less)}


# ----------------------------------------------------------------------------------------------------- conversions


def pair_of(narrow: Callable) -> Callable:
    """Two numbers of 16 bits in one register, the first in its upper half."""
    return lambda high, low: (narrow(high).astype(np.uint32) << np.uint32(16)) | narrow(low)


def f16_of(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).view(np.uint16)


def saturated(x: np.ndarray) -> np.ndarray:
    """Cut off at 0 and 1; 0 for NaN."""
    return np.clip(np.where(np.isnan(x), x.dtype.type(0), x), x.dtype.type(0), x.dtype.type(1))


for _to, _of in (
    ("s64", "s32"),
    ("u16", "u32"),
    ("u32", "u16"),
    ("u32", "u64"),
    ("u64", "u32"),
    ("f64", "f32"),
    ("f32", "f16"),
):
    PURE[f"cvt.{_to}.{_of}"] = Pure(lambda x, to=TYPES[_to]: x.astype(to), (_of,))
PURE["cvt.s32.s8"] = Pure(lambda x: x.astype(np.int8).astype(np.int32), ("s32",))
PURE["cvt.f32.bf16"] = Pure(bf16_value, ("b16",))
PURE["cvt.rn.f32.s32"] = Pure(lambda x: x.astype(np.float32), ("s32",))
PURE["cvt.rn.f32.u32"] = Pure(lambda x: x.astype(np.float32), ("u32",))
PURE["cvt.rn.f32.f64"] = Pure(lambda x: x.astype(np.float32), ("f64",))
PURE["cvt.rn.f64.u32"] = Pure(lambda x: x.astype(np.float64), ("u32",))
PURE["cvt.rni.f32.f32"] = Pure(np.rint, ("f32",))
PURE["cvt.rmi.ftz.f32.f32"] = Pure(flushed(np.floor), ("f32",))
PURE["cvt.rmi.f64.f64"] = Pure(np.floor, ("f64",))
PURE["cvt.ftz.sat.f32.f32"] = Pure(flushed(saturated), ("f32",))
for _kind, _narrow in (("bf16", bf16_of), ("f16", f16_of)):
    PURE[f"cvt.rn.{_kind}.f32"] = Pure(_narrow, ("f32",))
    PURE[f"cvt.rn.{_kind}x2.f32"] = Pure(pair_of(_narrow), ("f32", "f32"))
