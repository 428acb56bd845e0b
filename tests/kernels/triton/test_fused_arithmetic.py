"""What rounding hides and fused or approximate arithmetic shows: each fault that was once found, with its right value.

In "contracted" and "approximate" arithmetic (``tests.kernels.arithmetic``), on executed PTX, or on a GPU.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from hyperst_kernels.reference.contrastive import Pairing
from tests.kernels.triton.test_contrastive_kernel import (
    EPS,
    VARIANTS,
    assert_close,
    exactly,
    fused,
    moved_by_product,
    views,
)
from tests.kernels.triton.test_hierarchy import exactly as hierarchy_exactly
from tests.kernels.triton.test_hierarchy import fused as hierarchy_fused

C = 0.8
FLOAT64 = pytest.param(torch.float64, marks=pytest.mark.any_arithmetic)  # it has one


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, FLOAT64])
def test_a_batch_of_one_pair(dtype, variant):
    """No negatives: the loss is 0 and so is every gradient."""
    queries, keys = views(1, 1, 5, 0, 1.0, "tangent", dtype)
    for found in fused(queries, keys, 14.0, torch.ones(2, 1), variant):
        assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_query_of_five_keys(variant):
    queries, keys = views(1, 5, 5, 0, 1.0, "tangent")
    upstream = torch.ones(2, 1)
    exact, moved = (compute(queries, keys, 50.0, upstream) for compute in (exactly, moved_by_product))
    assert_close(fused(queries, keys, 50.0, upstream, variant), exact, moved, 50.0, 1.0, upstream)


@pytest.mark.parametrize("scale", [1.0, 10.0, 50.0, 100.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_that_start_without_a_participating_pair(variant, scale):
    """Sorted ids: 96 pairs of each of two classes, none a negative of its own."""
    queries, keys = views(192, 192, 5, 0, 1.0, "tangent")
    upstream = torch.randn(2, 192, generator=torch.Generator().manual_seed(1))
    options = {"exclude_ids": torch.arange(192) // 96}
    exact, moved = (compute(queries, keys, scale, upstream, **options) for compute in (exactly, moved_by_product))
    assert_close(fused(queries, keys, scale, upstream, variant, **options), exact, moved, scale, 1.0, upstream)


@pytest.mark.parametrize("variant", VARIANTS)
def test_near_pairs_beside_the_origin(variant):
    """At radius 1e-6 all of z is below what a power of its logarithm errs by."""
    queries, keys = views(40, 60, 8, 3, 1e-6, "tangent")
    upstream = torch.randn(2, 40, generator=torch.Generator().manual_seed(1))
    exact, moved = (compute(queries, keys, 14.0, upstream) for compute in (exactly, moved_by_product))
    assert_close(fused(queries, keys, 14.0, upstream, variant), exact, moved, 14.0, 1e-6, upstream)


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, FLOAT64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_rows_with_a_factor(variant, dtype, geometry):
    """Positives that coincide have slope 0, whatever the factor: here that of feature 3, .7, on both sides."""
    g = torch.Generator().manual_seed(0)
    same = torch.randn(6, 9, generator=g, dtype=dtype)
    vectors = [torch.zeros(6, 9, dtype=dtype)] * 3 + [same]
    found = hierarchy_fused(vectors, [Pairing(3, 3, True)], 1, variant, geometry)
    exact = hierarchy_exactly(vectors, [Pairing(3, 3, True)], 1, geometry)
    rounding = 64 * 14 * (EPS if dtype == torch.float32 else 2.0**-52)
    pull = 2 * 2.0**-13 if variant == "blocks" and dtype == torch.float32 else 0
    got, want = found[5], exact[5]
    assert (got - want).norm(dim=1).max() <= (rounding + pull) * want.norm(dim=1).max()


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, FLOAT64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_negatives_with_a_factor(variant, dtype, geometry):
    """All rows of a feature are one: every distance is 0, and no direction but noise could come out."""
    same = torch.randn(1, 9, generator=torch.Generator().manual_seed(0), dtype=dtype).expand(40, 9)
    vectors = [torch.zeros(40, 9, dtype=dtype)] * 3 + [same]
    found = hierarchy_fused(vectors, [Pairing(3, 3, True)], 1, variant, geometry)
    torch.testing.assert_close(found[0], torch.full_like(found[0], math.log(40)))
    assert torch.equal(found[5], torch.zeros_like(found[5]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_that_pad_a_tile(variant):
    """70 rows in tiles of 64: a row that is not there has no weight, also where its products overflow."""
    queries, keys = views(70, 70, 5, 0, 5.0, "lorentz")
    upstream = torch.randn(2, 70, generator=torch.Generator().manual_seed(1))
    exact = exactly(queries, keys, 14.0, upstream, input="lorentz")
    moved = [
        exactly(torch.nextafter(queries, 2 * queries), keys, 14.0, upstream, input="lorentz"),
        exactly(queries, torch.nextafter(keys, 2 * keys), 14.0, upstream, input="lorentz"),
        *moved_by_product(queries, keys, 14.0, upstream, input="lorentz"),
    ]
    assert_close(fused(queries, keys, 14.0, upstream, variant, input="lorentz"), exact, moved, 14.0, 5.0, upstream)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_product_that_overflows_is_not_an_excluded_pair(variant):
    """Radius 50: cosh of the distance is beyond float32, the loss is NaN or right, and not 0."""
    g = torch.Generator().manual_seed(0)
    queries, keys = (50 * F.normalize(torch.randn(40, 8, generator=g), dim=1) for _ in range(2))
    queries, keys = (
        (C**-0.5 * torch.sinh(x.norm(dim=1, keepdim=True)) * F.normalize(x, dim=1)) for x in (queries, keys)
    )
    rows, columns, *_ = fused(queries, keys, 1.0, torch.ones(2, 40), variant, input="lorentz")
    exact = exactly(queries, keys, 1.0, torch.ones(2, 40), input="lorentz")
    for got, want in zip((rows, columns), exact[:2], strict=True):
        assert (got.isnan() | ((got - want).abs() <= 1e-3 * want.abs())).all()
