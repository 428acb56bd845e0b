"""Every public callable under torch.func: grad, jacrev, vmap and their compositions, against plain autograd, or an error."""

from __future__ import annotations

import contextlib
import re
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

import hyperst_kernels as hk
from tests.kernels.backends import DEVICE
from tests.kernels.public import CALLS, uncalled

# operators of all pairs have a backward pass of their own, which is not differentiated again
ONCE = (
    "pairwise_",
    "similarity",
    "contrastive_loss",
    "hierarchical",
    "Hierarchical",
    "HyperbolicContrastiveLoss",
)


REFUSED = r"\w+ has no derivative in forward mode AD: take torch.func.jacrev in place of .* and jacrev\(jacrev\(f\)\) in place"


def inputs_of(name: str, n: int = 3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [x.detach().to(DEVICE) for x in CALLS[name].inputs(n, dtype)]


def summed(name: str):
    return lambda *given: CALLS[name].function(*given).sum()


def autograd(name: str, given: list[Tensor]) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in given]
    return torch.autograd.grad(summed(name)(*leaves), leaves, allow_unused=True, materialize_grads=True)


def close(got, want) -> None:
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-10)


def test_every_public_callable_is_called():
    assert not uncalled()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # the second has machine code
@pytest.mark.parametrize("name", CALLS)
def test_grad(name, dtype):
    given = inputs_of(name, dtype=dtype)
    found, want = grad(summed(name), tuple(range(len(given))))(*given), autograd(name, given)
    if dtype == torch.float64:
        close(found, want)
    else:  # with the same steps
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CALLS)
def test_jacrev(name):
    given = inputs_of(name)
    size = CALLS[name].function(*given).numel()
    jacobians = jacrev(CALLS[name].function, tuple(range(len(given))))(*given)
    close(tuple(J.reshape(size, *x.shape).sum(0) for J, x in zip(jacobians, given, strict=True)), autograd(name, given))


@pytest.mark.parametrize("geometry", ["euclidean", "cosine"])
def test_every_row_of_a_jacobian(geometry):
    """jacrev(torch.cdist) gives the rows of one entry to another."""
    x, y = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def similarities(x: Tensor) -> Tensor:
        return hk.similarity(x, y, geometry=geometry)

    close(jacrev(similarities)(x), torch.autograd.functional.jacobian(similarities, x))
    close(vmap(jacrev(similarities))(x[None])[0], torch.autograd.functional.jacobian(similarities, x))
    close(vmap(vmap(jacrev(similarities)))(x[None, None])[0, 0], torch.autograd.functional.jacobian(similarities, x))


@pytest.mark.parametrize("geometry", ["euclidean", "cosine"])
@pytest.mark.parametrize("reference", [False, True])
def test_second_derivatives_of_flat_similarities(geometry, reference):
    """Also of coincident vectors, of whose cosine the second derivative is not 0."""
    x, y = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if geometry == "cosine":
        y[1] = 2 * x[1]
    given = (x.requires_grad_(), y.requires_grad_())
    with hk.use_reference() if reference else contextlib.nullcontext():
        function = partial(hk.similarity, geometry=geometry)
        assert torch.autograd.gradgradcheck(function, given)
        assert torch.autograd.gradcheck(lambda x, y: grad(lambda x: function(x, y).square().sum())(x), given)
        H = jacrev(jacrev(lambda x: function(x, y).square().sum()))(x)
        close(H, torch.autograd.functional.hessian(lambda x: function(x, y).square().sum(), x))


@pytest.mark.parametrize("name", CALLS)
def test_vmap(name):
    """Of values and of gradients, over all arguments, and over the first alone."""
    given = inputs_of(name)
    every, function = tuple(range(len(given))), CALLS[name].function
    batch = [torch.stack([x, 0.9 * x, 1.1 * x], dim=x.ndim) for x in given]
    samples = [[x.select(-1, i) for x in batch] for i in range(3)]
    close(vmap(function, -1)(*batch), torch.stack([function(*sample) for sample in samples]))
    grads = vmap(grad(summed(name), every), -1)(*batch)
    close(grads, tuple(torch.stack(each) for each in zip(*(autograd(name, s) for s in samples), strict=True)))
    got = vmap(function, (-1, *(None,) * (len(given) - 1)))(batch[0], *given[1:])
    close(got, torch.stack([function(sample[0], *given[1:]) for sample in samples]))


