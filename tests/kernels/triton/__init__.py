"""The device kernels: on the GPU where there is one, else in Triton's interpreter, which needs a process of its own."""

import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
AVAILABLE = INTERPRETED or torch.cuda.is_available()
if INTERPRETED:
    from tests.kernels import arithmetic

    arithmetic.use(arithmetic.CHOSEN)
