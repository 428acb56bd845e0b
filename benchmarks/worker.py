"""One provider, alone in a process: its times and its peak memory beyond the inputs, gradients included, as JSON.

    python -m benchmarks.worker FAMILY OPERATION PROVIDER N D REPEATS THREADS

Linux only: the peak is that of the resident set, set back before the first step. The process may not map more memory than
the machine has left, so that running out of it is an error here and no danger to anything else.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import re
import resource
import sys
from pathlib import Path

import torch

from benchmarks.measure import describe, seconds


def resident(field: str) -> int:
    """VmRSS, VmHWM or VmSize of this process in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", status)[1])  # type: ignore[index]


def limit_memory(share: float = 0.9) -> None:
    """What is mapped may grow by this share of the memory that is available."""
    available = 1024 * int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(encoding="ascii"))[1])  # type: ignore[index]
    limit = resident("VmSize") + int(share * available)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run(family: str, operation: str, provider: str, n: int, d: int, repeats: int) -> dict:
    """Times of ``repeats`` steps (without the first, if there are several) and the peak of all of them."""
    setup = importlib.import_module(f"benchmarks.{family}").setup
    seconds(setup(operation, 64, d).step(provider))  # loads libraries
    step = setup(operation, n, d).step(provider)
    limit_memory()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not be what is allocated next
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    times = [seconds(step) for _ in range(repeats)]
    return {"peak": resident("VmHWM") - before, "times": times[1:] or times}


def main() -> None:
    family, operation, provider, n, d, repeats, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    try:
        found = run(family, operation, provider, int(n), int(d), int(repeats))
    except Exception as error:
        found = {"note": describe(error)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
