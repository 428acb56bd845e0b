"""Files and folders that one process has for itself, on systems with ``fcntl``."""

from __future__ import annotations

__all__ = ["take"]


def take(descriptor: int, problem: str) -> None:
    """Lock an open file or folder until it is closed or the process ends, however it ends.

    Raises:
        BlockingIOError: another process has it; the message is ``problem``.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(error.errno, problem) from error
    except OSError:  # a file system without locks
        return
