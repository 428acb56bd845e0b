"""Geodesic distances of the Lorentz model, accurate where the textbook acosh form is noise. See `docs/explanation/distance.md`.

``input="lorentz"``: points by space components; ``input="tangent"``: tangent vectors at the origin. Errors raised are
those of `hyperst_kernels.maps`.
"""

from __future__ import annotations

from torch import Tensor

from hyperst_kernels import _checks
from hyperst_kernels._constants import INPUTS, LOSS_GEOMETRIES, PRECISIONS
from hyperst_kernels.entailment import pairwise_exterior_angle
from hyperst_kernels.operators import distance as operators
from hyperst_kernels.operators.register import in_reverse
from hyperst_kernels.reference import flat


def inner(x: Tensor, y: Tensor, c: float | Tensor = 1.0) -> Tensor:
    """Lorentzian inner product <x, y> - x_t y_t of points: (..., d), (..., d) -> (...), at most -1/c.

    >>> import torch
    >>> inner(torch.zeros(3), torch.zeros(3), c=2.0)
    tensor(-0.5000)
    """
    c, (x, y) = _checks.prepare(c, x=x, y=y)
    return operators.inner(x, y, c)


def distance(x: Tensor, y: Tensor, c: float | Tensor = 1.0, *, input: str = "lorentz") -> Tensor:
    """Geodesic distance of matching rows: (..., d), (..., d) -> (...).

    Relative error about 1e-6 in float32 at any separation, up to ``sqrt(c) |v|`` = 354 of both; beyond, the right value or
    NaN. Gradients are finite wherever the value is, and 0 for coincident points. Points that fit into their dtype have no
    such limit.

    >>> import torch
    >>> v = torch.tensor([0.6, 0.8, 0.0])
    >>> distance(v, torch.tensor([0.3, -0.4, 1.2]), input="tangent")
    tensor(1.8493)
    """
    _checks.choice("input", input, INPUTS)
    c, (x, y) = _checks.prepare(c, x=x, y=y)
    return operators.distance(x, y, c, input == "tangent")


def distance0(x: Tensor, c: float | Tensor = 1.0, *, input: str = "lorentz") -> Tensor:
    """Distance from the origin: (..., d) -> (...).

    >>> import torch
    >>> distance0(torch.tensor([3.0, 4.0]), input="tangent")
    tensor(5.)
    """
    _checks.choice("input", input, INPUTS)
    c, (x,) = _checks.prepare(c, x=x)
    return operators.distance0(x, c, input == "tangent")


def pairwise_distance(
    x: Tensor, y: Tensor, c: float | Tensor = 1.0, *, input: str = "lorentz", precision: str | None = None
) -> Tensor:
    """Distance of every row of x to every row of y: (N, d), (M, d) -> (N, M).

    A tiled matrix product, so the relative error is some 1e-5 where the points are apart, and 5e-5 at most in "ieee";
    entries whose product has cancelled (near neighbours, duplicates) are recomputed from differences, also in the
    gradient. A distance is right or, where products of points do not fit, NaN: on the CPU from ``sqrt(c) |v|`` = 355 of
    either on, on a GPU where the sum of the two is over 88 in float32 and 709 in float64.

    ``precision`` names the product a GPU kernel uses for float32: "bf16x3" (default; several times faster than "ieee", and
    off by 1e-6 to 1e-5 in the median and 5e-5 to 5e-4 at worst, the less the more features there are), "ieee", "tf32"
    (error 5e-3) or "bf16". Half-precision inputs are exact in one product.

    >>> import torch
    >>> pairwise_distance(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [3.0, 4.0]]), input="tangent")
    tensor([[0., 5.]])
    """
    return _geodesic(c, input, precision, x=x, y=y)


def similarity(
    queries: Tensor, keys: Tensor, c: float | Tensor = 1.0, *, input: str = "tangent", geometry: str = "lorentz"
) -> Tensor:
    """Minus the distance, (N, d), (M, d) -> (N, M): what retrieval and zero-shot evaluation should rank by.

    Ranking by the dot product, as CLIP code does, is not the order the hyperbolic loss was trained for. ``geometry`` is that
    of the loss: "lorentz" (geodesic distance), "euclidean", "cosine" (the distance is 1 - cosine, and a zero vector is at
    1 from everything) or "angle" (the exterior angle at the query); "euclidean" and "cosine" use neither c nor ``input``.
    Euclidean distances below 1e-22 of the largest number of all are lost to 0 in float32.

    >>> import torch
    >>> similarity(torch.zeros(1, 2), torch.tensor([[0.1, 0.0], [3.0, 4.0]])).argmax(1)
    tensor([0])
    """
    _checks.choice("input", input, INPUTS)
    _checks.choice("geometry", geometry, LOSS_GEOMETRIES)
    if geometry == "angle":
        x, y = _checks.matrices(queries=queries, keys=keys)
        return -pairwise_exterior_angle(x, y, c, input=input)
    if geometry == "lorentz":
        return -_geodesic(c, input, None, queries=queries, keys=keys)
    x, y = _checks.matrices(queries=queries, keys=keys)
    apart = flat.pairwise_euclidean if geometry == "euclidean" else flat.pairwise_cosine
    wide = (t.to(_checks.geometry_dtype(t)) for t in (x, y))
    return -in_reverse("similarity", apart, *wide).to(x.dtype)


def _geodesic(c: float | Tensor, input: str, precision: str | None, **named: Tensor) -> Tensor:
    """`pairwise_distance` of two matrices by the names under which they were given."""
    _checks.choice("input", input, INPUTS)
    if precision is not None:
        _checks.choice("precision", precision, PRECISIONS)
    x, y = _checks.matrices(**named)
    c = _checks.positive("c", c, x, _checks.geometry_dtype(x))
    return operators.pairwise_distance(x, y, c, input == "tangent", precision or "bf16x3").to(x.dtype)
