"""The operator of exterior angles of all pairs, blockwise on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperst_kernels.blocked import angle
from hyperst_kernels.blocked.blocks import blocks
from hyperst_kernels.cpu import angle_pairs
from hyperst_kernels.cpu.native import bindings
from hyperst_kernels.operators.register import (
    PORTABLE,
    TRITON,
    below_autograd,
    define,
    differentiate,
    differentiated,
    in_full_precision,
    in_reverse,
    raising,
    reference_in_use,
)
from hyperst_kernels.operators.row_wise import input_name
from hyperst_kernels.reference import entailment as reference


class _PairwiseExteriorAngle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, c, tangent):
        with below_autograd():
            out = _angles(x, y, c, tangent)
        ctx.tangent = tangent
        ctx.save_for_backward(x, y, c)
        return out

    @staticmethod
    def backward(ctx, grad):
        return *_angles_backward(grad, *ctx.saved_tensors, ctx.tangent), None


def _blocks_of_angles(x, y, c, tangent):
    if bindings.usable(x):
        return angle_pairs.AnglePairs(x, y, c, tangent).matrix()
    out = c.new_empty(x.shape[0], y.shape[0])
    for rows, columns in blocks(x.shape[0], y.shape[0], x.device):
        out[rows, columns] = angle.values(x[rows], y[columns], c, tangent)
    return out


def _blocks_of_gradients(grad, x, y, c, tangent):
    if bindings.usable(x):
        dx, dy, dc = angle_pairs.AnglePairs(x, y, c, tangent).gradients_of(bindings.rows(grad))
        return dx, dy, dc.to(c.dtype)
    dx, dy, dc = torch.zeros_like(x), torch.zeros_like(y), c.new_zeros((), dtype=torch.float64)
    for rows, columns in blocks(x.shape[0], y.shape[0], x.device):
        of_x, of_y, of_c = angle.gradients(grad[rows, columns], x[rows], y[columns], c, tangent)
        dx[rows] += of_x
        dy[columns] += of_y
        dc = dc + of_c.double()
    return dx, dy, dc.to(c.dtype)


_EVERYWHERE = (*TRITON, *PORTABLE)
_angles = define(
    "pairwise_exterior_angle(Tensor x, Tensor y, Tensor c, bool tangent) -> Tensor",
    lambda x, y, c, tangent: c.new_empty(x.shape[0], y.shape[0]),
    dict.fromkeys(_EVERYWHERE, in_full_precision(_blocks_of_angles)),
)
_angles_backward = define(
    "pairwise_exterior_angle_backward(Tensor grad, Tensor x, Tensor y, Tensor c, bool tangent) -> (Tensor, Tensor, Tensor)",
    lambda grad, x, y, c, tangent: (x.new_empty(x.shape), y.new_empty(y.shape), c.new_empty(())),
    dict.fromkeys(_EVERYWHERE, in_full_precision(_blocks_of_gradients)),
)
differentiate(_angles, {"": differentiated(_PairwiseExteriorAngle)})
_SMALL = "compute it under hyperst_kernels.use_reference(), where the matrix is small"
differentiate(_angles_backward, {"": raising(_angles_backward, "pairwise_exterior_angle", _SMALL)})


def pairwise_exterior_angle(x: Tensor, y: Tensor, c: Tensor, tangent: bool) -> Tensor:
    """(n d), (m d) of the geometry's dtype -> (n m)."""
    if reference_in_use():
        return in_reverse("pairwise_exterior_angle", reference.pairwise_exterior_angle, x, y, c, input_name(tangent))
    return in_reverse("pairwise_exterior_angle", _angles, x, y, c, tangent)
