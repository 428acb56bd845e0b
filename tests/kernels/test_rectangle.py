"""Losses whose keys come in blocks, as ranks see them, on each backend: one process takes the part of every rank in turn."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperst_kernels.operators.contrastive_sums import Flags
from hyperst_kernels.rectangle import Rectangle, Terms
from hyperst_kernels.reference import contrastive as reference
from hyperst_kernels.reference.contrastive import Pairing
from hyperst_kernels.schemes import Block
from tests.kernels.backends import BACKENDS, INTERPRETED, device
from tests.kernels.turns import OneOf, Turns

D, SCALES = 6, (9.0, 4.0)
HYPERST = [Pairing(0, 1, True), Pairing(2, 1, False), Pairing(3, 0, False)]
ONE_WAY = [Pairing(0, 1, False), Pairing(1, 0, False)]
# a logit of 50 rounds to 2^-19 in float32, which is then the relative error of a weight; some of them add up
TOLERANCE = {torch.float32: 16 * 2.0**-19, torch.float64: 1e-11}


class Problem:
    """Features of all rows, with near and coincident pairs within ranks and across them, and factors."""

    def __init__(self, seed: int, rows: Sequence[int], pairings: Sequence[Pairing], ids: bool, dtype: torch.dtype):
        g, n = torch.Generator().manual_seed(seed), sum(rows)
        self.rows, self.pairings, self.dtype = rows, pairings, dtype
        features = (
            torch.randn(4, n, D, generator=g, dtype=torch.float64) * torch.tensor([1.0, 0.3, 3.0, 1e-3])[:, None, None]
        )
        features[1, n // 2] = features[0, 0]
        features[1, -1] = features[2, 0] + 1e-6
        features[3, 0] = 0
        self.features = features[: 1 + max(max(p[:2]) for p in pairings)].to(dtype)
        self.factors = torch.tensor([0.5, 1.0, 2.0, 0.7], dtype=dtype)[: len(self.features)]
        self.ids = torch.randint(0, max(n - 2, 1), (n,), generator=g) if ids else None
        self.upstream = torch.randn(2, len(pairings), n, generator=g, dtype=torch.float64).to(dtype)
        for t, p in enumerate(pairings):
            self.upstream[1, t] *= p.symmetric


def by_ranks(problem: Problem, backend: str, geometry: str, groups: list[list[int]], ring: bool):
    """Losses of rows and columns (t n), and gradients of features, factors, c and logit scales, from the parts of ranks."""
    move = functools.partial(torch.Tensor.to, device=device(backend))
    flags = Flags(geometry, True, "bf16x3", False)
    own = [
        [move(x).clone() for x in part] for part in zip(*(x.split(problem.rows) for x in problem.features), strict=True)
    ]
    ids = [None] * len(own) if problem.ids is None else [move(x) for x in problem.ids.split(problem.rows)]
    keys = sorted({p.keys for p in problem.pairings})
    shards = [Block({k: x[k] for k in keys}, [] if i is None else [i], False) for x, i in zip(own, ids, strict=True)]
    scales = [move(torch.tensor(s, dtype=problem.dtype)) for s in SCALES[: len(groups)]]
    c, factors = move(torch.tensor(0.8, dtype=problem.dtype)), move(problem.factors)
    turns, upstream = Turns(), [move(x) for x in problem.upstream]
    rectangles = [
        Rectangle(Terms(problem.pairings, groups, i, flags, keep=0), factors, c, [*scales, *x])
        for x, i in zip(own, ids, strict=True)
    ]
    schemes = [OneOf(rank, shards, ring, turns) for rank in range(len(own))]
    first = [r.sums(s) for r, s in zip(rectangles, schemes, strict=True)]
    sums = [x for x, _ in first]
    if any(p.symmetric for p in problem.pairings):  # now with the columns of all
        columns = [s.columns(torch.logaddexp).own()[:, : x.rows.shape[1]] for s, x in zip(schemes, sums, strict=True)]
        sums = [x._replace(columns=y) for x, y in zip(sums, columns, strict=True)]
    grads = [[x.contiguous() for x in part] for part in zip(*(x.split(problem.rows, 1) for x in upstream), strict=True)]
    for turns.all_had_one in (False, True):
        found = [
            r.gradients(scheme, s, g, iter(saved))
            for r, scheme, s, g, (_, saved) in zip(rectangles, schemes, sums, grads, first, strict=True)
        ]
    for rank, (gradients, _) in enumerate(found):  # what ranks of later turns add to this one's keys
        for k, part in zip(keys, schemes[rank].of_later_turns(keys), strict=False):
            gradients[k] += part
    losses = [torch.cat(part, 1) for part in zip(*(s.losses(problem.dtype) for s in sums), strict=True)]
    features = [torch.cat(part) for part in zip(*(x for x, _ in found), strict=True)]
    dc, d_scales, d_factors = sum(x for _, x in found).split([1, len(scales), len(features)])
    results = [*losses, torch.stack(features), d_factors, dc, d_scales]
    return [x.detach().cpu().double() for x in results]


def by_one(problem: Problem, geometry: str, groups: list[list[int]]):
    """The same from the reference in float64."""
    leaves = [problem.features.double(), problem.factors.double(), torch.tensor([0.8], dtype=problem.dtype).double()]
    leaves = [x.requires_grad_() for x in (*leaves, torch.tensor(SCALES[: len(groups)]).double())]
    features, factors, c, scales = leaves
    rows, columns = (torch.zeros(len(problem.pairings), sum(problem.rows), dtype=torch.float64) for _ in range(2))
    found = []
    for g, group in enumerate(groups):
        pairings = [problem.pairings[t] for t in group]
        given = (list(features), factors, c[0], scales[g], pairings, "tangent", geometry, problem.ids)
        found.append(reference.hierarchy_terms(*given))
        rows[group], columns[group] = (x.detach() for x in found[-1])
    upstream = problem.upstream.double()
    total = sum(
        (x * upstream[i, group]).sum() for group, both in zip(groups, found, strict=True) for i, x in enumerate(both)
    )
    # of c and the scales, what ranks find is a mean over them
    grads = [*torch.autograd.grad(total, leaves, materialize_grads=True)]
    world = len(problem.rows)
    return [rows, columns, grads[0], *(x / world for x in grads[1:])]


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype) -> None:
    for one, other in zip(found, expected, strict=True):
        # gradients of numbers are sums over rows, in which parts of either sign meet
        terms = found[0].numel() if other.ndim == 1 else 1
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE[dtype] * terms * (float(other.abs().max()) + 1))


CASES = [
    (backend, dtype)
    for backend in BACKENDS
    for dtype in (torch.float32, torch.float64)
    if (backend, dtype) != ("native", torch.float64)
]


@pytest.mark.parametrize(("backend", "dtype"), CASES, ids=str)
@settings(max_examples=2 if INTERPRETED else 12, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rows=st.lists(st.integers(1, 12), min_size=2, max_size=3),
    hierarchy=st.booleans(),
    ids=st.booleans(),
    ring=st.booleans(),
    geometry=st.sampled_from(["lorentz", "euclidean"]),
)
def test_parts_of_ranks_are_the_whole(backend, dtype, seed, rows, hierarchy, ids, ring, geometry):
    pairings, groups = (HYPERST, [[0, 1, 2]]) if hierarchy else (ONE_WAY, [[1], [0]])
    problem = Problem(seed, rows, pairings, ids, dtype)
    found, expected = by_ranks(problem, backend, geometry, groups, ring), by_one(problem, geometry, groups)
    assert_close(found, expected, dtype)


@pytest.mark.parametrize(("backend", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("ring", [False, True], ids=["gathered", "ring"])
def test_tiles_that_hold_positives_of_others_and_reach_beyond_the_end(backend, dtype, ring):
    """More rows than a tile of the kernels has, unequally many, with ids."""
    problem = Problem(7, [70, 37], [Pairing(0, 1, True)], True, dtype)
    found, expected = by_ranks(problem, backend, "lorentz", [[0]], ring), by_one(problem, "lorentz", [[0]])
    assert_close(found, expected, dtype)
