"""Distances from tangent vectors at the origin, each library through its own maps: of matching rows, and of all pairs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import hyperst_kernels as hk
from benchmarks import peers, textbook
from benchmarks.problem import OURS, Function, Problem, pairs

TESTS = ("tests/kernels/test_distance.py", "tests/kernels/test_distance_matrix.py")
OPERATIONS = ("distance", "pairwise_distance")
CDIST = "torch.cdist"


def _textbook_distance(u: Tensor, v: Tensor) -> Tensor:
    c = u.new_ones(())
    return textbook.distance(textbook.exp_map0(u, c), textbook.exp_map0(v, c), c)


def _textbook_pairwise(u: Tensor, v: Tensor) -> Tensor:
    c = u.new_ones(())
    return textbook.pairwise_distance(textbook.exp_map0(u, c), textbook.exp_map0(v, c), c)


def setup(operation: str, n: int, d: int, *, radius: float = 1.0, separation: float = 1.0, **place) -> Problem:
    """Two tangent vectors per row, ``radius`` long and ``separation`` apart; see `pairs`."""
    inputs = list(pairs(n, d, radius, separation, **place))
    every_pair = operation == "pairwise_distance"
    factories: dict[str, Callable[[], Function]] = {
        OURS: lambda: partial(hk.pairwise_distance if every_pair else hk.distance, input="tangent"),
        **peers.textbook(_textbook_pairwise if every_pair else _textbook_distance),
        peers.GEOOPT: partial(peers.geoopt_lorentz, operation),
        peers.GEOOPT_BALL: partial(peers.geoopt_ball, operation),
        peers.HYPLL: partial(peers.hypll, operation),
    }
    if not every_pair:
        return Problem(inputs, factories)
    factories |= {CDIST: lambda: torch.cdist, peers.PRODUCTS: lambda: peers.products(n, d, inputs[0])}
    return Problem(inputs, factories, (CDIST, peers.PRODUCTS))
