"""What geometries without curvature need: unit vectors, a common scale, and distances of all pairs that differentiate twice."""

from __future__ import annotations

import torch
from torch import Tensor

# Powers of two whose inverse is a normal number too.
_LARGEST_EXPONENT = {torch.float32: 120, torch.float64: 1000}


def unit(x: Tensor) -> Tensor:
    """x / |x| of any length that the dtype holds, and 0 with a zero gradient at the origin: (... d) -> (... d)."""
    x = x * _row_scale(x)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    at_origin = length == 0
    return torch.where(at_origin, torch.zeros_like(x), x / torch.where(at_origin, torch.ones_like(length), length))


def length(x: Tensor) -> Tensor:
    """|x| wherever the dtype holds it: (... d) -> (... 1)."""
    scale = _row_scale(x)
    return torch.linalg.vector_norm(x * scale, dim=-1, keepdim=True) / scale


def of_size_one(x: Tensor) -> Tensor:
    """Vectors of the same directions with a largest number in [1/2, 1), (... d) -> (... d); the origin has a zero gradient."""
    at_origin = (x == 0).all(-1, keepdim=True)
    return torch.where(at_origin, torch.zeros_like(x), times(x, _row_scale(x)))


def times(x: Tensor, power_of_two: Tensor) -> Tensor:
    """Their product, in the dtype of x."""
    return (x.to(power_of_two.dtype) * power_of_two).to(x.dtype)


def _row_scale(x: Tensor) -> Tensor:
    """A power of two for each row that brings its largest number to [1/2, 1): (... d) -> (... 1)."""
    return _to_one(x.detach().abs().amax(-1, keepdim=True))


def common_scale(*vectors: Tensor) -> Tensor:
    """A power of two, 0-d, that brings the largest number of all to [1/2, 1)."""
    sizes = [torch.linalg.vector_norm(x.detach(), ord=torch.inf) if x.numel() else x.new_zeros(()) for x in vectors]
    return _to_one(torch.stack(sizes).amax())


def _to_one(size: Tensor) -> Tensor:
    """Powers of two, float32 at least, that bring sizes to [1/2, 1), whose squares can be summed.

    1 for what is not finite, and in float16, whose squares float32 holds.
    """
    if size.dtype == torch.float16:
        return torch.ones_like(size, dtype=torch.float32)
    size = size.to(torch.promote_types(size.dtype, torch.float32))
    largest = _LARGEST_EXPONENT[size.dtype]
    exponent = torch.frexp(torch.where(torch.isfinite(size), size, torch.ones_like(size))).exponent
    return torch.ldexp(torch.ones_like(size), -exponent.clamp(-largest, largest))


def pairwise_euclidean(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j| from differences: (n d), (m d) -> (n m). Below 1e-22 of the largest number float32 loses it."""
    scale = common_scale(x, y)
    return _Pairs.apply(x * scale, y * scale, False) / scale


def pairwise_cosine(x: Tensor, y: Tensor) -> Tensor:
    """1 - cosine from the difference of unit vectors, 1 where one is the origin: (n d), (m d) -> (n m)."""
    at_origin = [(t == 0).all(-1).to(t) / 2 for t in (x, y)]
    return _Pairs.apply(unit(x), unit(y), True) + at_origin[0][:, None] + at_origin[1]


class _Pairs(torch.autograd.Function):
    """d_ij = |x_i - y_j|, or d_ij^2 / 2: (... n d), (... m d) -> (... n m).

    In place of torch.cdist alone, whose slope has neither a derivative nor a right rule for torch.func.vmap.
    """

    @staticmethod
    def forward(x: Tensor, y: Tensor, squared: bool) -> Tensor:
        distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        return distance.square_().div_(2) if squared else distance

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, y, ctx.squared = inputs
        ctx.save_for_backward(x, y, output)

    @staticmethod
    def backward(ctx, grad):
        x, y, output = ctx.saved_tensors
        return *_Pull.apply(grad, x, y, output.detach(), ctx.squared), None

    @staticmethod
    def vmap(info, in_dims, x, y, squared):
        return _Pairs.apply(*_samples_first(info, in_dims, x, y), squared), 0


class _Pull(torch.autograd.Function):
    """Gradients of x and y from those of what `_Pairs` gives, 0 for coincident vectors: (... n m) -> (... n d), (... m d)."""

    @staticmethod
    def forward(grad: Tensor, x: Tensor, y: Tensor, pairs: Tensor, squared: bool) -> tuple[Tensor, Tensor]:
        distance = (2 * pairs).sqrt_() if squared else pairs
        weights = grad * distance if squared else grad
        slopes = torch.ops.aten._cdist_backward
        dx = slopes(weights.contiguous(), x.contiguous(), y.contiguous(), 2.0, distance.contiguous())
        transposed = (t.mT.contiguous() for t in (weights, distance))
        return dx, slopes(next(transposed), y.contiguous(), x.contiguous(), 2.0, next(transposed))

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, _, ctx.squared = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, of_dx, of_dy):
        """Of all differences at once, (... n m d): second derivatives are for few vectors."""
        grad, x, y = ctx.saved_tensors
        apart = x.unsqueeze(-2) - y.unsqueeze(-3)
        turn = of_dx.unsqueeze(-2) - of_dy.unsqueeze(-3)
        if ctx.squared:
            of_grad, of_apart = (apart * turn).sum(-1), grad.unsqueeze(-1) * turn
        else:
            same = (apart == 0).all(-1, keepdim=True)
            length = torch.linalg.vector_norm(torch.where(same, torch.ones_like(apart), apart), dim=-1, keepdim=True)
            direction = apart / length
            along = (direction * turn).sum(-1, keepdim=True)
            across = torch.where(same, torch.zeros_like(turn), turn - along * direction)
            of_grad, of_apart = along.squeeze(-1), grad.unsqueeze(-1) * across / length
        return of_grad, of_apart.sum(-2), -of_apart.sum(-3), None, None

    @staticmethod
    def vmap(info, in_dims, grad, x, y, pairs, squared):
        return _Pull.apply(*_samples_first(info, in_dims, grad, x, y, pairs), squared), (0, 0)


def _samples_first(info, in_dims: tuple, *tensors: Tensor) -> list[Tensor]:
    """The tensors with the samples of torch.func.vmap as one more batch dimension in front."""
    return [
        x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(tensors, in_dims, strict=False)
    ]
