"""Float32 features as two bf16 numbers each, made once a pass: what a product in "bf16x3" is taken of."""

from __future__ import annotations

import pytest
import torch

from hyperst_kernels.gpu import contrastive as kernels
from hyperst_kernels.gpu import launch
from hyperst_kernels.gpu.contrastive import backward_blocks
from hyperst_kernels.gpu.contrastive.inputs import CANCELLED, LossInputs
from tests.kernels.halves import moved_losses
from tests.kernels.triton import DEVICE, INTERPRETED
from tests.kernels.triton.test_contrastive_kernel import BLOCK, PAIR, assert_close, exactly, fused, views

SCALE = 14.0


@pytest.fixture(autouse=True)
def _halves_in_any_arithmetic(monkeypatch):
    """Split features enter products of their own, which the interpreter has in every mode."""
    monkeypatch.setattr(launch, "INTERPRETED_PRODUCTS", ("ieee", "bf16x3"))


def prepared(features, precision="bf16x3", parts=None):
    one = torch.ones((), device=DEVICE)
    return LossInputs(features, None, one, one, None, PAIR, "lorentz", True, precision, parts)


@pytest.mark.parametrize("d", [1, 17, 40])
def test_halves_add_up_to_the_features(d):
    """Of rows however they lie, to within the digits of two bf16 numbers; zeros follow."""
    x = torch.randn(d, 70, generator=torch.Generator().manual_seed(0)).to(DEVICE).T
    inputs = prepared([x, x[:1].contiguous().expand(90, d)])
    for side, vectors in zip(inputs.sides, (x, x[:1].expand(90, d)), strict=True):
        high, low = side.halves.float().chunk(2, 1)
        assert torch.equal(high[:, :d], vectors.bfloat16().float())
        assert ((high + low)[:, :d] - vectors).abs().le(2.0**-17 * vectors.abs()).all()
        assert not torch.cat([high[:, d:], low[:, d:]]).any()
        assert side.halves.shape[1] % (2 * inputs.table["inner"]) == 0


def test_only_products_of_halves_take_them():
    x = [torch.ones(3, 8, device=DEVICE)] * 2
    assert all(side.halves is not None for side in prepared(x).sides)
    assert all(side.halves is None for side in prepared(x, "ieee").sides)
    assert all(side.halves is None for side in prepared(x, "bf16").sides)
    assert all(side.halves is None for side in prepared([v.bfloat16() for v in x]).sides)
    assert all(side.halves is None for side in prepared(x, parts=torch.float32).sides)  # by rows


@pytest.mark.parametrize(("d", "radius", "directions"), [(3, 1.0, "both"), (40, 5.0, "rows"), (130, 1e-2, "both")])
def test_loss_and_gradients(d, radius, directions, monkeypatch):
    """In strips of keys and blocks of weights, with near pairs and far ones, beside the float64 reference."""
    monkeypatch.setattr(kernels, "WORKSPACE", 1)
    monkeypatch.setattr(backward_blocks, "BLOCK", BLOCK)
    queries, keys = views(70, 100, d, 0, radius, "tangent")
    g = torch.Generator().manual_seed(1)
    upstream, ids = torch.randn(2, 70, generator=g), torch.randint(0, 10, (100,), generator=g)
    options = {"directions": directions, "exclude_ids": ids if directions == "rows" else None}

    def exact(x, y):
        return exactly(x, y, SCALE, upstream, **options)

    found = fused(queries, keys, SCALE, upstream, **options)
    moved = [
        exact(torch.nextafter(queries, torch.full_like(queries, torch.inf)), keys),
        exact(queries, torch.nextafter(keys, torch.full_like(keys, -torch.inf))),
        *moved_losses(lambda: exact(queries, keys), CANCELLED[torch.float32]),
    ]
    assert_close(found, exact(queries, keys), moved, SCALE, radius, upstream)
    again = fused(queries, keys, SCALE, upstream, **options)
    assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True))


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter takes the plain product as it is")
def test_features_that_bf16_holds_lose_nothing():
    """Their second halves are zeros: the loss is that of the plain product, bit by bit."""
    queries, keys = (x.bfloat16().float() for x in views(40, 70, 33, 2, 1.0, "tangent"))
    plain, split = (
        kernels.forward([queries, keys], None, *torch.tensor([1.0, SCALE]), None, PAIR, "lorentz", True, precision)
        for precision in ("ieee", "bf16x3")
    )
    for x, y in zip(plain, split, strict=True):
        assert torch.equal(x, y)
