"""Executes a program: one block of threads after another, a register being a NumPy array over the threads of the block.

A register has one element where all threads have the same. Where a branch parts the threads, the parts run one after the
other, each up to the block of steps where all must come again; ``mask`` says which threads run, None: all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from tests.kernels.ptx.memory import ALL, SEVERAL, WARP, Memory, shared_memory
from tests.kernels.ptx.program import Instruction, Program, PtxError

STEPS = 10**7  # after which a block of threads is taken to hang


class Machine:
    """One block of threads of a launch, and the memory they see. ``note`` is told what is found."""

    at: Instruction  # which is executed
    mask: np.ndarray | None

    def __init__(
        self,
        program: Program,
        parameters: dict[str, np.ndarray],
        memory: Memory,
        grid: tuple[int, int, int],
        note: Callable[[str, Machine], None],
    ):
        self.program, self.parameters, self._global, self._note = program, parameters, memory, note
        self.n = program.threads
        self.thread = np.arange(self.n)
        self.warp, self.lane = self.thread // WARP, self.thread % WARP
        self.clock = 0  # counts barriers, and blocks of threads
        self._starting: list[Any] = [None] * len(program.registers)
        for number, value in program.constants:
            self._starting[number] = value
        for axis, size in zip("xyz", grid, strict=True):
            self._special(f"%nctaid.{axis}", size)
            self._special(f"%tid.{axis}", self.thread if axis == "x" else 0)

    def _special(self, name: str, value: int | np.ndarray) -> None:
        if name in self.program.registers:
            self._starting[self.program.registers[name]] = np.atleast_1d(np.asarray(value)).astype(np.uint32)

    def run(self, index: tuple[int, int, int]) -> None:
        """Execute the program for the block of threads with this place in the grid."""
        program = self.program
        for axis, value in zip("xyz", index, strict=True):
            self._special(f"%ctaid.{axis}", value)
        self.index, self.registers, self.mask, self.steps = index, self._starting.copy(), None, 0
        self.clock += 1
        self.began = self.met = self.met_warp = self.clock
        self._shared = shared_memory(program.shared, program.granule["shared"])
        self._copies: list = []
        self._groups: list[list] = []
        self._gone = np.zeros(self.n, bool)  # threads that have returned
        waiting: list = [(None, 0, program.end)]  # threads, the block they go to, the block where they meet others
        while waiting:
            self.mask, block, stop = waiting.pop()
            while block != stop:
                targets = self._run_block(block)
                mine = np.ones(self.n, bool) if self.mask is None else self.mask
                chosen = [int(targets[0])] if len(targets) == 1 else np.unique(np.broadcast_to(targets, self.n)[mine])
                if len(chosen) > 1:
                    meeting = program.meeting[block]
                    if meeting != stop:
                        waiting.append((self.mask, meeting, stop))
                    waiting.extend((mine & (targets == t), int(t), meeting) for t in chosen if t != meeting)
                    self._gone |= mine & (targets == program.end)
                    break
                block = int(chosen[0])
            else:
                if block == program.end and self.mask is not None:
                    self._gone |= self.mask

    def _run_block(self, number: int) -> np.ndarray:
        """Execute the steps of a block, and return to which blocks the threads go."""
        block = self.program.blocks[number]
        for step, self.at in zip(block.steps, block.instructions, strict=True):
            try:
                step(self)
            except Exception as error:
                if isinstance(error, PtxError) and self.where() in str(error):
                    raise
                self.fail(str(error) if isinstance(error, PtxError) else repr(error), error)
        self.steps += len(block.steps)
        if self.steps > STEPS:
            self.fail(f"more than {STEPS} steps")
        return np.atleast_1d(block.goes(self) if block.goes is not None else number + 1)

    # -------------------------------------------------------------------------------------------- registers

    def put(self, number: int, value: np.ndarray) -> None:
        """Set a register of the running threads from values of all threads."""
        if self.mask is not None:
            before = self.registers[number]
            value = np.where(self.mask, value, value.dtype.type(0) if before is None else before)
        self.registers[number] = value

    def put_some(self, number: int, value: np.ndarray) -> None:
        """Set a register of the running threads from their values alone."""
        if self.mask is None:
            self.registers[number] = value
            return
        spread = np.zeros(self.n, value.dtype)
        spread[self.mask] = value
        self.put(number, spread)

    def full(self, number: int) -> np.ndarray:
        """A register of all threads."""
        value = self.registers[number]
        return value if len(value) == self.n else np.repeat(value, self.n)

    def some(self, number: int) -> np.ndarray:
        """A register of the running threads."""
        return self.full(number) if self.mask is None else self.full(number)[self.mask]

    def only(self, allowed: np.ndarray, step: Callable[[Machine], None]) -> None:
        """Take a step with those threads alone."""
        if allowed.all():
            step(self)
            return
        before = self.mask
        self.mask = np.broadcast_to(allowed, self.n) if before is None else before & allowed
        if self.mask.any():
            step(self)
        self.mask = before

    # ---------------------------------------------------------------------------------------------- threads

    def where(self) -> str:
        """Which block of threads executes what."""
        return f"{self.program.name} {self.at.source} block {self.index} (PTX line {self.at.line}: {self.at.text})"

    def fail(self, what: str, cause: Exception | None = None) -> NoReturn:
        """Raise an error that names the instruction."""
        raise PtxError(f"{self.where()}: {what}") from cause

    def note(self, what: str) -> None:
        """Report a finding."""
        self._note(what, self)

    def need_whole_warps(self) -> None:
        """Raise where only some threads of a warp come to an instruction for all of them."""
        if self.mask is not None:
            warps = self.mask.reshape(-1, WARP)
            if (warps.any(1) != warps.all(1)).any():
                self.fail("not all threads of a warp come here")

    def meet(self) -> None:
        """Wait for all threads."""
        if self.mask is not None and not (self.mask | self._gone).all():
            self.fail("a barrier that not all running threads come to")
        self.clock += 1
        self.met = self.met_warp = self.clock

    def meet_warp(self) -> None:
        """Wait for all threads of the same warp."""
        self.need_whole_warps()
        self.clock += 1
        self.met_warp = self.clock

    # ----------------------------------------------------------------------------------------------- memory

    def memory(self, space: str) -> Memory:
        """The memory of that name."""
        return self._global if space == "global" else self._shared

    def places(self, base: int, offset: int, every: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Addresses in a register, and who uses them; one for all threads where it is the same, but for ``every``."""
        place = self.registers[base].astype(np.int64) + offset
        if self.mask is None and len(place) == 1 and not every:
            return place, np.array([ALL if self.n > WARP else SEVERAL])
        place = np.broadcast_to(place, self.n)
        return (place, self.thread) if self.mask is None else (place[self.mask], self.thread[self.mask])

    def start_copy(self, place: np.ndarray, who: np.ndarray, words: list[np.ndarray]) -> None:
        """Begin to copy words to shared memory: in place once they are waited for, and not to be read until then."""
        self._shared.index(self, place, 4, len(words))
        self._shared.expect(place, 4 * len(words), True)
        self._shared.track(self, place, who, 4, len(words), write=True)
        self._copies.append((place, who, words))

    def commit_copies(self) -> None:
        """Make a group of the copies begun since the last group."""
        if self.mask is not None:
            self.fail("groups of copies of some threads only are not covered")
        self._groups.append(self._copies)
        self._copies = []

    def wait_for_copies(self, left: int) -> None:
        """Finish all but the last ``left`` groups."""
        finished = max(0, len(self._groups) - left)
        for group in self._groups[:finished]:
            for place, who, words in group:
                self._shared.expect(place, 4 * len(words), False)
                self._shared.store(self, place, who, 4, words)
        self._groups = self._groups[finished:]
