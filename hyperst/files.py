"""Atomic writing: a file is either the complete new one or untouched, whatever happens in between."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "atomic_folder",
    "atomic_path",
    "distinct_file_names",
    "is_hidden",
    "raise_full_disk",
    "require_space",
    "require_writable",
    "sha256",
    "write_h5ad_atomic",
    "write_h5ad_in_blocks",
    "write_json_atomic",
    "write_text_atomic",
]

_LONGEST_STEM = 150  # bytes, of a temporary file's name: 255 are all that file systems allow
_OLD = 3600  # seconds
_GZIP: dict[str, Any] = {"compression": "gzip"}
_CHUNK_BYTES = 1 << 19  # of an array that is compressed at a time
_NO_SPACE = {errno.ENOSPC: "no space left", errno.EDQUOT: "the quota is used up", errno.EFBIG: "the file is too large"}


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path``; when the block ends well it becomes ``path`` in one step.

    The temporary file lies in the same folder and keeps the suffix (writers look at it). On success it is flushed to
    disk (fsync) and renamed over ``path``. On any failure, KeyboardInterrupt included, it is removed and an existing
    ``path`` stays as it was. Missing parent folders are made. What a killed process left of an earlier try is removed.

    Raises:
        OSError: the disk or quota is full (the message names the file and the remedy), or ``path`` is a folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(Path(folder) / "table.csv") as temporary:
    ...         _ = temporary.write_text("gene,count")
    ...     sorted(entry.name for entry in Path(folder).iterdir())
    ['table.csv']
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the path of a file to write")
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_mark(path)}{os.getpid()}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes 0600 files; the result should look like any other output
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise_full_disk(error, path)
        raise


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path`` where a folder is to be made; when the block ends well it becomes ``path`` in one step.

    On any failure, KeyboardInterrupt included, it is removed. Missing parent folders are made, and what a killed process left of
    an earlier try is removed.

    Raises:
        FileExistsError: ``path`` exists; a folder is not replaced.
        OSError: the disk or quota is full.
    """
    path = Path(path)
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists and is not overwritten; choose another --output, or remove it")
    around: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        around = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{_mark(path)}{os.getpid()}.", suffix=path.suffix))
        temporary = around / path.name
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as written:
                    os.fsync(written.fileno())
        os.rename(temporary, path)
    except BaseException as error:
        raise_full_disk(error, path)
        raise
    finally:
        if around is not None:
            shutil.rmtree(around, ignore_errors=True)


def raise_full_disk(error: BaseException, path: Path) -> None:
    """Raise OSError with the remedy where ``error`` came from a full disk."""
    if (number := _full_disk(error)) is not None:
        raise OSError(
            number,
            f"{_NO_SPACE[number]} while writing {path}; free some space or choose another place with --output "
            "(a file that was already there has not been touched)",
        ) from error


def require_writable(path: str | Path) -> None:
    """Raise now what writing the file ``path`` would raise after an hour's work; leaves nothing behind.

    Raises:
        OSError: ``path`` is a folder, its folder (or the nearest one above it that exists) cannot be written to, or
            something above it is a file.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the path of a file to write")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is no folder" if not folder.is_dir() else (error.strerror or str(error)).lower()
        raise OSError(
            error.errno, f"{path} cannot be written: {folder}: {reason}; choose another place with --output"
        ) from error


def require_space(path: str | Path, size: int) -> None:
    """Raise OSError unless the disk of ``path`` has room for ``size`` bytes: HDF5 on a full disk may end the process."""
    free = shutil.disk_usage(next(each for each in Path(path).absolute().parents if each.exists())).free
    if free < size:
        raise OSError(errno.ENOSPC, f"{path} needs {size / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free")


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_hidden(path: Path) -> bool:
    """Whether a folder's reader passes over ``path``: names that begin with a dot.

    They are macOS's ``._NAME`` companions of files on foreign disks, and the temporary files of :func:`atomic_path` that a
    killed process left behind.

    >>> is_hidden(Path("cohort/._A.h5ad")), is_hidden(Path("../A.h5ad"))
    (True, False)
    """
    return path.name.startswith(".")


def distinct_file_names(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """``names``, those that several ``paths`` share with the names of the folders above them in front.

    >>> distinct_file_names(["S3", "S3", "S4"], [Path("A/S3.h5ad"), Path("B/S3.h5ad"), Path("A/S4.h5ad")])
    ['A_S3', 'B_S3', 'S4']
    """
    found = list(names)
    folders = [list(path.absolute().parents) for path in paths]
    for level in range(max(map(len, folders), default=0)):
        times = Counter(found)
        if max(times.values(), default=1) == 1:
            break
        found = [
            f"{above[level].name}_{name}" if times[name] > 1 and level < len(above) and above[level].name else name
            for name, above in zip(found, folders, strict=True)
        ]
    seen: Counter[str] = Counter()
    for number, name in enumerate(found):  # the same folders and the same name, such as A.h5ad beside the folder A
        seen[name] += 1
        found[number] = name if seen[name] == 1 else f"{name}_{seen[name]}"
    return found


def write_text_atomic(path: str | Path, text: str) -> Path:
    """Write ``text`` (UTF-8) to ``path`` atomically and return the path. Errors: see :func:`atomic_path`."""
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json_atomic(path: str | Path, value: Any) -> Path:
    """Write ``value`` as indented JSON to ``path`` atomically and return the path.

    Raises:
        TypeError: something in ``value`` has no JSON form.
        ValueError: ``value`` holds NaN or infinity, which JSON does not have.
        OSError: see :func:`atomic_path`.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        raise ValueError(
            f"cannot write {path}: JSON has no NaN or infinity; write null for a missing number"
        ) from error
    return write_text_atomic(path, text + "\n")


