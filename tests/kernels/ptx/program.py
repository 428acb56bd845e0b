"""Reads the PTX of a kernel and decodes it: basic blocks of steps, each a function of the machine that executes it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tests.kernels.ptx.arithmetic import TYPES, bits_of, bits_type

SPECIAL = {f"%{what}.{axis}" for what in ("tid", "ctaid", "nctaid") for axis in "xyz"}
_STATEMENT = re.compile(r"^(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.S)
_INTEGER = re.compile(r"^-?(0[xX][0-9a-fA-F]+|\d+)U?$")


class PtxError(RuntimeError):
    """What a program does that it may not, or what of PTX is not covered here."""


class Instruction(NamedTuple):
    """One instruction, and where it stands."""

    text: str
    line: int  # in the PTX
    source: str  # file:line of the kernel
    guard: str | None  # a predicate register: threads whose predicate is false skip the instruction
    negated: bool
    opcode: str
    operands: list[str]


class Pure(NamedTuple):
    """An instruction that computes one register of others: on which types."""

    function: Callable[..., np.ndarray]
    operands: tuple[str, ...]


@dataclass
class BasicBlock:
    """Steps that follow each other; ``goes`` says to which block then, None: to the next."""

    steps: list[Callable] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    goes: Callable | None = None
    next: set[int] = field(default_factory=set)


def parts_of(text: str) -> list[str]:
    """The operands of ``text``, which commas part; those in braces or brackets stay together."""
    return [part.strip() for part in re.split(r",(?![^{\[]*[}\]])", text) if part.strip()]


def members_of(operand: str) -> list[str]:
    """The registers of ``{%r1, %r2}``, or of ``%r1``."""
    return parts_of(operand.strip("{} "))


class Program:
    """A kernel: ``blocks``, and for each the block where threads that part at its end meet again.

    Registers are numbered; ``constants`` are the numbers and values of those that are written out in the text.
    """

    def __init__(self, ptx: str, shared: int, worst: bool):
        from tests.kernels.ptx import instructions, memory_instructions, warp_instructions

        self.shared, self.worst = shared, worst
        self._pure = {**instructions.PURE, **(instructions.WORST if worst else {})}
        self._builders = {**instructions.BUILDERS, **memory_instructions.BUILDERS, **warp_instructions.BUILDERS}
        head = re.search(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)^\{", ptx, re.S | re.M)
        if head is None or re.search(r"^\s*\.(?:visible )?func", ptx, re.M):
            raise PtxError("one kernel that calls no functions is covered")
        self.name = head[1]
        self.parameters = re.findall(r"\.param\s+\.\w+[^,]*?([\w$]+)\s*(?:,|$)", head[2])
        self.threads = int(re.search(r"\.reqntid\s+(\d+)", head[3])[1])
        self.registers: dict[str, int] = {}
        self.constants: list[tuple[int, np.ndarray]] = []
        self.granule = {"global": 16, "shared": 16}  # bytes of the smallest access to each memory
        self._types: dict[str, str] = {}
        end = re.search(r"^\}", ptx[head.end() :], re.M)
        body, first = ptx[head.end() : head.end() + end.start()], ptx[: head.end()].count("\n") + 1
        named = re.findall(r'^\s*\.file\s+(\d+)\s+(?:"[^"]*"\s+)?"([^"]*)"', ptx, re.M)
        self._decode(*self._read(body, first, {number: os.path.basename(path) for number, path in named}))

    # ------------------------------------------------------------------------------------------------- reading

    def _read(self, body: str, first: int, files: dict[str, str]) -> tuple[list[Instruction], dict[str, int]]:
        """The instructions in order, and before which of them each label stands."""
        found: list[Instruction] = []
        labels, source, pending = {}, "?", ""
        for line, text in enumerate(body.split("\n"), first):
            text = re.sub(r"//.*", "", text).strip()
            if label := re.match(r"^(\$?[\w$]+):\s*(.*)$", text):
                labels[label[1]], text = len(found), label[2]
            if place := re.match(r"\.loc\s+(\d+)\s+(\d+)", text):
                source = f"{files.get(place[1], '?')}:{place[2]}"
                continue
            *whole, pending = f"{pending} {text}".strip().split(";")
            for statement in whole:
                statement = statement.strip().lstrip("{").strip()
                if declared := re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement):
                    self._declare(declared[1], declared[2])
                elif statement and not statement.startswith(".pragma"):
                    found.append(self._instruction(statement, line, source))
            pending = pending.strip()
            if pending in ("{", "}", "(", ")") or pending.startswith(".pragma"):
                pending = ""
        return found, labels

    def _declare(self, kind: str, names: str) -> None:
        for name in names.split(","):  # %r<12> declares %r0 to %r11
            self._types[name.strip().split("<")[0] + ("<" if "<" in name else "")] = kind

    def _instruction(self, statement: str, line: int, source: str) -> Instruction:
        parsed = _STATEMENT.match(statement)
        if parsed is None:
            raise PtxError(f"{self.name}: PTX line {line}: {statement!r} is not covered")
        negated, guard, opcode, operands = parsed.groups()
        return Instruction(statement, line, source, guard, bool(negated), opcode, parts_of(operands))

    # ----------------------------------------------------------------------------------------------- registers

    def type_of(self, register: str) -> str:
        """The type with which a register is declared."""
        return self._types.get(register) or self._types[re.sub(r"\d+$", "", register) + "<"]

    def register(self, text: str, kind: str = "b32") -> int:
        """The number of a register, or of one that holds a constant of this type."""
        named = text.startswith("%") or text in self._types
        key = text if named else f"{text} {bits_type(kind)}"
        if named and text not in SPECIAL:
            self.type_of(text)  # is it declared?
        if key not in self.registers:
            self.registers[key] = len(self.registers)
            if not named:
                self.constants.append((self.registers[key], _constant(text, bits_type(kind))))
        return self.registers[key]

    def address(self, text: str) -> tuple[int, int]:
        """Register and offset of ``[ %rd3 + 16 ]``."""
        base, *more = (part.strip() for part in text.strip("[] ").split("+"))
        return self.register(base, "b64"), int(more[0], 0) if more else 0

    # ------------------------------------------------------------------------------------------------ decoding

    def _decode(self, instructions: Sequence[Instruction], labels: dict[str, int]) -> None:
        """Basic blocks begin where a branch may go to, and behind each branch."""
        branches = [i.opcode in ("bra", "bra.uni") for i in instructions]
        ends = [branch or i.opcode == "ret" for branch, i in zip(branches, instructions, strict=True)]
        aimed_at = {labels[i.operands[0]] for branch, i in zip(branches, instructions, strict=True) if branch}
        starts = sorted(({0} | aimed_at | {k + 1 for k, last in enumerate(ends) if last}) - {len(instructions)})
        place = {start: k for k, start in enumerate(starts)} | {len(instructions): len(starts)}
        self.end = len(starts)  # where threads go that return
        self.blocks = [BasicBlock() for _ in starts]
        for k, (block, stop) in enumerate(zip(self.blocks, [*starts[1:], len(instructions)], strict=True)):
            block.next = {k + 1}
            for number in range(starts[k], stop):
                instruction = instructions[number]
                if ends[number]:
                    target = place[labels[instruction.operands[0]]] if branches[number] else self.end
                    block.goes = self._branch(instruction, target, k + 1)
                    block.next = {target} | ({k + 1} if instruction.guard else set())
                else:
                    block.instructions.append(instruction)
                    block.steps.append(self._step(instruction))
        self.meeting = self._meeting_points()

    def _meeting_points(self) -> list[int]:
        """The first block that all ways from each block lead through: its immediate post-dominator."""
        after = [set(range(self.end + 1)) for _ in self.blocks] + [{self.end}]
        changed = True
        while changed:
            changed = False
            for k in reversed(range(self.end)):
                found = set.intersection(*(after[n] for n in self.blocks[k].next)) | {k}
                changed, after[k] = changed or found != after[k], found
        return [max(after[k] - {k}, key=lambda n: len(after[n]), default=self.end) for k in range(self.end)]

    def _branch(self, instruction: Instruction, target: int, following: int) -> Callable:
        """To which block threads go: one number where all go to the same."""
        if instruction.guard is None:
            return lambda machine: target
        guard, negated = self.register(instruction.guard), instruction.negated
        return lambda machine: np.where(machine.registers[guard] ^ negated, target, following)

    def _step(self, instruction: Instruction) -> Callable:
        try:
            if instruction.opcode in self._pure:
                step = self._pure_step(self._pure[instruction.opcode], instruction.operands)
            elif instruction.opcode in self._builders:
                step = self._builders[instruction.opcode](self, instruction)
            else:
                raise PtxError("not covered")
        except (PtxError, KeyError, IndexError, ValueError) as error:
            where = f"{self.name} {instruction.source}: PTX line {instruction.line}: {instruction.text}"
            raise PtxError(f"{where}: {error}") from error
        if instruction.guard is None:
            return step
        guard, negated = self.register(instruction.guard), instruction.negated
        return lambda machine: machine.only(machine.registers[guard] ^ negated, step)

    def _pure_step(self, pure: Pure, operands: Sequence[str]) -> Callable:
        out, given = self.register(operands[0]), operands[1:]
        if len(given) != len(pure.operands):
            raise PtxError(f"{len(pure.operands)} operands are covered")
        sources = [(self.register(o, kind), TYPES[kind]) for o, kind in zip(given, pure.operands, strict=True)]
        function = pure.function
        return lambda machine: machine.put(
            out, bits_of(function(*[machine.registers[number].view(dtype) for number, dtype in sources]))
        )


def _constant(text: str, dtype: np.dtype) -> np.ndarray:
    """The bits that are written in one of the ways of PTX; shared memory begins at 0."""
    if text[:2] in ("0f", "0F", "0d", "0D"):
        bits = int(text[2:], 16)
    elif _INTEGER.match(text):
        bits = int(text.rstrip("U"), 0)
    elif text == "global_smem":
        bits = 0
    else:
        raise PtxError(f"what is {text!r}?")
    return np.array([bits != 0]) if dtype.kind == "b" else np.array([bits & ((1 << 8 * dtype.itemsize) - 1)], dtype)
