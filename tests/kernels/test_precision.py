"""Products of float32 numbers are products of float32 numbers, whatever is set for the process; and it stays set."""

from __future__ import annotations

import pytest
import torch

from hyperst_kernels import contrastive_loss, pairwise_distance
from hyperst_kernels._precision import full_float32
from tests.kernels.backends import DEVICE

BACKENDS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


def together(precision):
    torch.set_float32_matmul_precision(precision)


def all_backends(precision):
    torch.backends.fp32_precision = precision


def one_by_one(cuda, mkldnn):
    for backend, precision in zip(BACKENDS, (cuda, mkldnn), strict=True):
        backend.fp32_precision = precision


SETTINGS = {
    "nothing": lambda: None,
    **{precision: lambda precision=precision: together(precision) for precision in ("highest", "high", "medium")},
    "all tf32": lambda: all_backends("tf32"),
    "all ieee": lambda: all_backends("ieee"),
    "tf32 and bf16": lambda: one_by_one("tf32", "bf16"),
    "ieee and bf16": lambda: one_by_one("ieee", "bf16"),
}


def state():
    return torch.backends.fp32_precision, *(backend.fp32_precision for backend in BACKENDS)


@pytest.fixture(params=SETTINGS)
def setting(request):
    """Each way in which a user may have set it."""
    before = state()
    SETTINGS[request.param]()
    yield state()
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = before[0]
    one_by_one(*before[1:])


def exact():
    """Whether a product now is one of float32 numbers: "none" takes over what is set for all backends."""
    inherited = torch.backends.fp32_precision
    return all((inherited if b.fp32_precision == "none" else b.fp32_precision) in ("ieee", "none") for b in BACKENDS)


def test_inside_and_after(setting):
    with full_float32():
        assert exact()
    assert state() == setting


def test_after_an_error(setting):
    with pytest.raises(ValueError, match="inside"), full_float32():
        raise ValueError("inside")
    assert state() == setting


@pytest.fixture
def products(monkeypatch):
    """For each library product of the test, inside operators too: whether it was exact."""
    found = []

    def asked(product):
        def multiply(*arguments, **options):
            found.append(exact())
            return product(*arguments, **options)

        return multiply

    for owner, name in ((torch, "mm"), (torch, "addmm"), (torch.Tensor, "addmm_"), (torch.Tensor, "__matmul__")):
        monkeypatch.setattr(owner, name, asked(getattr(owner, name)))
    return found


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: pairwise_distance(x, y, input="tangent").sum(),
        lambda x, y: contrastive_loss(x, y, input="tangent"),
        lambda x, y: contrastive_loss(x, y, input="tangent", geometry="euclidean"),
    ],
    ids=["pairwise_distance", "contrastive_loss", "euclidean"],
)
def test_products_of_operators(loss, setting, products):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(70, 9, generator=generator).to(DEVICE).requires_grad_() for _ in range(2))
    loss(x, y).backward()
    assert state() == setting
    assert products or DEVICE != "cpu"  # on a GPU all of them may be in kernels
    assert all(products)
