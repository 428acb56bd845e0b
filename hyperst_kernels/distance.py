"""Geodesic distances of the Lorentz model, accurate where the textbook acosh form is noise. See `docs/distance.md`.

``input="lorentz"``: points by space components; ``input="tangent"``: tangent vectors at the origin. Errors raised are
those of `hyperst_kernels.maps`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels import _checks, operators

INPUTS = ("tangent", "lorentz")
PRECISIONS = ("ieee", "bf16x3", "tf32", "bf16")


def inner(x: Tensor, y: Tensor, c: float | Tensor = 1.0) -> Tensor:
    """Lorentzian inner product <x, y> - x_t y_t of points: (..., d), (..., d) -> (...), at most -1/c.

    >>> import torch
    >>> inner(torch.zeros(3), torch.zeros(3), c=2.0)
    tensor(-0.5000)
    """
    c, (x, y) = _checks.prepare(c, x=x, y=y)
    return operators.row_wise("inner", x, y, c)


def distance(x: Tensor, y: Tensor, c: float | Tensor = 1.0, *, input: str = "lorentz") -> Tensor:
    """Geodesic distance of matching rows: (..., d), (..., d) -> (...).

    Relative error about 1e-6 in float32 at any separation and radius; gradients are finite everywhere, and 0 for
    coincident points.

    >>> import torch
    >>> v = torch.tensor([0.6, 0.8, 0.0])
    >>> distance(v, torch.tensor([0.3, -0.4, 1.2]), input="tangent")
    tensor(1.8493)
    """
    _checks.choice("input", input, INPUTS)
    c, (x, y) = _checks.prepare(c, x=x, y=y)
    return operators.row_wise("distance", x, y, c, input == "tangent")


def distance0(x: Tensor, c: float | Tensor = 1.0, *, input: str = "lorentz") -> Tensor:
    """Distance from the origin: (..., d) -> (...).

    >>> import torch
    >>> distance0(torch.tensor([3.0, 4.0]), input="tangent")
    tensor(5.)
    """
    _checks.choice("input", input, INPUTS)
    c, (x,) = _checks.prepare(c, x=x)
    return operators.row_wise("distance0", x, c, input == "tangent")


def pairwise_distance(
    x: Tensor, y: Tensor, c: float | Tensor = 1.0, *, input: str = "lorentz", precision: str | None = None
) -> Tensor:
    """Distance of every row of x to every row of y: (N, d), (M, d) -> (N, M).

    A tiled matrix product, so the relative error is some 1e-5 where the points are apart; entries whose product has
    cancelled (near neighbours, duplicates) are recomputed from differences, also in the gradient.

    ``precision`` names the product a GPU kernel uses for float32: "bf16x3" (default; as good as "ieee" to 1e-5 and
    several times faster), "ieee", "tf32" (error 5e-3) or "bf16". Half-precision inputs are exact in one product.

    >>> import torch
    >>> pairwise_distance(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [3.0, 4.0]]), input="tangent")
    tensor([[0., 5.]])
    """
    _checks.choice("input", input, INPUTS)
    if precision is not None:
        _checks.choice("precision", precision, PRECISIONS)
    for name, points in (("x", x), ("y", y)):
        _checks.features(name, points, matrix=True)
        _checks.finite(name, points)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must have the same number of features, got {tuple(x.shape)} and {tuple(y.shape)}")
    dtype = torch.promote_types(x.dtype, y.dtype)
    c = _checks.positive("c", c, x, _checks.geometry_dtype(x, y))
    matrix = operators.pairwise_distance(x.to(dtype), y.to(dtype), c, input == "tangent", precision or "bf16x3")
    return matrix.to(dtype)


def similarity(queries: Tensor, keys: Tensor, c: float | Tensor = 1.0, *, input: str = "tangent") -> Tensor:
    """Minus the geodesic distance, (N, d), (M, d) -> (N, M): what retrieval and zero-shot evaluation should rank by.

    Ranking by the dot product, as CLIP code does, is not the order the hyperbolic loss was trained for.

    >>> import torch
    >>> similarity(torch.zeros(1, 2), torch.tensor([[0.1, 0.0], [3.0, 4.0]])).argmax(1)
    tensor([0])
    """
    return -pairwise_distance(queries, keys, c, input=input)
