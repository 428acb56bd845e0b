"""What a prediction of a slide has computed so far, on disk: it goes on after its process was killed, and memory does not grow."""

from __future__ import annotations

import errno
import io
import json
import os
import weakref
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hyperst.files import raise_full_disk
from hyperst.locks import take

__all__ = ["PartFile"]

_MAGIC = b"hyperst part 1\n\0"
_DONE = 1 << 32  # beside the checksum in a batch's mark, which is 0 before it is written
_MAPPED = 1 << 14  # spots whose rows are read at a time
_TILE = 6  # numbers that tell of a damaged tile
_LOCKED: weakref.WeakSet[io.FileIO] = weakref.WeakSet()  # files of this process


class PartFile:
    """Rows of spots, batch by batch: each batch is there as a whole, with a checksum, or not at all.

    The file holds a header (JSON), a mark for each batch, the rows in the order of the batches, and the damaged tiles that were
    met. As long as it is open no other process can open it, on systems with ``fcntl``. In a process that is forked it is closed.

    Args:
        facts: what the rows depend on; names and values that JSON can hold.
        batches: spots of each batch, every spot once.
        columns: name and width of each array (spot width) that is kept.

    Raises:
        FileExistsError: ``path`` holds what depends on other facts, or something else.
        BlockingIOError: another process has it open.
        OSError: the disk has no room for all rows.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     batches = [np.array([2, 0]), np.array([1])]
    ...     for number in (0, 1):  # the second time it goes on
    ...         part = PartFile(Path(folder) / "slide.part", {"run": "a"}, batches, {"values": 1})
    ...         left = part.left
    ...         part.put(number, {"values": 10.0 * batches[number][:, None]})
    ...         values = part["values"][np.arange(3)].ravel().tolist()
    ...         part.close()
    ...     left, values
    ([1], [0.0, 10.0, 20.0])
    """

    def __init__(
        self, path: str | Path, facts: Mapping[str, Any], batches: Sequence[np.ndarray], columns: Mapping[str, int]
    ) -> None:
        self.path = Path(path)
        self.batches, self.columns = batches, dict(columns)
        self._first = np.concatenate([[0], np.cumsum([len(batch) for batch in batches])])
        self._place = np.empty(self._first[-1], dtype=np.int64)
        self._place[np.concatenate(batches)] = np.arange(self._first[-1])
        self._width = sum(columns.values())
        header = json.dumps({**facts, "spots": int(self._first[-1]), "columns": self.columns}).encode()
        start = len(_MAGIC) + 8
        self._marks_at = -(-(start + len(header)) // 8) * 8
        self._rows_at = self._marks_at + 8 * len(batches)
        self._damage_at = self._rows_at + 4 * self._width * int(self._first[-1])
        self._file = self._locked()
        try:
            empty = not self._file.read(len(_MAGIC)).strip(b"\0")
            if empty and self.path.stat().st_size in (0, self._damage_at):
                self._begin(header)
            self._require(header)
            self._marks = self._read_marks()
        except BaseException:
            self._file.close()
            raise

    def _locked(self) -> io.FileIO:
        """The file, new or not, with a lock; not one that another process has removed since it was opened."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = io.FileIO(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
            try:
                doing = "is being written: another process predicts the same; wait for it, or end it"
                take(file.fileno(), f"{self.path} {doing}")
                if self.path.exists() and os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                    _LOCKED.add(file)
                    return file
            except BaseException:
                file.close()
                raise
            file.close()

    def _begin(self, header: bytes) -> None:
        """Take the disk's room and write the header, its first bytes last: without them nothing has begun."""
        start = _MAGIC + len(header).to_bytes(8, "little")
        try:
            self._file.truncate(self._damage_at)
            _claim(self._file.fileno(), self._damage_at)
            self._write(len(start), header)
            self._write(0, start)
        except BaseException as error:
            self.remove()
            if isinstance(error, OSError):
                raise_full_disk(error, self.path)
            raise

    def _require(self, header: bytes) -> None:
        """Raise FileExistsError unless the file has this header."""
        remedy = "Give the same command once more to go on with it, name another --output, or remove it"
        self._file.seek(0)
        held = self._file.read(len(_MAGIC) + 8)
        size = int.from_bytes(held[len(_MAGIC) :], "little")
        found = self._file.read(size) if held.startswith(_MAGIC) and size < self.path.stat().st_size else b""
        try:
            there, wanted = json.loads(found), json.loads(header)
            if there == wanted and self.path.stat().st_size < self._damage_at:
                raise ValueError("its end is missing")
        except ValueError:
            raise FileExistsError(
                f"{self.path} exists, is no begun prediction or damaged, and is not overwritten; remove it"
            ) from None
        other = [name for name in {**wanted, **there} if wanted.get(name) != there.get(name)]
        if other:
            raise FileExistsError(
                f"{self.path} holds a prediction that was begun with other {', '.join(other)}. {remedy}"
            )

    def _read_marks(self) -> np.ndarray:
        """Marks of the batches that are whole, 0 of others."""
        self._file.seek(self._marks_at)
        marks = np.frombuffer(self._file.read(8 * len(self.batches)), dtype="<u8").copy()
        for number in np.flatnonzero(marks).tolist():
            self._file.seek(self._rows_at + 4 * self._width * int(self._first[number]))
            if marks[number] != _mark(self._file.read(4 * self._width * len(self.batches[number]))):
                marks[number] = 0
        return marks

    @property
    def left(self) -> list[int]:
        """Numbers of the batches that are still to be computed."""
        return np.flatnonzero(self._marks == 0).tolist()

    def put(self, number: int, values: Mapping[str, np.ndarray]) -> None:
        """Keep the arrays (spot width) of a batch, as float32."""
        rows = np.concatenate([values[name].reshape(-1, width) for name, width in self.columns.items()], axis=1)
        content = rows.astype("<f4").tobytes()
        self._write(self._rows_at + 4 * self._width * int(self._first[number]), content)
        self._write(self._marks_at + 8 * number, _mark(content).to_bytes(8, "little"))
        self._marks[number] = _mark(content)

    def _write(self, place: int, content: bytes) -> None:
        try:
            self._file.seek(place)
            if self._file.write(content) != len(content):
                raise OSError(f"{self.path} could not be written")
        except OSError as error:
            raise_full_disk(error, self.path)
            raise

    def __getitem__(self, name: str) -> StoredRows:
        before = sum(list(self.columns.values())[: list(self.columns).index(name)])
        return StoredRows(self, slice(before, before + self.columns[name]))

    def rows(self, spots: np.ndarray, columns: slice) -> np.ndarray:
        """float32 (n width) of some spots; of the file little is in memory at a time."""
        found = np.empty((len(spots), columns.stop - columns.start), dtype=np.float32)
        for start in range(0, len(spots), _MAPPED):
            # mapped anew: what has been read through a mapping stays in memory as long as it does
            kept = np.memmap(self._file, "<f4", "r", self._rows_at, (len(self._place), self._width))
            found[start : start + _MAPPED] = kept[self._place[spots[start : start + _MAPPED]], columns]
        return found

    def damage(self) -> np.ndarray:
        """The damaged tiles that were kept, float64 (tile 6), see :meth:`hyperst.data.images.DamagedTiles.table`."""
        self._file.seek(self._damage_at)
        content = self._file.read()
        return np.frombuffer(content[: len(content) // (8 * _TILE) * 8 * _TILE], dtype="<f8").reshape(-1, _TILE)

    def put_damage(self, table: np.ndarray) -> None:
        """Keep damaged tiles, those that were kept before among them."""
        self._write(self._damage_at, table.astype("<f8").tobytes())

    def close(self) -> None:
        """Close the file, and remove it where it holds nothing."""
        if not self._file.closed and not self._marks.any():
            self.remove()
        self._file.close()

    def remove(self) -> None:
        """Close and remove the file: the work is done."""
        if os.name == "nt":  # what is open cannot be removed there
            self._file.close()
        self.path.unlink(missing_ok=True)  # while it is locked: nobody else begins to write it
        self._file.close()


class StoredRows:
    """An array (spot width) of a :class:`PartFile`, of which rows are taken by their numbers."""

    def __init__(self, part: PartFile, columns: slice) -> None:
        self._part, self._columns = part, columns

    def __getitem__(self, spots: np.ndarray) -> np.ndarray:
        return self._part.rows(spots, self._columns)


def _close_in_fork() -> None:
    """Close the files that a forked process has of its parent: the lock is held as long as one of them is open."""
    for file in list(_LOCKED):
        file.close()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_close_in_fork)


def _claim(file: int, size: int) -> None:
    """Take the disk's room for a file now, rather than find in an hour that there is none; where the system can."""
    try:
        os.posix_fallocate(file, 0, size)
    except AttributeError:  # Windows, macOS
        return
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # of a file system that cannot
            raise


def _mark(content: bytes) -> int:
    return _DONE | zlib.crc32(content)
