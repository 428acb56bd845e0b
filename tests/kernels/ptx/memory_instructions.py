"""Instructions that load, store, add atomically, and copy from global to shared memory in the background."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.kernels.ptx.arithmetic import TYPES, bits_of, bits_type
from tests.kernels.ptx.program import Instruction, Program, PtxError, members_of

BUILDERS: dict[str, Callable[[Program, Instruction], Callable]] = {}


def access(p: Program, opcode: str) -> tuple[str, int]:
    """Which memory an instruction goes to, and the bytes of one element."""
    space, size = opcode.split(".")[1], bits_type(opcode.split(".")[-1]).itemsize
    p.granule[space] = min(p.granule[space], size)
    return space, size


def _load(p: Program, instruction: Instruction) -> Callable:
    space, size = access(p, instruction.opcode)
    targets, (base, offset) = members_of(instruction.operands[0]), p.address(instruction.operands[1])
    outs = [(p.register(o), bits_type(p.type_of(o))) for o in targets]  # registers may be wider than what is read

    def load(machine):
        place, threads = machine.places(base, offset)
        found = machine.memory(space).load(machine, place, threads, size, len(outs))
        for (out, dtype), value in zip(outs, found, strict=True):
            machine.put_some(out, value.astype(dtype))

    return load


def _load_parameter(p: Program, instruction: Instruction) -> Callable:
    target, name, kind = (
        instruction.operands[0],
        instruction.operands[1].strip("[] "),
        instruction.opcode.split(".")[-1],
    )
    out, dtype = p.register(target), TYPES[p.type_of(target).replace("b", kind[0])]  # signed numbers are extended

    def load(machine):
        machine.put(out, bits_of(machine.parameters[name].view(TYPES[kind]).astype(dtype)))

    return load


def _store(p: Program, instruction: Instruction) -> Callable:
    space, size = access(p, instruction.opcode)
    kind, (base, offset) = instruction.opcode.split(".")[-1], p.address(instruction.operands[0])
    values = [p.register(o, kind) for o in members_of(instruction.operands[1])]

    def store(machine):
        place, threads = machine.places(base, offset, every=True)
        given = [machine.some(value).astype(bits_type(kind)) for value in values]
        machine.memory(space).store(machine, place, threads, size, given)

    return store


def _add_atomically(p: Program, instruction: Instruction) -> Callable:
    kind = instruction.opcode.split(".")[-1]
    out, (base, offset) = p.register(instruction.operands[0]), p.address(instruction.operands[1])
    value, dtype = p.register(instruction.operands[2], kind), TYPES[kind]

    def add(machine):
        place, _ = machine.places(base, offset, every=True)
        at = machine.memory("global").index(machine, place, dtype.itemsize)
        cells, given = machine.memory("global").cells[dtype.itemsize].view(dtype), machine.some(value).view(dtype)
        before = np.empty(len(at), dtype)
        for k in range(len(at)):  # one after the other: several may go to one place
            before[k] = cells[at[k]]
            cells[at[k]] += given[k]
        machine.put_some(out, bits_of(before))

    return add


def _copy_in_background(p: Program, instruction: Instruction) -> Callable:
    (to, to_offset), (of, of_offset) = (p.address(o) for o in instruction.operands[:2])
    size, real = int(instruction.operands[2], 0), p.register(instruction.operands[3], "b32")
    for space in ("global", "shared"):
        p.granule[space] = min(p.granule[space], 4)

    def copy(machine):
        place, threads = machine.places(to, to_offset, every=True)
        source, _ = machine.places(of, of_offset, every=True)
        wanted = machine.some(real)
        if not np.isin(wanted, (0, size)).all():
            raise PtxError("copies of a part are not covered")
        words, some = np.zeros((size // 4, len(place)), np.uint32), wanted > 0  # what is not copied is 0
        if some.any():
            words[:, some] = machine.memory("global").load(machine, source[some], threads[some], 4, size // 4)
        machine.start_copy(place, threads, list(words))

    return copy


def _commit(p: Program, instruction: Instruction) -> Callable:
    return lambda machine: machine.commit_copies()


def _wait(p: Program, instruction: Instruction) -> Callable:
    left = int(instruction.operands[0])
    return lambda machine: machine.wait_for_copies(left)


for _space in ("global", "shared"):
    for _kind in ("b8", "b16", "b32", "b64", "v2.b16", "v2.b32", "v2.b64", "v4.b16", "v4.b32"):
        BUILDERS[f"ld.{_space}.{_kind}"] = _load
        BUILDERS[f"st.{_space}.{_kind}"] = _store
BUILDERS.update(dict.fromkeys(("ld.param.b32", "ld.param.b64", "ld.param.s32"), _load_parameter))
BUILDERS.update(
    (f"atom.global.gpu.{order}.add.{kind}", _add_atomically)
    for order in ("acq_rel", "relaxed")
    for kind in ("f32", "f64")
)
BUILDERS.update(dict.fromkeys((f"cp.async.{level}.shared.global" for level in ("ca", "cg")), _copy_in_background))
BUILDERS |= {"cp.async.commit_group": _commit, "cp.async.wait_group": _wait}
