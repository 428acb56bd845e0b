"""Geodesic distance on the hyperboloid of curvature -c, row by row and for all pairs.

    H = sinh^2(delta/2) + sinh p sinh q sin^2(theta/2)          d = (2/sqrt c) asinh(sqrt H)

the haversine formula of hyperbolic geometry, on differences that carry no cancellation (``pair``). The gradients are
written out, because automatic differentiation of the formula divides 0 by 0 at coincident points; they are themselves
differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels.reference import pair as pairs
from hyperst_kernels.reference.scalars import asinh, tanh_defect


def distance(x: Tensor, y: Tensor, c: Tensor, input: str = "lorentz") -> Tensor:
    """Distance of each row of x to the same row of y, (... d), (... d) -> (...)."""
    return _Distance.apply(x, y, c, input == "tangent")


def distance0(x: Tensor, c: Tensor, input: str = "lorentz") -> Tensor:
    """Distance from the origin, (... d) -> (...)."""
    norm = pairs.norm(x).squeeze(-1)
    return norm if input == "tangent" else radius(norm, c)


def radius(norm: Tensor, c: Tensor) -> Tensor:
    """asinh(sqrt(c) |x|) / sqrt(c) from |x|, of any shape."""
    return _Radius.apply(norm, c)


def pairwise_distance(x: Tensor, y: Tensor, c: Tensor, input: str = "lorentz") -> Tensor:
    """Distance of every row of x to every row of y, (n d), (m d) -> (n m), through n m d differences."""
    shape = (x.shape[0], y.shape[0], x.shape[1])
    return distance(x[:, None].expand(shape), y[None].expand(shape), c, input)


def inner(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """Lorentzian inner product of points, -(1 + 2H)/c: (... d), (... d) -> (...)."""
    return _Inner.apply(x, y, c)


def haversine(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """H = sinh^2(sqrt(c) d / 2) for points: (... d), (... d) -> (...). Differentiable everywhere."""
    return _Haversine.apply(x, y, c)


def near_or_far(x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether H < 1 (... 1), then H, which has a slope where points coincide, and else D = sqrt(c) d: H may not fit.

    Where the other is to be taken, H is 0 and D some number that has a slope.
    """
    near = pairs.root_of_points(pairs.compare(x.detach(), y.detach()), c.detach()) < 1
    H = haversine(torch.where(near, x, torch.zeros_like(x)), torch.where(near, y, torch.zeros_like(y)), c)
    D = c.sqrt() * distance(torch.where(near, torch.ones_like(x), x), torch.where(near, -torch.ones_like(y), y), c)
    return near, H[..., None], D[..., None]


class _Radius(torch.autograd.Function):
    """The slope by c is the difference of tanh p and p, which cancels near the origin."""

    generate_vmap_rule = True

    @staticmethod
    def forward(norm: Tensor, c: Tensor) -> Tensor:
        return asinh(c.sqrt() * norm) / c.sqrt()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        norm, c = ctx.saved_tensors
        X = c.sqrt() * norm
        dc = tanh_defect(asinh(X)) / (2 * c * c.sqrt())
        total = (grad * dc).sum(dtype=torch.float64).to(c.dtype) if ctx.needs_input_grad[1] else None
        return grad / torch.hypot(torch.ones_like(X), X), total


