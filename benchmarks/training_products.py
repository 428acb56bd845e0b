"""The matrix products of a training step: listed, counted, and multiplied alone; and what TRIPLEX would multiply.

TRIPLEX (Chung et al., CVPR 2024) has no package and calls an attention that needs a GPU, so that it has not been run: its
operations are counted from its layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hyperst.model import HyperST

PUBLISHED, RELEASED = "TRIPLEX, 512 wide", "TRIPLEX, 1024 wide"


class Product(NamedTuple):
    """One call of a linear layer: (rows, n_in) times (n_in, n_out), and its gradients of weights and, maybe, of its input."""

    rows: int
    n_in: int
    n_out: int
    input_gradient: bool

    @property
    def flops(self) -> int:
        """Multiplications and additions, forward and backward."""
        return 2 * self.rows * self.n_in * self.n_out * (2 + self.input_gradient)


def products(model: HyperST, batch: dict[str, Tensor]) -> list[Product]:
    """Products of a training step on precomputed features, in the order of the forward pass.

    Those of batch x batch distances are left out: they are below a hundredth of these.
    """
    found: list[Product] = []

    def note(layer: nn.Linear, given: tuple[Tensor], output: Tensor) -> None:
        found.append(Product(len(given[0]), layer.in_features, layer.out_features, given[0].requires_grad))

    hooks = [layer.register_forward_hook(note) for layer in model.modules() if isinstance(layer, nn.Linear)]
    model(batch)
    for hook in hooks:
        hook.remove()
    return found


class Multiplications:
    """The products on memory of their own, as a step has them: forward in order, then backward."""

    def __init__(self, listed: Sequence[Product]) -> None:
        self._operands = []
        for rows, n_in, n_out, input_gradient in listed:
            x, weight, y = torch.randn(rows, n_in), torch.randn(n_out, n_in), torch.empty(rows, n_out)
            to_x = torch.empty_like(x) if input_gradient else None
            self._operands.append((x, weight, y, to_x, torch.randn_like(y), torch.empty_like(weight)))

    def steps(self, number: int) -> None:
        """Multiply each ``number`` times."""
        for _ in range(number):
            for x, weight, y, *_ in self._operands:
                torch.mm(x, weight.T, out=y)
            for x, weight, _, to_x, gradient, to_weight in reversed(self._operands):
                torch.mm(gradient.T, x, out=to_weight)
                if to_x is not None:
                    torch.mm(gradient, weight, out=to_x)


@dataclass(frozen=True)
class Triplex:
    """Sizes of TRIPLEX: depths and widths of its transformers' layers, as in the configurations of its repository.

    Attributes:
        width: of all tokens.
        fusion, whole, neighbours: layers of the encoders that fuse, that see all spots of a section, and that see the 25 patches
            around a spot.
        mlp: width of the layers' hidden units over ``width``.
        projected: whether a linear layer brings the ResNet's 512 channels to ``width``.
    """

    width: int
    fusion: int
    whole: int
    neighbours: int
    mlp: int
    projected: bool

    def flops(self, section_spots: Sequence[int], batch: int, genes: int) -> float:
        """Multiplications and additions of a step of training for each of its spots.

        Every product is done forward, and backward for weights and input; the image has no gradient. In each step the encoder
        of whole sections sees all spots of each section that has a spot in the batch: all of ``section_spots``. Its depthwise
        convolution is left out, a thousandth.
        """
        d, target, around = self.width, 49, 25
        stem, rest = resnet18(224)
        own = rest + (target * 512 * d if self.projected else 0) + self.neighbours * self._layer(around)
        own += sum(self.fusion * self._cross(tokens) for tokens in (target, around)) + 4 * d * genes
        shared = sum(self.whole * self._layer(spots) for spots in section_spots)
        return 2 * (2 * stem + 3 * own + 3 * shared / batch)

    def _layer(self, tokens: int) -> int:
        """Multiplications of self-attention and perceptron."""
        d = self.width
        return tokens * (4 + 2 * self.mlp) * d * d + 2 * tokens * tokens * d

    def _cross(self, tokens: int) -> int:
        """Multiplications of attention of one token to others, and of its perceptron."""
        d = self.width
        return (2 + 2 * tokens + 2 * self.mlp) * d * d + 2 * tokens * d


TRIPLEX = {PUBLISHED: Triplex(512, 1, 5, 4, 4, False), RELEASED: Triplex(1024, 2, 2, 4, 2, True)}
"""config/her2st of the repository's first year, and config/ST/andersson with UNI's features."""


def resnet18(side: int) -> tuple[int, int]:
    """Multiplications of ResNet-18's first convolution and of all others, on an image of ``side`` px.

    >>> f"{sum(resnet18(224)) / 1e9:.2f}"
    '1.81'
    """
    rest = 4 * 9 * 64 * 64 * (side // 4) ** 2
    for stage, (n_in, n_out) in enumerate(pairwise((64, 128, 256, 512))):
        rest += (9 * n_in + 3 * 9 * n_out + n_in) * n_out * (side // (8 << stage)) ** 2
    return 49 * 3 * 64 * (side // 2) ** 2, rest
