"""Small kernels on executed PTX: sums, products in every precision, and everything that is to be found wrong."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from tests.kernels.ptx import launch
from tests.kernels.ptx.launch import running
from tests.kernels.ptx.program import Program, PtxError


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, i < n) + tl.load(y + i, i < n), i < n)


@triton.jit
def multiply(
    a, b, c, M, N, K, TRANSPOSED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, HOW: tl.constexpr
):
    """c = a b; TRANSPOSED: b is stored with rows and columns exchanged."""
    i, j = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    sums = tl.zeros([BM, BN], c.dtype.element_ty)
    for start in range(0, K, BK):
        left = tl.load(a + i[:, None] * K + (start + k)[None, :], (i < M)[:, None] & (start + k < K)[None, :], other=0)
        if TRANSPOSED:
            inside = (j < N)[:, None] & (start + k < K)[None, :]
            right = tl.trans(tl.load(b + j[:, None] * K + (start + k)[None, :], inside, other=0))
        else:
            inside = (start + k < K)[:, None] & (j < N)[None, :]
            right = tl.load(b + (start + k)[:, None] * N + j[None, :], inside, other=0)
        sums = tl.dot(left, right, sums, input_precision=HOW, out_dtype=sums.dtype)
    tl.store(c + i[:, None] * N + j[None, :], sums, (i < M)[:, None] & (j < N)[None, :])


@triton.jit
def residual(x, y, out, f, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, f * tl.load(x + i) - f * tl.load(y + i))


@triton.jit
def copy_beyond(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i), i < n)


@triton.jit
def total(x, out, BLOCK: tl.constexpr):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, BLOCK))))


@triton.jit
def count_without_atomics(out, BLOCK: tl.constexpr):
    """Every program adds to the same numbers."""
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(out + i) + 1)


@triton.jit
def shift_in_place(x, BARRIER: tl.constexpr, BLOCK: tl.constexpr):
    """Each thread reads what its neighbour overwrites, or has overwritten."""
    i = tl.arange(0, BLOCK)
    before = tl.load(x + i)
    if BARRIER:
        tl.debug_barrier()
    tl.store(x + (i + 1) % BLOCK, before)


@triton.jit
def store_to_one_place(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i // 2, tl.load(x + i))


def test_addition():
    x, y, out = (torch.randn(1000, generator=torch.Generator().manual_seed(k)) for k in range(3))
    with running() as run:
        add[(4,)](x, y, out, 1000, 256)
    assert torch.equal(out, x + y)
    assert not run.findings
    assert [launched.name for launched in run.launches] == ["add"]


# (dtype, precision): relative error of a product of rows of 80 numbers
PRODUCTS = {
    (torch.bfloat16, "ieee"): 1e-6, (torch.float16, "ieee"): 1e-6, (torch.float32, "tf32"): 2.0**-9,
    (torch.float32, "ieee"): 1e-6, (torch.float32, "bf16x3"): 2.0**-14, (torch.float64, "ieee"): 1e-15,
}  # fmt: skip


def product(dtype, precision, transposed=False, **options):
    """A product by tensor cores, the exact one, and the sum of the absolute values of its terms."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(72, 80, generator=g).to(dtype), torch.randn(80, 48, generator=g).to(dtype)
    c = torch.zeros(72, 48, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    given = b.T.contiguous() if transposed else b
    multiply[(3, 2)](a, given, c, 72, 48, 80, transposed, 32, 32, 32, precision, num_warps=4, num_stages=3, **options)
    return (
        c.double().numpy(),
        a.double().numpy() @ b.double().numpy(),
        abs(a.double().numpy()) @ abs(b.double().numpy()),
    )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("dtype", "precision"), list(PRODUCTS))
def test_products(dtype, precision, transposed):
    with running() as run:
        found, exact, terms = product(dtype, precision, transposed)
    assert (np.abs(found - exact) <= PRODUCTS[dtype, precision] * terms).all()
    assert not run.findings


def test_worst_products_are_rounded_towards_zero():
    with running() as run:
        near, exact, terms = product(torch.bfloat16, "ieee")
    with running("worst") as run:
        worst, _, _ = product(torch.bfloat16, "ieee")
    assert not run.findings
    assert ((worst - near) * np.sign(exact)).mean() < 0
    assert 0 < (np.abs(worst - exact) / terms).max() <= 1e-6


def changed(monkeypatch, pattern, which, replacement=""):
    """Programs are decoded from PTX in which one match of the pattern is replaced."""

    def program_of(kernel, worst):
        ptx = kernel.asm["ptx"]
        start, end = [m.span() for m in re.finditer(pattern, ptx)][which]
        return Program(ptx[:start] + replacement + ptx[end:], kernel.metadata.shared, worst)

    monkeypatch.setattr(launch, "program_of", program_of)


