"""Maps between tangent vectors and points: n rows of d features, curvature -1."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

import hyperst_kernels as hk
from benchmarks import peers, textbook
from benchmarks.problem import OURS, Function, Problem, pairs

TESTS = ("tests/kernels/test_maps.py", "tests/kernels/test_poincare.py", "tests/kernels/test_transport.py")
OPERATIONS = ("exp_map0", "log_map0", "exp_map", "log_map", "round_trip")
_ONE = torch.tensor(1.0)

_OURS: dict[str, Function] = {
    "exp_map0": hk.exp_map0,
    "log_map0": hk.log_map0,
    "exp_map": hk.exp_map,
    "log_map": hk.log_map,
    "round_trip": lambda v: hk.log_map0(hk.exp_map0(v)),
}
_TEXTBOOK: dict[str, Function] = {
    "exp_map0": lambda v: textbook.exp_map0(v, _ONE.to(v)),
    "log_map0": lambda x: textbook.log_map0(x, _ONE.to(x)),
    "exp_map": lambda x, v: textbook.exp_map(x, v, _ONE.to(x)),
    "log_map": lambda x, y: textbook.log_map(x, y, _ONE.to(x)),
    "round_trip": lambda v: textbook.log_map0(textbook.exp_map0(v, _ONE.to(v)), _ONE.to(v)),
}


def setup(operation: str, n: int, d: int, *, radius: float = 1.0, separation: float = 1.0, **place) -> Problem:
    """Tangent vectors of ``radius``, the points they reach, or two of each, ``separation`` apart; see `pairs`."""
    u, v = pairs(n, d, radius, separation, **place)
    x, y = (hk.exp_map0(w.double()).to(w.dtype) for w in (u, v))
    inputs = {"exp_map0": [u], "round_trip": [u], "log_map0": [x], "exp_map": [x, v], "log_map": [x, y]}[operation]
    factories: dict[str, Callable[[], Function]] = {
        OURS: lambda: _OURS[operation],
        **peers.textbook(_TEXTBOOK[operation]),
        peers.GEOOPT: partial(peers.geoopt_lorentz, operation),
    }
    if operation in ("exp_map0", "round_trip"):
        factories |= {
            peers.GEOOPT_BALL: partial(peers.geoopt_ball, operation),
            peers.HYPLL: partial(peers.hypll, operation),
        }
    elsewhere = (peers.GEOOPT_BALL, peers.HYPLL) if operation == "exp_map0" else ()
    return Problem(inputs, factories, elsewhere)
