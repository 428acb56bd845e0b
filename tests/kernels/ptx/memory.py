"""Global and shared memory, and what is wrong with the way a program uses them.

Accesses outside and misaligned ones raise. Findings are noted: races, which are accesses of two threads, one of them a
write, that no barrier separates; several values stored to one place by one instruction, of which any may stay; and shared
memory that is read although nobody wrote it, or is used while a copy to it is under way. Atomic additions are no part of races.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from tests.kernels.ptx.arithmetic import bits_type

if TYPE_CHECKING:
    from tests.kernels.ptx.machine import Machine

WARP = 32
# who touched a place, if not one thread: several of warp w (SEVERAL + w), or of several warps
SEVERAL, ALL = 1 << 20, 1 << 30


def warp_of(who: np.ndarray) -> np.ndarray:
    """The warp of those who touched a place, -1 for several warps."""
    return np.where(who >= ALL, -1, np.where(who >= SEVERAL, who - SEVERAL, who // WARP))


def together(at: np.ndarray, who: np.ndarray) -> np.ndarray:
    """For each access of one instruction: who reads the same place, all of them."""
    order = np.argsort(at, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(at[order]) != 0])
    if len(first) == len(at):
        return who
    warps, count = warp_of(who)[order], np.diff(np.r_[first, len(at)])
    low, high = np.minimum.reduceat(warps, first), np.maximum.reduceat(warps, first)
    merged = np.where((low == high) & (low >= 0), SEVERAL + low, ALL)
    out = np.empty_like(who)
    out[order] = np.where(np.repeat(count, count) == 1, who[order], np.repeat(merged, count))
    return out


class Tracker:
    """Who wrote and read each place of a memory last, and when: time is the number of barriers since the launch began."""

    def __init__(self, places: int):
        self.writer, self.written, self.reader, self.read = (np.full(places, -1, np.int32) for _ in range(4))
        self.read_before = np.zeros(places, bool)  # by an earlier block of threads

    def touch(self, machine: Machine, at: np.ndarray, who: np.ndarray, write: bool) -> Iterator[str]:
        """Record accesses of one instruction, and say which of them conflict with earlier ones."""
        who = who.astype(np.int32)
        verb = "overwrites" if write else "reads"
        earlier = {f"{verb} what another thread wrote": (self.writer[at], self.written[at])}
        if write:
            earlier["overwrites what another thread read"] = self.reader[at], self.read[at]
        bad = {what: _conflicts(machine, *other, who) for what, other in earlier.items()}
        if write:
            bad["overwrites what another thread read"] |= self.read_before[at]
            self.writer[at], self.written[at] = who, machine.clock
        else:
            before, when = self.reader[at], self.read[at]
            self.read_before[at] |= (when >= 0) & (when < machine.began)
            who = together(at, who)
            recent = (when >= machine.met) & (before != who)
            alike = (warp_of(before) == warp_of(who)) & (before < ALL)
            self.reader[at] = np.where(recent, np.where(alike, SEVERAL + warp_of(who), ALL), who)
            self.read[at] = machine.clock
        for what, which in bad.items():
            if which.any():
                k = np.argmax(which)
                others, when = (x[k] for x in earlier[what])
                yield f"{what} (thread {_name(who[k])}, {_name(others)}{' of an earlier block' * bool(when < machine.began)})"


def _conflicts(machine: Machine, before: np.ndarray, when: np.ndarray, who: np.ndarray) -> np.ndarray:
    """Whether someone else came before, in another block or since the last barrier that both are at."""
    since = np.where((warp_of(before) == warp_of(who)) & (before < ALL), machine.met_warp, machine.met)
    return (when >= 0) & ((before != who) & (when >= since) | (when < machine.began))


def _name(who: int) -> str:
    return "several" if who >= SEVERAL else str(who)


class Memory:
    """Bytes at given addresses, of which only spans belong to the program."""

    def __init__(self, name: str, plain: np.ndarray, base: int, spans: Sequence[tuple[int, int]], granule: int):
        self.name, self.base, self.granule = name, base, granule
        self.cells = {size: plain.view(bits_type(f"b{8 * size}")) for size in (1, 2, 4, 8)}
        self.starts, self.ends = np.array(spans, np.int64).reshape(-1, 2).T
        lengths = (self.ends - self.starts + 15) // 16 * 16
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])  # of the spans among the places of the tracker
        self.tracker = Tracker(int(self.offsets[-1]) // granule)
        # of shared memory: which bytes somebody wrote, and to which a copy is under way
        self.known = self.pending = np.zeros(0, bool)

    def index(self, machine: Machine, place: np.ndarray, size: int, count: int = 1) -> np.ndarray:
        """The cells of accesses to ``count`` elements of ``size`` bytes each."""
        span = np.searchsorted(self.starts, place, "right") - 1
        outside = span < 0 if len(self.starts) else np.ones(len(place), bool)
        if not outside.any():
            outside = place + size * count > self.ends[span]
        if outside.any():
            near = f", {place[outside][0] - self.starts[span[outside][0]]} bytes behind where one begins" * (
                len(self.starts) > 0
            )
            machine.fail(f"{outside.sum()} accesses of {size * count} bytes outside {self.name} memory{near}")
        if (place % (size * count)).any():
            machine.fail(f"an access of {size * count} bytes to {self.name} memory that is not aligned")
        return (place - self.base) // size

    def load(self, machine: Machine, place: np.ndarray, who: np.ndarray, size: int, count: int = 1) -> list[np.ndarray]:
        """The bits of ``count`` elements from each place on."""
        at = self.index(machine, place, size, count)
        self._check_shared(machine, place, size * count, write=False)
        self.track(machine, place, who, size, count, write=False)
        return [self.cells[size][at + k] for k in range(count)]

    def store(
        self, machine: Machine, place: np.ndarray, who: np.ndarray, size: int, values: Sequence[np.ndarray]
    ) -> None:
        """Put elements in place, from each place on."""
        at, cells = self.index(machine, place, size, len(values)), self.cells[size]
        self._check_shared(machine, place, size * len(values), write=True)
        for k, value in enumerate(values):
            cells[at + k] = value
        for k, value in enumerate(values):
            other = cells[at + k] != value
            if other.any():
                i = np.argmax(other)
                machine.note(f"threads write different values to one place ({value[i]:#x} and {cells[at[i] + k]:#x})")
        self.track(machine, place, who, size, len(values), write=True)

    def expect(self, place: np.ndarray, length: int, pending: bool) -> None:
        """Remember that a copy to these bytes is under way, or no longer."""
        self.pending[place[:, None] + np.arange(length)] = pending

    def _check_shared(self, machine: Machine, place: np.ndarray, length: int, write: bool) -> None:
        if len(self.known) == 0:
            return
        bytes_ = place[:, None] + np.arange(length)
        if self.pending[bytes_].any():
            machine.note("shared memory is used while a copy to it is under way")
        if write:
            self.known[bytes_] = True
        elif not self.known[bytes_].all():
            machine.note("shared memory is read that nobody wrote")

    def track(self, machine: Machine, place: np.ndarray, who: np.ndarray, size: int, count: int, write: bool) -> None:
        """Look for races among accesses, and note them."""
        span = np.searchsorted(self.starts, place, "right") - 1
        first = (place - self.starts[span] + self.offsets[span]) // self.granule
        for k in range(size * count // self.granule):
            for race in self.tracker.touch(machine, first + k, who, write):
                machine.note(f"race in {self.name} memory: {race}")


def shared_memory(size: int, granule: int) -> Memory:
    """The shared memory of one block of threads: NaN in every type at first."""
    plain = np.full(max(16, (size + 15) // 16 * 16), 0xFF, np.uint8)
    memory = Memory("shared", plain, 0, [(0, size)], granule)
    memory.known, memory.pending = np.zeros((2, len(plain)), bool)
    return memory


def global_memory(tensors: Sequence[Tensor], granule: int) -> Memory:
    """The elements of these tensors, at their own addresses."""
    import ctypes

    merged: list[list[int]] = []
    for start, end in sorted(_extent(x) for x in tensors if x.numel()):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    if not merged:
        return Memory("global", np.zeros(64, np.uint8), 0, [], granule)
    base = merged[0][0] & ~63
    length = (merged[-1][1] - base + 63) & ~63
    # a view of all memory between the first and the last, of which only the spans are touched
    plain = np.ctypeslib.as_array((ctypes.c_uint8 * length).from_address(base))
    return Memory("global", plain, base, [(start, end) for start, end in merged], granule)


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The addresses of its first element, and behind its last."""
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
