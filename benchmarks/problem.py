"""A problem: inputs that all providers share, and one step (forward, backward) of each provider on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

import hyperst_kernels as hk

OURS = "ours"
Function = Callable[..., Tensor]


class Step:
    """``forward()`` gives the value of a function of the inputs, ``backward()`` their gradients after it."""

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self.function = function
        self.leaves = [x.detach().requires_grad_() for x in inputs]
        self.value: Tensor | None = None
        self.upstream: Tensor | None = None

    def forward(self) -> Tensor:
        self.value = self.function(*self.leaves)
        return self.value

    def backward(self) -> tuple[Tensor | None, ...]:
        """Under the same random upstream gradient for every provider; an input that a provider ignores has None."""
        value, self.value = self.value, None
        assert value is not None
        if self.upstream is None:
            chosen = (
                torch.rand(value.shape, generator=torch.Generator().manual_seed(1)) if value.ndim else torch.ones(())
            )
            self.upstream = chosen.to(value)
        return torch.autograd.grad(value, self.leaves, self.upstream, allow_unused=True)


@dataclass
class Problem:
    """Inputs, and for each provider a factory of its function of them, which raises ImportError where it is not installed.

    ``other`` names the providers that compute something else on the same shapes (a floor, another geometry): they
    have a speed, but no error.
    """

    inputs: list[Tensor]
    factories: dict[str, Callable[[], Function]]
    other: tuple[str, ...] = ()

    def step(self, provider: str) -> Step:
        return Step(self.factories[provider](), self.inputs)

    def exact(self) -> Step:
        """Ours in float64, through the reference mathematics, which the tests hold against mpmath."""

        function = self.factories[OURS]()

        def referred(*leaves: Tensor) -> Tensor:
            with hk.use_reference():
                return function(*leaves)

        return Step(referred, [x.double() for x in self.inputs])


def pairs(
    n: int,
    d: int,
    radius: float = 1.0,
    separation: float = 1.0,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Tangent vectors u, v (n d): |u| = radius, |u - v| = separation |u|, in random directions."""
    generator = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(n, d, generator=generator), dim=1) for _ in range(2))
    return tuple(x.to(device=device, dtype=dtype) for x in (radius * a, radius * (a + separation * b)))  # type: ignore[return-value]
