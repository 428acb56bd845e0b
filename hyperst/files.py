"""Atomic writing: a file is either the complete new one or untouched, whatever happens in between."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["atomic_path", "write_h5ad_atomic", "write_json_atomic", "write_text_atomic"]

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path``; when the block ends well it becomes ``path`` in one step.

    The temporary file lies in the same folder and keeps the suffix (writers look at it). On success it is flushed to
    disk (fsync) and renamed over ``path``. On any failure, KeyboardInterrupt included, it is removed and an existing
    ``path`` stays as it was. Missing parent folders are made.

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
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
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
        if _is_full_disk(error):
            raise OSError(
                errno.ENOSPC,
                f"no space left while writing {path}; free some space or choose another place with --output "
                "(a file that was already there has not been touched)",
            ) from error
        raise


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


def write_h5ad_atomic(adata: AnnData, path: str | Path) -> Path:
    """Write an AnnData to ``path`` (.h5ad, gzip) atomically and return the path. Errors: see :func:`atomic_path`."""
    path = Path(path)
    with atomic_path(path) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether ``error`` or what it came from is 'no space left' (HDF5 wraps it, sometimes as text only)."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return True
        if isinstance(error, Exception) and f"errno = {errno.ENOSPC}" in str(error):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
