"""What is computed blockwise, from the matrix of all pairs: several positives, other targets and scales, the sigmoid loss, exterior
angles, products of spaces. And terms with scales of their own, which are fused one by one.
"""

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

TESTS = tuple(f"tests/kernels/test_{name}.py" for name in ("pair_loss", "pair_loss_targets", "products"))
POSITIVES, SIGMOID, ANGLES = "several positives", "sigmoid loss", "pairwise_exterior_angle"
SMOOTHED, DEBIASED, MARGIN = "label smoothing", "debiased negatives", "margin"
EACH, TERMS, ANGLE_LOGITS = "a scale of each query", "two terms, a scale each", "angles as logits"
L1, L2 = "product of two spaces, l1", "product of two spaces, l2"
OPERATIONS = (POSITIVES, SMOOTHED, DEBIASED, MARGIN, EACH, TERMS, SIGMOID, ANGLE_LOGITS, L1, L2, ANGLES)
SCALE, BIAS, VIEWS = 1 / 0.07, -10.0, 4  # VIEWS rows have one id
CURVATURES = (1.0, 0.5)  # of the factors of a product
TARGETS: dict[str, dict[str, Any]] = {
    SMOOTHED: {"label_smoothing": 0.1},
    DEBIASED: {"debias": 1e-3},
    MARGIN: {"margin": 0.1},
}


def _distances(u: Tensor, v: Tensor, c: float = 1.0) -> Tensor:
    curvature = u.new_tensor(c)
    return textbook.pairwise_distance(textbook.exp_map0(u, curvature), textbook.exp_map0(v, curvature), curvature)


def _logits(u: Tensor, v: Tensor) -> Tensor:
    return -SCALE * _distances(u, v)


def _scales(n: int, like: Tensor) -> Tensor:
    return torch.linspace(SCALE / 2, 2 * SCALE, n, dtype=like.dtype, device=like.device)


def _cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def _both_ways(logits: Tensor) -> Tensor:
    return (_cross_entropy(logits) + _cross_entropy(logits.T)) / 2


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


def _scale_of_each(u: Tensor, v: Tensor) -> Tensor:
    return _both_ways(-_scales(len(u), u)[:, None] * _distances(u, v))


def _terms(u: Tensor, v: Tensor) -> Tensor:
    distances = _distances(u, v)
    return _both_ways(-SCALE * distances) + _cross_entropy(-SCALE / 2 * distances.T)


def _product(u: Tensor, v: Tensor, l2: bool) -> Tensor:
    halves = zip(u.chunk(2, 1), v.chunk(2, 1), CURVATURES, strict=True)
    one, other = (_distances(*half) for half in halves)
    return _both_ways(-SCALE * (torch.hypot(one, other) if l2 else one + other))


def _angle_logits(u: Tensor, v: Tensor) -> Tensor:
    return _both_ways(-SCALE * _angles(u, v))


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
    ids, c = _of_one_id(n, inputs[0]), inputs[0].new_tensor(CURVATURES)

    def terms(u: Tensor, v: Tensor) -> Tensor:
        two = [hk.Term(u, v, logit_scale=SCALE), hk.Term(v, u, 1.0, "rows", logit_scale=SCALE / 2)]
        return hk.hierarchical_contrastive_loss(two)[0]

    ours: dict[str, Function] = {
        POSITIVES: partial(hk.contrastive_loss, logit_scale=SCALE, positives=(ids, ids)),
        **{name: partial(hk.contrastive_loss, logit_scale=SCALE, **options) for name, options in TARGETS.items()},
        EACH: partial(hk.contrastive_loss, logit_scale=_scales(n, inputs[0])),
        TERMS: terms,
        SIGMOID: partial(hk.contrastive_loss, logit_scale=SCALE, logit_bias=BIAS, loss="sigmoid"),
        ANGLE_LOGITS: partial(hk.contrastive_loss, logit_scale=SCALE, geometry="angle"),
        L1: partial(hk.contrastive_loss, c=c, logit_scale=SCALE, geometry="l1-product"),
        L2: partial(hk.contrastive_loss, c=c, logit_scale=SCALE, geometry="l2-product"),
        ANGLES: partial(hk.pairwise_exterior_angle, input="tangent"),
    }
    theirs: dict[str, Function] = {
        POSITIVES: _several_positives, SMOOTHED: _smoothed, DEBIASED: _debiased, MARGIN: _margin, EACH: _scale_of_each,
        TERMS: _terms, SIGMOID: _sigmoid, ANGLE_LOGITS: _angle_logits, L1: partial(_product, l2=False),
        L2: partial(_product, l2=True), ANGLES: _angles,
    }  # fmt: skip
    factories: dict[str, Callable[[], Function]] = {OURS: lambda: ours[operation], **peers.textbook(theirs[operation])}
    return Problem(inputs, factories)
