"""Variants of the entailment loss, put together from the angle and the aperture: each is a line of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyperst_kernels import entailment_loss, exterior_angle, half_aperture


def leaky(
    parent: Tensor, child: Tensor, c: float | Tensor, eta: float = 1.0, leak: float = 0.1, min_radius: float = 0.1
) -> Tensor:
    """A hinge that leaks: a child inside the cone is still drawn towards its axis, ``leak`` times as strongly as one outside.

    Tangent vectors (n, d) to (n,). It is negative inside; at ``leak=0`` it is ``entailment_loss``, which is one launch.
    """
    angle = exterior_angle(parent, child, c, input="tangent")
    aperture = half_aperture(parent, c, min_radius=min_radius, input="tangent")
    return F.leaky_relu(angle - eta * aperture, leak)


def weighted_angle(parent: Tensor, child: Tensor, c: float | Tensor, weights: Tensor) -> Tensor:
    """The mean angle itself, with no aperture: ``weights`` (n,) >= 0 say how much each pair counts. 0-d.

    No cone, hence no width to choose and no pairs without a gradient; every child is drawn to the axis of its parent.
    """
    angle = exterior_angle(parent, child, c, input="tangent")
    return (weights * angle).sum() / weights.sum()


class UncertainEntailment(nn.Module):
    """Relations that are as strict as they turn out to be: each has a learnt scale of its violations.

    ``forward`` takes tangent vectors (n, d) of parents and children by relation, and returns the 0-d sum over relations of
    loss / sigma + log sigma, which is least at sigma = loss: a relation that the data do not keep to loses its weight. It is the
    likelihood of a Laplace distribution; Kendall and Gal (2017) weight losses so.
    """

    def __init__(self, relations: tuple[str, ...], eta: float = 1.0, smallest: float = 1e-2):
        super().__init__()
        self.log_sigma = nn.ParameterDict({name: nn.Parameter(torch.zeros(1)) for name in relations})
        self.eta, self.smallest = eta, smallest

    def forward(self, relations: dict[str, tuple[Tensor, Tensor]], c: float | Tensor) -> Tensor:
        total = torch.zeros(())
        for name, (parent, child) in relations.items():
            loss = entailment_loss(parent, child, c, eta=self.eta, input="tangent")
            sigma = self.log_sigma[name].exp().squeeze() + self.smallest  # a relation that is kept to would go to 0
            total = total.to(loss) + loss / sigma + sigma.log()
        return total
