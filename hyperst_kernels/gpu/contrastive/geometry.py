"""What each row of the features brings to the loss, and the way back from the pull on its point to its own gradient.

All geometries are z_ij = t_i b_j + a_i - s_i s_j <x_i, y_j>: in the Lorentz model with the scale s from a given vector to
sqrt(c) times its point, the time t and the excess a = b = t - 1. The factor of the features, the exp(alpha) of a lift, is
in s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperst_kernels.gpu import launch, maps
from hyperst_kernels.gpu.distance_matrix import scale_and_excess
from hyperst_kernels.gpu.tile_math import (
    at_least,
    dot,
    kappa,
    load_each,
    load_rows,
    nonzero,
    pick,
    sinhc,
    sqrt_rn,
    store_each,
    store_rows,
)

GEOMETRIES = {"lorentz": 0, "euclidean": 1, "cosine": 2}
NORM, SCALE, TIME, EXCESS, RATIO, OTHER = (tl.constexpr(i) for i in range(6))


class Side(NamedTuple):
    """Queries or keys.

    ``vectors`` (r d) as they were given; ``terms`` (6 longest) are the norm of each with its factor, s, t, a and t / s,
    and at the start of the last row the largest a and the factor.
    """

    vectors: Tensor
    terms: Tensor

    @property
    def scale(self) -> Tensor:
        return self.terms[SCALE.value, : len(self.vectors)]

    @property
    def excess(self) -> Tensor:
        return self.terms[EXCESS.value, : len(self.vectors)]

    @property
    def ratio(self) -> Tensor:
        return self.terms[RATIO.value, : len(self.vectors)]

    @property
    def largest(self) -> Tensor:
        return self.terms[OTHER.value, 0]


@triton.jit
def largest_of(terms_ptr, longest):
    """The largest excess."""
    return tl.load(terms_ptr + OTHER * longest)


@triton.jit
def factor_of(terms_ptr, longest):
    return tl.load(terms_ptr + OTHER * longest + 1)


@triton.jit
def _terms(
    x_ptrs, factors_ptr, c_ptr, terms_ptr, x_strides, longest, ns, d, GEOMETRY: tl.constexpr, TANGENT: tl.constexpr,
    ROUNDED: tl.constexpr, DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    k = tl.program_id(1)
    n = pick(ns, k)
    rows, columns = maps.block(BLOCK_ROWS, BLOCK_D)
    x = load_rows(pick(x_ptrs, k), rows, columns, pick(x_strides, k), n, d, DTYPE)
    factor = tl.load(factors_ptr + k)
    length = sqrt_rn(dot(x, x))
    norm = factor * length
    if ROUNDED:
        x = x.to(tl.bfloat16).to(DTYPE)
        length = tl.sqrt(dot(x, x))
    if GEOMETRY == 0:
        scale, excess = scale_and_excess(length, factor, tl.load(c_ptr), TANGENT)
        time = 1 + excess
    elif GEOMETRY == 1:  # |x|^2 + |y|^2 - 2 <x, y>
        scale, time, excess = 1.4142135623730951 * factor + 0 * norm, 1 + 0 * norm, factor * length * factor * length
    else:  # 1 - cos
        scale, time, excess = factor / at_least(factor * length, 1e-12), 1 + 0 * norm, 0.5 + 0 * norm
    out = terms_ptr + tl.cast(k, tl.int64) * (OTHER + 1) * longest
    store_each(out + NORM * longest, rows, norm, n)
    store_each(out + SCALE * longest, rows, scale, n)
    store_each(out + TIME * longest, rows, time, n)
    store_each(out + EXCESS * longest, rows, excess, n)
    store_each(out + RATIO * longest, rows, time / scale, n)
    if tl.program_id(0) == 0:
        tl.store(out + OTHER * longest + 1, factor)


def prepare(
    features: Sequence[Tensor], factors: Tensor | None, c: Tensor, geometry: str, tangent: bool, precision: str
) -> list[Side]:
    """The sides of all features, in one launch."""
    features = [launch.unit_stride(x) for x in features]
    longest = -(-max(map(len, features)) // 16) * 16  # every row of ``terms`` aligned for wide loads
    terms = c.new_zeros(len(features), OTHER.value + 1, longest)  # no excess is below 0
    factors = c.new_ones(len(features)) if factors is None else factors.contiguous()
    rounded = precision == "bf16" and features[0].dtype == torch.float32
    flags = {"GEOMETRY": GEOMETRIES[geometry], "TANGENT": tangent, "ROUNDED": rounded}
    strides = tuple(x.stride(0) for x in features)
    launch.over_rows(_terms, "map", features, tuple(features), factors, c, terms, strides, longest, **flags)
    torch.amax(terms[:, EXCESS.value], 1, out=terms[:, OTHER.value, 0])
    return [Side(x, own) for x, own in zip(features, terms, strict=True)]


# -------------------------------------------------------------------------------------------------- the way back


@triton.jit
def _to_features(
    x_ptrs, terms_ptrs, pull_ptrs, time_ptrs, c_ptr, x_strides, longest, top, ns, d,
    GEOMETRY: tl.constexpr, TANGENT: tl.constexpr, UNIT: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """In place of the pull on X, sum w Y: dL/dX = (sum w t) X / t - sum w Y, carried to the features times their factor.

    Pulls and times begin with row ``top``, and are UNIT times what they stand for.
    """
    k = tl.program_id(1)
    n = pick(ns, k)
    rows, columns = maps.block(BLOCK_ROWS, BLOCK_D)
    rows += top
    terms = pick(terms_ptrs, k)
    x = load_rows(pick(x_ptrs, k), rows, columns, pick(x_strides, k), n, d, DTYPE)
    target = pick(pull_ptrs, k)
    pull = load_rows(target, rows - top, columns, d, n - top, d, DTYPE)
    factor = factor_of(terms, longest)
    if GEOMETRY == 2:
        scale = load_each(terms + SCALE * longest, rows, n, DTYPE)
        point = scale[:, None] * x
        grad = (point * dot(point, pull)[:, None] - pull) * (scale / factor)[:, None]
    else:
        time = load_each(pick(time_ptrs, k), rows - top, n - top, DTYPE)
        ratio = load_each(terms + RATIO * longest, rows, n, DTYPE)
        grad = (time / nonzero(ratio))[:, None] * x - pull
        if GEOMETRY == 1:
            grad *= 1.4142135623730951
        else:
            c = tl.load(c_ptr)
            grad *= sqrt_rn(c) * (1 / UNIT)
            if TANGENT:  # `maps.exp_map0_backward`
                u = factor * x
                squared = c * dot(u, u)
                grad = sinhc(squared)[:, None] * grad + (c * kappa(squared) * dot(u, grad))[:, None] * u
    tl.debug_barrier()  # in place: threads may have read what others write
    store_rows(target, rows - top, columns, grad, n - top, d)


@triton.jit
def _to_gradients(
    x_ptrs, terms_ptrs, pull_ptrs, out_ptrs, along_ptr, x_strides, longest, along_stride, top, ns, d,
    DTYPE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dL/dx in the features' own dtype, and <x, dL/dx> of each row, from that of the features times their factor.

    The results may take the place of the pulls.
    """
    k = tl.program_id(1)
    n = pick(ns, k)
    rows, columns = maps.block(BLOCK_ROWS, BLOCK_D)
    rows += top
    x = load_rows(pick(x_ptrs, k), rows, columns, pick(x_strides, k), n, d, DTYPE)
    grad = load_rows(pick(pull_ptrs, k), rows - top, columns, d, n - top, d, DTYPE)
    grad *= factor_of(pick(terms_ptrs, k), longest)
    tl.debug_barrier()
    store_rows(pick(out_ptrs, k), rows, columns, grad, n, d)
    store_each(along_ptr + tl.cast(k, tl.int64) * along_stride, rows, dot(x, grad), n)
