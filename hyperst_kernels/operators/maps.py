"""Operators of maps between tangent vectors, points and the Poincare ball."""

from __future__ import annotations

import functools

from hyperst_kernels.cpu import maps as cpu
from hyperst_kernels.operators.row_wise import row_wise, same_shape
from hyperst_kernels.reference import maps as reference


@functools.cache
def _gpu():
    """Return the module of the Triton kernels, imported when one of them is first called."""
    from hyperst_kernels.gpu import maps

    return maps


@functools.cache
def _gpu_transport():
    from hyperst_kernels.gpu import transport

    return transport


@functools.cache
def _gpu_poincare():
    from hyperst_kernels.gpu import poincare

    return poincare


exp_map0 = row_wise(
    "exp_map0(Tensor v, Tensor scale, Tensor c)",
    reference=lambda v, scale, c: reference.exp_map0(scale * v, c),
    gpu=lambda: (_gpu().exp_map0, _gpu().exp_map0_backward),
    cpu=(cpu.exp_map0, cpu.exp_map0_backward),
    shape=same_shape,
)
log_map0 = row_wise(
    "log_map0(Tensor x, Tensor c)",
    reference=reference.log_map0,
    gpu=lambda: (_gpu().log_map0, _gpu().log_map0_backward),
    cpu=(cpu.log_map0, cpu.log_map0_backward),
    shape=same_shape,
)
exp_map = row_wise(
    "exp_map(Tensor x, Tensor v, Tensor c)",
    reference=reference.exp_map,
    gpu=lambda: (_gpu().exp_map, _gpu().exp_map_backward),
    cpu=(cpu.exp_map, cpu.exp_map_backward),
    shape=same_shape,
)
log_map = row_wise(
    "log_map(Tensor x, Tensor y, Tensor c)",
    reference=reference.log_map,
    gpu=lambda: (_gpu().log_map, _gpu().log_map_backward),
    cpu=(cpu.log_map, cpu.log_map_backward),
    shape=same_shape,
)
parallel_transport = row_wise(
    "parallel_transport(Tensor x, Tensor y, Tensor v, Tensor c)",
    reference=reference.parallel_transport,
    gpu=lambda: (_gpu_transport().parallel_transport, _gpu_transport().parallel_transport_backward),
    shape=same_shape,
)
lift = row_wise(
    "lift(Tensor x, Tensor c)",
    reference=reference.lift,
    gpu=lambda: (_gpu_poincare().lift, _gpu_poincare().lift_backward),
    shape=lambda x: (x.shape[0], x.shape[1] + 1),
)
lorentz_to_poincare = row_wise(
    "lorentz_to_poincare(Tensor x, Tensor c)",
    reference=reference.lorentz_to_poincare,
    gpu=lambda: (_gpu_poincare().lorentz_to_poincare, _gpu_poincare().lorentz_to_poincare_backward),
    shape=same_shape,
)
poincare_to_lorentz = row_wise(
    "poincare_to_lorentz(Tensor p, Tensor c)",
    reference=reference.poincare_to_lorentz,
    gpu=lambda: (_gpu_poincare().poincare_to_lorentz, _gpu_poincare().poincare_to_lorentz_backward),
    shape=same_shape,
)
