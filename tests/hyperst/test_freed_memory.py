"""Freed memory stays with the process, where the C library can be told so."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import torch
from hyperst.device import choose_device

def resident():
    return int(open("/proc/self/statm").read().split()[1])

if {told}:
    choose_device("cpu")
before = resident()
block = torch.ones({size}, dtype=torch.uint8)
with_block = resident()
del block
print((resident() - before) / (with_block - before))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_freed_memory_stays_with_the_process():
    size = 30 << 20
    kept = []
    for told in (False, True):
        script = SCRIPT.format(told=told, size=size)
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        kept.append(float(ran.stdout))
    assert kept[0] < 0.1  # as glibc does unless it is told otherwise
    assert kept[1] > 0.9
