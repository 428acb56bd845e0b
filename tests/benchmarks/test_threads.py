"""Predicted speed-ups: what is read from a profile, and what follows from it."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest

from benchmarks import threads

PROFILE = """version: 1
events: Ir

ob=(1) /lib/libtorch_cpu.so
fl=(1) ???
fn=(1) mkl_blas_sgemm
16 100
+3 20
cob=(2) /there/hyperst_kernels/cpu/native/_library.cpython-311-x86_64-linux-gnu.so
cfi=(2) library.cpp
cfn=(2) hyperst_sums
calls=2 50
* 7000
-1 5

ob=(2)
fl=(2)
fn=(2)
50 1000

ob=(1)
fl=(1)
fn=(3) at::native::mul
0x10 30
fn=(1)
17 1
totals: 1156
"""
MKL, SUMS, PYTORCH = (
    ("libtorch_cpu.so", "mkl_sgemm"),
    ("_library.so", "hyperst_sums"),
    ("libtorch_cpu.so", "at::native::mul"),
)


def test_instructions_are_those_of_a_function_without_its_calls():
    found = threads.counts(PROFILE.splitlines())
    assert [(function, number) for (_, function), number in found.items()] == [
        ("mkl_blas_sgemm", 126),
        ("hyperst_sums", 1000),
        ("at::native::mul", 30),
    ]
    assert threads.by_part(found) == {"products (MKL)": 126, "native code": 1000, "PyTorch": 30}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("libgomp.so.1", "OpenMP"), ("python3.11", "Python"), ("libc10.so", "PyTorch"), ("libc.so.6", "system libraries")],
)
def test_parts(name, expected):
    assert threads.part((f"/usr/lib/{name}", "f")) == expected


def test_what_is_serial_and_the_speed_up():
    """Products divided by 4, sums by 2 only, PyTorch's calls not at all."""
    runs = {
        1: [Counter({MKL: 8_000_000, SUMS: 1_000_000, PYTORCH: 1_000_000})],
        4: [
            Counter({MKL: 2_000_000, SUMS: 500_000, PYTORCH: 1_000_000}),
            *[Counter({MKL: 2_000_000, SUMS: number}) for number in (500_000, 0, 0)],
        ],
    }
    assert threads.scaling(runs).splitlines()[2:] == ["| 1 | 10.0 | 10.0 | 10 | 1.0 |", "| 4 | 3.5 | 3.5 | 10 | 2.9 |"]
    assert threads.parts(runs).splitlines()[2:] == [
        "| products (MKL) | 8.0 | 2.00 | 0.00 |",
        "| native code | 1.0 | 0.50 | 3.33 |",
        "| PyTorch | 1.0 | 1.00 | 10.00 |",
    ]


def test_says_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(SystemExit, match="with valgrind, which is not there"):
        threads.main([])


def test_numbers_of_threads_have_1_among_them(capsys):
    with pytest.raises(SystemExit):
        threads.main(["--threads", "2", "4"])
    assert "needs 1 and another number, got 2 4" in capsys.readouterr().err
