"""The backends that a test can run on.

``portable``  PyTorch calls, on the CPU
``native``    machine code for the CPU, where the package was built with it
``triton``    the device kernels: on a GPU, or in Triton's interpreter, which takes the CPU's place and so needs a process
              of its own (TRITON_INTERPRET=1) that has no other backend

A test names those that it runs on, ``@pytest.mark.parametrize("backend", BACKENDS)``, or is marked ``triton`` where it is about
the kernels alone; what a process does not have is left out (``conftest.py``). ``-m triton`` selects what runs on kernels:
`tests.kernels.test_interpreter` does so without a GPU, and ``python3 -m benchmarks.gpu --tests`` with one.
"""

import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"  # of the kernels
AVAILABLE = INTERPRETED or torch.cuda.is_available()
APPROXIMATE = AVAILABLE and not INTERPRETED
if INTERPRETED:
    from benchmarks import gpu_arithmetic

    gpu_arithmetic.install()
    APPROXIMATE = gpu_arithmetic.CHOSEN == "approximate"

BACKENDS = ("portable", "native", "triton")
WITHOUT_MACHINE_CODE = ("portable", "triton")  # the backends of most operators


def present(backend: str) -> bool:
    """Whether this process has it."""
    if backend == "native":
        from hyperst_kernels.cpu.native import bindings  # not before the process of ``ptx`` has chosen its kernels

        return not INTERPRETED and bindings.library() is not None
    return {"portable": not INTERPRETED, "triton": AVAILABLE}.get(backend, False)


def device(backend: str) -> str:
    """Where the tensors of a backend lie."""
    return DEVICE if backend == "triton" else "cpu"


def documented(instructions: int, backend: str = "triton") -> float:
    """What so many quotients, roots or powers in a row may err by, beside roundings; 0 where they are not approximate.

    2^-22 each, of the result: PTX manual, div.full.f32 and ex2.approx.f32 (a root errs by half of that).
    """
    return instructions * 2.0**-22 if APPROXIMATE and backend == "triton" else 0.0
