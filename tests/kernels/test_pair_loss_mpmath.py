"""Smoothed targets, debiased negatives and a margin, of points on a line, against formulas with mpmath."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch import Tensor

import hyperst_kernels as hk
from tests.kernels.test_pair_loss import EPS, value_and_gradients
from tests.kernels.triton import DEVICE

# on a line through the origin distances are differences: what is exact needs no distances in many digits
LINES = {
    "coincident": ([0.5, 0.5, -1.0], [0.5, 0.5, 0.5, -1.0]),
    "at the origin": ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    "near the origin": ([1e-8, -2e-8], [1.5e-8, 0.0, 3e-8]),
    "far": ([20.0, -20.0, 0.0], [20.0, -19.0, 0.5, 20.5]),
    "one row": ([1.0], [1.5, 1.0, -2.0, 1.5]),
    "one pair": ([1.0], [1.5]),
    "confident": ([0.0, 9.0], [0.0, 9.0]),
    "wrong": ([0.0, 9.0], [9.0, 0.0]),
}


def exactly(q: Tensor, k: Tensor, s: float, directions: str, options: dict) -> list[Tensor]:
    """The mean loss and its gradients by queries and by keys, of numbers on a line, with 60 digits in between."""
    with mpmath.workdps(60):
        smooth, tau = (mpmath.mpf(options.get(name, 0.0)) for name in ("label_smoothing", "debias"))
        far = [[abs(mpmath.mpf(float(a)) - mpmath.mpf(float(b))) for b in k] for a in q]
        rows = [[(i, j) for j in range(len(k))] for i in range(len(q))]
        if directions == "both":
            rows += [[(i, j) for i in range(len(q))] for j in range(len(q))]
        value, slopes, weight = mpmath.mpf(0), mpmath.matrix(len(q), len(k)), mpmath.mpf(1) / len(rows)
        for t, row in enumerate(rows):
            own = (t % len(q), t % len(q))  # rows first, n of them, then columns
            limit = far[own[0]][own[1]] - options.get("margin", mpmath.inf)
            others = [(i, j) for i, j in row if (i, j) != own and far[i][j] >= limit]
            power = {(i, j): mpmath.exp(-s * far[i][j]) for i, j in [own, *others]}
            true = (mpmath.fsum(power[pair] for pair in others) - tau * len(others) * power[own]) / (1 - tau)
            total = power[own] + max(true, 0)
            for pair in [own, *others]:
                part = power[pair] * (1 - tau * len(others) * (pair == own) - tau * (pair == own)) / (1 - tau)
                share = part / total if true > 0 else mpmath.mpf(pair == own)
                target = smooth / len(power) + (1 - smooth) * (pair == own)
                value += weight * target * (mpmath.log(total) + s * far[pair[0]][pair[1]])
                slopes[pair] += weight * (share - target)
        grads = torch.zeros(2, max(len(q), len(k)), dtype=torch.float64)
        for i in range(len(q)):
            for j in range(len(k)):
                pull = float(-s * slopes[i, j] * mpmath.sign(mpmath.mpf(float(q[i])) - mpmath.mpf(float(k[j]))))
                grads[0, i] += pull
                grads[1, j] -= pull
        return [torch.tensor(float(value), dtype=torch.float64), grads[0, : len(q)], grads[1, : len(k)]]


TARGETS = [{"label_smoothing": 0.1}, {"debias": 0.05}, {"margin": 0.25}]
TARGETS.append({name: value for options in TARGETS for name, value in options.items()})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("s", [0.5, 30.0])
@pytest.mark.parametrize("directions", ["both", "rows"])
@pytest.mark.parametrize("options", TARGETS, ids=lambda o: "-".join(o))
@pytest.mark.parametrize("line", LINES)
def test_against_mpmath(line, options, directions, s, dtype):
    """Of one feature, as good as distances are."""
    q, k = (torch.tensor(x, dtype=dtype) for x in LINES[line])

    def value(q, k):
        given_ = q[:, None].to(DEVICE), k[:, None].to(DEVICE), 1.0, s
        return hk.contrastive_loss(*given_, directions=directions, precision="ieee", **options)

    found, wanted = value_and_gradients(value, q, k), exactly(q, k, s, directions, options)
    # a distance has some roundings of its own and of the radii, a logit s times that
    radius = float(max(q.abs().max(), k.abs().max()))
    error = EPS[dtype] * (64 + 16 * s * radius)
    for x, y in zip(found, wanted, strict=True):
        assert ((x.double().cpu() - y).abs() <= error * (y.abs() + (s if y.ndim else 1.0))).all(), (x, y)
