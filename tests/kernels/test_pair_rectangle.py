"""Losses of all pairs whose keys come in blocks, as ranks see them, on each backend: one process takes the part of every rank."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from hyperst_kernels.blocked.blocks import Geometry
from hyperst_kernels.blocked.pairs import merged
from hyperst_kernels.pair_rectangle import Rectangle, Terms
from hyperst_kernels.reference import pair_loss as reference
from hyperst_kernels.reference.contrastive import Pairing
from hyperst_kernels.schemes import Block
from tests.kernels.backends import BACKENDS, INTERPRETED, device
from tests.kernels.turns import OneOf, Turns

D, C, SCALE, BIAS = 6, 0.8, 9.0, -2.0
PAIRINGS = [Pairing(0, 1, True), Pairing(2, 0, False)]
# a cost of 50 rounds to 2^-19 in float32, which is then the relative error of a weight; some of them add up
TOLERANCE = {torch.float32: 16 * 2.0**-19, torch.float64: 1e-11}
KINDS = {  # loss, geometry, label smoothing, and what is known of rows
    "positives": ("softmax", "lorentz", 0.0, "positives"),
    "smoothed": ("softmax", "lorentz", 0.1, "exclude_ids"),
    "margin": ("softmax", "euclidean", 0.1, "limits"),
    "debiased angles": ("softmax", "angle", 0.0, "debias"),
    "sigmoid": ("sigmoid", "lorentz", 0.0, "exclude_ids"),
}


class Problem:
    """Features of all rows, with near pairs within ranks and across them, a scale of each query, and what is known of rows."""

    def __init__(self, kind: str, seed: int, rows: Sequence[int], dtype: torch.dtype):
        g, n = torch.Generator().manual_seed(seed), sum(rows)
        self.kind, self.rows, self.dtype = KINDS[kind], rows, dtype
        features = torch.randn(3, n, D, generator=g, dtype=torch.float64)
        features[1, n // 2] = features[0, 0] * 1.001
        self.features = features.to(dtype)
        self.scales = (SCALE * (0.5 + torch.rand(n, generator=g, dtype=torch.float64))).to(dtype)
        ids = torch.randint(0, max(n - 2, 1), (n,), generator=g)
        limits = 0.5 + torch.rand(len(PAIRINGS), n, generator=g, dtype=torch.float64)
        every = {
            "positives": ids, "exclude_ids": ids, "limits": limits.to(dtype), "debias": torch.full((n,), 0.1).double()
        }  # fmt: skip
        self.known = {self.kind[3]: every[self.kind[3]]}
        self.upstream = torch.randn(2, len(PAIRINGS), n, generator=g, dtype=torch.float64).to(dtype)
        self.upstream[1, 1] = 0
        if self.kind[0] == "sigmoid":
            self.upstream[1] = 0

    def number(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=self.dtype)


def by_ranks(problem: Problem, backend: str, ring: bool) -> list[Tensor]:
    """Losses of rows and columns (t n), and gradients of features, scales (t n), c and the bias, from the parts of ranks."""
    move = functools.partial(torch.Tensor.to, device=device(backend))
    loss, geometry, smoothing, _ = problem.kind
    own = list(zip(*([move(x).clone() for x in whole.split(problem.rows)] for whole in problem.features), strict=True))
    scales = [move(x).clone() for x in problem.scales.split(problem.rows)]
    turns, keys, rectangles, shards = Turns(), [0, 1], [], []
    for rank, vectors in enumerate(own):
        known = {name: move(x.split(problem.rows, -1)[rank]) for name, x in problem.known.items()}
        ids = known.get("positives")
        terms = Terms(
            PAIRINGS, loss, Geometry(geometry, True, "ieee"), smoothing, None if ids is None else (ids, ids),
            known.get("exclude_ids"), known.get("debias"), known.get("limits"),
        )  # fmt: skip
        numbers = move(problem.number(C)), move(problem.number(BIAS))
        rectangles.append(Rectangle(terms, *numbers, [*[scales[rank]] * len(PAIRINGS), *vectors]))
        shards.append(Block({k: vectors[k] for k in keys}, terms.travelling, False))
    schemes = [OneOf(rank, shards, ring, turns) for rank in range(len(own))]
    sums = [list(r.sums(s)) for r, s in zip(rectangles, schemes, strict=True)]
    if loss == "softmax":  # now with the columns of all
        for x, scheme in zip(sums, schemes, strict=True):
            each = scheme.columns(lambda one, two: _flat(merged(_each(one), _each(two)))).own()
            x[1] = _each(each).contiguous()
    largest = [None] * len(own)
    if "debias" in problem.known:
        largest = [move(problem.scales.max().expand(len(PAIRINGS)))] * len(own)
    losses = [r.losses(*x, most) for r, x, most in zip(rectangles, sums, largest, strict=True)]
    grads = list(zip(*(move(x).split(problem.rows, 1) for x in problem.upstream), strict=True))
    for turns.all_had_one in (False, True):
        found = [
            r.gradients(scheme, *x, [g.contiguous() for g in grad], most)
            for r, scheme, x, grad, most in zip(rectangles, schemes, sums, grads, largest, strict=True)
        ]
    for scheme, (*_, gradients) in zip(schemes, found, strict=True):
        for k, part in zip(keys, scheme.of_later_turns(keys), strict=False):
            gradients[k] += part
    rows, columns = (torch.cat(part, 1) for part in zip(*losses, strict=True))
    features = torch.stack([torch.cat(part) for part in zip(*(x for *_, x in found), strict=True)])
    of_scales = torch.cat([torch.stack(x) for _, _, x, _ in found], 1)
    results = [rows, columns, features, of_scales, sum(x for x, *_ in found), sum(x for _, x, *_ in found)]
    return [x.detach().cpu().double() for x in results]


def _each(sums: Tensor) -> Tensor:
    return sums.unflatten(0, (len(PAIRINGS), -1))


def _flat(sums: Tensor) -> Tensor:
    return sums.flatten(0, 1)


def by_one(problem: Problem) -> list[Tensor]:
    """The same from the reference in float64."""
    loss, geometry, smoothing, _ = problem.kind
    leaves = [problem.features.double(), torch.stack([problem.scales.double()] * len(PAIRINGS))]
    features, scales, c, bias = (
        x.requires_grad_() for x in (*leaves, problem.number(C).double(), problem.number(BIAS).double())
    )
    known, total, found = problem.known, 0, []
    ids = known.get("positives")
    for t, p in enumerate(PAIRINGS):
        limits = known["limits"][t].double() if "limits" in known else None
        rows, columns = reference.pair_losses(
            features[p.queries], features[p.keys], c, scales[t], bias, ids, ids, known.get("exclude_ids"),
            known.get("debias"), limits, loss, geometry, "tangent", p.symmetric and loss == "softmax", smoothing,
        )  # fmt: skip
        columns = F.pad(columns, (0, len(rows) - len(columns)))
        total = total + (rows * problem.upstream[0, t]).sum() + (columns * problem.upstream[1, t]).sum()
        found.append((rows.detach(), columns.detach()))
    grads = torch.autograd.grad(total, (features, scales, c, bias), materialize_grads=True)
    return [*(torch.stack(x) for x in zip(*found, strict=True)), *grads]


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype) -> None:
    for one, other in zip(found, expected, strict=True):
        terms = found[0].numel() if other.ndim == 0 else 1  # sums over rows, in which parts of either sign meet
        atol = TOLERANCE[dtype] * terms * (float(other.abs().max()) + 1)
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


CASES = [
    (backend, dtype)
    for backend in BACKENDS
    for dtype in (torch.float32, torch.float64)
    if (backend, dtype) != ("native", torch.float64)
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("backend", "dtype"), CASES, ids=str)
@settings(max_examples=1 if INTERPRETED else 5, deadline=None)
@given(seed=st.integers(0, 2**16), rows=st.lists(st.integers(1, 12), min_size=2, max_size=3), ring=st.booleans())
def test_parts_of_ranks_are_the_whole(backend, dtype, kind, seed, rows, ring):
    problem = Problem(kind, seed, rows, dtype)
    assert_close(by_ranks(problem, backend, ring), by_one(problem), dtype)
