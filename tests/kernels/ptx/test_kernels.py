"""Row-wise operators, hinges and the matrix of distances on executed PTX: values, gradients, and nothing found wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.cases import CASES, ROW_WISE, Case, angle_slopes, aperture_slope, tangents
from hyperst_kernels.operators.entailment import reference_hinges
from hyperst_kernels.operators.register import ops
from tests.kernels import float32
from tests.kernels import test_distance_matrix as pairwise
from tests.kernels.ptx.launch import running
from tests.kernels.triton import test_smoke as smoke

SHAPES = [
    (1, 1, torch.float32), (5, 3, torch.float32), (7, 33, torch.float32), (6, 130, torch.bfloat16), (5, 9, torch.float64),
]  # fmt: skip
LARGEST = 3.0  # radius
EPS = {torch.bfloat16: torch.finfo(torch.float32).eps} | {
    dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64)
}  # of what is computed in
size = float32.size


def hinges_of(compute):
    """The hinges of two relations, in both directions, with weights."""

    def hinges(x, y, c, *flags):
        first, second = compute([x, y], [y, x], c, *flags)
        return first + second / 2

    return hinges


def slopes_of_hinges(x, y):
    return [turn + 2 * aperture_slope(True, v)[0] for turn, v in zip(angle_slopes(x, y), (x, y), strict=True)]


HINGES = Case("hinges", tangents, flags=([0.7, 1.2], 0.1, True), absolute=1e-5, slopes=slopes_of_hinges)
COMPUTED = {name: ROW_WISE[case.operator].operator for name, case in CASES.items()} | {
    "hinges": hinges_of(ops.entailment_hinges)
}


@pytest.fixture
def _references(monkeypatch):
    portable = hinges_of(reference_hinges)
    monkeypatch.setitem(ROW_WISE, "hinges", replace(ROW_WISE["distance"], portable=portable))


@pytest.mark.usefixtures("_references")
@pytest.mark.parametrize(("n", "d", "dtype"), SHAPES)
@pytest.mark.parametrize("name", COMPUTED)
def test_rows(name, n, d, dtype):
    """Within the error of the formulas, what an ulp of the inputs changes, and the rounding of results."""
    case = {**CASES, "hinges": HINGES}[name]
    inputs = case.inputs(n, d, 1, LARGEST, dtype)
    shape = ROW_WISE[case.operator].portable(*inputs, *case.flags).shape
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    with running() as run:
        value, grads = float32.run(COMPUTED[name], case, inputs, upstream)
    wide = [x.float() if dtype == torch.bfloat16 else x for x in inputs]
    upstream = upstream.to(wide[0].dtype)
    exact, exact_grads = float32.reference(case, wide, upstream)
    # an ulp from the origin, in float64, is a number whose square is 0: it tells nothing
    known = [x.nan_to_num(0) for x in float32.uncertainty(case, wide, upstream, exact, exact_grads)]
    vectors = [x.double() for x in wide if x.ndim == 2]
    eps, rounded = EPS[dtype], torch.finfo(dtype).eps / 2
    results = 2 if name == "hinges" else 1  # gradients of two relations are rounded, and so is their sum
    ulps = eps / EPS[torch.float32]
    rounding = 8 * eps * case.terms(*vectors) + case.absolute * ulps + known[0]
    assert torch.isfinite(value).all()
    assert (size(value - exact) <= (4 * eps * (1 + LARGEST) + rounded) * size(exact) + rounding).all()
    for i, (got, want) in enumerate(zip(grads, exact_grads, strict=True)):
        assert torch.isfinite(got).all()
        if got.ndim == 0:  # a sum over rows that may cancel
            scale, rounding = float32.sum_of_shares(case, wide, upstream, i), 0
            along = [(x * g).sum(1).abs() for x, g in zip(wide, exact_grads, strict=True) if g.ndim]
            rounding = 4 * eps * float((size(upstream * exact) + sum(along)).sum() / wide[i])
        else:
            scale, rounding = (
                size(want),
                8 * eps * size(upstream) * case.slopes(*vectors)[i] + results * rounded * size(want),
            )
        tiny = torch.finfo(torch.float32).tiny
        assert (size(got - want) <= case.gradient(LARGEST) * ulps * scale + rounding + known[i + 1] + tiny).all(), i
    assert not run.findings


# of distances and of gradients, at unit radius: what cancels may take 6 bits of the error of a product, a root halves it
PRECISIONS = {"ieee": 2.0**-16, "bf16x3": 2.0**-11, "tf32": 2.0**-5, "bf16": 0.1}
PAIRS = [
    *((1, 1, 1, torch.float32, "bf16x3"), (1, 70, 3, torch.float32, "bf16x3"), (70, 1, 24, torch.float32, "bf16x3")),
    *((35, 66, 24, torch.float32, precision) for precision in PRECISIONS),
    *((35, 66, 24, dtype, "ieee") for dtype in (torch.bfloat16, torch.float16, torch.float64)),
    (130, 66, 3, torch.float32, "bf16x3"),
]


@pytest.mark.parametrize("tangent", [True, False])
@pytest.mark.parametrize(("n", "m", "d", "dtype", "precision"), PAIRS)
def test_matrix_of_distances(n, m, d, dtype, precision, tangent):
    """Of points apart, near, equal, opposite and at the origin."""
    if not tangent and (dtype, precision) != (torch.float32, "bf16x3"):
        pytest.skip("of points: in one precision")
    x, y = pairwise.sides(n, m, d, 0, 1.0, tangent, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    upstream = torch.randn(n, m, generator=torch.Generator().manual_seed(0), dtype=wide)
    c = torch.tensor(pairwise.C, dtype=wide)
    leaves = [t.clone().requires_grad_() for t in (x, y, c)]
    with running() as run:
        matrix = ops.pairwise_distance(*leaves, tangent, precision)
        grads = torch.autograd.grad(matrix, leaves, upstream)
    exact, *exact_grads = pairwise.exactly(x, y, upstream, tangent)
    bound = 1e-9 if dtype == torch.float64 else PRECISIONS[precision]
    # one ulp of an input
    others = [
        pairwise.exactly(torch.nextafter(x.to(wide), torch.full_like(x.to(wide), torch.inf)), y, upstream, tangent),
        pairwise.exactly(x, torch.nextafter(y.to(wide), torch.full_like(y.to(wide), torch.inf)), upstream, tangent),
    ]
    known = 2 * torch.stack([(other[0] - exact).abs() for other in others]).amax(0)
    coarse = bound * (precision == "bf16")  # of numbers that are rounded before
    assert torch.isfinite(matrix).all()
    assert ((matrix - exact).abs() <= bound * exact + coarse + known).all()
    rounded = torch.finfo(dtype).eps
    for i in (0, 1):
        assert torch.isfinite(grads[i]).all()
        change = 2 * torch.stack([(other[i + 1] - exact_grads[i]).norm(dim=1) for other in others]).amax(0)
        norms, pulls = exact_grads[i].norm(dim=1), upstream.abs().sum(1 - i)
        scale = norms.clamp(min=float(norms.max()) / 10) + pulls / 10
        off = (grads[i] - exact_grads[i]).norm(dim=1)
        assert (off <= bound * scale + coarse * pulls + rounded * norms + change).all(), i
    along = float((upstream * exact).abs().sum() / (2 * pairwise.C))
    change = 2 * max(float((other[3] - exact_grads[2]).abs()) for other in others)
    off = float((grads[2] - exact_grads[2]).abs())
    assert off <= bound * float(exact_grads[2].abs()) + (16 * EPS[wide] + coarse) * along + change
    assert not run.findings


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("geometry", ["lorentz", "angle"])
def test_losses_of_all_pairs(geometry, dtype, monkeypatch):
    monkeypatch.setattr(smoke, "N", 37)
    with running() as run:
        smoke.test_losses_of_all_pairs(geometry, dtype)
    assert not run.findings