class _Slopes:
    """dd/dp, dd/dq and the weights along the chord, from quantities scaled by e^-D so that nothing overflows.

    A = (sinh delta + 2 s cosh p sinh q) / sinh D        B = sinh p sinh q / sinh D        (D = sqrt(c) d)
    """

    def __init__(self, pair: pairs.Pair, rapidity: pairs.Rapidity):
        p, q, delta = rapidity
        self.D = 2 * pairs.half_distance(rapidity, pair.half_chord)
        self.apart = self.D != 0
        D = torch.where(self.apart, self.D, torch.ones_like(self.D))
        sinh_D = -torch.expm1(-2 * D) / 2  # every hyperbolic function below carries the factor e^-itself
        sinh_p, sinh_q = -torch.expm1(-2 * p) / 2, -torch.expm1(-2 * q) / 2
        cosh_p, cosh_q = (1 + torch.exp(-2 * p)) / 2, (1 + torch.exp(-2 * q)) / 2
        radial = -torch.sign(delta) * torch.exp(delta.abs() - D) * torch.expm1(-2 * delta.abs()) / 2
        # e^((p+q-D)/2), once for each factor of s = half_chord^2; capped where numbers end
        self.root_growth = torch.exp(((p + q - D) / 2).clamp(max=pairs.largest_exponent(D.dtype)))
        spread = 2 * (pair.half_chord * self.root_growth) ** 2
        zero = torch.zeros_like(D)
        self.A = torch.where(self.apart, (radial + spread * cosh_p * sinh_q) / sinh_D, zero)
        self.A_other = torch.where(self.apart, (-radial + spread * cosh_q * sinh_p) / sinh_D, zero)
        # B / sinh p and B / sinh q times e^(D-p-q): the growth is multiplied in later, half at a time
        self.q_weight = torch.where(self.apart, sinh_q / sinh_D, zero)
        self.p_weight = torch.where(self.apart, sinh_p / sinh_D, zero)
        self.sinh_p, self.sinh_q = sinh_p, sinh_q
        self.half_chord = pair.half_chord

    def vector(self, A: Tensor, weight: Tensor, direction: Tensor, chord: Tensor) -> Tensor:
        """A a + B (e - 2 s a), B = weight e^(p+q-D): the gradient as a vector along direction a and chord e."""
        growth = self.root_growth
        along = A - 2 * weight * (self.half_chord * growth) ** 2
        return along * direction + (weight * growth) * (growth * chord)


def _sinhc_scaled(p: Tensor) -> Tensor:
    """e^-p sinh(p) / p."""
    safe = torch.where(p == 0, torch.ones_like(p), p)
    return torch.where(p == 0, torch.ones_like(p), -torch.expm1(-2 * safe) / (2 * safe))


def _curvature_slope_of_tangents(pair: pairs.Pair, rapidity: pairs.Rapidity, slopes: _Slopes, c: Tensor) -> Tensor:
    """dd/dc at fixed tangent vectors: (|u| A + |v| A' - d) / 2c, by its series where that cancels."""
    p, q, delta = rapidity
    k = c.sqrt()
    closed = (p * slopes.A + q * slopes.A_other - slopes.D) / (2 * c * k)
    # the closed form cancels from here on, the series is good to 5e-4 at 0.3 and 1e-5 at 0.03
    small = torch.maximum(p, q) < (0.3 if p.dtype == torch.float32 else 0.03)
    p, q, delta, D = (torch.where(small, z, torch.zeros_like(z)) for z in (p, q, delta, slopes.D))
    u1, u2 = delta**2, D**2
    m1 = ((u1 + u2) / 4 + (u1**2 + u1 * u2 + u2**2) / 36) / (0.5 + (u1 + u2) / 24)
    m2 = (u1**2 + u1 * u2 + u2**2) / 3
    m3 = (u1 + u2) * (u1**2 + u2**2) / 4
    bracket = (p**2 + q**2 - m1) / 3 - (p**4 + q**4 - m2) / 45 + 2 * (p**6 + q**6 - m3) / 945
    sinh_D = torch.sinh(D)
    usable = small & slopes.apart & (sinh_D > 0)
    ratio = torch.sinh(p) * torch.sinh(q) / torch.where(usable, sinh_D, torch.ones_like(D))
    series = pair.half_chord**2 * ratio * bracket / (c * k)
    return torch.where(small, torch.where(usable, series, torch.zeros_like(D)), closed)


