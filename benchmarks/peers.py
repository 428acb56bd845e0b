"""What we are measured against, as factories: textbook formulas, the same compiled, and packages that may be missing.

A factory imports what it needs and raises ImportError where it is not installed (`pip install -e '.[peers]'`; hyperbolix
needs Python 3.12: HYPERBOLIX_PYTHON names an interpreter that has it).
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from benchmarks.problem import Function

EAGER, COMPILED, CHUNKED, PRODUCTS = "eager", "compiled", "chunked", "products"
GEOOPT, GEOOPT_BALL, HYPLL, KEOPS, OPEN_CLIP = "geoopt", "geoopt ball", "HypLL", "KeOps", "open_clip"
HYPERBOLIX, MEMEFF = "hyperbolix", "memeff"


def compiled(function: Function) -> Function:
    """The formula as one graph. What was compiled before is forgotten: past a few shapes a function stays eager."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)


def textbook(function: Function) -> dict[str, Callable[[], Function]]:
    """A formula, eager and compiled."""
    return {EAGER: lambda: function, COMPILED: lambda: compiled(function)}


def products(n: int, d: int, like: Tensor) -> Function:
    """The matrix product of a forward pass and the two of a backward pass, on memory that is already there."""
    matrix, left, right = like.new_empty(n, n), like.new_empty(n, d), like.new_empty(n, d)

    class Products(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor, y: Tensor) -> Tensor:
            ctx.save_for_backward(x, y)
            torch.mm(x, y.T, out=matrix)
            return x.new_zeros(())

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
            x, y = ctx.saved_tensors
            return torch.mm(matrix, y, out=left), torch.mm(matrix.T, x, out=right)

    return lambda x, y, *scalars: Products.apply(x, y)


def _with_time(space: Tensor) -> Tensor:
    """The Lorentz vector with time component 0."""
    return torch.nn.functional.pad(space, (1, 0))


def geoopt_lorentz(name: str) -> Function:
    """geoopt's Lorentz model, curvature -1, on tangent vectors at the origin or points by their space components."""
    import geoopt

    manifold = geoopt.Lorentz(k=1.0)

    def lift(x: Tensor) -> Tensor:
        return torch.cat([(1 + (x * x).sum(-1, keepdim=True)).sqrt(), x], dim=-1)

    def at(x: Tensor, v: Tensor) -> Tensor:
        return torch.cat([(x * v).sum(-1, keepdim=True) / (1 + (x * x).sum(-1, keepdim=True)).sqrt(), v], dim=-1)

    def exp_map0(v: Tensor) -> Tensor:
        return manifold.expmap0(_with_time(v))

    functions: dict[str, Function] = {
        "exp_map0": lambda v: exp_map0(v)[..., 1:],
        "log_map0": lambda x: manifold.logmap0(lift(x))[..., 1:],
        "exp_map": lambda x, v: manifold.expmap(lift(x), at(x, v))[..., 1:],
        "log_map": lambda x, y: manifold.logmap(lift(x), lift(y))[..., 1:],
        "round_trip": lambda v: manifold.logmap0(exp_map0(v))[..., 1:],
        "distance": lambda u, v: manifold.dist(exp_map0(u), exp_map0(v)),
        "pairwise_distance": lambda u, v: manifold.dist(exp_map0(u)[:, None], exp_map0(v)),
    }
    return functions[name]


def geoopt_ball(name: str) -> Function:
    """geoopt's Poincare ball. Its exponential map at the origin reaches twice as far as the Lorentz model's."""
    import geoopt

    ball = geoopt.PoincareBall(c=1.0)
    functions: dict[str, Function] = {
        "exp_map0": lambda v: ball.expmap0(v / 2),
        "round_trip": lambda v: 2 * ball.logmap0(ball.expmap0(v / 2)),
        "distance": lambda u, v: ball.dist(ball.expmap0(u / 2), ball.expmap0(v / 2)),
        "pairwise_distance": lambda u, v: ball.dist(ball.expmap0(u / 2)[:, None], ball.expmap0(v / 2)),
    }
    return functions[name]


