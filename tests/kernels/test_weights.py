"""Weights of samples: what each kind of them gives, or the error that names them."""

from __future__ import annotations

import pytest
import torch

import hyperst_kernels as hk


def loss(weights: torch.Tensor | None, reduction: str = "mean") -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the gradient of its queries."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    value = hk.contrastive_loss(x, y, 0.7, 5.0, weights=weights, reduction=reduction)
    return value, torch.autograd.grad(value.sum(), x)[0]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("reference", [False, True])
def test_a_fully_masked_set_has_no_loss_and_no_gradient(reduction, reference):
    if reference:
        with hk.use_reference():
            value, grad = loss(torch.zeros(5), reduction)
    else:
        value, grad = loss(torch.zeros(5), reduction)
    assert not value.any()
    assert not grad.any()


def test_a_fully_masked_term_does_not_poison_the_others():
    x = torch.eye(4).requires_grad_()
    masked = hk.contrastive_loss(x, 2 * x, weights=torch.zeros(4))
    other = hk.contrastive_loss(x, 2 * x)
    grad, want = (torch.autograd.grad(total, x, retain_graph=True)[0] for total in (masked + other, other))
    assert torch.equal(grad, want)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.bfloat16, torch.float64])
def test_a_mask_of_any_real_dtype(kind):
    mask = torch.tensor([1, 0, 1, 1, 0])
    each, _ = loss(None, "none")
    torch.testing.assert_close(loss(mask.to(kind))[0], each[mask.bool()].mean())


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        (torch.tensor([1.0, 1, -0.5, 1, 1]), ValueError, "weights must be finite and 0 or more, got -0.5 at index 2"),
        (
            torch.tensor([1.0, torch.nan, 1, 1, 1]),
            ValueError,
            "weights must be finite and 0 or more, got nan at index 1",
        ),
        (
            torch.tensor([1.0, 1, 1, 1, torch.inf]),
            ValueError,
            "weights must be finite and 0 or more, got inf at index 4",
        ),
        (torch.ones(4), ValueError, r"weights must have shape \(5,\), one for each sample, got \(4,\)"),
        (torch.ones(5, 1), ValueError, r"weights must have shape \(5,\), one for each sample, got \(5, 1\)"),
        (torch.ones(1, 5), ValueError, r"weights must have shape \(5,\)"),
        (torch.tensor(1.0), ValueError, r"weights must have shape \(5,\), one for each sample, got \(\)"),
        (torch.ones(5, dtype=torch.complex64), TypeError, "weights must be a real torch.Tensor, got torch.complex64"),
        ([1.0] * 5, TypeError, "weights must be a real torch.Tensor, got list"),
    ],
)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_errors_name_the_weights(weights, error, words, reduction):
    with pytest.raises(error, match=words):
        loss(weights, reduction)


def test_negative_weights_are_nan_where_nobody_looks():
    """As NaN itself, under torch.compile."""
    weighted = torch.compile(lambda x, w: hk.contrastive_loss(x, 2 * x, weights=w), backend="eager", fullgraph=True)
    assert weighted(torch.eye(3), torch.tensor([1.0, -1.0, 1.0])).isnan()
    assert weighted(torch.eye(3), torch.zeros(3)) == 0


@pytest.mark.parametrize("reduction", ["loss", "centroid"])
def test_negative_weights_are_nan_in_every_function(reduction):
    """One rule for the loss and the centroid, under torch.compile and torch.func.vmap."""
    x = torch.eye(3)

    def value(w: torch.Tensor) -> torch.Tensor:
        return hk.contrastive_loss(x, 2 * x, weights=w) if reduction == "loss" else hk.centroid(x, weights=w)

    compiled = torch.compile(value, backend="eager", fullgraph=True)
    for weights in (-torch.ones(3), torch.tensor([1, -1, 1]), torch.tensor([1.0, torch.nan, 1.0])):
        assert compiled(weights).isnan().all()
        assert torch.func.vmap(value)(weights[None]).isnan().all()
    mask = torch.tensor([True, False, True])
    torch.testing.assert_close(compiled(mask), value(mask))


@pytest.mark.parametrize(
    "weights",
    [
        torch.full((5,), 3e38),
        torch.full((5,), 1e-45),
        torch.full((5,), 1e-40, dtype=torch.bfloat16),
        torch.full((5,), 1e300, dtype=torch.float64),
        torch.full((5,), 1e-300, dtype=torch.float64),
        torch.full((5,), 5e-324, dtype=torch.float64),
        torch.full((5,), 2**62),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_the_ratios_of_weights_count(weights, dtype):
    x, y = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    want = hk.contrastive_loss(x, y, 0.7, 5.0)
    torch.testing.assert_close(hk.contrastive_loss(x, y, 0.7, 5.0, weights=weights), want)
    uneven = weights * torch.tensor([1, 0, 1, 1, 0])
    kept = hk.contrastive_loss(x, y, 0.7, 5.0, reduction="none")[uneven > 0].mean()
    torch.testing.assert_close(hk.contrastive_loss(x, y, 0.7, 5.0, weights=uneven), kept)


def test_the_gradient_of_weights():
    x, y = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.rand(5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    for reduction in ("mean", "sum", "none"):
        assert torch.autograd.gradcheck(
            lambda w, r=reduction: hk.contrastive_loss(x, y, weights=w, reduction=r), weights
        )


@pytest.mark.parametrize("function", ["loss", "centroid"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
def test_weights_are_real_numbers(function, dtype):
    x, weights = torch.eye(3), torch.ones(3).to(dtype)
    with pytest.raises(TypeError, match=f"weights must be a real torch.Tensor, got {dtype}"):
        hk.contrastive_loss(x, x, weights=weights) if function == "loss" else hk.centroid(x, weights=weights)
