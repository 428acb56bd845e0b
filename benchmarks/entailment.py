"""Entailment cones of tangent vectors at the origin: aperture, exterior angle, and the hinge of both."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

import hyperst_kernels as hk
from benchmarks import peers, textbook
from benchmarks.problem import OURS, Function, Problem, pairs

TESTS = ("tests/kernels/test_entailment.py",)
OPERATIONS = ("half_aperture", "exterior_angle", "entailment_loss")

_OURS: dict[str, Function] = {
    "half_aperture": partial(hk.half_aperture, input="tangent"),
    "exterior_angle": partial(hk.exterior_angle, input="tangent"),
    "entailment_loss": partial(hk.entailment_loss, input="tangent", reduction="none"),
}
_TEXTBOOK: dict[str, Function] = {
    "half_aperture": textbook.half_aperture,
    "exterior_angle": textbook.exterior_angle,
    "entailment_loss": textbook.entailment_hinge,
}


def setup(operation: str, n: int, d: int, *, radius: float = 1.0, separation: float = 1.0, **place) -> Problem:
    """A vector per row, or two, ``radius`` long and ``separation`` apart; see `pairs`."""
    u, v = pairs(n, d, radius, separation, **place)

    def textbook_formula(*tangents: Tensor) -> Tensor:
        c = tangents[0].new_ones(())
        return _TEXTBOOK[operation](*(textbook.exp_map0(w, c) for w in tangents), c)

    factories: dict[str, Callable[[], Function]] = {OURS: lambda: _OURS[operation], **peers.textbook(textbook_formula)}
    return Problem([u] if operation == "half_aperture" else [u, v], factories)
