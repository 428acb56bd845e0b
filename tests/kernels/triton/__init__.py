"""The device kernels: on the GPU where there is one, else in Triton's interpreter, which needs a process of its own."""

import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
AVAILABLE = INTERPRETED or torch.cuda.is_available()
APPROXIMATE = AVAILABLE and not INTERPRETED
if INTERPRETED:
    from benchmarks import gpu_arithmetic

    gpu_arithmetic.install()
    APPROXIMATE = gpu_arithmetic.CHOSEN == "approximate"


def documented(instructions: int) -> float:
    """What so many quotients, roots or powers in a row may err by, beside roundings; 0 where they are not approximate.

    2^-22 each, of the result: PTX manual, div.full.f32 and ex2.approx.f32 (a root errs by half of that).
    """
    return instructions * 2.0**-22 if APPROXIMATE else 0.0