@pytest.mark.parametrize(
    ("pattern", "which", "said"),
    [
        (r"bar\.sync\s+0;", 1, "race in shared memory: reads what another thread wrote"),
        (r"bar\.sync\s+0;", 2, "race in shared memory: overwrites what another thread read"),
        (r"cp\.async\.wait_group\s+\d+;", 0, "shared memory is used while a copy to it is under way"),
        (r"cp\.async\.wait_group\s+\d+;", 1, "shared memory is used while a copy to it is under way"),
    ],
)
def test_a_missing_barrier_or_wait_is_found(pattern, which, said, monkeypatch):
    changed(monkeypatch, pattern, which)
    with running() as run:
        product(torch.bfloat16, "ieee")
    assert any(said in finding for finding in run.findings)


def test_shared_memory_that_nobody_wrote_is_found(monkeypatch):
    x = torch.ones(128)
    with running() as run:
        total[(1,)](x, x.clone(), 128, num_warps=4)
    assert not run.findings
    changed(monkeypatch, r"@\S+ st\.shared\.\S+\s[^;]*;", 0)
    with running() as run:
        total[(1,)](x, x.clone(), 128, num_warps=4)
    assert any("shared memory is read that nobody wrote" in finding for finding in run.findings)


def test_a_barrier_that_some_threads_miss_is_found(monkeypatch):
    """The first barrier becomes one that only the first warp comes to."""
    branch = "setp.lt.u32 %p1, %tid_, 32;\n@%p1 bra $HERE;\nbra.uni $THERE;\n$HERE: bar.sync 0;\n$THERE: "
    changed(monkeypatch, r"bar\.sync\s+0;", 0, ".reg .b32 %tid_;\nmov.u32 %tid_, %tid.x;\n" + branch)
    with running(), pytest.raises(PtxError, match="a barrier that not all running threads come to"):
        product(torch.bfloat16, "ieee")


def test_what_is_not_covered_is_named(monkeypatch):
    changed(monkeypatch, r"bar\.sync\s+0;", 0, "brev.b32 %r1, %r1;")
    with running(), pytest.raises(PtxError, match=r"multiply .*PTX line \d+: brev.b32 %r1, %r1: not covered"):
        product(torch.bfloat16, "ieee")


def test_an_access_outside_is_found():
    with running(), pytest.raises(PtxError, match="outside global memory, 400 bytes behind where one begins"):
        copy_beyond[(1,)](torch.zeros(100), torch.zeros(100), 100, 128)


def test_an_access_that_is_not_aligned_is_found():
    """Compiled for pointers that are multiples of 16; then one that is not comes."""
    bytes_ = torch.zeros(4 * 256 + 64, dtype=torch.uint8)
    start = -bytes_.data_ptr() % 16
    x, out = bytes_[start + 2 :].data_ptr(), torch.zeros(128)
    with running(), pytest.raises(PtxError, match="not aligned"):
        copy_beyond[(1,)](_Pointer(x, bytes_), out, 128, 128)


class _Pointer:
    """float32 numbers at an address that torch would not give them."""

    dtype = torch.float32

    def __init__(self, address: int, owner: torch.Tensor):
        self._address, self._owner = address, owner

    def data_ptr(self) -> int:
        return self._address

    def __getattr__(self, name):
        return getattr(self._owner, name)


@pytest.mark.parametrize(
    ("kernel", "arguments", "programs", "said"),
    [
        (count_without_atomics, (32,), 2, "reads what another thread wrote"),
        (shift_in_place, (False, 64), 1, "overwrites what another thread read"),
        (shift_in_place, (True, 64), 1, None),
    ],
)
@pytest.mark.parametrize("warps", [1, 2])
def test_races_in_global_memory_are_found(kernel, arguments, programs, said, warps):
    x = torch.arange(64.0)
    with running() as run:
        kernel[(programs,)](x, *arguments, num_warps=warps)
    if said is None:
        assert not run.findings
    else:
        assert any(f"race in global memory: {said}" in finding for finding in run.findings)


def test_different_values_stored_to_one_place_are_found():
    x, out = torch.arange(64.0), torch.zeros(64)
    with running() as run:
        store_to_one_place[(1,)](x, out, 64, num_warps=1)
    assert "threads write different values to one place" in run.findings[0]
    with running() as run:
        store_to_one_place[(1,)](torch.ones(64), out, 64, num_warps=1)
    assert not any("different values" in finding for finding in run.findings)


def test_a_fused_multiply_add_shows():
    """f x - f x is 0; fused, the rounding of one product is left of it."""
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    fused, plain = torch.zeros(64), torch.ones(64)
    with running():
        residual[(1,)](x, x.clone(), fused, 0.7, 64)
        residual[(1,)](x, x.clone(), plain, 0.7, 64, enable_fp_fusion=False)
    assert fused.any()
    assert fused.abs().max() <= 2.0**-24 * 0.7 * x.abs().max() * 2
    assert not plain.any()