class _Distance(torch.autograd.Function):
    """Row-wise distance with the gradients of tangent vectors (or points) and of the curvature written out."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, c: Tensor, tangent: bool) -> Tensor:
        pair = pairs.compare(x, y)
        rapidity = (pairs.rapidity_of_tangents if tangent else pairs.rapidity_of_points)(pair, c)
        return (2 / c.sqrt() * pairs.half_distance(rapidity, pair.half_chord)).squeeze(-1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, y, c, ctx.tangent = inputs
        ctx.save_for_backward(x, y, c)

    @staticmethod
    def backward(ctx, grad):
        x, y, c = ctx.saved_tensors
        dx, dy, dc = distance_gradients(x, y, c, ctx.tangent)
        grad = grad[..., None]
        total = (grad * dc).sum(dtype=torch.float64).to(c.dtype) if ctx.needs_input_grad[2] else None
        return grad * dx, grad * dy, total, None


def distance_gradients(x: Tensor, y: Tensor, c: Tensor, tangent: bool) -> tuple[Tensor, Tensor, Tensor]:
    """dd/dx (... d), dd/dy (... d) and dd/dc (... 1) for each row; zero where the points coincide."""
    pair = pairs.compare(x, y)
    rapidity = (pairs.rapidity_of_tangents if tangent else pairs.rapidity_of_points)(pair, c)
    slopes = _Slopes(pair, rapidity)
    p, q, _ = rapidity
    dc = _curvature_slope_of_tangents(pair, rapidity, slopes, c)
    if tangent:
        dx = slopes.vector(slopes.A, slopes.q_weight * _sinhc_scaled(p), pair.a, pair.e)
        dy = slopes.vector(slopes.A_other, slopes.p_weight * _sinhc_scaled(q), pair.b, -pair.e)
    else:
        # |x| = sinh(p)/sqrt(c): radial slopes are divided by cosh, tangential ones by sinh instead of the norm
        dx = slopes.vector(slopes.A / torch.cosh(p), slopes.q_weight * torch.exp(-p), pair.a, pair.e)
        dy = slopes.vector(slopes.A_other / torch.cosh(q), slopes.p_weight * torch.exp(-q), pair.b, -pair.e)
        dc = dc + (slopes.A * tanh_defect(p) + slopes.A_other * tanh_defect(q)) / (2 * c * c.sqrt())
    return dx, dy, dc


class _Haversine(torch.autograd.Function):
    """H of points. Its gradient is polynomial in the points up to their times, so it is smooth where points coincide."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        pair = pairs.compare(x, y)
        return (pairs.root_of_points(pair, c) ** 2).squeeze(-1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, y, c = ctx.saved_tensors
        to_x, to_y, _, radial = _haversine_gradient(x, y, c)
        dc = (haversine(x, y, c) - radial.squeeze(-1) / 4) / c
        total = (grad * dc).sum(dtype=torch.float64).to(c.dtype) if ctx.needs_input_grad[2] else None
        grad = (c / 2 * grad)[..., None]
        return grad * to_x, grad * to_y, total


class _Inner(torch.autograd.Function):
    """<x, y>_L = -(1 + 2H)/c = <x, y> - x_t y_t, differentiated in the second form: H is huge far out, these slopes not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        root = pairs.root_of_points(pairs.compare(x, y), c).squeeze(-1) / c.sqrt()  # of which the square fits
        return -1 / c - 2 * root * root

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, y, c = ctx.saved_tensors
        to_x, to_y, times, _ = _haversine_gradient(x, y, c)
        dc = (times + 1 / times).squeeze(-1) / (2 * c * c)
        total = (grad * dc).sum(dtype=torch.float64).to(c.dtype) if ctx.needs_input_grad[2] else None
        return -grad[..., None] * to_x, -grad[..., None] * to_y, total


def _haversine_gradient(x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y_t/x_t) x - y and (x_t/y_t) y - x, dH = c/2 of these; y_t/x_t and (y_t - x_t)^2 / (x_t y_t) (... 1).

    As (sinh(p - q) / cosh p) a + sinh(q) e, where nothing cancels. At fixed points dH/dc = (H - (y_t - x_t)^2 / (4 x_t y_t)) / c.
    """
    k, pair = c.sqrt(), pairs.compare(x, y)
    X, Y, cosh_p, cosh_q, sinh_delta = pairs.hyperbolic(pair, c)
    gap = -k * pair.r * ((X + Y) / (cosh_p + cosh_q))
    to_x = (sinh_delta / cosh_p * pair.a + Y * pair.e) / k
    to_y = (-sinh_delta / cosh_q * pair.b - X * pair.e) / k
    if torch.is_grad_enabled():  # the direction of the origin has no derivative, and there nothing cancels
        at_origin = (X == 0) | (Y == 0)
        to_x = torch.where(at_origin, cosh_q / cosh_p * x - y, to_x)
        to_y = torch.where(at_origin, cosh_p / cosh_q * y - x, to_y)
    return to_x, to_y, cosh_q / cosh_p, (gap / cosh_p) * (gap / cosh_q)