def hypll(name: str) -> Function:
    """HypLL's Poincare ball, by the functions that its manifold calls; the same convention as geoopt's."""
    from hypll.manifolds.poincare_ball.math import diffgeom

    c = torch.tensor(1.0)

    def exp_map0(v: Tensor) -> Tensor:
        return diffgeom.expmap0(v / 2, c.to(v))

    functions: dict[str, Function] = {
        "exp_map0": exp_map0,
        "round_trip": lambda v: 2 * diffgeom.logmap0(exp_map0(v), c.to(v)),
        "distance": lambda u, v: diffgeom.dist(exp_map0(u), exp_map0(v), c.to(u)),
        "pairwise_distance": lambda u, v: diffgeom.cdist(exp_map0(u)[None], exp_map0(v)[None], c.to(u))[0],
    }
    return functions[name]


@functools.cache
def _hyperbolix_process() -> tuple[IO[str], IO[str]]:
    python = os.environ.get("HYPERBOLIX_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import hyperbolix"], capture_output=True).returncode:
        raise ImportError(f"hyperbolix is not installed for {python}")
    program = Path(__file__).with_name("hyperbolix_process.py")
    process = subprocess.Popen([python, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.kill)
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def hyperbolix_distance() -> Function:
    """Distance of hyperbolix's hyperboloid under JAX's jit: for its errors, since calls go through another process."""
    ask, answers = _hyperbolix_process()

    class Distance(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u: Tensor, v: Tensor) -> Tensor:
            print(json.dumps([u.tolist(), v.tolist()]), file=ask, flush=True)
            value, *gradients = json.loads(answers.readline())
            ctx.save_for_backward(*map(u.new_tensor, gradients))
            return u.new_tensor(value)

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
            of_u, of_v = ctx.saved_tensors
            return grad[:, None] * of_u, grad[:, None] * of_v

    return Distance.apply


def keops_loss() -> Function:
    """The symmetric loss as two KeOps reductions over a symbolic matrix of distances; made for few features."""
    from pykeops.torch import LazyTensor

    from benchmarks.textbook import distance, exp_map0, time

    def loss(image: Tensor, text: Tensor, c: Tensor, logit_scale: Tensor) -> Tensor:
        x, y = exp_map0(image, c), exp_map0(text, c)
        x_t, y_t = time(x, c), time(y, c)
        left, right = (c.sqrt() * torch.cat(p, dim=1) for p in ((-x, x_t), (y, y_t)))
        cosh = (LazyTensor(left[:, None].contiguous()) * LazyTensor(right[None].contiguous())).sum(2)
        # 1e-7: the least that float32 tells from 1
        logits = -(cosh + (cosh * cosh - 1).clamp(1e-7, 3e38).sqrt()).log() * (logit_scale / c.sqrt())
        positive = -logit_scale * distance(x, y, c)
        per_row, per_column = logits.logsumexp(dim=1)[:, 0], logits.logsumexp(dim=0)[:, 0]
        return ((per_row - positive).mean() + (per_column - positive).mean()) / 2

    return loss


def open_clip_loss() -> Function:
    """open_clip's ClipLoss: dot products in place of distances, on the same shapes."""
    from benchmarks.torchvision_of_another_build import prepare_torchvision

    prepare_torchvision()
    from open_clip.loss import ClipLoss

    loss = ClipLoss()
    return lambda image, text, c, logit_scale: loss(image, text, logit_scale)


def memeff_loss(logit_scale: float) -> Function:
    """memeff's CLIP loss in Triton without the matrix: cosines, a fixed temperature; CUDA alone, which it says of other tensors."""
    from memeff import MemoryEfficientCLIPLoss

    loss = MemoryEfficientCLIPLoss(temperature=1 / logit_scale, stable=False)  # else its gradient grows with the batch
    return lambda image, text, *scalars: loss(image, text)