def anndata_elements() -> Any:
    """The module of anndata that reads and writes single elements of its files."""
    import anndata

    return getattr(anndata, "io", None) or anndata.experimental  # the latter before 0.11


def write_h5ad_atomic(adata: AnnData, path: str | Path) -> Path:
    """Write an AnnData to ``path`` (.h5ad, gzip) atomically and return the path. Errors: see :func:`atomic_path`.

    The file is made in memory and goes to the disk in one piece: HDF5 on a full disk prints its own errors, again when Python
    frees its objects, and may end the process.
    """
    import h5py

    path = Path(path)
    with atomic_path(path) as temporary:
        adata.strings_to_categoricals()
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            anndata_elements().write_elem(file, "/", adata, dataset_kwargs=_GZIP)
        content.seek(0)
        # in pieces: after an error Python 3.13 complains of a buffer that is still in use
        with temporary.open("wb") as file:
            shutil.copyfileobj(content, file)
    return path


def write_h5ad_in_blocks(adata: AnnData, blocks: Iterable[np.ndarray], path: str | Path) -> Path:
    """Write an AnnData without X to ``path`` as :func:`write_h5ad_atomic` does, with the float32 rows of ``blocks`` as its X.

    Only one of the blocks is in memory. Raises OSError where X alone, not compressed, would not find room on the disk.
    """
    import h5py

    path = Path(path)
    row = 4 * adata.n_vars
    require_space(path, row * adata.n_obs)
    rows = max(1, min(adata.n_obs, _CHUNK_BYTES // row))
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        adata.strings_to_categoricals()
        anndata_elements().write_elem(file, "/", adata, dataset_kwargs=_GZIP)
        values = file.create_dataset("X", adata.shape, np.float32, chunks=(rows, adata.n_vars), **_GZIP)
        values.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        start = 0
        for block in blocks:
            values[start : start + len(block)] = block
            start += len(block)
        if start != adata.n_obs:
            raise ValueError(f"blocks: got {start} rows for the {adata.n_obs} of {path}")
    return path


def _mark(path: Path) -> str:
    """How the names of temporary files for ``path`` begin on this machine, before the number of the process that writes."""
    host = hashlib.blake2b(socket.gethostname().encode(), digest_size=3).hexdigest()
    stem = path.stem.encode(errors="replace")[:_LONGEST_STEM].decode(errors="ignore")
    return f".{stem}.{host}-"


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files for ``path`` whose process has ended on this machine, and which are an hour old.

    The hour is for containers that share a folder and a host name, and cannot see each other's processes.
    """
    import psutil

    for entry in path.parent.iterdir():
        if not (entry.name.startswith(_mark(path)) and entry.suffix == path.suffix):
            continue
        owner = entry.name[len(_mark(path)) :].partition(".")[0]
        with suppress(OSError):  # another process has removed it, or it may not be removed
            if owner.isdecimal() and not psutil.pid_exists(int(owner)) and time.time() - entry.stat().st_mtime > _OLD:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _full_disk(error: BaseException | None) -> int | None:
    """Error number of 'no space left' and the like, if ``error`` or what it came from is one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return error.errno
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
