"""What a process does with memory that it has freed."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, malloc.h
_KEPT = 1 << 30  # bytes
_LARGEST = 32 << 20  # bytes: what is larger, as an image is, goes back at once; more glibc takes from 2.35 on only


def keep_freed_memory() -> None:
    """Let the process keep up to 1 GiB of freed memory for what it allocates next. Only glibc can be told to.

    Each batch of a network on a CPU frees its activations and allocates as many again. glibc would give these pages back to the
    system, which has to clear them each time: an eighth of the time of a training on crops, a third of that of a prediction.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
