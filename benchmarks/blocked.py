"""What is computed blockwise, from the matrix of all pairs: several positives, other targets, the sigmoid loss, exterior angles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import hyperst_kernels as hk
from benchmarks import peers, textbook
from benchmarks.problem import OURS, Function, Problem, pairs

TESTS = ("tests/kernels/test_pair_loss.py", "tests/kernels/test_pair_loss_targets.py")
POSITIVES, SIGMOID, ANGLES = "several positives", "sigmoid loss", "pairwise_exterior_angle"
SMOOTHED, DEBIASED, MARGIN = "label smoothing", "debiased negatives", "margin"
OPERATIONS = (POSITIVES, SMOOTHED, DEBIASED, MARGIN, SIGMOID, ANGLES)
SCALE, BIAS, VIEWS = 1 / 0.07, -10.0, 4  # VIEWS rows have one id
TARGETS: dict[str, dict[str, Any]] = {
    SMOOTHED: {"label_smoothing": 0.1},
    DEBIASED: {"debias": 1e-3},
    MARGIN: {"margin": 0.1},
}


def _logits(u: Tensor, v: Tensor) -> Tensor:
    c = u.new_ones(())
    return -SCALE * textbook.pairwise_distance(textbook.exp_map0(u, c), textbook.exp_map0(v, c), c)


def _of_one_id(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device) // VIEWS


def _several_positives(u: Tensor, v: Tensor) -> Tensor:
    logits, ids = _logits(u, v), _of_one_id(len(u), u)
    positive = (ids[:, None] == ids).to(logits.dtype)
    each = [-(F.log_softmax(x, 1) * positive).sum(1) / positive.sum(1) for x in (logits, logits.T)]
    return (each[0].mean() + each[1].mean()) / 2


def _smoothed(u: Tensor, v: Tensor) -> Tensor:
    logits, own = _logits(u, v), torch.arange(len(u), device=u.device)
    each = [F.cross_entropy(x, own, **TARGETS[SMOOTHED]) for x in (logits, logits.T)]
    return (each[0] + each[1]) / 2


def _debiased(u: Tensor, v: Tensor) -> Tensor:
    powers, tau, others = _logits(u, v).exp(), TARGETS[DEBIASED]["debias"], len(u) - 1
    positive = powers.diagonal()
    sums = [(powers.sum(dim) - positive - tau * others * positive).clamp(min=0) / (1 - tau) for dim in (1, 0)]
    each = [-torch.log(positive / (positive + negatives)).mean() for negatives in sums]
    return (each[0] + each[1]) / 2


def _margin(u: Tensor, v: Tensor) -> Tensor:
    logits, own = _logits(u, v), torch.arange(len(u), device=u.device)
    limit = (logits.diagonal() + SCALE * TARGETS[MARGIN]["margin"]).detach()
    each = [F.cross_entropy(x.masked_fill(x > limit[:, None], -torch.inf), own) for x in (logits, logits.T)]
    return (each[0] + each[1]) / 2


def _sigmoid(u: Tensor, v: Tensor) -> Tensor:
    logits = _logits(u, v) + BIAS
    return -F.logsigmoid((2 * torch.eye(len(u), device=u.device) - 1) * logits).sum() / len(u)


def _angles(u: Tensor, v: Tensor) -> Tensor:
    c = u.new_ones(())
    x, y = textbook.exp_map0(u, c), textbook.exp_map0(v, c)
    product = c * (x @ y.T - textbook.time(x, c) @ textbook.time(y, c).T)
    above = textbook.time(y, c).T + product * textbook.time(x, c)
    below = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * (product**2 - 1).clamp(min=textbook.EPS).sqrt()
    return torch.acos((above / below).clamp(min=-1 + textbook.EPS, max=1 - textbook.EPS))


def setup(operation: str, n: int, d: int, *, radius: float = 1.0, separation: float = 1.0, **place) -> Problem:
    """Two tangent vectors per row, ``radius`` long and ``separation`` apart; see `pairs`."""
    inputs = list(pairs(n, d, radius, separation, **place))
    ids = _of_one_id(n, inputs[0])
    ours: dict[str, Function] = {
        POSITIVES: partial(hk.contrastive_loss, logit_scale=SCALE, positives=(ids, ids)),
        **{name: partial(hk.contrastive_loss, logit_scale=SCALE, **options) for name, options in TARGETS.items()},
        SIGMOID: partial(hk.contrastive_loss, logit_scale=SCALE, logit_bias=BIAS, loss="sigmoid"),
        ANGLES: partial(hk.pairwise_exterior_angle, input="tangent"),
    }
    theirs: dict[str, Function] = {
        POSITIVES: _several_positives, SMOOTHED: _smoothed, DEBIASED: _debiased, MARGIN: _margin, SIGMOID: _sigmoid,
        ANGLES: _angles,
    }  # fmt: skip
    factories: dict[str, Callable[[], Function]] = {OURS: lambda: ours[operation], **peers.textbook(theirs[operation])}
    return Problem(inputs, factories)
