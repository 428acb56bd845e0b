"""What blocks of distances add to losses of all pairs, and the way back: each backend against the formulas in float64."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from hyperst_kernels.blocked import pairs as portable
from hyperst_kernels.blocked.pairs import Pairs, PowerSums, Weights
from hyperst_kernels.cpu import pair_loss as native
from hyperst_kernels.reference.pair_loss import pairs_of
from tests.kernels import examples
from tests.kernels.backends import BACKENDS, INTERPRETED, device, documented

EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
EXPONENT = {torch.float32: 88, torch.float64: 709}  # the largest whose power is a number: it carries so many roundings
# Triton's interpreter rounds the product of a fused multiply-add, in float32 unless it is told to have a GPU's arithmetic
PLAIN = os.environ.get("HYPERST_TEST_ARITHMETIC", "plain") == "plain"
ROUNDED = {torch.float32: INTERPRETED and PLAIN, torch.float64: INTERPRETED}
CASES = [
    (backend, dtype)
    for backend in BACKENDS
    for dtype in (torch.float32, torch.float64)
    if (backend, dtype) != ("native", torch.float64)
]


def functions(backend: str):
    """The module of a backend."""
    if backend == "triton":
        from hyperst_kernels.gpu import pair_loss

        return pair_loss
    return {"portable": portable, "native": native}[backend]


class Problem:
    """A matrix of distances with ties and zeros, cut into blocks of several shapes, and its classes."""

    def __init__(self, backend: str, seed: int, n: int, m: int, kind: str, scale: float, dtype: torch.dtype):
        self.backend, g = backend, torch.Generator().manual_seed(seed)
        self.generator, self.dtype, self.kind, self.shape = g, dtype, kind, (n, m)
        self.smooth = seed % 2 == 1  # negatives are counted, and have a constant in their slopes
        # distances whose costs are within some powers of each other, and zeros, ties and distant ones
        values = 1 + 10 / scale * torch.rand(n, m, generator=g, dtype=torch.float64)
        values[torch.rand(n, m, generator=g) < 0.05] = 0
        values[torch.rand(n, m, generator=g) < 0.05] = 50.0
        values[:, m // 2] = values[:, 0]
        self.values = values.to(dtype)
        self.scale = (scale * (0.5 + torch.rand(n, generator=g, dtype=torch.float64))).to(dtype)
        ids = torch.randint(0, 5, (n + m,), generator=g)
        self.ids = (ids[:n], ids[n:]) if kind == "ids" else None
        excluded = torch.randint(0, 4, (max(n, m),), generator=g)
        self.excluded = (excluded[:n], excluded[:m]) if kind == "exclude" else None
        self.costs = self.scale.double()[:, None] * self.values.double()
        self.positive, self.negative = pairs_of(self.ids, self.excluded, values)
        # some of the distances: those that are equal to one are not below it
        self.limits = (self.values[:, m // 3].clone(), self.values[n // 3].clone()) if kind == "limits" else None
        self.upstream = torch.randn(2, max(n, m), generator=g, dtype=torch.float64)

    def negatives(self, dim: int) -> Tensor:
        """Those of rows (1), or of columns (0)."""
        if self.limits is None:
            return self.negative
        return self.negative & (self.values >= self.limits[1 - dim].unsqueeze(dim))

    def blocks(self):
        backend, (n, m) = self.backend, self.shape

        def moved(two, *some):
            return two and tuple(x[part].to(device(backend)) for x, part in zip(two, some, strict=True))

        for top in range(0, n, 13):
            for left in range(0, m, 290):  # more than a chunk of the machine code, and than a tile
                rows, columns = slice(top, min(top + 13, n)), slice(left, min(left + 290, m))
                scale = self.scale[rows].to(device(backend))
                sides = (moved(x, rows, columns) for x in (self.ids, self.excluded, self.limits))
                pairs = Pairs(scale, top - left, *sides)
                yield rows, columns, self.values[rows, columns].contiguous().to(device(backend)), pairs

    @property
    def rounding(self) -> float:
        """What the rounding of a cost becomes, where nothing gives it back."""
        return EPS[self.dtype] * float(self.costs.max()) if ROUNDED[self.dtype] else 0.0

    @property
    def tiny(self) -> float:
        """A few hundred numbers below the normal ones, which may be 0."""
        return 1e-35 if self.dtype == torch.float32 else 1e-305

    def allowed(self, size: Tensor | float, instructions: int = 8) -> Tensor | float:
        """Of numbers of a size: the rounding of an exponent, and a few others."""
        return (
            (EXPONENT[self.dtype] + 8) * EPS[self.dtype] + documented(instructions, self.backend) + self.rounding
        ) * size


def inputs(function):
    function = given(
        seed=st.integers(0, 2**31),
        n=st.integers(1, 30),
        m=st.integers(1, 600),
        kind=st.sampled_from(["diagonal", "ids", "exclude", "limits"]),
        scale=st.sampled_from([0.1, 10.0, 1e4, 1e6]),
    )(settings(max_examples=examples(10 if INTERPRETED else 25))(function))
    return pytest.mark.parametrize(("backend", "dtype"), CASES)(function)


@inputs
def test_power_sums(backend, dtype, seed, n, m, kind, scale):
    """Log-sum-exps of both classes, the mean cost of positives and their number, of rows and of columns."""
    problem = Problem(backend, seed, n, m, kind, scale, dtype)
    counted = len(PowerSums._fields) if problem.smooth else len(PowerSums._fields) - 2
    both = torch.stack([portable.nothing(counted, n + m, torch.zeros((), device=device(backend)))] * 2)
    for number, (rows, columns, values, pairs) in enumerate(problem.blocks()):
        some = both[number % 2]  # as of two ranks
        functions(backend).add_powers(values, pairs, some[:, :n][:, rows], some[:, n:][:, columns])
    stats = portable.merged(*both)
    for found, dim in ((stats[:, :n], 1), (stats[:, n:], 0)):
        sums = PowerSums(*found.cpu())
        for part, nearest, total in (
            (problem.positive, sums.nearest, sums.total),
            (problem.negatives(dim), sums.nearest_negative, sums.total_negative),
        ):
            costs = torch.where(part, problem.costs, torch.inf)
            least, some = costs.amin(dim), part.any(dim)
            assert torch.equal(nearest == torch.inf, ~some)
            assert (total[~some] == 0).all()
            want = torch.logsumexp((least - costs.T).T if dim == 1 else least - costs, dim)[some]
            got = (torch.log(total) - (nearest - least))[some]
            assert ((got - want).abs() <= problem.allowed(1.0)).all()
        for part, nearest, spread, number in (
            (problem.positive, sums.nearest, sums.spread, sums.number),
            (problem.negatives(dim), sums.nearest_negative, sums.spread_negative, sums.number_negative),
        ):
            assert (spread is None) == (number is None) == (part is not problem.positive and not problem.smooth)
            if spread is None or number is None:
                continue
            some = part.any(dim)
            assert torch.equal(number, part.sum(dim).double())
            least = torch.where(part, problem.costs, torch.inf).amin(dim)
            apart = torch.where(part, problem.costs - least.unsqueeze(dim), 0).sum(dim)[some]
            got = (spread + number * (nearest - least))[some]
            # the nearest cost moves while blocks come
            assert ((got - apart).abs() <= problem.allowed(number[some] * (1 + apart))).all()


@inputs
def test_sigmoid_losses(backend, dtype, seed, n, m, kind, scale):
    problem = Problem(backend, seed, n, m, kind, scale, dtype)
    bias = torch.tensor(scale, dtype=dtype)
    losses = torch.zeros(n, dtype=torch.float64, device=device(backend))
    for rows, _, values, pairs in problem.blocks():
        functions(backend).add_sigmoid(values, pairs, bias.to(device(backend)), losses[rows])
    logits = bias.double() - problem.costs
    signed = torch.where(problem.positive, -logits, logits)
    each = torch.where(problem.positive | problem.negative, F.softplus(signed, threshold=700), 0)
    assert ((losses.cpu() - each.sum(1)).abs() <= problem.allowed(each.sum(1)) + problem.tiny).all()


def weights_of(problem: Problem, dim: int) -> Weights:
    """Nearest costs as they are, and factors of any sign."""
    size, g = problem.shape[1 - dim], problem.generator
    factors = torch.randn(4, size, generator=g, dtype=torch.float64).to(problem.dtype)
    nearest = [
        torch.where(part, problem.costs, torch.inf).amin(dim).to(problem.dtype).double()
        for part in (problem.positive, problem.negatives(dim))
    ]
    nearest = [torch.where(x == torch.inf, 0, x) for x in nearest]
    return Weights(*nearest, *(factors if problem.smooth else factors[:3]))


@inputs
def test_softmax_gradients(backend, dtype, seed, n, m, kind, scale):
    problem = Problem(backend, seed, n, m, kind, scale, dtype)
    both = [weights_of(problem, dim) for dim in (1, 0)]
    of_rows, of_columns = (weights.each(lambda x: x.to(device(backend))) for weights in both)
    for symmetric in (True, False):
        found = torch.full((n, m), torch.nan, dtype=dtype)
        sums = torch.zeros(2, n, dtype=torch.float64, device=device(backend))
        for rows, columns, values, pairs in problem.blocks():
            out = torch.empty_like(values)
            own = of_columns.of(columns) if symmetric else None
            functions(backend).softmax_gradients(values, pairs, of_rows.of(rows), own, out, sums[:, rows])
            found[rows, columns] = out.cpu()
        slopes, size = torch.zeros(2, n, m, dtype=torch.float64)
        for weights, dim in list(zip(both, (1, 0), strict=True))[: 1 + symmetric]:
            none = torch.zeros_like(weights.constant)
            every = (none if x is None else x for x in weights)
            near, near_negative, positive, constant, negative, other = (x.double().unsqueeze(dim) for x in every)
            apart = torch.where(problem.positive, near, near_negative) - problem.costs
            powers = torch.exp(torch.where(problem.positive | problem.negatives(dim), apart, -torch.inf))
            other = other * problem.negatives(dim)
            slopes += torch.where(problem.positive, positive * powers - constant, negative * powers - other)
            of_negative = negative.abs() * powers + other.abs()
            size += torch.where(problem.positive, positive.abs() * powers + constant.abs(), of_negative)
        check_gradients(problem, found, sums, slopes, size)


@inputs
def test_sigmoid_gradients(backend, dtype, seed, n, m, kind, scale):
    problem = Problem(backend, seed, n, m, kind, scale, dtype)
    bias = torch.tensor(scale, dtype=dtype)
    upstream = problem.upstream[0, :n].to(dtype)
    found = torch.full((n, m), torch.nan, dtype=dtype)
    sums = torch.zeros(2, n, dtype=torch.float64, device=device(backend))
    for rows, columns, values, pairs in problem.blocks():
        out, grad = torch.empty_like(values), upstream[rows].to(device(backend))
        functions(backend).sigmoid_gradients(values, pairs, bias.to(device(backend)), grad, out, sums[:, rows])
        found[rows, columns] = out.cpu()
    logits = bias.double() - problem.costs
    slopes = torch.where(problem.positive, -torch.sigmoid(-logits), torch.sigmoid(logits))
    slopes = torch.where(problem.positive | problem.negative, slopes, 0) * upstream.double()[:, None]
    check_gradients(problem, found, sums, slopes, slopes.abs())


def check_gradients(problem: Problem, found: Tensor, sums: Tensor, slopes: Tensor, size: Tensor) -> None:
    """dL / d distance of each pair, and the sums of dL/dlogit with and without the distance."""
    scale, values = problem.scale.double()[:, None], problem.values.double()
    assert ((found.double() + scale * slopes).abs() <= problem.allowed(scale * size) + problem.tiny * scale).all()
    for got, factor in zip(sums.cpu(), (values, torch.ones_like(values)), strict=True):
        want = (slopes * factor).sum(1)
        assert ((got - want).abs() <= problem.allowed((size * factor).sum(1)) + problem.tiny).all()


@pytest.mark.skipif(("native", torch.float32) not in CASES, reason="the package was installed without a compiler")
def test_power_sums_have_the_same_bits_on_any_number_of_threads():
    """Columns go in narrower chunks to more threads."""
    generator, before = torch.Generator().manual_seed(0), torch.get_num_threads()
    values, scale = 3 * torch.rand(40, 301, generator=generator), 1 + torch.rand(40, generator=generator)
    ids = torch.arange(40) // 3, torch.arange(301) // 3

    def sums(threads):
        torch.set_num_threads(threads)
        found = portable.nothing(len(PowerSums._fields), 341, torch.zeros(()))
        native.add_powers(values, Pairs(scale, positives=ids), found[:, :40], found[:, 40:])
        return found

    try:
        alone, *others = [sums(threads) for threads in (1, 3, 9)]
    finally:
        torch.set_num_threads(before)
    assert (alone[0, 40:160] < torch.inf).any()
    assert all(torch.equal(alone, other) for other in others)
