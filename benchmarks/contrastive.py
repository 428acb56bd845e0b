"""The symmetric contrastive loss of n pairs with d features, and HyperST's three terms; curvature and logit scale are learnt."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

import hyperst_kernels as hk
from benchmarks import peers, textbook
from benchmarks.problem import OURS, Function, Problem, pairs

TESTS = ("tests/kernels/test_contrastive.py", "tests/kernels/test_native.py")
OPERATIONS = ("contrastive_loss",)
HIERARCHY = "hierarchical_contrastive_loss"  # measured on a GPU, where its terms share launches
ONE_BY_ONE, ANY_ORDER = "ours, one by one", "ours, any order"
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
    if operation == HIERARCHY:
        niches = [torch.roll(x, 1, 0).contiguous() for x in (image, text)]
        together: dict[str, Callable[[], Function]] = {OURS: lambda: hierarchy, ONE_BY_ONE: lambda: one_by_one}
        return Problem([image, text, *niches, c, scale], together)
    factories: dict[str, Callable[[], Function]] = {
        OURS: lambda: hk.contrastive_loss,
        peers.EAGER: lambda: textbook.contrastive_loss,
        peers.COMPILED: lambda: peers.compiled(textbook.single_matrix_loss),
        peers.CHUNKED: lambda: textbook.chunked_loss,
        peers.OPEN_CLIP: peers.open_clip_loss,
        peers.MEMEFF: lambda: peers.memeff_loss(logit_scale),
        peers.PRODUCTS: lambda: peers.products(n, d, image),
    }
    if image.device.type == "cuda":  # elsewhere there is one order
        factories[ANY_ORDER] = lambda: functools.partial(hk.contrastive_loss, deterministic=False)
    if d <= KEOPS_WIDEST:
        factories[peers.KEOPS] = peers.keops_loss
    return Problem([image, text, c, scale], factories, (peers.OPEN_CLIP, peers.MEMEFF, peers.PRODUCTS))


def terms(image: Tensor, gene: Tensor, image_niche: Tensor, gene_niche: Tensor) -> list[hk.Term]:
    """One symmetric pair and two row-only pairs (Zhang et al. 2025)."""
    spots, *niches = (image, gene), (image_niche, gene), (gene_niche, image)
    return [hk.Term(*spots, 0.5, "both"), *(hk.Term(*pair, 0.25, "rows") for pair in niches)]


def hierarchy(*leaves: Tensor) -> Tensor:
    *features, c, scale = leaves
    return hk.hierarchical_contrastive_loss(terms(*features), c, scale)[0]


def one_by_one(*leaves: Tensor) -> Tensor:
    *features, c, scale = leaves
    losses = [
        t.weight * hk.contrastive_loss(t.queries, t.keys, c, scale, directions=t.directions) for t in terms(*features)
    ]
    return torch.stack(losses).sum()
