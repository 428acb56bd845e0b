"""A picture of hyperbolic space: points of many dimensions in the Poincare disk, their radii kept and their distances nearly."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels import pairwise_distance

__all__ = ["disk_layout", "distances_in_disk", "normalised_stress"]

_STEPS, _STEP = 80, 0.1
_SOFTENING = 1e-12  # of sinh^2 of half a distance


def disk_layout(tangent: Tensor, c: float) -> tuple[Tensor, float]:
    """Place tangent vectors at the origin (n d) in the unit disk, float64 (n 2), and return the stress beside the places.

    Each point keeps its distance rho from the origin, in units of the curvature's radius, and so stands at tanh(rho / 2); the
    aperture of a cone depends on nothing else. Its direction is free: it starts as that of the two largest principal directions,
    and Adam lessens the squared differences of all hyperbolic distances in 80 steps; the best are kept. No library was
    found that keeps radii.

    Args:
        c: the curvature is -c.

    >>> flat = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [-1.0, 1.0, 0.0]])
    >>> places, stress = disk_layout(flat, 1.0)
    >>> places.norm(dim=1).atanh().mul(2).round(decimals=4), stress < 1e-6
    (tensor([1.0000, 2.0000, 1.4142], dtype=torch.float64), True)
    """
    tangent = tangent.detach().double().cpu()
    radius = tangent.norm(dim=1) * c**0.5
    wanted = pairwise_distance(tangent, tangent, c, input="tangent") * c**0.5
    _, _, axes = torch.linalg.svd(tangent, full_matrices=False)
    flat = tangent @ axes[:2].T
    if flat.shape[1] < 2:
        flat = torch.nn.functional.pad(flat, (0, 1))
    angle = torch.atan2(flat[:, 1], flat[:, 0])
    free = angle.clone().requires_grad_()
    optimiser = torch.optim.Adam([free], _STEP)
    best, least = angle, normalised_stress(distances_in_disk(radius, angle), wanted)
    total = float((wanted**2).sum()) or 1.0
    for _ in range(_STEPS):
        optimiser.zero_grad()
        # softened: the root in a distance has no gradient where two points are one
        loss = ((distances_in_disk(radius, free, _SOFTENING) - wanted) ** 2).sum() / total
        if (stress := float(loss.detach()) ** 0.5) < least:
            best, least = free.detach().clone(), stress
        loss.backward()
        optimiser.step()
    least = normalised_stress(distances_in_disk(radius, best), wanted)
    return torch.tanh(radius / 2)[:, None] * torch.stack([best.cos(), best.sin()], dim=1), least


def distances_in_disk(radius: Tensor, angle: Tensor, softening: float = 0.0) -> Tensor:
    """Hyperbolic distances (n n), curvature -1, of points with polar coordinates ``radius`` and ``angle`` (n,).

    The law of cosines in half-angles: sinh^2(d / 2) = sinh^2((p - q) / 2) + sinh(p) sinh(q) sin^2(theta / 2). ``softening`` is
    added to it, so that points in one place have a gradient.
    """
    apart = radius[:, None] - radius
    turned = torch.sin((angle[:, None] - angle) / 2) ** 2
    sinh = radius.sinh()
    return 2 * torch.asinh(((apart / 2).sinh() ** 2 + sinh[:, None] * sinh * turned + softening).sqrt())


def normalised_stress(found: Tensor, wanted: Tensor) -> float:
    """Root of the summed squared differences of two distance matrices over the summed squares of ``wanted`` (Kruskal 1964).

    >>> normalised_stress(torch.zeros(2, 2), torch.ones(2, 2))
    1.0
    """
    total = float((wanted**2).sum())
    return (float(((found - wanted) ** 2).sum()) / total) ** 0.5 if total > 0 else 0.0
