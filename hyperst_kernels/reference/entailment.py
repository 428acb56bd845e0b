"""Entailment cones: half-aperture, exterior angle, hinge loss (Le et al. 2019; Desai et al. 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hyperst_kernels.reference import pair as pairs
from hyperst_kernels.reference.scalars import sinhc


def half_aperture(x: Tensor, c: Tensor, min_radius: float = 0.1, input: str = "lorentz") -> Tensor:
    """asin(min(1, 2K / (sqrt(c) |x|))): (... d) -> (...).

    Written as atan2(2K, sqrt((X - 2K)(X + 2K))), whose float32 error does not blow up at the rim X = 2K. Inside it the
    angle is pi/2 and the gradient 0; just outside, the gradient -2K / (X sqrt(X^2 - 4K^2)) is unbounded.
    """
    norm = pairs.norm(x).squeeze(-1)
    p = c.sqrt() * norm
    X = p * sinhc(p**2) if input == "tangent" else p
    inside = 2 * min_radius >= X
    X = torch.where(inside, torch.full_like(X, 4 * min_radius), X)
    # at a distance the angle is its sine, and the square of X might not fit
    remote = 1e9 * min_radius < X
    near = torch.where(remote, torch.full_like(X, 4 * min_radius), X)
    rim = torch.sqrt(near - 2 * min_radius) * torch.sqrt(near + 2 * min_radius)
    # without sinh p or X, the squares of which its slopes have
    if input == "tangent":
        sine = -4 * min_radius * torch.exp(-p) / torch.expm1(-2 * p.clamp(min=1))
    else:
        sine = 2 * min_radius / c.sqrt() / torch.where(remote, norm, torch.ones_like(norm))
    angle = torch.where(remote, sine, torch.atan2(torch.full_like(X, 2 * min_radius), rim))
    return torch.where(inside, torch.full_like(X, math.pi / 2), angle)


def exterior_angle(x: Tensor, y: Tensor, c: Tensor, input: str = "lorentz") -> Tensor:
    """Angle at x between the outward ray from the origin and the geodesic to y: (... d), (... d) -> (...).

    atan2(sin(theta) sinh q, sinh(q - p) - 2 s cosh p sinh q). By convention pi/2 where x is the origin, and 0 where the
    points coincide: a child that equals its parent is inside the cone.
    """
    return _ExteriorAngle.apply(x, y, c, input == "tangent")


def pairwise_exterior_angle(x: Tensor, y: Tensor, c: Tensor, input: str = "lorentz") -> Tensor:
    """`exterior_angle` of every x with every y: (n d), (m d) -> (n m)."""
    shape = (x.shape[0], y.shape[0], x.shape[1])
    return exterior_angle(x[:, None].expand(shape), y[None].expand(shape), c, input)


def entailment_loss(
    parent: Tensor, child: Tensor, c: Tensor, eta: float = 1.0, min_radius: float = 0.1, input: str = "lorentz"
) -> Tensor:
    """max(0, ext(parent, child) - eta aper(parent)) for each row: (... d), (... d) -> (...)."""
    angle = exterior_angle(parent, child, c, input)
    return torch.relu(angle - eta * half_aperture(parent, c, min_radius, input))


def _sine(pair: pairs.Pair) -> Tensor:
    """sin(theta) = 2 sin(theta/2) cos(theta/2), both halves from chords: (... 1)."""
    half_sum = (torch.linalg.vector_norm(pair.a + pair.b, dim=-1, keepdim=True) / 2).clamp(max=1)
    return 2 * pair.half_chord * half_sum


class _ExteriorAngle(torch.autograd.Function):
    """The angle from arguments scaled by e^-q, so that a child far out does not overflow; its gradient written out."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, c: Tensor, tangent: bool) -> Tensor:
        pair = pairs.compare(x, y)
        p, q, delta = (pairs.rapidity_of_tangents if tangent else pairs.rapidity_of_points)(pair, c)
        sinh_q = -torch.expm1(-2 * q) / 2
        # sinh(q - p) e^-q
        radial = torch.sign(delta) * torch.exp(-p + 2 * delta.clamp(min=0)) * torch.expm1(-2 * delta.abs()) / 2
        turned = pair.half_chord * torch.cosh(p) * pair.half_chord  # the square of the chord alone may be no number
        across, along = _sine(pair) * sinh_q, radial - 2 * turned * sinh_q
        coincide = (across == 0) & (along == 0)  # there atan2 would go by the sign of a zero
        angle = torch.where(coincide, torch.zeros_like(along), torch.atan2(across, along))
        return torch.where(pair.norm_u == 0, torch.full_like(angle, math.pi / 2), angle).squeeze(-1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, y, c, ctx.tangent = inputs
        ctx.save_for_backward(x, y, c)

    @staticmethod
    def backward(ctx, grad):
        x, y, c = ctx.saved_tensors
        dx, dy, dc = angle_gradients(x, y, c, ctx.tangent)
        grad = grad[..., None]
        total = (grad * dc).sum(dtype=torch.float64).to(c.dtype) if ctx.needs_input_grad[2] else None
        return grad * dx, grad * dy, total, None


def _on_one_ray(pair: pairs.Pair, sine: Tensor) -> Tensor:
    """Whether theta is 0 or pi as far as rounding can tell: it leaves less than 2 eps of |u - v| / (|u| + |v|), the larger
    of these two within a factor of 2. Of two nearby points it leaves far less than eps, and their slopes are real."""
    apart = torch.maximum(pair.r.abs() / (pair.norm_u + pair.norm_v), pair.half_chord)
    return sine <= 4 * torch.finfo(sine.dtype).eps * apart


def _across(chord: Tensor, a: Tensor, pair: pairs.Pair, bent: Tensor) -> Tensor:
    """Unit vector across the ray a, along chord - 2 s a: what rounding leaves along a is taken out, for obtuse angles."""
    vector = chord - 2 * pair.half_chord**2 * a
    vector = vector - (vector * a).sum(-1, keepdim=True) * a
    vector = torch.where(bent, vector, a)  # any that has a direction
    length = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    return vector / torch.where(length == 0, torch.ones_like(length), length)


def angle_gradients(x: Tensor, y: Tensor, c: Tensor, tangent: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the exterior angle: along the rays through dphi/dp and dphi/dq, across them through dphi/dtheta.

    With D = sqrt(c) d:  dphi/dp = sin(phi) (1 + 2H) / sinh D,  dphi/dq = -sin(theta) sinh p / sinh^2 D,
    dphi/dtheta = sinh q (sinh(q - p) + 2 s cosh q sinh p) / sinh^2 D, and sin(phi) = sin(theta) sinh q / sinh D.
    Zero where the points coincide and where the parent is the origin (the angle is a convention there); where the two
    are on one ray (theta = 0 or pi, as far as rounded directions can tell) the angle has a kink, and its slope across the
    ray is taken as 0.
    """
    pair = pairs.compare(x, y)
    p, q, delta = (pairs.rapidity_of_tangents if tangent else pairs.rapidity_of_points)(pair, c)
    D = 2 * pairs.half_distance(pairs.Rapidity(p, q, delta), pair.half_chord)
    defined = (D != 0) & (pair.norm_u != 0)
    safe_D = torch.where(defined, D, torch.ones_like(D))
    sine, largest = _sine(pair), pairs.largest_exponent(D.dtype)
    sinh_D = -torch.expm1(-2 * safe_D) / 2  # scaled by e^-D; sinh_p, sinh_q, cosh_q likewise
    cosh_D = (1 + torch.exp(-2 * safe_D)) / 2
    sinh_p, sinh_q = -torch.expm1(-2 * p) / 2, -torch.expm1(-2 * q) / 2
    cosh_q = (1 + torch.exp(-2 * q)) / 2
    near_q, near_p = sinh_q / sinh_D, sinh_p / sinh_D  # the square may be no number
    dp = sine * near_q * torch.exp((q - safe_D).clamp(max=largest)) * cosh_D / sinh_D
    dq = -sine * near_p * torch.exp((p - 2 * safe_D).clamp(max=largest)) / sinh_D
    # e^(q-D) and e^(p+q-D) are split over the factors they multiply
    radial = torch.sign(delta) * torch.exp(delta.abs() - safe_D) * torch.expm1(-2 * delta.abs()) / 2
    growth = torch.exp(((p + q - safe_D) / 2).clamp(max=largest))
    across = radial + 2 * (pair.half_chord * growth) ** 2 * cosh_q * sinh_p
    dtheta = near_q * torch.exp((q - safe_D).clamp(max=largest)) * (across / sinh_D)
    dp, dq = (torch.where(defined, slope, torch.zeros_like(slope)) for slope in (dp, dq))
    bent = defined & ~_on_one_ray(pair, sine) & (pair.norm_v != 0)
    turn = torch.where(bent, dtheta, torch.zeros_like(dtheta))

    k = c.sqrt()
    across_x, across_y = _across(pair.e, pair.a, pair, bent), _across(-pair.e, pair.b, pair, bent)
    norms = [torch.where(n == 0, torch.ones_like(n), n) for n in (pair.norm_u, pair.norm_v)]
    if tangent:
        dx = k * dp * pair.a + turn / norms[0] * across_x
        dy = k * dq * pair.b + turn / norms[1] * across_y
        dc = (dp * p + dq * q) / (2 * c)
    else:
        dx = k * dp / torch.cosh(p) * pair.a + turn / norms[0] * across_x
        dy = k * dq / torch.cosh(q) * pair.b + turn / norms[1] * across_y
        dc = (dp * torch.tanh(p) + dq * torch.tanh(q)) / (2 * c)
    return dx, dy, dc