@pytest.mark.triton
@pytest.mark.any_arithmetic
@pytest.mark.parametrize("name", ["distance-tangent", "pairwise_distance-tangent", "contrastive_loss-tangent"])
def test_vmap_of_kernels(name):
    test_vmap(name)


@pytest.mark.parametrize("name", CALLS)
def test_gradients_of_a_vmap(name):
    given = inputs_of(name)
    batch = [torch.stack([x, 0.9 * x]).requires_grad_() for x in given]
    got = torch.autograd.grad(
        vmap(CALLS[name].function)(*batch).sum(), batch, allow_unused=True, materialize_grads=True
    )
    samples = [autograd(name, [x.detach()[i] for x in batch]) for i in range(2)]
    close(got, tuple(torch.stack(each) for each in zip(*samples, strict=True)))


@pytest.mark.parametrize("name", CALLS)
def test_a_second_derivative_is_right_or_refused(name):
    given = inputs_of(name)

    def along(x: Tensor, *rest: Tensor) -> Tensor:
        return (grad(summed(name))(x, *rest) * x).sum()

    if name.startswith(ONCE) and name not in ("similarity-euclidean", "similarity-cosine"):
        with pytest.raises(NotImplementedError, match=r"no second derivative: .*use_reference\(\)"):
            grad(along)(*given)
        with hk.use_reference():
            second = grad(along)(*given)
    else:
        second = grad(along)(*given)
    step = torch.zeros_like(given[0])
    step[0, 0] = 1e-5
    with hk.use_reference():
        numerical = (along(given[0] + step, *given[1:]) - along(given[0] - step, *given[1:])) / 2e-5
    torch.testing.assert_close(second[0, 0], numerical, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CALLS)
def test_a_forward_derivative_of_float32_is_right_or_refused(name):
    """Where there is machine code, which must not be given what torch.func wraps."""
    given = inputs_of(name, dtype=torch.float32)
    want = sum(g.sum() for g in autograd(name, given))
    slope, refused = want, ""
    try:
        _, slope = jvp(summed(name), tuple(given), tuple(torch.ones_like(x) for x in given))
    except NotImplementedError as error:
        refused = str(error)
    assert not refused or re.match(REFUSED, refused)
    torch.testing.assert_close(slope, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CALLS)
def test_a_forward_derivative_is_right_or_refused(name):
    given = inputs_of(name)
    want, refused = sum(g.sum() for g in autograd(name, given)), ""
    for block in (contextlib.nullcontext(), hk.use_reference()):
        with block:
            try:
                _, slope = jvp(summed(name), tuple(given), tuple(torch.ones_like(x) for x in given))
                close(slope, want)
            except NotImplementedError as error:
                refused = str(error)
            assert not refused or re.match(REFUSED, refused)
            try:
                H = hessian(summed(name))(*given)
                close(H, jacrev(jacrev(summed(name)))(*given))
            except NotImplementedError as error:
                refused = str(error)
            assert not refused or re.match(REFUSED, refused)


def test_gradients_of_each_sample():
    """The pattern of differential privacy and influence: per-sample gradients of a module's parameters."""
    lift = hk.LorentzLift(4, output="tangent").double()
    parameters = {name: p.detach() for name, p in lift.named_parameters()}
    image, gene = torch.randn(2, 5, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(parameters, x, y):
        queries = functional_call(lift, parameters, (x, "image"))
        keys = functional_call(lift, parameters, (y, "gene"))
        return hk.contrastive_loss(queries, keys, parameters["log_curvature"].exp(), 5.0)

    each = vmap(grad(loss), (None, 0, 0))(parameters, image, gene)
    for i in range(5):
        close({name: g[i] for name, g in each.items()}, grad(loss)(parameters, image[i], gene[i]))


def test_rows_have_hessians_in_reverse():
    x, y, c = inputs_of("distance-tangent", 1)
    H = jacrev(jacrev(lambda v: hk.distance(v, y, c, input="tangent").sum()))(x)
    assert torch.isfinite(H).all()
    with pytest.raises(NotImplementedError, match="forward mode AD"):
        hessian(lambda v: hk.distance(v, y, c, input="tangent").sum())(x)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="vmap of pairwise_distance needs at least one sample"):
        vmap(hk.pairwise_distance)(torch.ones(0, 2, 3), torch.ones(0, 2, 3))
