"""The symmetric contrastive loss of n pairs with d features; curvature and logit scale are learnt."""

from __future__ import annotations

from collections.abc import Callable

import torch

import hyperst_kernels as hk
from benchmarks import peers, textbook
from benchmarks.problem import OURS, Function, Problem, pairs
from tests.kernels import meru

TESTS = ("tests/kernels/test_contrastive.py", "tests/kernels/test_native.py")
OPERATIONS = ("contrastive_loss",)
KEOPS_WIDEST = 16  # features; it keeps rows in registers and compiles for minutes beyond


def setup(
    operation: str,
    n: int,
    d: int,
    *,
    radius: float = 1.0,
    separation: float = 1.0,
    logit_scale: float = 1 / 0.07,
    **place,
) -> Problem:
    """Pairs of tangent vectors ``radius`` long and ``separation`` apart (see `pairs`), c = 1, and the logit scale."""
    image, text = pairs(n, d, radius, separation, **place)
    wide = torch.float64 if image.dtype == torch.float64 else torch.float32
    c, scale = (torch.tensor(value, dtype=wide, device=image.device) for value in (1.0, logit_scale))
    factories: dict[str, Callable[[], Function]] = {
        OURS: lambda: hk.contrastive_loss,
        peers.EAGER: lambda: meru.contrastive_loss,
        peers.COMPILED: lambda: peers.compiled(meru.single_matrix_loss),
        peers.CHUNKED: lambda: textbook.chunked_loss,
        peers.OPEN_CLIP: peers.open_clip_loss,
        peers.PRODUCTS: lambda: peers.products(n, d, image),
    }
    if d <= KEOPS_WIDEST:
        factories[peers.KEOPS] = peers.keops_loss
    return Problem([image, text, c, scale], factories, (peers.OPEN_CLIP, peers.PRODUCTS))
